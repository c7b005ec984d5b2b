"""sml from a table of aligned particles to a folder: what it finds, writes and takes, and how it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.runs import STOPPED_BY_CRASH, Ended, assert_same_files, crash, polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.io.mrc import open_stack
from polarice.io.particles import pose_columns
from polarice.io.star import read_star
from polarice.report import read_history
from polarice.report.latent import GAP_PX, LINE_GAP_PX, LINE_MARGIN_PX, map_sheet, occupancy
from polarice.simulation.score import purity
from polarice.types import Pose2D

SET = ParticleSet(n=200, box_px=32, noise_sd=1.0)
RUN = "sml aligned/particles.star --k 4x5 --iter 6 --write-every 3 --particle-diameter 70 --threads 1"
LAST = "run_it006"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory) -> Path:
    """Particles and a table that knows their poses."""
    folder = tmp_path_factory.mktemp("sml") / "aligned"
    folder.mkdir()
    SET.write(folder)
    SET.write_table(folder, **{**SET.aligned(), "rlnClassNumber": np.ones(SET.n, int)})
    return folder


@pytest.fixture(scope="module")
def whole(aligned) -> Path:
    """A run that nobody disturbed, report and all, in `out`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(aligned.parent)
        ended = polarice(f"{RUN} --o out")
    assert ended.code == 0, ended.err
    assert "200 particles on a map of 20 nodes; report: out/report.html" in ended.out
    return aligned.parent / "out"


@pytest.fixture
def place(aligned, tmp_path, monkeypatch) -> Path:
    """The same particles in a working directory of one's own."""
    shutil.copytree(aligned, tmp_path / "aligned")
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    return tmp_path


def column(folder: Path | str, label: str, last: str = LAST) -> np.ndarray:
    return read_star(Path(folder) / f"{last}_data.star").table("particles").numbers(label)


def nodes(folder: Path | str, last: str = LAST) -> np.ndarray:
    return column(folder, "rlnClassNumber", last).astype(int) - 1


def test_the_species_come_apart(whole):
    found = nodes(whole)
    assert purity(found, SET.label) > 0.9
    assert purity(found, np.random.default_rng(0).permutation(SET.label)) < 0.6


def test_poses_and_other_columns_stay(whole, aligned):
    before = read_star(aligned / "particles.star").table("particles")
    for label in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU"):
        np.testing.assert_allclose(column(whole, label), before.numbers(label), atol=1e-5)


def test_latent_coordinates_are_those_of_the_nodes(whole):
    """A mean lies no farther from the best node than the probability of the others lets it, the map being two long."""
    y, x = np.unravel_index(nodes(whole), (4, 5))
    at, (latent, spread) = np.stack([2 * y / 3 - 1, 2 * x / 4 - 1], axis=1), coordinates(whole)
    others = 1 - column(whole, "rlnMaxValueProbDistribution")[:, None]
    assert (np.abs(latent - at) <= 2 * others + 1e-4).all() and np.abs(latent).max() <= 1
    assert (spread <= np.sqrt(4 * others) + 1e-3).all() and others.min() < 0.5


def test_particles_near_each_other_on_the_map_are_of_one_species(whole):
    """The nearest other one, by the coordinates alone."""
    latent, _ = coordinates(whole)
    apart = np.linalg.norm(latent[:, None] - latent[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = SET.label[apart.argmin(axis=1)]
    assert np.mean(nearest == SET.label) > 0.9
    assert np.mean(np.random.default_rng(0).permutation(nearest) == SET.label) < 0.6


def coordinates(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) where particles lie on the map, and how widely."""
    return tuple(
        np.stack([column(folder, f"polariceLatent{axis}{kind}") for axis in (1, 2)], axis=1) for kind in ("", "Sd")
    )


def test_iterations_leave_what_goes_on_from_them(whole):
    """RELION's files every third iteration; a checkpoint beside them and nothing else that only costs room."""
    made = {path.name for path in whole.iterdir()}
    for number in (3, 6):
        assert {f"run_it{number:03d}_{kind}" for kind in ("data.star", "model.star", "polarice.npz")} <= made
    assert not [name for name in made if name.startswith(("run_it001", "run_it002", "run_it004", "run_it005"))]
    assert [row["number"] for row in read_history(whole)] == [1, 2, 3, 4, 5, 6]


def test_map_movie_and_report(whole):
    page = (whole / "report.html").read_text()
    assert "Latent map" in page and f"{LAST}_path.gif" in page
    path = open_stack(whole / f"{LAST}_path.mrcs")
    averages = open_stack(whole / f"{LAST}_classes.mrcs")
    assert len(path) == 60
    change = np.linalg.norm(np.diff(path, axis=0), axis=(1, 2))
    assert change.max() < 0.2 * np.linalg.norm(path[0] - path[-1])  # no jumps
    apart = np.linalg.norm(averages[:, None] - averages[None], axis=(2, 3)).max()
    assert np.linalg.norm(path[0] - path[-1]) > 0.4 * apart  # from one end to the other
    with Image.open(whole / f"{LAST}_path.gif") as movie:
        assert movie.n_frames > 60
    with Image.open(whole / f"{LAST}_map.png") as sheet:
        assert sheet.width > sheet.height  # 4 rows of 5
    where = read_star(whole / f"{LAST}_path.star").table("path")
    assert len(where) == 60 and np.abs(where.numbers("polariceLatent1")).max() <= 1


def test_empty_nodes_are_named_and_are_not_black(place):
    ended = polarice(f"{RUN} --o out --k 12x12")
    assert ended.code == 0 and "most will hold fewer than 3" in ended.err
    empty = np.setdiff1d(np.arange(144), nodes("out"))
    assert f"{len(empty)} nodes are no particle's best" in ended.out and f": {empty[0] + 1}, " in ended.out
    contrast = np.ptp(open_stack(f"out/{LAST}_classes.mrcs"), axis=(1, 2))
    assert contrast[empty].min() > 0.2 * np.median(contrast)


@pytest.mark.parametrize("words", ["--k 20", "--k 3x3x2", "--k 16 --start classes", "--k 16 --start random"])
def test_other_grids_and_starts(place, words):
    SET.write_table(Path("aligned"), **SET.aligned())  # with classes
    ended = polarice(f"{RUN} --o out {words}")
    assert ended.code == 0, ended.err
    axes = 3 if words == "--k 3x3x2" else 1
    labels = read_star(f"out/{LAST}_data.star").table("particles").labels
    assert [label for label in labels if label.startswith("polariceLatent") and not label.endswith("Sd")] == [
        f"polariceLatent{axis + 1}" for axis in range(axes)
    ]
    assert purity(nodes("out"), SET.label) > 0.8


def test_hard_averages_are_those_of_the_particles(place):
    """Of four species, the averages of the particles in a node resemble the phantom more than noise does."""
    assert polarice(f"{RUN} --o out --average hard --threshold 0.5").code == 0
    counts = np.bincount(nodes("out"), minlength=20)
    averages = open_stack(f"out/{LAST}_classes.mrcs")
    model = read_star(f"out/{LAST}_model.star")
    assert polarice(f"{RUN} --o soft").code == 0
    soft = open_stack(f"soft/{LAST}_classes.mrcs")
    fullest = int(counts.argmax())
    assert 0.5 < np.corrcoef(averages[fullest].ravel(), soft[fullest].ravel())[0, 1] < 0.9999
    assert model.table("model_classes").numbers("rlnEstimatedResolution")[fullest] < 30


def test_classes_are_brought_into_register(place):
    """The same particle in four classes of arbitrary frames: their angles come back to one frame."""
    one = ParticleSet(n=160, box_px=32, noise_sd=0.5, phantoms=1)
    one.write(Path("aligned"))
    psi, shift = one.pose(np.random.default_rng(one.seed))
    class_of = np.arange(one.n) % 4
    frame = np.array([0.0, 70.0, 200.0, 310.0])[class_of]
    columns = pose_columns(Pose2D(class_of.astype(np.int32), psi - frame, shift), PIXEL_A)
    one.write_table(Path("aligned"), **columns)
    assert polarice(f"{RUN} --o out --k 2x2").code == 0
    assert polarice(f"{RUN} --o anyhow --k 2x2 --no-register").code == 0
    off = {}
    for folder in ("out", "anyhow"):
        z = np.exp(1j * np.deg2rad(-column(folder, "rlnAnglePsi") - psi))
        off[folder] = np.rad2deg(np.abs(np.angle(z * np.exp(-1j * np.angle(z.mean())))))
    assert off["out"].max() < 3 and np.median(off["anyhow"]) > 30
    frames = read_star("out/register.star").table("classes")
    assert frames.integers("rlnClassNumber").tolist() == [1, 2, 3, 4]
    assert frames.numbers("rlnParticleFigureOfMerit").min() > 0.9


def test_poses_may_move(place):
    """Angles that are off by 5 degrees come nearer to the truth; a killed run goes on to the same bits."""
    to_device = ParticleSet(n=200, box_px=32, noise_sd=0.5)
    to_device.write(Path("aligned"))
    psi, shift = to_device.pose(np.random.default_rng(to_device.seed))
    off = psi + 5 * np.random.default_rng(1).standard_normal(to_device.n)
    to_device.write_table(Path("aligned"), **pose_columns(Pose2D(np.zeros(to_device.n, np.int32), off, shift), PIXEL_A))
    Path("again").mkdir()
    shutil.copytree("aligned", "again/aligned")
    line = f"{RUN} --o out --k 4x4 --iter 9 --refine-poses --refine-psi 5"
    assert polarice(line).code == 0
    assert crash(line, place / "again", ("os.replace", 9)) == STOPPED_BY_CRASH
    assert crash("sml --continue out", place / "again") == 0
    assert_same_files(place / "out", place / "again/out", 9)
    error = []
    for angle in (off, -column("out", "rlnAnglePsi", "run_it009")):
        z = np.exp(1j * np.deg2rad(angle - psi))
        for kind in range(4):
            z[to_device.label == kind] *= np.exp(-1j * np.angle(z[to_device.label == kind].mean()))
        error.append(np.median(np.abs(np.rad2deg(np.angle(z)))))
    assert error[0] > 2.5 and error[1] < 0.8 * error[0], error


def test_class_numbers_may_have_gaps(place):
    """A map that begins with the classes is the same whatever their numbers are."""
    found = []
    for step in (1, 500_000_000):
        SET.write_table(Path("aligned"), **{**SET.aligned(), "rlnClassNumber": step * SET.label + 1})
        assert polarice(f"{RUN} --iter 2 --k 9 --start classes --o out").code == 0
        found.append((nodes("out", "run_it002"), column("out", "rlnAnglePsi", "run_it002")))
        shutil.rmtree("out")
    assert all(np.array_equal(*each) for each in zip(*found, strict=True))
    SET.write_table(Path("aligned"), **{**SET.aligned(), "rlnClassNumber": np.where(SET.label == 2, 10**11, 1)})
    row = int(np.argmax(SET.label == 2)) + 1
    refused(polarice(f"{RUN} --o out"), f"row {row}: _rlnClassNumber is 100000000000; correct or remove the row")


def test_a_map_inside_each_class(place):
    """Two classes of two species each: the maps part them, and one table tells where each particle lies."""
    class_of = SET.label % 2
    columns = {**SET.aligned(), "rlnClassNumber": np.where(np.arange(SET.n) < 6, 3, class_of + 1)}
    SET.write_table(Path("aligned"), **columns)
    line = f"{RUN} --o out --k 2x3 --search"
    assert crash(line, place, ("os.replace", 20)) == STOPPED_BY_CRASH
    ended = polarice("sml --continue out")
    assert ended.code == 0, ended.err
    assert "200 particles on 2 maps of 6 nodes; report: out/report.html" in ended.out
    assert "1 classes have too few particles" in ended.err
    found = read_star("out/run_data.star").table("particles")
    number = found.integers("rlnClassNumber") - 1
    assert set(number[:6]) == {12} and number[6:].max() < 12
    assert np.array_equal(number[6:] // 6, class_of[6:])
    assert purity(number[6:], SET.label[6:]) > 0.85
    assert np.abs(found.numbers("polariceLatent1")[6:]).max() > 0.9


def test_a_particle_that_stands_in_two_classes_keeps_both_places(place):
    """Its image is named in two rows: each has the place that its own class's map gives it."""
    columns = {**SET.table(), **SET.aligned(), "rlnClassNumber": SET.label % 2 + 1}
    twice = {label: np.append(values, np.asarray(values)[7:8]) for label, values in columns.items()}
    wanted = twice["rlnClassNumber"]
    wanted[-1] = 3 - wanted[-1]
    SET.write_table(Path("aligned"), **twice)
    ended = polarice(f"{RUN} --iter 2 --o out --k 2x3 --search")
    assert ended.code == 0 and "201 particles on 2 maps" in ended.out, ended.err
    number = read_star("out/run_data.star").table("particles").integers("rlnClassNumber") - 1
    assert np.array_equal(number // 6 + 1, wanted)
    SET.write_table(Path("aligned"), **SET.aligned() | {"rlnClassNumber": None})
    shutil.rmtree("out")
    refused(polarice(f"{RUN} --o out --k 2x3 --search"), "aligned/particles.star: no column _rlnClassNumber, and")


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2 and ended.err.splitlines()[-1].startswith("polarice sml: error: "), ended.err
    assert all(word in ended.err for word in words), ended.err
    assert not Path("out").exists()


def test_tables_without_poses_are_sent_to_align2d(place):
    SET.write_table(Path("aligned"))
    refused(polarice(f"{RUN} --o out"), "aligned/particles.star", "_rlnAnglePsi", "run polarice align2d first")
    zeros = {label: np.zeros(SET.n) for label in SET.aligned() if label != "rlnClassNumber"}
    SET.write_table(Path("aligned"), **zeros)
    refused(polarice(f"{RUN} --o out"), "all angles and origins are 0", "run polarice align2d first")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 4x", "--k 4x: give a number of nodes, or a grid such as 32x32"),
        ("--k 2x2x2x2", "give a number of nodes"),
        ("--k 1", "from 2 to 100000 nodes"),
        ("--k 15x15", "225 classes asked of 200 particles"),
    ],
)
def test_grids_that_make_no_sense(place, words, message):
    refused(polarice(f"{RUN} --o out {words}"), message)


def test_a_map_that_would_take_all_memory_is_refused_before_it_begins(place):
    words = "200 nodes of 32 px take up to 0.0", "GiB beside the images, --memory 0.02 allows 0.02; allow more"
    refused(polarice(f"{RUN} --o out --k 200 --memory 0.02"), *words)


def test_a_start_by_classes_needs_classes(place):
    refused(
        polarice(f"{RUN} --o out --start classes"),
        "all particles are in one class, and --start classes needs at least two",
    )


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 3, 9, 10, 14])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(whole, place, at):
    line = f"{RUN} --o out"
    assert crash(line, place, ("os.replace", at)) == STOPPED_BY_CRASH
    assert crash("sml --continue out", place) == 0
    assert_same_files(place / "out", whole, 6)


def test_a_run_that_lacks_but_its_report_makes_no_iteration_again(whole, place):
    """Also where the one before left no checkpoint to go on from: the same map, movie and page."""
    shutil.copytree(whole, "out")
    for path in (Path("out/report.html"), Path("out/report_map.png"), *Path("out").glob("run_it00[1-5]_*")):
        path.unlink(missing_ok=True)
    for name in ("map.png", "path.mrcs", "path.gif", "path.star"):
        Path(f"out/{LAST}_{name}").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("run_it*")}
    ended = polarice("sml --continue out")
    assert ended.code == 0 and "going on after iteration 6 of 6" in ended.err, ended.err
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in Path("out").glob("run_it*")}.items()
    for name in (f"{LAST}_map.png", f"{LAST}_path.gif", f"{LAST}_path.mrcs", "report_map.png"):
        assert (Path("out") / name).read_bytes() == (whole / name).read_bytes(), name


def test_streamed_images_give_the_same_map(place):
    """Where memory is short, images are prepared in every iteration anew: the same nodes but for rounding."""
    assert polarice(f"{RUN} --o kept --start random").code == 0
    assert polarice(f"{RUN} --o streamed --start random --memory 0.01").code == 0
    assert polarice(f"{RUN} --o scratch --start random --scratch .").code == 0
    for other in ("streamed", "scratch"):
        assert (nodes("kept") == nodes(other)).mean() > 0.97


def test_more_iterations(whole, place):
    shutil.copytree(whole, "out")
    ended = polarice("sml --continue out --iter 8")
    assert ended.code == 0, ended.err
    assert json.loads(Path("out/job.json").read_text())["params"]["iter"] == 8
    assert purity(nodes("out", "run_it008"), SET.label) > 0.9


def _without(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda a: a | {"model.coefficients": a["model.coefficients"] * np.nan},
            "model.coefficients holds values that",
        ),
        (lambda a: _without("latent_mean", a), "arrays are missing"),
        (lambda a: _without("basis.box_px", a), "arrays are missing"),
        (lambda a: a | {"model.weights": a["model.weights"][1:]}, "do not fit together: weights"),
        (lambda a: a | {"latent_sd": a["latent_sd"][1:]}, "do not fit together: of the particles"),
    ],
)
def test_damaged_checkpoints_are_named(whole, place, changed, message):
    shutil.copytree(whole, "out")
    last = Path(f"out/{LAST}_polarice.npz")
    with np.load(last) as stored:
        arrays = dict(stored)
    np.savez(last, **changed(arrays))
    ended = polarice("sml --continue out --iter 8")
    assert ended.code == 2 and message in ended.err, ended.err
    assert f"{last}: this checkpoint cannot be read" in ended.err and "go on from iteration 3" in ended.err


def test_the_only_checkpoint_damaged(whole, place):
    """There is none before it to go on from."""
    shutil.copytree(whole, "out")
    Path("out/run_it003_polarice.npz").unlink()
    last = Path(f"out/{LAST}_polarice.npz")
    last.write_bytes(last.read_bytes()[:-500])
    ended = polarice("sml --continue out --iter 8")
    assert ended.code == 2 and "none is before it: start anew" in ended.err, ended.err
    assert "remove" not in ended.err and "to go on" not in ended.err


def test_a_line_is_drawn_as_one():
    """Its nodes along one axis; on the sheet in lines that stand apart, each behind its first node's number."""
    averages = np.zeros((35, 24, 24), np.float32)
    averages[:, 8:16, 8:16] = 1
    counts = np.arange(35)
    sheet, grid = (np.asarray(map_sheet(averages, shape, counts + 1, 12.0)) for shape in ((35,), (5, 7)))
    white = [(each == 255).all(axis=1).sum() for each in (sheet, grid)]
    assert white[0] - white[1] == 4 * (LINE_GAP_PX - GAP_PX)
    assert (sheet[:, : LINE_MARGIN_PX - 4] < 128).any(axis=1).sum() > 5 * 5  # numbers
    left, right = occupancy((35,), counts, np.zeros((5, 1))).axes
    assert left.get_xlabel().startswith("node") and right.get_xlabel() == "polariceLatent1"
    assert np.array_equal(left.patches[0].get_data().values, counts)


def test_a_map_is_no_start_of_class2d(whole, place):
    ended = polarice(f"class2d aligned/particles.star --o other --k 20 --ref {whole}")
    assert ended.code == 2 and "is of sml; give the folder of a run of align2d or class2d" in ended.err
