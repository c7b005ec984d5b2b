"""The folder of RELION's Class2D: what went in stands in the files, and RELION itself goes on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.sets import PIXEL_A, ParticleSet
from polarice.io.mrc import open_stack, write_stack
from polarice.io.particles import read_particles
from polarice.io.relion_run.class2d import RunSettings, complete_iterations, discard_from, mask_share, write_iteration
from polarice.io.star import Block, Table, read_star, write_star
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D
from programs import relion

starfile = pytest.importorskip("starfile")
mrcfile = pytest.importorskip("mrcfile")

BOX, DIAMETER_A = 32, 66.0
RUN = RunSettings(particle_diameter_A=DIAMETER_A, seed=7, ctf=False)
# without any of these, relion_refine 3.1.3 --continue stops (found by leaving out one at a time)
COMPULSORY = (
    "OutputRootName", "ModelStarFile", "ExperimentalDataStarFile", "OrientSamplingStarFile", "CurrentIteration",
    "NumberOfIterations", "DoSplitRandomHalves", "JoinHalvesUntilThisResolution", "AdaptiveOversampleOrder",
    "AdaptiveOversampleFraction", "RandomSeed", "ParticleDiameter", "WidthMaskEdge", "DoZeroMask",
    "DoSolventFlattening", "SolventMaskName", "SolventMask2Name", "TauSpectrumName", "MaximumCoarseImageSize",
    "HighresLimitExpectation", "IncrementImageSize", "DoMapEstimation", "DoAutoRefine",
    "AutoLocalSearchesHealpixOrder", "NumberOfIterWithoutResolutionGain", "BestResolutionThusFar",
    "NumberOfIterWithoutChangingAssignments", "DoSkipAlign", "OverallAccuracyRotations",
    "OverallAccuracyTranslationsAngst", "ChangesOptimalOrientations", "ChangesOptimalOffsets",
    "ChangesOptimalClasses", "SmallestChangesOrientations", "SmallestChangesOffsets", "SmallestChangesClasses",
    "HasConverged", "HasHighFscAtResolLimit", "HasLargeSizeIncreaseIterationsAgo", "DoCorrectNorm",
    "DoCorrectScale", "DoCorrectCtf", "DoIgnoreCtfUntilFirstPeak", "CtfDataArePhaseFlipped",
    "DoOnlyFlipCtfPhases", "RefsAreCtfCorrected", "FixSigmaNoiseEstimates", "FixSigmaOffsetEstimates",
    "MaxNumberOfPooledParticles",
)  # fmt: skip
BLOBS = (  # x, y, width in pixels
    ((0, 0, 3), (6, 0, 1.6)),
    ((4, 4, 1.8), (-5, 0, 1.8), (1, -6, 1.6)),
    ((0, 0, 1.6), (7, 2, 1.6), (-7, -2, 1.6), (0, 7, 1.8)),
)


def pattern(which: int, psi_deg: float = 0.0, shift_px: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Class average `which`, rotated from x towards y, then shifted."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    c, s = np.cos(np.deg2rad(psi_deg)), np.sin(np.deg2rad(psi_deg))
    image = np.zeros((BOX, BOX))
    for bx, by, width in BLOBS[which]:
        image += np.exp(
            -((x - c * bx + s * by - shift_px[0]) ** 2 + (y - s * bx - c * by - shift_px[1]) ** 2) / 2 / width**2
        )
    return image


def shells() -> np.ndarray:
    x = np.arange(BOX) - BOX // 2
    return np.rint(np.hypot(x[:, None], x)).astype(int)


def spectrum(image: np.ndarray) -> np.ndarray:
    """Mean power per shell of the transform scaled by 1/N."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(image))) ** 2 / BOX**2
    return (np.bincount(shells().ravel(), power.ravel()) / np.bincount(shells().ravel()))[: BOX // 2 + 1]


def truth(n: int, seed: int = 0, noise: float = 0.6) -> tuple[np.ndarray, Pose2D]:
    rng = np.random.default_rng(seed)
    pose = Pose2D((np.arange(n) % 3).astype(np.int32), rng.uniform(-180, 180, n), rng.uniform(-2, 2, (n, 2)))
    images = [pattern(c, psi, tuple(t)) for c, psi, t in zip(pose.class_of, pose.psi_deg, pose.shift_px, strict=True)]
    return (np.array(images) + noise * rng.standard_normal((n, BOX, BOX))).astype(np.float32), pose


def iteration_of(pose: Pose2D, number: int = 3, noise: float = 0.6) -> Iteration:
    """What an iteration that found the truth would leave behind."""
    n, rng = len(pose.class_of), np.random.default_rng(1)
    counts = np.bincount(pose.class_of, minlength=3)
    averages = np.array([pattern(c) for c in range(3)], np.float32)
    signal = np.array([spectrum(average) for average in averages])
    noise_power = np.full((1, BOX // 2 + 1), noise**2)
    ssnr = signal * counts[:, None] / noise_power
    resolution = BOX * PIXEL_A / np.maximum(np.argmax(ssnr < 1, axis=1) - 1, 1)
    model = ClassModel(averages, counts / n, noise_power, signal, ssnr, resolution, PIXEL_A, 1.2)
    found = Assignment(
        pose, rng.normal(-500, 5, n), rng.uniform(0.1, 1, n).astype(np.float32), np.arange(n, dtype=np.int32)
    )
    return Iteration(number, 25, model, found, 10.0, 6.0, 4.0, 1.0, n, -500.0, 0.6, 0.02, 3.0, 0.4)


def write_table(folder: Path, images: np.ndarray) -> Path:
    n = len(images)
    write_stack(folder / "p.mrcs", images, PIXEL_A)
    columns = {
        "rlnImageName": [f"{i + 1:06d}@p.mrcs" for i in range(n)],
        "rlnMicrographName": [f"MotionCorr/job002/mic{9 - i % 4}.mrc" for i in range(n)],
        "rlnOpticsGroup": [1] * n,
        "rlnOriginXAngst": [0.5] * n,
        "myOwnColumn": [f"1.50{i}e+00" for i in range(n)],
    }
    blocks = [
        Block("optics", table=Table.of(ParticleSet(box_px=BOX).optics())),
        Block("particles", table=Table.of(columns)),
    ]
    write_star(folder / "p.star", blocks)
    return folder / "p.star"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A table of 12 particles read from the directory the job runs in, and an iteration of it."""
    monkeypatch.chdir(tmp_path)
    images, pose = truth(12)
    Path("Class2D").mkdir()
    return read_particles(write_table(Path(), images), need_ctf=False), iteration_of(pose)


def test_data_holds_what_was_found(job):
    table, iteration = job
    write_iteration("Class2D", iteration, table, RUN)
    pose = iteration.assignment.pose
    data = read_star("Class2D/run_it003_data.star").table("particles")
    np.testing.assert_array_equal(data.integers("rlnClassNumber"), pose.class_of + 1)
    np.testing.assert_allclose(data.numbers("rlnAnglePsi"), -pose.psi_deg, atol=1e-6)
    np.testing.assert_allclose(data.numbers("rlnOriginXAngst"), -3 * pose.shift_px[:, 0], atol=1e-6)
    np.testing.assert_allclose(data.numbers("rlnOriginYAngst"), -3 * pose.shift_px[:, 1], atol=1e-6)
    found = iteration.assignment
    np.testing.assert_allclose(data.numbers("rlnLogLikeliContribution"), found.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(data.numbers("rlnMaxValueProbDistribution"), found.max_probability, atol=1e-6)
    np.testing.assert_array_equal(data.integers("rlnNrOfSignificantSamples"), found.significant)
    assert data.text("myOwnColumn").tolist() == [f"1.50{i}e+00" for i in range(12)]
    assert data.text("rlnImageName").tolist() == [f"{i + 1:06d}@p.mrcs" for i in range(12)]


def test_groups_are_numbered_as_relion_numbers_them(job):
    """RELION sorts by micrograph, and its groups' names lack the folder of the job that made the micrograph."""
    table, iteration = job
    write_iteration("Class2D", iteration, table, RUN)
    data = read_star("Class2D/run_it003_data.star").table("particles")
    assert data.integers("rlnGroupNumber").tolist() == [4, 3, 2, 1] * 3
    groups = read_star("Class2D/run_it003_model.star").table("model_groups")
    assert groups.text("rlnGroupName").tolist() == ["mic6.mrc", "mic7.mrc", "mic8.mrc", "mic9.mrc"]
    assert groups.integers("rlnGroupNrParticles").tolist() == [3, 3, 3, 3]


def test_model_in_relions_scale(job):
    table, iteration = job
    write_iteration("Class2D", iteration, table, RUN)
    model = starfile.read("Class2D/run_it003_model.star", always_dict=True)
    general = model["model_general"]
    assert (general["rlnNrClasses"], general["rlnNrGroups"], general["rlnOriginalImageSize"]) == (3, 4, BOX)
    assert general["rlnSigmaOffsetsAngst"] == pytest.approx(3.6)
    assert general["rlnLogLikelihood"] == pytest.approx(iteration.assignment.log_likelihood.sum(), rel=1e-6)
    classes = model["model_classes"]
    assert classes["rlnReferenceImage"].tolist() == [f"{k:06d}@Class2D/run_it003_classes.mrcs" for k in (1, 2, 3)]
    np.testing.assert_allclose(classes["rlnClassDistribution"], iteration.model.weights, atol=1e-6)
    np.testing.assert_allclose(classes["rlnEstimatedResolution"], iteration.model.resolution_A, atol=1e-5)
    for k in range(3):
        spectra = model[f"model_class_{k + 1}"]
        np.testing.assert_allclose(spectra["rlnSsnrMap"], iteration.model.ssnr[k], rtol=2e-3)
        tau2 = iteration.model.signal_power[k] / RUN.tau2_fudge / (2 * BOX**2)
        np.testing.assert_allclose(spectra["rlnReferenceTau2"], tau2, rtol=2e-3)
        ratio = spectra["rlnReferenceTau2"] / spectra["rlnReferenceSigma2"]
        np.testing.assert_allclose(ratio, iteration.model.ssnr[k], rtol=5e-3)
    assert spectra["rlnAngstromResolution"].tolist()[:3] == [999.0, 96.0, 48.0]
    expected = 0.36 * mask_share(BOX, DIAMETER_A / PIXEL_A / 2) / 2 / BOX**2
    for name in ("model_group_1", "model_group_4", "model_optics_group_1"):
        np.testing.assert_allclose(model[name]["rlnSigma2Noise"], expected, rtol=1e-5)


def test_classes_and_sampling(job):
    table, iteration = job
    write_iteration("Class2D", iteration, table, RUN)
    np.testing.assert_array_equal(mrcfile.read("Class2D/run_it003_classes.mrcs"), iteration.model.averages)
    np.testing.assert_array_equal(open_stack("Class2D/run_it003_classes.mrcs"), iteration.model.averages)
    sampling = starfile.read("Class2D/run_it003_sampling.star", always_dict=True)["sampling_general"]
    # RELION halves its steps once, so it is told twice ours; offsets in Angstrom
    assert (sampling["rlnPsiStep"], sampling["rlnOffsetRange"], sampling["rlnOffsetStep"]) == (12.0, 12.0, 6.0)


def test_optimiser_leads_to_the_others(job):
    table, iteration = job
    path = write_iteration("Class2D", iteration, table, RUN)
    optimiser = starfile.read(path, always_dict=True)["optimiser_general"]
    assert optimiser["rlnOutputRootName"] == "Class2D/run"
    for label, kind in (
        ("ModelStarFile", "model"),
        ("ExperimentalDataStarFile", "data"),
        ("OrientSamplingStarFile", "sampling"),
    ):
        assert optimiser[f"rln{label}"] == f"Class2D/run_it003_{kind}.star"
        assert Path(optimiser[f"rln{label}"]).exists()
    assert (optimiser["rlnCurrentIteration"], optimiser["rlnNumberOfIterations"]) == (3, 25)
    assert optimiser["rlnParticleDiameter"] == DIAMETER_A
    assert {f"rln{label}" for label in COMPULSORY} <= set(optimiser)
    assert len(COMPULSORY) == 49


def test_left_out_and_unassigned(job):
    table, iteration = job
    rows = np.array([0, 2, 3, 7])
    pose = iteration.assignment.pose.take(rows)
    pose.class_of[1] = -1
    found = Assignment(pose, np.array([1.0, np.nan, 3.0, 4.0]), np.ones(4, np.float32), np.ones(4, np.int32))
    part = Iteration(**{**iteration.__dict__, "assignment": found})
    write_iteration("Class2D", part, table, RUN, rows=rows, columns={"rlnNormCorrection": np.full(4, 0.5)})
    data = read_star("Class2D/run_it003_data.star").table("particles")
    assert data.text("myOwnColumn").tolist() == [f"1.50{i}e+00" for i in rows]
    assert data.integers("rlnClassNumber").tolist() == [1, 0, 1, 2]
    assert data.numbers("rlnNormCorrection").tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="4 rows for an assignment of 12"):
        write_iteration("Class2D", iteration, table, RUN, rows=rows)


def test_image_names_that_relion_can_follow(tmp_path, monkeypatch):
    """A table whose stacks are found beside it is written with paths from the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("Extract").mkdir()
    Path("out").mkdir()
    images, pose = truth(6)
    table = read_particles(write_table(Path("Extract"), images), need_ctf=False)
    write_iteration("out", iteration_of(pose), table, RUN)
    names = read_star("out/run_it003_data.star").table("particles").text("rlnImageName")
    assert [Path(name.partition("@")[2]).resolve() for name in names] == [tmp_path / "Extract/p.mrcs"] * 6
    assert [int(name.partition("@")[0]) for name in names] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stop", ["write_stack", "write_star", "write_particles"])
def test_cut_off_iteration_is_not_complete(job, monkeypatch, stop):
    """Written once to the end, then again and cut off: the iteration before stands, this one is not complete."""
    table, iteration = job
    write_iteration("Class2D", Iteration(**{**iteration.__dict__, "number": 2}), table, RUN)
    write_iteration("Class2D", iteration, table, RUN)
    assert complete_iterations("Class2D") == [2, 3]

    def cut(*_args, **_more):
        raise InputError("disk full")

    monkeypatch.setattr(f"polarice.io.relion_run.class2d.{stop}", cut)
    with pytest.raises(InputError, match="disk full"):
        write_iteration("Class2D", iteration, table, RUN)
    assert complete_iterations("Class2D") == [2]


def test_discard_from(job):
    table, iteration = job
    for number in (1, 2, 3):
        write_iteration("Class2D", Iteration(**{**iteration.__dict__, "number": number}), table, RUN)
    discard_from("Class2D", 2)
    kinds = ("classes.mrcs", "data.star", "model.star", "optimiser.star", "sampling.star")
    assert sorted(path.name for path in Path("Class2D").iterdir()) == [f"run_it001_{kind}" for kind in kinds]


@pytest.mark.parametrize("limit_A", [None, 12.5])
def test_what_the_optimiser_and_the_model_say_of_the_iteration(job, limit_A):
    """Resolution 1/A, changes in degrees and A, twice the last ring compared; -1 where resolution is not limited."""
    table, iteration = job
    model = replace(iteration.model, resolution_A=np.array([24.0, 16.0, np.inf]))
    assert iteration.resolution_limit_A == 10
    write_iteration("Class2D", replace(iteration, model=model), table, replace(RUN, strict_highres_exp_A=limit_A))
    said = read_star("Class2D/run_it003_optimiser.star")["optimiser_general"].pairs
    said = dict(said) | dict(read_star("Class2D/run_it003_model.star")["model_general"].pairs)
    expected = {
        "rlnBestResolutionThusFar": 1 / 16,
        "rlnChangesOptimalOrientations": iteration.changed_psi_deg,
        "rlnChangesOptimalOffsets": iteration.changed_shift_px * PIXEL_A,
        "rlnChangesOptimalClasses": iteration.changed_class,
        "rlnHighresLimitExpectation": limit_A or -1.0,
        "rlnCurrentResolution": 16.0,
        "rlnCurrentImageSize": 20,  # 96 A / 10 A = 9.6 rings on either side
    }
    assert {name: float(said[name]) for name in expected} == pytest.approx(expected, rel=1e-6)


def test_mask_share_is_relions():
    """RELION 3.1.3's first noise estimate of 200 images of white noise and blobs, box 48, masked to 110 A at 3 A per
    pixel, lay at 0.995 of theirs times this (outer shells)."""
    assert mask_share(48, 110 / 3 / 2) == pytest.approx(0.55791, abs=1e-5)
    assert mask_share(64, 500) == 1.0


def test_relion_goes_on_from_our_folder(tmp_path, monkeypatch):
    """One more iteration by RELION: its classes are ours, its labels and noise agree with the truth."""
    monkeypatch.chdir(tmp_path)
    Path("Class2D").mkdir()
    images, pose = truth(240)
    iteration = iteration_of(pose)
    table = read_particles(write_table(Path(), images), need_ctf=False)
    optimiser = write_iteration("Class2D", iteration, table, RUN)
    Path("theirs").mkdir()
    relion("relion_refine", "--continue", optimiser, "--iter", 4, "--o", "theirs/run", "--j", 1)

    theirs = mrcfile.read("theirs/run_it004_classes.mrcs")
    correlations = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(iteration.model.averages, theirs, strict=True)
    ]
    assert min(correlations) > 0.97
    data = read_star("theirs/run_it004_data.star").table("particles")
    row = np.array([int(name.partition("@")[0]) - 1 for name in data.text("rlnImageName")])
    assert (data.integers("rlnClassNumber") == pose.class_of[row] + 1).mean() > 0.98
    turned = (data.numbers("rlnAnglePsi") + pose.psi_deg[row] + 180) % 360 - 180
    assert np.median(np.abs(turned)) < 6  # its step is 6 degrees, its start random
    origin_A = np.stack([data.numbers("rlnOriginXAngst"), data.numbers("rlnOriginYAngst")], axis=1)
    assert np.median(np.hypot(*(origin_A + 3 * pose.shift_px[row]).T)) < 3.0
    ours, new = (
        starfile.read(f"{name}_model.star", always_dict=True) for name in ("Class2D/run_it003", "theirs/run_it004")
    )
    noise = [model["model_group_2"]["rlnSigma2Noise"][2:].mean() for model in (ours, new)]
    assert noise[1] == pytest.approx(noise[0], rel=0.05)
    tau2 = [model["model_class_1"]["rlnReferenceTau2"][:6].sum() for model in (ours, new)]
    assert tau2[1] == pytest.approx(RUN.tau2_fudge * tau2[0], rel=0.25)  # here signal_power is the signal itself


def test_relion_applies_our_poses(tmp_path, monkeypatch):
    """The mean of the stack that RELION makes from our table, turned and moved by it, is the class average."""
    monkeypatch.chdir(tmp_path)
    Path("Class2D").mkdir()
    images, pose = truth(240, noise=0.3)
    table = read_particles(write_table(Path(), images), need_ctf=False)
    write_iteration("Class2D", iteration_of(pose), table, RUN)
    relion("relion_stack_create", "--i", "Class2D/run_it003_data.star", "--o", "moved", "--apply_transformation")
    stack, data = mrcfile.read("moved.mrcs"), read_star("Class2D/run_it003_data.star").table("particles")
    assert len(stack) == 240
    of = data.integers("rlnClassNumber")
    inside = np.hypot(*(np.mgrid[:BOX, :BOX] - BOX // 2)) < 11
    for k in range(3):
        mean = stack[of == k + 1].mean(axis=0)
        assert np.corrcoef(mean[inside], pattern(k)[inside])[0, 1] > 0.98


@pytest.mark.parametrize("groups", [None, "rlnGroupName"])
def test_relion_counts_the_groups_as_we_do(tmp_path, monkeypatch, groups):
    """Names of jobs with three and four digits, equal names of two jobs, names without a job; groups across them."""
    monkeypatch.chdir(tmp_path)
    Path("Class2D").mkdir()
    images, pose = truth(42)
    path = write_table(Path(), images)
    names = ["MotionCorr/job002/Movies/b.mrc", "MotionCorr/job012/Movies/b.mrc", "x/MotionCorr/job002/a.mrc",
             "MotionCorr/job1234/z.mrc", "zz.mrc", "Extract/jobabc/q.mrc", "aa.mrc"]  # fmt: skip
    star = read_star(path)
    columns = {"rlnMicrographName": [names[i % 7] for i in range(42)]}
    if groups:
        columns[groups] = [f"g{i % 5}" for i in range(42)]
    write_star(path, [star["optics"], Block("particles", table=star.table("particles").with_columns(columns))])
    table = read_particles(path, need_ctf=False)
    optimiser = write_iteration("Class2D", iteration_of(pose), table, RUN)
    relion("relion_refine", "--continue", optimiser, "--iter", 4, "--o", "Class2D/run", "--j", 1)
    theirs = next(Path("Class2D").glob("run*_it004_model.star"))
    ours, new = (read_star(file).table("model_groups") for file in ("Class2D/run_it003_model.star", theirs))
    assert ours.text("rlnGroupName").tolist() == new.text("rlnGroupName").tolist()
    assert ours.integers("rlnGroupNrParticles").tolist() == new.integers("rlnGroupNrParticles").tolist()
    data = read_star(str(theirs).replace("_model", "_data")).table("particles")
    ours_of = dict(zip(*_columns("Class2D/run_it003_data.star"), strict=True))
    assert dict(zip(data.text("rlnImageName"), data.integers("rlnGroupNumber"), strict=True)) == ours_of


def _columns(path: str) -> tuple[np.ndarray, np.ndarray]:
    data = read_star(path).table("particles")
    return data.text("rlnImageName"), data.integers("rlnGroupNumber")
