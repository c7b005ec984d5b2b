"""Masks, corrected FSC, sharpening, local resolution and sampling, against truth and RELION."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from jobs.runs import polarice as run
from polarice.io.mrc import read_volume, write_volume
from polarice.io.star import Block, Table, read_star, write_star
from polarice.postprocessing import corrected, local, mask, sharpen, views
from polarice.postprocessing.spectrum import low_pass, mean_amplitude, multiplied, weighted
from polarice.references.fsc import correlation
from postprocessing.halves import BOX, made
from programs import relion


@pytest.fixture(scope="module")
def halves():
    return made()


@pytest.fixture(autouse=True)
def no_page(request, monkeypatch):
    """Pages take longer to draw than all else: one test has them."""
    if "deposited" not in request.node.name:
        monkeypatch.setattr("polarice.report.postprocess.write_page", lambda params, found: params.o / "none")


@pytest.fixture
def place(tmp_path, monkeypatch, halves):
    """A working directory with the half maps in it."""
    monkeypatch.chdir(tmp_path)
    halves.write(tmp_path)
    return tmp_path


def postprocess_as_relion(place, words: str, theirs: str):
    """Both programs on the same halves: their postprocess.star, ours."""
    if shutil.which("relion_postprocess") is None:
        pytest.skip("relion_postprocess is not installed")
    import subprocess

    half = "run_half1_class001_unfil.mrc"
    subprocess.run(  # its own plots fail at the end where no ghostscript is; the star file is written before
        ["relion_postprocess", "--i", half, "--mask", "mask.mrc", "--o", "theirs", *theirs.split()],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    ended = run(f"postprocess {half} --mask mask.mrc --o ours --threads 1 {words}")
    assert ended.code == 0, ended.err
    return read_star("theirs.star"), read_star("ours/postprocess.star")


def test_a_mask_is_relions(place, halves):
    write_volume("map.mrc", ((halves.one + halves.other) / 2).numpy(), halves.pixel_A)
    level = 0.2 * float(low_pass(halves.truth, BOX * halves.pixel_A / 15).max())
    relion("relion_mask_create", "--i", "map.mrc", "--o", "theirs.mrc", "--ini_threshold", level, "--lowpass", 20,
           "--angpix", halves.pixel_A, "--extend_inimask", 2, "--width_soft_edge", 4)  # fmt: skip
    ended = run(f"mask map.mrc --o m --ini-threshold {level} --lowpass 20 --extend-inimask 2 --width-soft-edge 4")
    assert ended.code == 0, ended.err
    theirs, ours = read_volume("theirs.mrc")[0], read_volume("m/mask.mrc")[0]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998
    assert abs(ours.sum() / theirs.sum() - 1) < 0.01


def test_a_mask_has_the_shape_that_is_asked_for():
    inside = np.zeros((40, 40, 40), bool)
    inside[20, 20, 20] = True
    found = mask.soft(inside, mask.MaskShape(extend_px=4, soft_px=6))
    assert found[20, 20, 23] == 1 and found[20, 20, 24] < 1  # closer than four pixels
    assert found[20, 20, 26] == pytest.approx(0.5, abs=0.01) and found[20, 20, 30] == 0
    assert np.allclose(mask.soft(inside, mask.MaskShape(4, 6, invert=True)), 1 - found)
    two = inside.copy()
    two[5:8, 5:8, 5:8] = True
    kept = mask.binary(two.astype(np.float32), 0.5, largest=True)
    assert kept.sum() == 27 and not kept[20, 20, 20]


def test_the_automatic_level_finds_the_molecule(halves):
    """Otsu's level on noisy maps encloses what half of the true density's typical value does in the truth."""
    smooth = low_pass((halves.one + halves.other) / 2, BOX * halves.pixel_A / 15).numpy()
    clean = low_pass(halves.truth, BOX * halves.pixel_A / 15).numpy()
    ours, true = smooth > mask.threshold(smooth), clean > 0.2 * clean.max()
    assert (ours & true).sum() / (ours | true).sum() > 0.85


def test_masks_are_joined_and_refused(place, halves):
    upper = np.zeros((BOX, BOX, BOX), np.float32)
    upper[BOX // 2 :] = 1
    write_volume("upper.mrc", upper, halves.pixel_A)
    for name, words in (("kept", "--and upper.mrc"), ("less", "--sub upper.mrc"), ("whole", "")):
        ended = run(f"mask truth.mrc --o {name} --extend-inimask 0 --width-soft-edge 0 {words}")
        assert ended.code == 0, ended.err
    kept, less, whole = (read_volume(f"{name}/mask.mrc")[0] for name in ("kept", "less", "whole"))
    assert kept[: BOX // 2].sum() == 0 and less[BOX // 2 :].sum() == 0 and np.array_equal(kept + less, whole)
    assert run("mask truth.mrc --o none --ini-threshold 1e9").code == 2
    assert "empty" in run("mask truth.mrc --o none --ini-threshold 1e9").err
    ended = run("mask truth.mrc --o wide --extend-inimask 30")
    assert ended.code == 0 and "touches the edge" in ended.out
    write_volume("small.mrc", upper[:32, :32, :32], halves.pixel_A)
    assert "box of 32 voxels" in run("mask truth.mrc --o none --or small.mrc").err
    broken = halves.truth.numpy().copy()
    broken[3, 3, 3] = np.nan
    write_volume("broken.mrc", broken, halves.pixel_A)
    assert "no numbers" in run("mask broken.mrc --o none").err
    assert not (place / "none").exists()


def test_curves_and_b_factor_are_relions(place, halves):
    """Within what the random phases of the two programs differ by."""
    assert run("mask truth.mrc --o m").code == 0
    shutil.copy("m/mask.mrc", "mask.mrc")
    theirs, ours = postprocess_as_relion(place, "--autob-lowres 30", "--auto_bfac --autob_lowres 30")
    labels = ("rlnFourierShellCorrelationUnmaskedMaps", "rlnFourierShellCorrelationMaskedMaps")
    a, b = theirs.table("fsc"), ours.table("fsc")
    for label in labels:
        assert np.abs(a.numbers(label) - b.numbers(label))[1:].max() < 0.01, label
    corrected_label = "rlnFourierShellCorrelationCorrected"
    apart = np.abs(a.numbers(corrected_label) - b.numbers(corrected_label))
    assert np.median(apart) < 0.005 and apart[a.numbers(corrected_label) > 0.5].max() < 0.01
    general = theirs["general"].pairs, ours["general"].pairs
    resolution = [float(each["rlnFinalResolution"]) for each in general]
    assert resolution[0] == pytest.approx(resolution[1], rel=1e-4)
    bfactor = [float(each["rlnBfactorUsedForSharpening"]) for each in general]
    assert bfactor[0] == pytest.approx(bfactor[1], rel=0.05)
    assert float(general[0]["rlnRandomiseFrom"]) == pytest.approx(float(general[1]["rlnRandomiseFrom"]), rel=1e-4)
    one, other = read_volume("theirs.mrc")[0], read_volume("ours/postprocess.mrc")[0]
    shell = BOX * halves.pixel_A / resolution[0]  # beyond it, weights are the random phases' own
    one, other = (low_pass(torch.from_numpy(each), shell - 2).numpy() for each in (one, other))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.995


def test_a_given_b_factor_and_low_pass_are_relions(place, halves):
    assert run("mask truth.mrc --o m").code == 0
    shutil.copy("m/mask.mrc", "mask.mrc")
    mtf = "data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n0.0 1.0\n0.25 0.7\n0.5 0.3\n1.0 0.1\n"
    (place / "mtf.star").write_text(mtf)
    same = "--mtf mtf.star --mtf{}angpix 1.5"
    postprocess_as_relion(
        place, "--adhoc-bfac -200 --skip-fsc-weighting --low-pass 20 " + same.format("-"),
        "--adhoc_bfac -200 --skip_fsc_weighting --low_pass 20 " + same.format("_"),
    )  # fmt: skip
    theirs, ours = read_volume("theirs.mrc")[0], read_volume("ours/postprocess.mrc")[0]
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.999
    assert theirs.std() == pytest.approx(float(ours.std()), rel=0.02)


def test_the_formula_of_the_correction(halves):
    """Corrected, masked and randomised values belong together, and noise inside a tight mask is not resolution."""
    noise = made(noise=30.0, seed=4)
    tight = torch.from_numpy((low_pass(halves.truth, 12).numpy() > 0.3 * float(halves.truth.max())).astype(np.float32))
    found = corrected.curves((noise.one, noise.other), tight)
    assert found.masked is not None and found.randomised is not None
    beyond = slice(found.from_shell + 2, None)
    expected = (found.masked - found.randomised) / (1 - found.randomised)
    expected[found.randomised > found.masked] = 0
    assert torch.allclose(found.corrected[beyond], expected[beyond])
    assert found.corrected[found.from_shell + 3 :].mean() < 0.1
    kept = corrected.randomised(halves.one, 10, seed=3)
    same = correlation(kept, halves.one)
    assert same[1:9].min() > 0.999 and same[12:].abs().max() < 0.2
    assert torch.allclose(
        mean_amplitude(kept)[:-1], mean_amplitude(halves.one)[:-1], rtol=0.1
    )  # but for the plane x = 0


def test_sharpening_undoes_a_known_b_factor(halves):
    """White density blurred by B: the line finds it, and the sharpened map is white again."""
    n, pixel_A, b = 64, 2.0, 300.0
    white = torch.from_numpy(np.random.default_rng(3).standard_normal((n, n, n)).astype(np.float32))
    blurred = multiplied(white, lambda r: torch.exp(-b / 4 * (r / (n * pixel_A)) ** 2))
    found, plot, bfactor = sharpen.sharpen(blurred, pixel_A, sharpen.Sharpening(None, fit_from_A=12))
    assert bfactor == pytest.approx(-b, rel=0.02) and plot.line.correlation < -0.99
    assert np.corrcoef(found.numpy().ravel(), weighted(white, torch.ones(33)).numpy().ravel())[0, 1] > 0.98
    fsc = torch.tensor([1.0, 0.9, 0.5, 0.00005, 0.4])
    expected = [1, math.sqrt(1.8 / 1.9), math.sqrt(1 / 1.5), 0, 0]
    assert sharpen.fsc_weight(fsc).tolist() == pytest.approx(expected, abs=1e-6)


def test_local_resolution_knows_which_side_is_better():
    """White signal up to shell 10 on the left, 22 on the right, as much noise as half of it."""
    n = 80
    draw = torch.Generator().manual_seed(1)
    white = torch.randn(n, n, n, generator=draw)
    right = torch.sigmoid(torch.arange(n) - n / 2)[None, None, :]
    truth = low_pass(white, 10) * (1 - right) + low_pass(white, 22) * right
    halves = [truth + 0.7 * torch.randn(n, n, n, generator=draw) for _ in range(2)]
    found = local.local_resolution((halves[0], halves[1]), (halves[0] + halves[1]) / 2, 39, 1.0)
    shell = n / found.resolution_A[10:-10, 10:-10]
    assert shell[..., 18:22].median() == pytest.approx(13, abs=3)  # windows reach over from the right
    assert shell[..., 56:64].median() == pytest.approx(22, abs=1.5)
    plain = (halves[0] + halves[1]) / 2
    assert ((found.filtered - truth) ** 2).mean() < 0.3 * ((plain - truth) ** 2).mean()
    noise = [torch.randn(n, n, n, generator=draw) for _ in range(2)]
    assert local.local_resolution((noise[0], noise[1]), truth, 39, 1.0).resolution_A.min() > n / 5


def test_the_sampling_figure_of_known_views():
    rng = np.random.default_rng(1)
    even = rng.standard_normal((20_000, 3))
    even /= np.linalg.norm(even, axis=1, keepdims=True)
    angle = rng.uniform(0, 2 * math.pi, 20_000)
    sides = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    one = np.eye(3)[None]
    assert views.sampling(even, one).scf == pytest.approx(1, abs=0.01)
    assert views.sampling(sides, one).scf == pytest.approx(8 / math.pi**2, abs=0.03)
    cap = views.sampling(even[even[:, 2] > math.cos(math.radians(30))], one)
    assert cap.scf < 0.05 and cap.empty == pytest.approx(0.45, abs=0.05)  # 1/2 seen by a cap of 30 degrees


def test_cones_see_a_missing_direction(halves):
    """One half of the transform's noise lies along z: that direction is the worst."""
    n = BOX
    k = torch.fft.fftfreq(n, 1 / n)
    x, y, z = torch.fft.rfftfreq(n, 1 / n)[None, None], k[None, :, None], k[:, None, None]
    r = (x**2 + y**2 + z**2).sqrt().clamp_min(1)
    draw = torch.Generator().manual_seed(2)
    spoiled = []
    for density in (halves.one, halves.other):
        noise = torch.fft.rfftn(torch.randn(n, n, n, generator=draw)) * ((z / r).abs() > 0.8)
        spoiled.append(torch.fft.irfftn(torch.fft.rfftn(density) + 3 * float(density.std()) * noise, s=density.shape))
    found = views.cones((spoiled[0], spoiled[1]), 24)
    along = np.abs(found.directions[:, 2])
    assert found.shell[along > 0.95].max() < 0.7 * found.shell[along < 0.3].min()
    assert found.ratio < 0.5 < views.cones((halves.one, halves.other), 24).ratio


def test_what_halves_say_of_themselves(place, halves):
    one = halves.one.numpy()
    write_volume("twin_half1.mrc", one, halves.pixel_A)
    write_volume("twin_half2.mrc", one, halves.pixel_A)
    ended = run("postprocess twin_half1.mrc --o none --threads 1")
    assert ended.code == 2 and "the same map" in ended.err and not (place / "none").exists()
    first, second = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
    write_volume("small_half1.mrc", one[:32, :32, :32], halves.pixel_A)
    assert "has 32; bring it there" in run(f"postprocess {second} small_half1.mrc --o none").err
    write_volume("other_half2.mrc", one, 2 * halves.pixel_A)
    assert "pixels of" in run(f"postprocess {first} other_half2.mrc --o none").err
    write_volume("high.mrc", 3 * one, halves.pixel_A)
    assert "between 0 and 1" in run(f"postprocess {first} --mask high.mrc --o none").err
    write_volume("lone_half1.mrc", one, halves.pixel_A)
    assert "lone_half2.mrc: not there" in run("postprocess lone_half1.mrc --o none").err
    assert "not known" in run("postprocess truth.mrc --o none").err
    (place / "void").mkdir()
    assert "no half map" in run("postprocess void --o none").err
    assert not (place / "none").exists()


def test_filtered_swapped_and_copied_halves_are_told(place, halves):
    for name, density in (("half1", halves.one), ("half2", halves.other)):
        write_volume(f"f_{name}.mrc", low_pass(density, 8).numpy(), halves.pixel_A)
    assert "were filtered before" in run("postprocess f_half1.mrc --o filtered --threads 1").out
    ended = run("postprocess run_half2_class001_unfil.mrc run_half1_class001_unfil.mrc --o swapped --threads 1")
    assert ended.code == 0 and "in the other order" in ended.out and "filtered before" not in ended.out
    write_volume("c_half1.mrc", halves.one.numpy(), halves.pixel_A)
    write_volume("c_half2.mrc", halves.one.numpy() * 1.5, halves.pixel_A)
    assert "FSC is 1 on all shells" in run("postprocess c_half1.mrc --o copied --threads 1").out
    off = np.roll(halves.truth.numpy(), BOX // 2, axis=(0))
    write_volume("off.mrc", (off > off.max() * 0.3).astype(np.float32), halves.pixel_A)
    ended = run("postprocess run_half1_class001_unfil.mrc --o off --mask off.mrc --force-mask --threads 1")
    assert "does not lie on the map" in ended.out


def test_a_folder_of_a_refinement_is_postprocessed_and_deposited(place, halves):
    ended = run("postprocess . --o pp --threads 1 --locres --deposit --autob-lowres 40 --molweight 2300")
    assert ended.code == 0, ended.err
    written = {path.name for path in (place / "pp").iterdir()}
    assert {"postprocess.mrc", "postprocess_masked.mrc", "postprocess_locres.mrc", "report_surface.png"} <= written
    resolution = float(read_star("pp/postprocess.star")["general"].pairs["rlnFinalResolution"])
    methods = (place / "pp/deposit/methods.txt").read_text()
    assert f"{resolution:.2f} A" in methods and "FSC = 0.143" in methods
    import xml.etree.ElementTree as ElementTree

    root = ElementTree.parse("pp/deposit/fsc.xml").getroot()
    points = [(float(each[0].text), float(each[1].text)) for each in root]
    fsc = read_star("pp/postprocess.star").table("fsc").numbers("rlnFourierShellCorrelationCorrected")
    assert root.tag == "fsc" and len(points) == BOX // 2 + 1
    assert np.allclose([y for _, y in points], fsc, atol=1e-5)
    assert points[10][0] == pytest.approx(10 / (BOX * halves.pixel_A), abs=1e-6)
    level = read_volume("pp/deposit/primary_map.mrc")[0]
    assert np.array_equal(read_volume("pp/deposit/half_map_1.mrc")[0], halves.one.numpy())
    assert np.isfinite(level).all()
    again = run("postprocess . --o pp --threads 1 --no-auto-mask")
    assert again.code == 0 and not (place / "pp/postprocess_locres.mrc").exists()


def test_tight_masks_and_preferred_views_are_told(place, halves):
    smooth = low_pass(halves.truth, 16).numpy()
    write_volume("tight.mrc", (smooth > 0.4 * smooth.max()).astype(np.float32), halves.pixel_A)
    half = "run_half1_class001_unfil.mrc"
    tilt = np.random.default_rng(1).uniform(0, 25, 400)
    rot = np.random.default_rng(2).uniform(-180, 180, 400)
    write_star("views.star", [Block("particles", table=Table.of({"rlnAngleRot": rot, "rlnAngleTilt": tilt}))])
    ended = run(f"postprocess {half} --o tight --mask tight.mrc --data views.star --threads 1")
    assert ended.code == 0 and "mask is too tight" in ended.out and "preferred views" in ended.out
    assert "preferred views" in run(f"postprocess {half} --o octahedral --data views.star --sym O --threads 1").out
    even = np.degrees(np.arccos(np.random.default_rng(3).uniform(-1, 1, 400)))  # O's caps leave (1, 1, 1) unseen
    write_star("even.star", [Block("particles", table=Table.of({"rlnAngleRot": rot, "rlnAngleTilt": even}))])
    ended = run(f"postprocess {half} --o loose --data even.star --threads 1")
    assert ended.code == 0 and "too tight" not in ended.out and "preferred views" not in ended.out
    assert "no table with _rlnAngleRot" in run(f"postprocess {half} --o none --data loose/postprocess.star").err
    assert "_rlnMtfValue" in run(f"postprocess {half} --o none --mtf views.star").err


def test_noise_alone_has_no_resolution(place, halves):
    """Neither without a mask, nor within one that is tight: what the mask correlates is taken off."""
    rng = np.random.default_rng(11)
    for name in ("half1", "half2"):
        write_volume(f"n_{name}.mrc", rng.standard_normal((BOX,) * 3).astype(np.float32), halves.pixel_A)
    ended = run("postprocess n_half1.mrc --o alone --threads 1")
    assert ended.code == 0 and "this may be noise" in ended.out
    assert run("mask truth.mrc --o m --extend-inimask 0 --width-soft-edge 2").code == 0
    assert run("postprocess n_half1.mrc --o masked --mask m/mask.mrc --force-mask --threads 1").code == 0
    for folder in ("alone", "masked"):
        resolution = float(read_star(f"{folder}/postprocess.star")["general"].pairs["rlnFinalResolution"])
        assert resolution > BOX * halves.pixel_A / 8, folder  # shells of a few voxels agree by chance


def test_halves_of_a_refinement_on_its_way_are_told(place, halves):
    from polarice.runs.half_maps import read_halves

    halves.write(place)
    assert read_halves([place], None).said == ()
    (place / "state.json").write_text('{"job": "refine3d", "state": "stopped"}')
    (said,) = read_halves([place], None).said
    assert "has not ended (stopped)" in said
