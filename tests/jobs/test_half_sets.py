"""Half sets that share images, references that cannot be used, and inputs of maps that change: told, not celebrated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.phantoms import Held
from jobs.runs import polarice as run
from jobs.runs import stub_report
from polarice.bench.folder import DATA
from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.io.mrc import open_stack, read_volume, require_density, write_stack, write_volume
from polarice.io.particles import read_particles, write_particles
from polarice.io.star import Block, read_star, write_star
from polarice.jobs import simulate
from polarice.references.fsc import correlation, of_one_map
from polarice.runs.checkpoint import path_of
from polarice.runs.checkpoint3d import read_refinement
from polarice.runs.half_sets import same_images
from polarice.runs.marked_images import MarkedSource
from polarice.runs.refinement import read_reference
from polarice.types import InputError

BOX, ANGPIX, N = 24, 15.0, 150
REFINE = "--ref ref.mrc --particle-diameter 300 --iter 1 --threads 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Particles with their true angles in two halves, and the map that these make."""
    folder = tmp_path_factory.mktemp("halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run(
            simulate.Params(
                inputs=(DATA / "ribosome70S.mrc",), o=Path("p"), particles=N, box=BOX, angpix=ANGPIX, snr=0.5,
                shift_sigma=0.3, seed=4, threads=1,
            )
        )  # fmt: skip
        write_particles("known.star", read_particles("p/truth.star"), columns={"rlnRandomSubset": halves()})
        assert run("reconstruct known.star --o known --particle-diameter 300 --threads 1").code == 0
        shutil.copy("known/run_class001.mrc", "ref.mrc")
        assert run(f"refine3d known.star {REFINE} --o run").code == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def halves() -> np.ndarray:
    return np.arange(N) % 2 + 1


def with_copies(path: str, rows: np.ndarray, half_of_copies: np.ndarray | None, name: str | None = None) -> None:
    """known.star and behind it some of its rows once more, as in other halves or without any; in stack `name`."""
    blocks = read_star("known.star")
    table = blocks.table("particles")
    both = np.concatenate([np.arange(N), rows])
    columns = {"rlnImageName": table.text("rlnImageName")[both].astype(object)}
    if name is not None:
        columns["rlnImageName"][N:] = [text.replace("p/particles.mrcs", name) for text in columns["rlnImageName"][N:]]
    if half_of_copies is not None:
        columns["rlnRandomSubset"] = np.concatenate([halves(), half_of_copies])
    new = table.take(both).with_columns(columns)
    if half_of_copies is None:
        new = new.without("rlnRandomSubset")
    write_star(path, [Block("optics", table=blocks.table("optics")), Block("particles", table=new)])


@pytest.mark.parametrize("name", [None, "copy.mrcs"], ids=["rows", "another stack"])
def test_every_particle_once_in_each_half_is_refused(here, name):
    if name:
        shutil.copy("p/particles.mrcs", name)
    with_copies("twins.star", np.arange(N), 3 - halves(), name)
    for line in ("reconstruct twins.star", f"refine3d twins.star {REFINE}"):
        ended = run(f"{line} --o none")
        assert ended.code == 2 and f"{N} particles stand in both half sets" in ended.err
        assert f"the first in rows 1 and {N + 1} (000001@" in ended.err
        assert not list(Path("none").glob("run*"))


def test_a_few_copies_in_the_other_half_are_told(here):
    with_copies("one.star", np.array([6]), 3 - halves()[[6]])
    ended = run("reconstruct one.star --o one --threads 1")
    assert ended.code == 0 and f"1 particles stand in both half sets, the first in rows 7 and {N + 1}" in ended.err


def test_drawn_halves_keep_copies_together(here):
    with_copies("twins.star", np.arange(N), None)
    ended = run(f"refine3d twins.star {REFINE} --o drawn")
    assert ended.code == 0, ended.err
    half_of = read_star("drawn/run_data.star").table("particles").numbers("rlnRandomSubset")
    np.testing.assert_array_equal(half_of[:N], half_of[N:])
    assert abs((half_of == 1).mean() - 0.5) < 0.1


def looked(marks=None, **columns):
    table = SimpleNamespace(
        table=read_star_of(columns), particles=np.zeros(len(next(iter(columns.values()), marks)))
    )  # fmt: skip
    return SimpleNamespace(table=table, marks=marks)


def read_star_of(columns):
    from polarice.io.star import Table

    return Table.of(columns)


def test_rows_of_one_image():
    """By pixels, by place, by both in a chain; a column of zeros is no place."""
    assert len(set(same_images(looked(np.array([5, 6, 5, 7]))).tolist())) == 3
    names = np.array(["a", "a", "b", "a"], object)
    place = {"rlnMicrographName": names, "rlnCoordinateX": [10.2, 10.4, 10.2, 50], "rlnCoordinateY": [7, 7.1, 7, 7]}
    one, two, three, four = same_images(looked(np.array([1, 2, 3, 2]), **place)).tolist()
    assert one == two == four and three != one
    nowhere = place | {"rlnCoordinateX": np.zeros(4), "rlnCoordinateY": np.zeros(4)}
    assert len(set(same_images(looked(np.array([1, 2, 3, 4]), **nowhere)).tolist())) == 4


def test_marks_are_of_the_pixels():
    images = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    images[3] = images[1]
    marks = np.zeros(4, np.int64)
    marked = MarkedSource(Held(images), marks)
    np.testing.assert_array_equal(marked.read(np.array([2, 0, 1])), images[[2, 0, 1]])
    marked.read(np.array([3]))
    assert marks[1] == marks[3] and len({*marks.tolist()}) == 3


def test_half_maps_that_are_one_are_told(here, monkeypatch):
    rng = np.random.default_rng(1)
    one, noise = (torch.from_numpy(rng.normal(size=(BOX,) * 3)) for _ in range(2))
    assert of_one_map(correlation(one, one), BOX // 2)
    assert of_one_map(correlation(one, one + 1e-3 * noise), BOX // 2)
    assert not of_one_map(correlation(one, one + 0.05 * noise), BOX // 2)
    assert not of_one_map(correlation(one, one), BOX // 5)  # a few shells of large signal may be
    monkeypatch.setattr("polarice.runs.half_sets.require_apart", lambda *_: None)
    with_copies("twins.star", np.arange(N), 3 - halves())
    ended = run("reconstruct twins.star --o told --threads 1")
    assert ended.code == 0 and "nothing is known of the map's resolution" in ended.out
    ended = run(f"refine3d twins.star {REFINE} --no-firstiter-cc --o refined")
    assert ended.code == 0, ended.err
    assert "resolution not known" in ended.out and "the same on every shell" in ended.err
    assert "resolution: not known" in Path("refined/report.html").read_text()


@pytest.mark.parametrize(("factor", "size"), [(1.0, None), (1e30, 1.0), (1e-30, 1.0)])
def test_references_of_any_grey_scale(here, factor, size):
    density = read_volume("ref.mrc")[0]
    write_volume("scaled.mrc", density * np.float32(factor), ANGPIX)
    images = SimpleNamespace(preparation=SimpleNamespace(box_px=BOX), pixel_size_A=ANGPIX)
    found = read_reference(Path("scaled.mrc"), images)
    assert np.corrcoef(found.ravel(), density.ravel())[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.abs(found).max() == pytest.approx(size or np.abs(density).max(), rel=1e-5)


@pytest.mark.parametrize("hot", [1e6, 1e35])
def test_a_hot_voxel_is_named(here, hot):
    density = read_volume("ref.mrc")[0]
    density[3, 4, 5] = hot * density.std()
    write_volume("hot.mrc", density, ANGPIX)
    ended = run(f"refine3d known.star {REFINE.replace('ref.mrc', 'hot.mrc')} --o none")
    assert ended.code == 2 and "voxel 5, 4, 3 (from 0) holds more than all others" in ended.err
    with pytest.raises(InputError, match=r"every voxel is the same"):
        require_density("flat.mrc", np.ones((8, 8, 8), np.float32))


@pytest.mark.parametrize(("pixel_A", "says"), [(0.0, "states no pixel size"), (1.0, "states 1 A a voxel")])
def test_a_header_without_a_pixel_size_is_told(here, pixel_A, says):
    write_volume("unset.mrc", read_volume("ref.mrc")[0], pixel_A)
    ended = run(f"refine3d known.star {REFINE.replace('ref.mrc', 'unset.mrc')} --o unset")
    assert ended.code == 0 and f"{says}" in ended.err and "15 A of the particles is taken" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--offset-range 10 --offset-step 0.1", "31416 shifts for each image"),
        ("--offset-range 1000000000", "at most half the box, 12 px"),
        ("--ini-high 1000", "the particle is 300 A wide, and nothing would be left"),
    ],
)
def test_searches_without_end_or_begin(here, words, message):
    ended = run(f"refine3d known.star {REFINE} --o none {words}")
    assert ended.code == 2 and message in ended.err and not Path("none").exists()


def test_the_reference_is_among_the_inputs(here):
    kept = json.loads(Path("run/job.json").read_text())["inputs"]
    assert [Path(each["path"]).name for each in kept] == ["known.star", "particles.mrcs", "ref.mrc"]
    density = read_volume("ref.mrc")[0]
    Path("ref.mrc").unlink()  # it is needed no more
    shutil.copytree("run", "again")
    assert run("refine3d --continue again --iter 2 --threads 1").code == 0
    assert json.loads(Path("again/job.json").read_text())["inputs"][2] == kept[2]
    write_volume("ref.mrc", -density, ANGPIX)
    ended = run("refine3d --continue run --iter 2 --threads 1")
    assert ended.code == 2 and "--ref ref.mrc: changed since the run in run began" in ended.err
    for path in Path("run").glob("run_it*"):
        path.unlink()
    Path("ref.mrc").unlink()
    ended = run("refine3d --continue run --iter 2 --threads 1")
    assert ended.code == 2 and "ref.mrc: not found, and the run in run has not begun without it" in ended.err


def test_the_classes_that_a_run_begins_with_are_among_its_inputs(here, monkeypatch):
    stub_report(monkeypatch)
    line = "class2d known.star --particle-diameter 300 --k 9 --threads 1"
    assert run(f"{line} --o one --iter 2").code == 0
    assert run(f"{line} --o two --iter 1 --ref one").code == 0
    kept = json.loads(Path("two/job.json").read_text())["inputs"]
    assert kept[-1]["path"] == "one/run_it002_polarice.npz" and kept[-1]["size"] > 0
    assert run("class2d --continue one --iter 3 --threads 1").code == 0  # what was begun with needs it no more
    assert run("class2d --continue two --iter 2 --threads 1").code == 0
    assert run("initial3d one --o first --seeds 1 --iter 5 --threads 1 --particle-diameter 300").code == 0
    kept = [each["path"] for each in json.loads(Path("first/job.json").read_text())["inputs"]]
    assert kept == ["one/job.json", "one/run_it003_polarice.npz", "one/run_it003_data.star"]


def test_a_table_that_is_no_more_that_of_its_classes(here, monkeypatch):
    stub_report(monkeypatch)
    assert run("class2d known.star --particle-diameter 300 --k 9 --threads 1 --iter 2 --o one").code == 0
    path = Path("one/run_it002_data.star")
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:-40]))
    ended = run("initial3d one --o none")
    assert ended.code == 2 and f"particles, and {N} when the classes were made" in ended.err
    path.write_text(text.replace(f"{ANGPIX:.6f}", "7.500000"))
    ended = run("initial3d one --o none")
    assert ended.code == 2 and "7.5 A per pixel, and 15 A when the classes were made" in ended.err


def test_images_multiplied_by_their_ctf_make_the_same_map(here):
    table = read_particles("known.star")
    values = ctf_image(table.particles.optics[0], table.particles.ctf, BOX)
    images = np.array(open_stack("p/particles.mrcs")[:], float)
    write_stack("mult.mrcs", centred_ifft2(centred_fft2(images) * values).real.astype(np.float32), ANGPIX)
    names = [f"{n + 1:06d}@mult.mrcs" for n in range(N)]
    optics_table = table.optics_table.with_columns({"rlnCtfDataAreCtfPremultiplied": [1]})
    write_particles("mult.star", replace(table, optics_table=optics_table), columns={"rlnImageName": names})
    for line in ("reconstruct {}.star --particle-diameter 300", "refine3d {}.star " + REFINE):
        maps = []
        for name in ("known", "mult"):
            job = line.split()[0]
            ended = run(f"{line.format(name)} --o {job}_{name} --threads 1")
            assert ended.code == 0, ended.err
            maps.append(read_volume(f"{job}_{name}/run_class001.mrc")[0])
        plain, multiplied = maps
        fsc = correlation(*(torch.from_numpy(each) for each in maps)).numpy()
        assert (fsc[1 : BOX // 2] > 0.995).all(), fsc
        assert (plain * multiplied).sum() / (plain * plain).sum() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("carried.direction", 0.5, "directions or sets of particles make no sense"),
        ("carried.set_of", 3, "directions or sets of particles make no sense"),
        ("model.unfiltered", np.inf, "values that are no numbers in unfiltered"),
        ("pose.shift_px", 1e38, "pose.shift_px lies outside of any box"),
        ("model.joined", 1j, "model.joined holds complex"),
        ("step.r_max", 1000, "the last step makes no sense"),
    ],
)
def test_damaged_checkpoints_of_halves(here, name, value, message):
    path = path_of(Path("run"), 1)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[name] = np.full_like(arrays[name], value, dtype=complex if isinstance(value, complex) else None)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        read_refinement(Path("run"), 1, torch.device("cpu"))


def test_what_lies_on_a_card_has_room_beside_the_maps(monkeypatch):
    """Of a card of 80 GiB: an eighth for batches, two fifths for prepared images, a quarter for pixels, or what is
    left."""
    from polarice.runs import resources

    GiB = 1 << 30
    monkeypatch.setattr(resources, "_all_bytes", lambda device: 80 * GiB)
    card, params = torch.device("cuda"), SimpleNamespace(memory=None)
    for held, pixels in ((0, 20), (18, 20), (30, 8), (38, 0), (100, 0)):
        assert resources.pixel_bytes(params, card, held * GiB) == pixels * GiB, held
        store = resources.store_bytes(params, card, held=held * GiB)
        assert store + pixels * GiB + 10 * GiB + held * GiB <= max(80, 10 + held) * GiB
    assert resources.pixel_bytes(params, torch.device("cpu")) == 0
