"""The files of a RELION Class2D job, written so that relion_display, `relion_refine --continue` and the rest take them.

Scales (measured against RELION 3.1.3 on white noise): its transform is scaled by 1/N^2 and its noise and signal power
are per component, so sigma2 and tau2 = ours / (2 N^2), where N is the box; its noise power is what is left of the noise
when images are masked to the particle. Pixels of the averages are the same in both. Offsets are in Angstrom.
rlnSsnrMap is our SSNR (RELION multiplies its own by tau2_fudge).

Paths inside the files begin with the folder as it was given, so they hold from the directory the job was started in,
as RELION's do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.io.atomic import naming_target
from polarice.io.mrc import write_stack
from polarice.io.particles import ParticleTable, names_from_here, pose_columns, write_particles
from polarice.io.star import Block, Table, write_star
from polarice.types import ClassModel, Iteration

_MASK_EDGE_PX = 5
_UNKNOWN = 999.0  # RELION's own word for an accuracy that was not estimated
_JOB_FOLDER = re.compile(r"^.*?(?:^|/)job\d{3,}/")


@dataclass(frozen=True)
class RunSettings:
    """What RELION wants to know of the run besides the iteration itself."""

    particle_diameter_A: float
    tau2_fudge: float = 2.0
    seed: int = 0
    strict_highres_exp_A: float | None = None
    ctf: bool = True  # images are corrected for the CTF
    ctf_intact_first_peak: bool = False
    phase_flipped: bool = False  # the images have been
    dimensions: int = 2  # of the references
    images_masked: bool = False  # noise_power is what the particle mask leaves of the noise, not the whole noise


@dataclass(frozen=True)
class RunNames:
    """The files of one iteration: `root` as written inside them, which is where they lie too."""

    root: str
    number: int

    def __getitem__(self, kind: str) -> str:
        return f"{self.root}_it{self.number:03d}_{kind}"


def write_iteration(
    folder: str | os.PathLike[str],
    iteration: Iteration,
    table: ParticleTable,
    run: RunSettings,
    *,
    rows: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write run_itNNN_classes.mrcs, _model.star, _sampling.star, _data.star and, last, _optimiser.star.

    `iteration.assignment` is about the rows `rows` of `table` (int indices in that order; without, about all of
    them): bad particles are left out of _data.star by leaving them out of `rows`. `columns` are further columns of the
    particle table, one value for each of those rows (rlnNormCorrection, say). Particles that have no class yet get
    class 0.

    Each file is replaced as a whole. An optimiser file of the same number is removed first and the new one written
    last, so an iteration with an optimiser file is complete. Returns the optimiser file's path.

    Raises InputError where the disk is full or the folder may not be written, ValueError where shapes do not fit.
    """
    rows = np.arange(len(table.particles)) if rows is None else np.asarray(rows)
    if len(rows) != len(iteration.assignment.pose.class_of):
        raise ValueError(f"{len(rows)} rows for an assignment of {len(iteration.assignment.pose.class_of)} particles")
    names = RunNames(f"{os.fspath(folder).rstrip('/') or '/'}/run", iteration.number)
    optimiser = Path(names["optimiser.star"])
    optimiser.unlink(missing_ok=True)
    groups = groups_of(table, rows)
    model = iteration.model
    write_stack(names["classes.mrcs"], model.averages.astype(np.float32), model.pixel_size_A)
    classes = _stacked(names, len(model.weights))
    write_star(names["model.star"], model_blocks(iteration, run, groups, classes, None))
    write_star(names["sampling.star"], [_sampling_block(iteration)])
    write_data(names["data.star"], iteration, table, rows, groups, columns or {})
    write_star(optimiser, [optimiser_block(names, iteration, run, {})])
    return optimiser


def complete_iterations(folder: str | os.PathLike[str]) -> list[int]:
    """Numbers of the iterations in a job's folder that were written to the end, ascending."""
    found = (re.fullmatch(r"run_it(\d{3,})_optimiser\.star", path.name) for path in Path(folder).glob("run_it*"))
    return sorted(int(match[1]) for match in found if match)


def discard_from(folder: str | os.PathLike[str], number: int) -> None:
    """Remove the files of iteration `number` and later: a run is about to do them again.

    The last iteration goes first, and of each what marks it as done (the checkpoint, then the optimiser file): whenever
    this is cut off, an iteration that still counts as done has all its files. InputError where the folder may not be
    written.
    """

    def place(path: Path) -> tuple[int, bool, bool]:
        name = path.name
        return -_iteration_of(path), not name.endswith("_polarice.npz"), not name.endswith("_optimiser.star")

    paths = [path for path in Path(folder).glob("run_it*_*") if _iteration_of(path) >= number]
    for path in sorted(paths, key=place):
        with naming_target(path):
            path.unlink(missing_ok=True)


def _iteration_of(path: Path) -> int:
    """The number in a file's name; -1 where there is none."""
    match = re.match(r"run_it(\d{3,})_", path.name)
    return int(match[1]) if match else -1


# -- particles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """RELION's groups of particles, in the order in which RELION numbers them."""

    names: tuple[str, ...]
    group_of: np.ndarray  # (n,) from 0
    sizes: np.ndarray  # (groups,)
    optics_of: np.ndarray  # (groups,) optics group of each one's first particle


def groups_of(table: ParticleTable, rows: np.ndarray) -> Groups:
    """Groups as RELION makes them when it reads a table (found by running it).

    Particles are sorted by rlnMicrographName (stably; by what stands behind the @ in movies); a group is a
    rlnGroupName, else a micrograph without its job's folder; groups are numbered as they appear. Without micrographs
    there is one.
    """
    optics = np.asarray(table.particles.optics_of)[rows]
    if "rlnMicrographName" not in table.table.labels or not len(rows):
        return Groups(("group",), np.zeros(len(rows), np.int64), np.array([len(rows)]), optics[:1])
    micrographs, micrograph_of = table.table.codes("rlnMicrographName")
    micrograph_of = micrograph_of[rows]
    if "@" in micrographs[micrograph_of[0]]:
        micrographs = tuple(name.partition("@")[2] for name in micrographs)
    rank = _ranks(micrographs)
    if "rlnGroupName" in table.table.labels:
        texts, text_of = table.table.codes("rlnGroupName")
        text_of = text_of[rows]
    else:
        texts, text_of = tuple(_JOB_FOLDER.sub("", name) for name in micrographs), micrograph_of
    names = tuple(dict.fromkeys(texts))
    place = {name: index for index, name in enumerate(names)}
    code = np.array([place[text] for text in texts])
    return _numbered(names, code[text_of], np.argsort(rank[micrograph_of], kind="stable"), optics)


def _ranks(names: Iterable[str]) -> np.ndarray:
    """Place of each name in the order of their bytes."""
    keys = [name.encode("utf-8", "surrogateescape") for name in names]
    place = {key: index for index, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys])


def _numbered(names: tuple[str, ...], code: np.ndarray, order: np.ndarray, optics: np.ndarray) -> Groups:
    """Groups numbered by first appearance when particles are taken in `order`."""
    present, first = np.unique(code[order], return_index=True)
    by_appearance = np.argsort(first)
    number = np.full(len(names), -1, np.int64)
    number[present[by_appearance]] = np.arange(len(present))
    group_of = number[code]
    first_row = order[first[by_appearance]]
    kept = tuple(names[c] for c in present[by_appearance])
    return Groups(kept, group_of, np.bincount(group_of, minlength=len(kept)), optics[first_row])


def write_data(
    path: str,
    iteration: Iteration,
    table: ParticleTable,
    rows: np.ndarray,
    groups: Groups,
    columns: Mapping[str, np.ndarray],
) -> None:
    """run_itNNN_data.star: the input's columns as they stood, and what the iteration found in the place of its own."""
    found = iteration.assignment
    ours = {
        "rlnGroupNumber": groups.group_of + 1,
        "rlnAngleRot": np.zeros(len(rows)),
        "rlnAngleTilt": np.zeros(len(rows)),
        **pose_columns(found.pose, iteration.model.pixel_size_A),
        "rlnNormCorrection": np.ones(len(rows)),
        "rlnLogLikeliContribution": np.where(np.isfinite(found.log_likelihood), found.log_likelihood, 0.0),
        "rlnMaxValueProbDistribution": found.max_probability,
        "rlnNrOfSignificantSamples": found.significant,
        **names_from_here(table, rows),
        **columns,
    }
    write_particles(path, table, rows, ours)


# -- model -------------------------------------------------------------------------------------------------------------


def model_blocks(
    iteration: Iteration, run: RunSettings, groups: Groups, classes: Mapping[str, np.ndarray], fsc: np.ndarray | None
) -> Iterator[Block]:
    """run_itNNN_model.star; noise both by group, as RELION 3 reads it, and by optics group, as RELION 4 and 5 do.

    classes: columns of model_classes beside those of all models; fsc (S,) of half maps, where there are any.
    """
    model = iteration.model
    box, shells = model.averages.shape[-1], model.ssnr.shape[1]
    yield Block.of_pairs("model_general", _model_general(iteration, run, len(groups.names)))
    yield Block("model_classes", table=_model_classes(model, classes))
    frequency = np.arange(shells) / (box * model.pixel_size_A)
    for k in range(len(model.weights)):
        yield Block(f"model_class_{k + 1}", table=_model_class(model, k, frequency, run.tau2_fudge, fsc))
    yield Block(
        "model_groups",
        table=Table.of(
            {
                "rlnGroupNumber": np.arange(1, len(groups.names) + 1),
                "rlnGroupName": np.array(groups.names, dtype=object),
                "rlnGroupNrParticles": groups.sizes,
                "rlnGroupScaleCorrection": np.ones(len(groups.names)),
            }
        ),
    )
    noise = [_noise_table(power, frequency, _noise_scale(model, run)) for power in model.noise_power]
    for g, optics in enumerate(groups.optics_of):
        yield Block(f"model_group_{g + 1}", table=noise[optics])
    for g, spectrum in enumerate(noise):
        yield Block(f"model_optics_group_{g + 1}", table=spectrum)


def _model_general(iteration: Iteration, run: RunSettings, groups: int) -> dict[str, float | int]:
    model, found = iteration.model, iteration.assignment
    box = model.averages.shape[-1]
    resolution = _resolution_A(iteration)
    seen = found.pose.class_of >= 0
    return {
        "rlnReferenceDimensionality": run.dimensions,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": box,
        "rlnCurrentResolution": resolution,
        "rlnCurrentImageSize": min(box - box % 2, 2 * round(box * model.pixel_size_A / iteration.resolution_limit_A)),
        "rlnPaddingFactor": 2.0,
        "rlnIsHelix": 0,
        "rlnFourierSpaceInterpolator": 1,
        "rlnMinRadiusNnInterpolation": 10,
        "rlnPixelSize": model.pixel_size_A,
        "rlnNrClasses": len(model.weights),
        "rlnNrBodies": 1,
        "rlnNrGroups": groups,
        "rlnNrOpticsGroups": len(model.noise_power),
        "rlnTau2FudgeFactor": run.tau2_fudge,
        "rlnNormCorrectionAverage": 1.0,
        "rlnSigmaOffsetsAngst": model.shift_sigma_px * model.pixel_size_A,
        "rlnOrientationalPriorMode": 0,
        "rlnSigmaPriorRotAngle": 0.0,
        "rlnSigmaPriorTiltAngle": 0.0,
        "rlnSigmaPriorPsiAngle": 0.0,
        "rlnLogLikelihood": float(found.log_likelihood[seen].sum()),
        "rlnAveragePmax": float(iteration.max_probability),
    }


def _resolution_A(iteration: Iteration) -> float:
    """The best class's resolution, at least that of RELION's fifth shell, at most what images were compared up to."""
    model = iteration.model
    width_A = model.averages.shape[-1] * model.pixel_size_A
    used = model.resolution_A[(model.weights > 0) & np.isfinite(model.resolution_A)]
    best = float(used.min(initial=width_A / 5))
    return max(best, min(iteration.resolution_limit_A, width_A / 5))


def _stacked(names: RunNames, classes: int) -> dict[str, np.ndarray]:
    """What is said of classes in two dimensions alone."""
    sections = np.array([f"{k:06d}@{names['classes.mrcs']}" for k in range(1, classes + 1)], object)
    nowhere = np.zeros(classes)
    return {"rlnReferenceImage": sections, "rlnClassPriorOffsetX": nowhere, "rlnClassPriorOffsetY": nowhere}


def _model_classes(model: ClassModel, own: Mapping[str, np.ndarray]) -> Table:
    classes = len(model.weights)
    width_A = model.averages.shape[-1] * model.pixel_size_A
    return Table.of(
        {
            "rlnReferenceImage": own["rlnReferenceImage"],
            "rlnClassDistribution": np.asarray(model.weights, np.float64),
            "rlnAccuracyRotations": np.full(classes, _UNKNOWN),
            "rlnAccuracyTranslationsAngst": np.full(classes, _UNKNOWN),
            "rlnEstimatedResolution": np.fmin(model.resolution_A, width_A),  # the first shell where there is none
            "rlnOverallFourierCompleteness": np.ones(classes),
            **own,
        }
    )


def _model_class(model: ClassModel, k: int, frequency: np.ndarray, tau2_fudge: float, fsc: np.ndarray | None) -> Table:
    """Spectra of one class: the prior's variance without tau2_fudge, as RELION writes it, and sigma2 = tau2 / SSNR."""
    box = model.averages.shape[-1]
    ssnr = np.nan_to_num(np.maximum(model.ssnr[k], 0), posinf=0.0)
    tau2 = np.nan_to_num(np.maximum(model.signal_power[k], 0), posinf=0.0) / tau2_fudge / (2 * box**2)
    sigma2 = np.divide(tau2, ssnr, out=np.zeros(len(ssnr)), where=ssnr > 0)
    shells = len(frequency)
    return Table.of(
        {
            "rlnSpectralIndex": np.arange(shells),
            "rlnResolution": frequency,
            "rlnAngstromResolution": _angstrom(frequency),
            "rlnSsnrMap": ssnr,
            "rlnGoldStandardFsc": np.zeros(shells) if fsc is None else fsc,
            "rlnFourierCompleteness": (ssnr > 0).astype(np.float64),
            "rlnReferenceSigma2": sigma2,
            "rlnReferenceTau2": tau2,
            "rlnSpectralOrientabilityContribution": np.zeros(shells),
        }
    )


def _angstrom(frequency: np.ndarray) -> np.ndarray:
    """Resolution in Angstrom; RELION writes 999 for the origin."""
    return np.divide(1.0, frequency, out=np.full(len(frequency), 999.0), where=frequency > 0)


def _noise_table(power: np.ndarray, frequency: np.ndarray, scale: float) -> Table:
    columns = {
        "rlnSpectralIndex": np.arange(len(frequency)),
        "rlnResolution": frequency,
        "rlnSigma2Noise": power * scale,
    }
    return Table.of(columns)


def _noise_scale(model: ClassModel, run: RunSettings) -> float:
    """RELION's sigma2 over our noise power: 1 / (2 N^2), times what RELION's mask lets through."""
    box = model.averages.shape[-1]
    share = 1.0 if run.images_masked else mask_share(box, run.particle_diameter_A / model.pixel_size_A / 2)
    return share / (2 * box**2)


def mask_share(box_px: int, radius_px: float) -> float:
    """Mean square of RELION's particle mask over the box: 1 inside, a raised cosine over 5 px beyond the radius."""
    x = np.arange(box_px) - box_px // 2
    beyond = np.clip((np.hypot(x[:, None], x) - radius_px) / _MASK_EDGE_PX, 0, 1)
    return float(np.square(0.5 + 0.5 * np.cos(np.pi * beyond)).mean())


# -- sampling and optimiser --------------------------------------------------------------------------------------------


def _sampling_block(iteration: Iteration) -> Block:
    """run_itNNN_sampling.star: RELION samples coarsely and halves its steps once (adaptive oversampling of order 1)."""
    pixel = iteration.model.pixel_size_A
    psi_step = min(2 * iteration.psi_step_deg, 45.0)
    step = max(2 * iteration.shift_step_px, 0.1) * pixel
    reach = max(iteration.shift_range_px * pixel, step)
    return Block.of_pairs(
        "sampling_general",
        {
            "rlnIs3DSampling": 0,
            "rlnIs3DTranslationalSampling": 0,
            "rlnPsiStep": psi_step,
            "rlnOffsetRange": reach,
            "rlnOffsetStep": step,
            "rlnHelicalOffsetStep": -1.0,
            "rlnSamplingPerturbInstance": 0.0,
            "rlnSamplingPerturbFactor": 0.5,
            "rlnHealpixOrderOriginal": 2,
            "rlnPsiStepOriginal": psi_step,
            "rlnOffsetRangeOriginal": reach,
            "rlnOffsetStepOriginal": step,
        },
    )


def optimiser_block(
    names: RunNames, iteration: Iteration, run: RunSettings, more: Mapping[str, str | int | float]
) -> Block:
    """run_itNNN_optimiser.star: the 49 labels without which RELION 3.1 does not continue, and what others read.

    more: labels whose values are not those of a plain 2D classification, or that it has not.
    """
    best = 1 / _resolution_A(iteration)
    changed = {
        "Orientations": float(iteration.changed_psi_deg),
        "Offsets": float(iteration.changed_shift_px * iteration.model.pixel_size_A),
        "Classes": float(iteration.changed_class),
    }
    values: dict[str, str | int | float] = {
        "rlnOutputRootName": names.root,
        "rlnModelStarFile": names["model.star"],
        "rlnExperimentalDataStarFile": names["data.star"],
        "rlnOrientSamplingStarFile": names["sampling.star"],
        "rlnCurrentIteration": iteration.number,
        "rlnNumberOfIterations": iteration.total,
        "rlnBestResolutionThusFar": best,
        "rlnRandomSeed": run.seed,
        "rlnParticleDiameter": float(run.particle_diameter_A),
        "rlnWidthMaskEdge": _MASK_EDGE_PX,
        "rlnHighresLimitExpectation": float(run.strict_highres_exp_A or -1.0),
        "rlnDoCorrectCtf": int(run.ctf),
        "rlnDoIgnoreCtfUntilFirstPeak": int(run.ctf_intact_first_peak),
        "rlnCtfDataArePhaseFlipped": int(run.phase_flipped),
        **_OPTIMISER,
    }
    for name, value in changed.items():
        values[f"rlnChangesOptimal{name}"] = value if np.isfinite(value) else _UNKNOWN
    values["rlnSmallestChangesOrientations"] = values["rlnChangesOptimalOrientations"]
    values["rlnSmallestChangesOffsets"] = values["rlnChangesOptimalOffsets"]
    values["rlnSmallestChangesClasses"] = 0
    values |= more
    return Block.of_pairs("optimiser_general", values)


# What a plain 2D classification has in every run (RELION 3.1's defaults).
_OPTIMISER: dict[str, str | int | float] = {
    "rlnDoSplitRandomHalves": 0,
    "rlnJoinHalvesUntilThisResolution": -1.0,
    "rlnAdaptiveOversampleOrder": 1,
    "rlnAdaptiveOversampleFraction": 0.999,
    "rlnDoZeroMask": 1,
    "rlnDoSolventFlattening": 1,
    "rlnDoSolventFscCorrection": 0,
    "rlnSolventMaskName": "None",
    "rlnSolventMask2Name": "None",
    "rlnBodyStarFile": "None",
    "rlnTauSpectrumName": "None",
    "rlnMaximumCoarseImageSize": -1,
    "rlnLowresLimitExpectation": -1.0,
    "rlnIncrementImageSize": 10,
    "rlnDoMapEstimation": 1,
    "rlnDoFastSubsetOptimisation": 0,
    "rlnDoExternalReconstruct": 0,
    "rlnDoStochasticGradientDescent": 0,
    "rlnDoStochasticEM": 0,
    "rlnDoAutoRefine": 0,
    "rlnAutoLocalSearchesHealpixOrder": 4,
    "rlnNumberOfIterWithoutResolutionGain": 0,
    "rlnNumberOfIterWithoutChangingAssignments": 0,
    "rlnDoSkipAlign": 0,
    "rlnDoSkipRotate": 0,
    "rlnOverallAccuracyRotations": _UNKNOWN,
    "rlnOverallAccuracyTranslationsAngst": _UNKNOWN,
    "rlnLocalSymmetryFile": "None",
    "rlnDoHelicalRefine": 0,
    "rlnIgnoreHelicalSymmetry": 0,
    "rlnFourierMask": "None",
    "rlnHasConverged": 0,
    "rlnHasHighFscAtResolLimit": 0,
    "rlnHasLargeSizeIncreaseIterationsAgo": 0,
    "rlnDoCorrectNorm": 1,
    "rlnDoCorrectScale": 1,
    "rlnDoOnlyFlipCtfPhases": 0,
    "rlnRefsAreCtfCorrected": 1,
    "rlnFixSigmaNoiseEstimates": 0,
    "rlnFixSigmaOffsetEstimates": 0,
    "rlnMaxNumberOfPooledParticles": 3,
}
