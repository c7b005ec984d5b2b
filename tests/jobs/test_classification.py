"""align2d and class2d from a table to a folder: what they find, what they write, and what they take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.phantoms import CPU
from jobs.runs import FOLDER_FILES, polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.fourier import soft_disc
from polarice.io.mrc import open_stack, read_header, write_stack
from polarice.io.star import Block, Table, read_star, write_star
from polarice.jobs import class2d
from polarice.project.params import from_dict
from polarice.report import read_history
from polarice.runs.checkpoint import read_checkpoint
from polarice.simulation.score import purity
from polarice.types import InputError

SET = ParticleSet(n=200, box_px=32, noise_sd=0.3)
CLASSES = 8
RUN = f"class2d particles.star --k {CLASSES} --iter 5 --particle-diameter 70 --threads 1"
LAST = "run_it005"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    """A folder with a set of particles and a run, report and all, in `out`."""
    folder = tmp_path_factory.mktemp("classification")
    columns = {"rlnMyOwn": [f"{1 / (i + 1):.9e}" for i in range(SET.n)], "rlnOther": [f"'a {i}'" for i in range(SET.n)]}
    SET.write(folder, images)
    SET.write_table(folder, **{label: np.array(texts, object) for label, texts in columns.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = polarice(f"{RUN} --o out")
    assert ended.code == 0, ended.err
    assert ended.out == f"{SET.n} particles in {CLASSES} classes; report: out/report.html\n"
    return folder


def labels(folder: Path | str, last: str = LAST) -> np.ndarray:
    return read_star(Path(folder) / f"{last}_data.star").table("particles").integers("rlnClassNumber") - 1


def finds_the_phantoms(folder: Path | str, share: float = 0.9, truth: np.ndarray = SET.label, last: str = LAST) -> None:
    found = purity(labels(folder, last), truth)
    assert found > share, f"{100 * found:.0f} % of the particles are among their like"


# -- what is written ---------------------------------------------------------------------------------------------------


def test_every_iteration_leaves_relions_files(whole):
    for number in range(1, 6):
        for kind in FOLDER_FILES:
            assert (whole / f"out/run_it{number:03d}_{kind}").stat().st_size > 500
    assert not [path for path in (whole / "out").iterdir() if path.name.startswith(".")]
    finds_the_phantoms(whole / "out")


def test_every_line_of_progress_tells_the_iteration(place):
    ended = polarice(f"{RUN} --iter 2 --o out")
    lines = ended.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["iteration 1/2", "iteration 2/2"]
    assert "of 8 classes in use, median" in lines[1]


def test_progress_tells_how_far_classes_have_grown(place):
    lines = polarice(f"{RUN} --k 10 --iter 4 --o out").err.splitlines()
    assert "5 of 5 classes in use (growing to 10), median" in lines[0]
    assert "of 10 classes in use, median" in lines[-1]


def test_the_report_shows_the_classes(whole):
    page = (whole / "out/report.html").read_text()
    assert "class2d" in page and "data:image/png;base64," in page
    counts = np.bincount(labels(whole / "out"), minlength=CLASSES)
    for count in counts.tolist():
        assert f">{count}<" in page or f" {count} " in page or f"{count}</" in page
    assert (whole / f"out/{LAST}_classes.png").stat().st_size > 5000


def test_job_json_makes_the_parameters_again(whole):
    job = json.loads((whole / "out/job.json").read_text())
    params = from_dict(class2d.Params, job["params"])
    assert params == class2d.Params(
        Path("particles.star"), Path("out"), k=CLASSES, iter=5, particle_diameter=70.0, threads=1
    )
    assert (
        job["command"] == "polarice class2d particles.star --o out --particle-diameter 70.0 --iter 5 --k 8 --threads 1"
    )
    assert {Path(each["path"]).name for each in job["inputs"]} == {"particles.star", "stack.mrcs"}


def test_unknown_columns_pass_through_as_they_stood(whole):
    before, after = (read_star(whole / name).table("particles") for name in ("particles.star", f"out/{LAST}_data.star"))
    for label in ("rlnMyOwn", "rlnOther", "rlnDefocusU", "rlnMicrographName", "rlnImageName"):
        assert before.cells(label).texts() == after.cells(label).texts()
    assert after.labels[: len(before.labels)] == before.labels


def test_averages_and_weights_belong_to_the_labels(whole):
    model = read_star(whole / f"out/{LAST}_model.star").table("model_classes")
    shares = np.bincount(labels(whole / "out"), minlength=CLASSES) / SET.n
    assert np.abs(model.numbers("rlnClassDistribution") - shares).max() < 0.05
    header = read_header(whole / f"out/{LAST}_classes.mrcs")
    assert (header.n, header.nx, round(header.pixel_size_A, 4)) == (CLASSES, 32, PIXEL_A)


def test_the_files_say_what_the_model_is(whole):
    """Ring r of the engine is shell r of the files; averages are masked; steps and limits are those of the search."""
    model = read_checkpoint(whole / "out", 5, CPU).model
    star, rings, width_A = read_star(whole / f"out/{LAST}_model.star"), model.basis.r_max, 32 * PIXEL_A
    classes = star.table("model_classes")
    for k in range(CLASSES):
        found = star.table(f"model_class_{k + 1}").numbers("rlnSsnrMap")
        assert found[1 : rings + 1] == pytest.approx(model.ssnr[k].tolist(), rel=1e-5, abs=1e-6)
        assert not found[0] and not found[rings + 1 :].any()
    resolved = width_A / model.resolution_px().numpy()
    assert classes.numbers("rlnEstimatedResolution") == pytest.approx(resolved, rel=1e-5)
    assert classes.numbers("rlnClassDistribution") == pytest.approx(model.weights.tolist(), abs=1e-6)
    masked = model.images().numpy() * soft_disc(32, 70 / PIXEL_A / 2)
    np.testing.assert_allclose(open_stack(whole / f"out/{LAST}_classes.mrcs"), masked, atol=1e-4 * masked.max())
    last = read_history(whole / "out")[-1]
    assert last["resolution_limit_A"] == pytest.approx(width_A / rings)
    assert last["psi_step_deg"] == pytest.approx(360 / model.basis.n_theta)
    assert (last["shift_range_px"], last["shift_step_px"]) == (1.0, 1.0)
    sampling = read_star(whole / f"out/{LAST}_sampling.star")["sampling_general"].pairs
    assert float(sampling["rlnPsiStep"]) == pytest.approx(2 * 360 / model.basis.n_theta, rel=1e-5)


@pytest.mark.parametrize(("limit_A", "rings"), [(12.5, 7), (1000.0, 4)])
def test_images_are_compared_up_to_the_resolution_asked_for(place, limit_A, rings):
    """96 A / 12.5 A = 7.68 periods; at least four rings."""
    assert polarice(f"{RUN} --iter 2 --o out --strict-highres-exp {limit_A}").code == 0
    assert read_checkpoint(Path("out"), 2, CPU).model.basis.r_max == rings
    optimiser = read_star("out/run_it002_optimiser.star")["optimiser_general"].pairs
    assert float(optimiser["rlnHighresLimitExpectation"]) == limit_A


# -- the same answer ---------------------------------------------------------------------------------------------------


def test_small_batches_give_the_same_answer(whole, place):
    """--memory 0.01 GiB: batches of a few images."""
    assert polarice(f"{RUN} --memory 0.01 --o out").code == 0
    ours, theirs = (open_stack(folder / f"out/{LAST}_classes.mrcs") for folder in (place, whole))
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    assert (labels("out") == labels(whole / "out")).mean() > 0.99


def test_the_order_of_the_table_does_not_matter(whole, place):
    order = np.random.default_rng(3).permutation(SET.n)
    shuffled = {label: np.asarray(values)[order] for label, values in SET.table().items()}
    SET.write_table(place, **shuffled)
    assert polarice(f"{RUN} --o out").code == 0
    table = read_star(f"out/{LAST}_data.star").table("particles")
    assert table.text("rlnImageName").tolist() == shuffled["rlnImageName"].tolist()  # rows stay where they were
    assert np.array_equal(labels("out"), labels(whole / "out")[order])


def test_the_names_and_number_of_the_stacks_do_not_matter(whole, place, images):
    """Two stacks, shuffled rows: the same images in the same order of names."""
    write_stack("a.mrcs", images[:80], PIXEL_A)
    write_stack("b.mrcs", images[80:], PIXEL_A)
    names = np.array([f"{i + 1}@a.mrcs" if i < 80 else f"{i - 79}@b.mrcs" for i in range(SET.n)])
    order = np.random.default_rng(4).permutation(SET.n)
    columns = {**SET.table(), "rlnImageName": names}
    SET.write_table(place, **{label: np.asarray(values)[order] for label, values in columns.items()})
    assert polarice(f"{RUN} --o out").code == 0
    assert np.array_equal(labels("out"), labels(whole / "out")[order])


# -- what is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_other_modes(place, images, dtype):
    pixels = images if dtype == np.float16 else (images * 15).clip(-127, 127)
    SET.write(place, pixels, dtype)
    assert polarice(f"{RUN} --o out").code == 0
    finds_the_phantoms("out")


def test_unsigned_bytes(place, images):
    SET.write(place, (images * 15).clip(-127, 127), np.int8)
    raw = bytearray(Path("stack.mrcs").read_bytes())
    pixels = np.frombuffer(raw, np.int8, offset=1024).astype(np.int16) + 128
    Path("stack.mrcs").write_bytes(bytes(raw[:1024]) + pixels.astype(np.uint8).tobytes())
    assert polarice(f"{RUN} --o out --unsigned").code == 0
    finds_the_phantoms("out")


def test_raw_grey_values_are_normalised_and_it_is_said(place, images):
    SET.write(place, 40 * images + 300)
    assert polarice(f"{RUN} --o out").code == 0
    finds_the_phantoms("out")
    norm = read_star(f"out/{LAST}_data.star").table("particles").numbers("rlnNormCorrection")
    assert abs(np.median(norm) / (40 * SET.noise_sd) - 1) < 0.05


def test_an_odd_box(place):
    odd = ParticleSet(n=200, box_px=33, noise_sd=0.3)
    odd.write(place)
    assert polarice(f"{RUN} --o out").code == 0
    finds_the_phantoms("out")


def test_tables_of_relion_3_0(place):
    columns = {
        **SET.table(),
        "rlnOpticsGroup": None,
        "rlnVoltage": np.full(SET.n, 300.0),
        "rlnSphericalAberration": np.full(SET.n, 2.7),
        "rlnAmplitudeContrast": np.full(SET.n, 0.1),
        "rlnMagnification": np.full(SET.n, 10000.0),
        "rlnDetectorPixelSize": np.full(SET.n, 3.0),
    }
    table = Table.of({label: values for label, values in columns.items() if values is not None})
    write_star("particles.star", [Block("", table=table)])
    assert polarice(f"{RUN} --o out").code == 0
    finds_the_phantoms("out")
    assert read_star(f"out/{LAST}_data.star").table("optics").numbers("rlnImagePixelSize").tolist() == [PIXEL_A]


def test_several_optics_groups_of_which_one_is_not_used(place):
    """The group that no particle is in, of another pixel size and no voltage, does not matter."""
    optics = {label: [values[0]] * 3 for label, values in SET.optics().items()}
    optics |= {"rlnOpticsGroup": [1, 2, 3], "rlnOpticsGroupName": ["unused", "a", "b"]}
    optics |= {"rlnVoltage": [0.0, 300.0, 300.0], "rlnImagePixelSize": [1.0, PIXEL_A, PIXEL_A]}
    columns = {**SET.table(), "rlnOpticsGroup": 2 + np.arange(SET.n) // 3 % 2}
    write_star("particles.star", [Block("optics", table=Table.of(optics)), Block("particles", table=Table.of(columns))])
    assert polarice(f"{RUN} --o out").code == 0
    finds_the_phantoms("out")
    model = read_star(f"out/{LAST}_model.star")
    assert abs(float(model["model_general"].pairs["rlnPixelSize"]) - PIXEL_A) < 1e-6


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (30, "class2d --k 3 --iter 4"),
        (30, "align2d --k 3 --iter 4"),
        (40, "class2d --k 20 --iter 4"),
        (40, "class2d --k 1 --iter 1"),
        (40, "align2d --k 1 --iter 3"),
        (5, "class2d --k 5 --iter 3"),
        (1, "class2d --k 1 --iter 2"),
        (2, "align2d --k 1 --iter 2 --no-norm --no-center-classes"),
        (60, "class2d --k 4 --iter 3 --offset-range 0"),
        (60, "class2d --k 4 --iter 2 --offset-range 16 --offset-step 1"),
        (60, "class2d --k 4 --iter 3 --psi-step 90 --tau2-fudge 0.01"),
        (60, "class2d --k 4 --iter 2 --psi-step 0.5 --tau2-fudge 100"),
        (60, "class2d --k 4 --iter 3 --strict-highres-exp 1000 --ctf-intact-first-peak"),
        (60, "class2d --k 4 --iter 3 --strict-highres-exp 0.1 --memory 0.01"),
        (60, "class2d --k 4 --iter 3 --particle-diameter 12"),
        (60, "class2d --k 4 --iter 3 --particle-diameter 96"),
        (60, "class2d --k 4 --iter 3 --offset-step 10"),
    ],
)
def test_few_particles_and_parameters_at_their_bounds(tmp_path, monkeypatch, n, words):
    """Finite averages, every particle in a class, weights that add up."""
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    ParticleSet(n=n).write(tmp_path)
    ended = polarice(f"{words} particles.star --threads 1 --o out")
    assert ended.code == 0, ended.err
    last = max(Path("out").glob("run_it*_data.star"))
    k, found = int(words.split()[2]), read_star(last).table("particles")
    assert len(found) == n
    classes = found.integers("rlnClassNumber")
    assert classes.min() >= 1 and classes.max() <= k
    averages = open_stack(str(last).replace("data.star", "classes.mrcs"))
    assert averages.shape == (k, 32, 32) and np.isfinite(averages).all() and averages.std() > 0
    weights = read_star(str(last).replace("data", "model")).table("model_classes").numbers("rlnClassDistribution")
    assert abs(weights.sum() - 1) < 1e-5


def test_the_same_section_twice_is_two_particles(place):
    names = SET.table()["rlnImageName"]
    SET.write_table(place, rlnImageName=[names[0]] * 3 + names[3:])
    assert polarice(f"{RUN} --o out").code == 0
    poses = read_star(f"out/{LAST}_data.star").table("particles")
    same_ctf = poses.numbers("rlnAnglePsi")[:3]
    assert len(poses) == SET.n and np.isfinite(same_ctf).all()


def test_tables_that_look_elsewhere_for_their_images(place):
    Path("data").mkdir()
    shutil.move("stack.mrcs", "data/stack.mrcs")
    ended = polarice(f"{RUN} --iter 1 --o out")
    assert ended.code == 2 and "row 1: image stack stack.mrcs not found" in ended.err
    assert polarice(f"{RUN} --iter 1 --o out --image-dir data").code == 0
    name = read_star("out/run_it001_data.star").table("particles").text("rlnImageName")[0]
    assert name == "000001@data/stack.mrcs"  # from where RELION would look


@pytest.mark.parametrize("same", [True, False])
def test_a_pose_in_the_table_is_where_the_search_begins(place: Any, same: bool):
    """Particles off centre, all by as much or each by its own, are found where the table says that they are."""
    shift = np.tile([6, -4], (SET.n, 1)) if same else np.random.default_rng(5).integers(-6, 7, (SET.n, 2))
    SET.write(
        place, np.stack([np.roll(image, (y, x), (0, 1)) for image, (x, y) in zip(SET.images(), shift, strict=True)])
    )
    SET.write_table(place, rlnOriginXAngst=-shift[:, 0] * PIXEL_A, rlnOriginYAngst=-shift[:, 1] * PIXEL_A)
    assert polarice(f"{RUN} --o out --offset-range 4").code == 0
    finds_the_phantoms("out", 0.8)  # eight seeds give 0.83 to 0.98
    found = read_star(f"out/{LAST}_data.star").table("particles")
    centre = -np.stack([found.numbers(f"rlnOrigin{axis}Angst") for axis in "XY"], axis=1) / PIXEL_A
    assert np.sqrt(np.mean((centre - shift) ** 2)) < 2  # images are off by 0.9 px on their own


def test_classes_that_are_there_are_gone_on_with(place):
    """--ref: as many from the first iteration on, and class 3 stays class 3; once begun, the run can do without."""
    assert polarice(f"{RUN} --k 10 --iter 5 --o first").code == 0
    ended = polarice(f"{RUN} --k 10 --iter 2 --o out --ref first")
    assert ended.code == 0 and "of 10 classes in use, median" in ended.err.splitlines()[0]
    assert (labels("first") == labels("out", "run_it002")).mean() > 0.7  # of 10 classes for four phantoms
    shutil.rmtree("first")
    assert polarice("class2d --continue out --iter 3").code == 0


def test_a_checkpoint_without_a_noise_spectrum_is_refused(whole, tmp_path):
    name = f"{LAST}_polarice.npz"
    with np.load(whole / "out" / name) as stored:
        arrays = dict(stored)
    np.savez(tmp_path / name, **arrays | {"model.noise_power": np.full_like(arrays["model.noise_power"], np.inf)})
    with pytest.raises(InputError, match=r"model\.noise_power holds values that are no numbers"):
        read_checkpoint(tmp_path, 5, CPU)
