"""The Python API: the results and messages of the commands, and nothing left behind that was not asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import polarice
from polarice.types import InputError

ROOT = Path(__file__).parents[1]
RIBOSOME = ROOT / "src/polarice/data/ribosome70S.mrc"
SMALL = {"k": 4, "iter": 3, "threads": 1, "seed": 3}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """300 ribosomes of 32 px."""
    folder = tmp_path_factory.mktemp("api") / "simulated"
    return polarice.simulate(RIBOSOME, out=folder, particles=300, box=32, snr=1.0, threads=1, seed=5)


@pytest.fixture(scope="module")
def data(simulated):
    return polarice.particles(simulated.table)


@pytest.fixture(scope="module")
def in_memory(data):
    return polarice.class2d(data, **SMALL)


def test_importing_loads_nothing_heavy():
    script = "import sys, polarice; print(sorted({'torch', 'numpy', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(polarice.api.__all__) <= set(dir(polarice))
    with pytest.raises(AttributeError, match="polarice has no clas2d"):
        polarice.clas2d  # noqa: B018


def test_memory_and_folder_hold_the_same_classes(data, in_memory, tmp_path):
    written = polarice.class2d(data, out=tmp_path / "job", **SMALL)
    np.testing.assert_allclose(written.averages, in_memory.averages, atol=1e-6)
    np.testing.assert_allclose(written.resolution_A, in_memory.resolution_A, atol=1e-4)
    np.testing.assert_array_equal(written.class_of, in_memory.class_of)
    np.testing.assert_allclose(written.particles.pose.psi_deg % 360, in_memory.particles.pose.psi_deg % 360, atol=1e-5)
    assert in_memory.folder is None and written.folder == tmp_path / "job"
    assert polarice.class2d(data, o=tmp_path / "again", **SMALL).folder == tmp_path / "again"  # as commands spell it
    assert "    out: " in polarice.class2d.__doc__ and "    diameter_A: " in polarice.class2d.__doc__
    assert polarice.open_result(tmp_path / "job").iteration == 3
    assert written.counts.sum() == 300 and abs(written.weights.sum() - 1) < 1e-5
    assert (written.folder / "report.html").exists() and written.result.report == written.folder / "report.html"


def test_the_command_writes_the_same_files(data, tmp_path, monkeypatch):
    from jobs.runs import polarice as command

    polarice.class2d(data, out=tmp_path / "api", **SMALL)
    line = f"class2d {data.table.path} --o {tmp_path / 'command'} --k 4 --iter 3 --threads 1 --seed 3"
    assert command(line).code == 0
    for name in ("run_it003_classes.mrcs", "run_it003_data.star"):
        assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()


def test_iterations_come_one_by_one(data, in_memory):
    """And whoever stops early has done no more than that."""
    seen = list(polarice.class2d.iterate(data, **SMALL))
    assert [each.iteration for each in seen] == [1, 2, 3]
    np.testing.assert_array_equal(seen[-1].averages, in_memory.averages)
    first = next(polarice.class2d.iterate(data, **SMALL))
    np.testing.assert_array_equal(first.averages, seen[0].averages)


def test_an_array_is_classified_as_its_table_is(data, in_memory):
    ctf = data.table.particles.ctf
    defocus_A = np.stack([ctf.defocus_u_A, ctf.defocus_v_A, ctf.defocus_angle_deg], 1)
    images = data.images()
    kept = images.copy()
    found = polarice.class2d(polarice.particles(images, pixel_size_A=data.pixel_size_A, defocus_A=defocus_A), **SMALL)
    np.testing.assert_array_equal(images, kept)  # never changed
    np.testing.assert_allclose(found.averages, in_memory.averages, atol=1e-5)
    np.testing.assert_array_equal(found.class_of, in_memory.class_of)


def test_chosen_particles_are_written_with_their_images(data, in_memory, tmp_path):
    chosen = in_memory.select([1, 3])
    assert len(chosen) == int(in_memory.counts[[0, 2]].sum())
    again = polarice.particles(chosen.write(tmp_path / "good.star"))
    rows = np.flatnonzero(np.isin(in_memory.class_of, [1, 3]))
    np.testing.assert_array_equal(again.images(), data.images(rows))
    np.testing.assert_array_equal(again.pose.class_of, in_memory.particles.pose.class_of[rows])
    array = polarice.particles(data.images(), pixel_size_A=4.8)[10:20]
    kept = polarice.particles(array.write(tmp_path / "array.star"))
    np.testing.assert_array_equal(kept.images(), data.images(slice(10, 20)))
    with pytest.raises(polarice.InputError, match="class 9: there are classes 1 to 4"):
        in_memory.select([9])


def test_without_out_a_folder_goes_with_its_result(data, in_memory, tmp_path):
    aligned = polarice.class2d(data, out=tmp_path / "aligned", **SMALL)
    found = polarice.sml(aligned, k=5, iter=2, threads=1)
    folder = found.folder
    assert folder.is_dir() and len(found.averages) == 5
    del found
    assert not folder.exists()


def test_maps_go_from_job_to_job(tmp_path):
    cut = polarice.map_(RIBOSOME, out=tmp_path / "map", new_box=48, lowpass=20.0, threads=1)
    assert cut.map.shape == (48, 48, 48) and cut.pixel_size_A > 0
    inside = polarice.mask(cut, lowpass=0.0, out=tmp_path / "mask")
    assert inside.map.min() == 0 and inside.map.max() == 1
    weight = cut.map[inside.map > 0.5].sum() / cut.map[cut.map > 0].sum()
    assert weight > 0.5  # most of the density lies in it
    assert len(cut.plot().axes) == 6


def test_what_is_selected_is_a_table(data, tmp_path):
    run = polarice.class2d(data, out=tmp_path / "job", **SMALL)
    chosen = polarice.select(run, classes="1,3", out=tmp_path / "select")
    assert len(chosen.particles) == int(run.counts[[0, 2]].sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0, "iter": 0}, "--iter 0: must be 1 to 999\n  --k 0: must be 1 to 100000"),
        ({"clases": 3}, "class2d has no option clases"),
        ({"k": "many"}, "--k 'many': must be a whole number"),
        ({"diameter_A": 9999.0}, "--particle-diameter 9999: the box is 32 px"),
        ({"k": 301}, "301 classes asked of 300 particles"),
    ],
)
def test_what_is_wrong_is_said_as_the_command_says_it(data, options, message):
    with pytest.raises(polarice.InputError, match=re.escape(message)):
        polarice.class2d(data, **options)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((3, 8)), {"pixel_size_A": 1.0}, "images of shape (3, 8): give (n, N, N)"),
        (np.zeros((3, 8, 8)), {}, "pixel_size_A: give the pixel size"),
        (np.zeros((3, 8, 8)), {"pixel_size_A": 0.0}, "pixel_size_A 0: must be"),
        (np.zeros((3, 8, 8), complex), {"pixel_size_A": 1.0}, "images of complex128"),
        (np.zeros((3, 8, 8)), {"pixel_size_A": 1.0, "defocus_A": [1.0, 2.0]}, "defocus_A of shape (2,)"),
        (np.zeros((3, 8, 8)), {"pixel_size_A": 1.0, "defocus_A": 1.5}, "1.5 micrometres are 15000"),
        (np.zeros((3, 8, 8)), {"pixel_size_A": 1.0, "voltage_kV": 300_000}, "voltage_kV 300000: must be 10 to 3000 kV"),
        (np.zeros((3, 8, 8)), {"pixel_size_A": 1.0, "defocus_A": np.nan}, "defocus_A: holds what is not a number"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, options, message):
    with pytest.raises(polarice.InputError, match=re.escape(message)):
        polarice.particles(images, **options)


def test_tables_come_as_pandas_has_them(data):
    pytest.importorskip("pandas")
    frame = data.to_pandas()
    assert len(frame) == 300 and frame["rlnDefocusU"].dtype == np.float64
    np.testing.assert_allclose(frame["rlnDefocusU"], data.table.particles.ctf.defocus_u_A)
    assert frame["rlnImageName"][0].startswith("000001@") or "@" in frame["rlnImageName"][0]


def test_a_notebook_shows_particles_and_classes(data, in_memory):
    assert data._repr_html_().count("<img") == 5
    shown = in_memory._repr_html_()
    assert shown.count("<img") == 1 and "300 particles in 4 classes, iteration 3" in shown
    assert len(in_memory.plot().axes) == 4


def test_a_script_without_a_main_guard_starts_worker_processes(tmp_path):
    """Movies two at a time, each in a process: a child that ran the script again would start its own, without end."""
    rng = np.random.default_rng(1)
    from polarice.io.mrc import write_stack

    for name in "ab":
        write_stack(tmp_path / f"{name}.mrcs", rng.normal(10, 1, (4, 128, 128)).astype(np.float32), 1.0)
    script = tmp_path / "script.py"
    script.write_text(
        "import polarice\n"
        "movies = polarice.import_('a.mrcs', 'b.mrcs', out='Import', angpix=1.0)\n"
        "made = polarice.motion(movies.table, out='Motion', workers=2, threads=2, dose_weighting=False)\n"
        "print('rows', made.table, sum('.mrc' in line for line in made.table.read_text().splitlines()))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "rows Motion/micrographs.star 2" in ended.stdout, ended.stdout + ended.stderr


def test_the_pages_code_runs(tmp_path, monkeypatch, simulated):
    """Every block of docs/python.md, one after the other, on small data."""
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    simulated.particles[:].write(tmp_path / "particles.star")
    names: dict[str, object] = {}
    for block in blocks:
        small = block.replace("seeds=2", "seeds=1, iter=5")  # a first map takes seconds a start
        exec(compile(small, "docs/python.md", "exec"), names)
    assert Path("good.star").exists()


def test_the_notebook_runs(tmp_path, monkeypatch):
    cells = json.loads((ROOT / "docs/class2d.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "docs/class2d.ipynb", "exec"), names)
    assert names["run"].averages.shape[0] == 10


@pytest.mark.parametrize("option", [{"unsigned": True}, {"angpix": 3.0}, {"continue_from": "run"}, {"price": 0.3}])
def test_what_has_no_effect_in_memory_is_refused(data, option):
    with pytest.raises(InputError, match=f"{next(iter(option))}|pixel_size_A"):
        polarice.class2d(data, **SMALL, **option)


def test_a_table_without_ctf_is_not_taken_for_one_in_silence(data):
    bare = replace(data, table=replace(data.table, particles=replace(data.table.particles, ctf=None)))
    with pytest.raises(InputError, match="ctf=False"):
        polarice.class2d(bare, **SMALL)


def test_phase_flipped_images_are_taken_as_such_in_memory(data, in_memory):
    found = polarice.class2d(data, ctf_phase_flipped=True, **SMALL)
    assert all(group.phase_flipped for group in found.particles.table.particles.optics)
    assert not np.allclose(found.averages, in_memory.averages, atol=1e-3)


def test_a_table_of_which_a_stack_is_missing_is_refused_when_read(data, tmp_path):
    names = [f"{row + 1:06d}@{tmp_path / 'gone.mrcs'}" for row in range(len(data))]
    moved = replace(data.table, table=data.table.table.with_columns({"rlnImageName": names}))
    path = replace(data, table=moved).write(tmp_path / "particles.star")
    with pytest.raises(InputError, match=r"gone\.mrcs"):
        polarice.particles(path)


def test_particles_keep_the_temporary_folder_of_their_images():
    import gc

    left = polarice.simulate(RIBOSOME, particles=20, box=32, snr=1.0, threads=1, seed=5).particles
    gc.collect()
    assert left.images().shape == (20, 32, 32)
