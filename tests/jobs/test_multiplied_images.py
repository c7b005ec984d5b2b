"""Runs on images that have been multiplied by their CTF, or by its sign: they end where those on plain images end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from align.phantoms import ctf_parameters, optics
from jobs.runs import polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.io.mrc import open_stack, write_stack
from polarice.io.star import Block, Table, read_star, write_star

SET = ParticleSet(n=300, box_px=40, noise_sd=0.6, phantoms=1)
PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"


def write(folder: Path, images: np.ndarray, flags: list[int]) -> None:
    """The set's images and table, its particles taking turns in as many optics groups as there are flags."""
    folder.mkdir()
    write_stack(folder / "stack.mrcs", images, PIXEL_A)
    count = len(flags)
    groups = {label: values * count for label, values in SET.optics().items()}
    groups |= {"rlnOpticsGroupName": [f"g{i}" for i in range(count)], "rlnOpticsGroup": list(range(1, count + 1))}
    groups[PREMULTIPLIED] = flags
    particles = SET.table() | {"rlnOpticsGroup": np.arange(SET.n) % count + 1}
    blocks = [Block("optics", table=Table.of(groups)), Block("particles", table=Table.of(particles))]
    write_star(folder / "particles.star", blocks)


def averages(folder: Path, words: str = "") -> np.ndarray:
    """(1, N, N) average of a run in `folder`."""
    run = f"class2d {folder}/particles.star --k 1 --iter 6 --threads 1 --particle-diameter 90 --seed 3"
    ended = polarice(f"{run} --o {folder}/out {words}")
    assert ended.code == 0, ended.err
    return np.array(open_stack(folder / "out/run_it006_classes.mrcs")[:])


def spectra(images: np.ndarray) -> np.ndarray:
    """(1, 8) amplitude of each ring, which no rotation or shift changes."""
    from polarice.fourier import shell_mean, shell_of

    power = np.abs(centred_fft2(images.astype(float))) ** 2
    return np.sqrt(shell_mean(power, shell_of(SET.box_px), SET.box_px // 2 + 1))[:, 1:9]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    images = SET.images()
    write(folder, images, [0, 0])
    with pytest.MonkeyPatch.context() as patch:
        stub_report(patch)
        return images, ctf_image(optics(PIXEL_A), ctf_parameters(SET.n, 500.0, SET.seed), SET.box_px), averages(folder)


@pytest.mark.parametrize("flags", [[1, 1], [1, 0]], ids=["all", "one group of two"])
def test_averages_are_those_of_plain_images(plain, tmp_path, monkeypatch, flags):
    images, values, expected = plain
    stub_report(monkeypatch)
    multiplied = np.resize(flags, SET.n).astype(bool)[:, None, None]
    pixels = centred_ifft2(centred_fft2(images.astype(float)) * np.where(multiplied, values, 1)).real
    write(tmp_path / "run", pixels.astype(np.float32), flags)
    found = spectra(averages(tmp_path / "run"))
    np.testing.assert_allclose(found[:, :6], spectra(expected)[:, :6], rtol=0.01)
    np.testing.assert_allclose(found[:, 6:], spectra(expected)[:, 6:], rtol=0.03)  # weak: a tenth of the first ring
    written = read_star(tmp_path / "run/out/run_it006_data.star").table("optics")
    assert written.integers(PREMULTIPLIED).tolist() == flags  # for whatever goes on from here


def test_averages_are_those_of_plain_images_when_phases_were_flipped(plain, tmp_path, monkeypatch):
    images, values, expected = plain
    stub_report(monkeypatch)
    pixels = centred_ifft2(centred_fft2(images.astype(float)) * np.where(values < 0, -1, 1)).real
    write(tmp_path / "run", pixels.astype(np.float32), [0, 0])
    found = spectra(averages(tmp_path / "run", "--ctf-phase-flipped"))
    np.testing.assert_allclose(found, spectra(expected), rtol=0.12)
    assert (
        read_star(tmp_path / "run/out/run_it006_optimiser.star")["optimiser_general"].pairs["rlnCtfDataArePhaseFlipped"]
        == "1"
    )
    written = read_star(tmp_path / "run/out/run_it006_data.star").table("optics")
    assert written.integers("rlnCtfDataArePhaseFlipped").tolist() == [1, 1]


def test_what_contradicts_is_refused(plain, tmp_path, monkeypatch):
    write(tmp_path / "run", plain[0], [1])
    monkeypatch.chdir(tmp_path)
    ended = polarice("class2d run/particles.star --k 2 --o out --ctf-phase-flipped")
    assert ended.code == 2
    assert PREMULTIPLIED in ended.err
    assert "one or the other" in ended.err
