"""The files of a PostProcess job as RELION writes them: its STAR file, EMDB's FSC in XML, a detector's MTF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from polarice.io.atomic import replacing
from polarice.io.star import Block, Table, read_star, write_star
from polarice.types import InputError

MTF_LABELS = ("rlnResolutionInversePixel", "rlnMtfValue")
FSC_LABELS = {
    "corrected": "rlnFourierShellCorrelationCorrected",
    "part": "rlnFourierShellCorrelationParticleMaskFraction",
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
}
GUINIER_LABELS = {
    "squared": "rlnResolutionSquared",
    "original": "rlnLogAmplitudesOriginal",
    "weighted": "rlnLogAmplitudesWeighted",
    "sharpened": "rlnLogAmplitudesSharpened",
    "intercept": "rlnLogAmplitudesIntercept",
}


def write_postprocess(
    path: Path,
    general: Mapping[str, Any],
    fsc: Mapping[str, np.ndarray],
    guinier: Mapping[str, np.ndarray],
    box_A: float,
) -> None:
    """postprocess.star: blocks general (pairs by label), fsc and guinier (columns by the keys of FSC_LABELS and
    GUINIER_LABELS, by shell; those that are missing are left out)."""
    shell = np.arange(len(fsc["corrected"]))
    columns = {
        "rlnSpectralIndex": shell,
        "rlnResolution": np.where(shell > 0, shell / box_A, 1 / 999),
        "rlnAngstromResolution": np.where(shell > 0, box_A / np.maximum(shell, 1), 999.0),
    }
    columns |= {label: fsc[key] for key, label in FSC_LABELS.items() if key in fsc}
    lines = {label: guinier[key] for key, label in GUINIER_LABELS.items() if key in guinier}
    blocks = [
        Block.of_pairs("general", general),
        Block("fsc", table=Table.of(columns)),
        Block("guinier", table=Table.of(lines)),
    ]
    write_star(path, blocks)


def write_fsc_xml(path: Path, frequency: np.ndarray, fsc: np.ndarray, title: str) -> None:
    """FSC over spatial frequency (1 / A), as EMDB takes it."""
    with replacing(path, "w") as stream:
        stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
        stream.write(f'<fsc title={quoteattr(title)} xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">\n')
        for x, y in zip(frequency, fsc, strict=True):
            stream.write(f"  <coordinate>\n    <x>{x:.6f}</x>\n    <y>{y:.6f}</y>\n  </coordinate>\n")
        stream.write("</fsc>\n")


def read_mtf(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in 1 / pixel of the camera, rising, and the MTF there. Raises InputError where the file is none."""
    for block in read_star(path):
        if block.table is not None and all(label in block.table for label in MTF_LABELS):
            frequency, value = (block.table.finite(label, 10) for label in MTF_LABELS)
            order = np.argsort(frequency, kind="stable")
            if len(order) < 2 or value.max() <= 0:
                raise InputError(f"{path}: an MTF of {len(order)} points, the highest {value.max(initial=0):g}; no use")
            return frequency[order], value[order]
    raise InputError(
        f"{path}: has no columns _{MTF_LABELS[0]} and _{MTF_LABELS[1]}; give a detector's MTF as STAR file"
    )
