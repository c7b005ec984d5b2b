"""What cannot be used is refused in one line that names file, row and remedy; nothing is half-written."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.runs import Ended, polarice, stub_report
from jobs.sets import ParticleSet
from polarice.io.mrc import open_stack, write_stack
from polarice.io.star import Block, Table, read_star, write_star

RUN = "class2d particles.star --k 3 --iter 2 --particle-diameter 50 --threads 1 --o out"
SET = ParticleSet(n=60, box_px=24)


def assert_refused(ended: Ended, *words: str, folder: str = "out") -> None:
    """Exit code 2, one line that holds all of `words`, and no trace of a run."""
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("polarice class2d: error: "), ended.err
    for word in words:
        assert word in ended.err, ended.err
    assert not Path(folder).exists()


def put(label: str, row: int, text: str) -> None:
    """Change one cell of particles.star, as an editor would; a column that is not there is zero elsewhere."""
    SET.write_table(Path("."), **{label: SET.table().get(label, np.zeros(SET.n))})
    column = read_star("particles.star").table("particles").labels.index(label)
    lines = Path("particles.star").read_text().split("\n")
    at = next(number for number, line in enumerate(lines) if "@stack.mrcs" in line) + row
    words = lines[at].split()
    lines[at] = " ".join([*words[:column], text, *words[column + 1 :]])
    Path("particles.star").write_text("\n".join(lines))


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a STAR file"),
        (b"\n\n# only a remark\n", "is not a STAR file"),
        (b"hello\nworld\n", "line 1"),
        (bytes(range(256)) * 40, "line 1"),
        (b"\x7fELF" + os.urandom(2000), "is a program, and not a STAR file"),
        ("data_particles\n\nloop_\n_rlnImageName\n".encode("utf-16"), "is text in UTF-16, and not a STAR file"),
        (b"data_particles\n\nloop_\n_rlnImageName\n", "no particles"),
        (b"data_x\n\n_rlnVersion 3\n", "no block data_particles"),
        (b"data_particles\n\nloop_\n_rlnX\n1\n", "no column _rlnImageName"),
        (b"data_particles\n\nloop_\n_rlnImageName\n_rlnX\n1@stack.mrcs\n", "row 1"),
        (b"\x1f\x8b" + b"garbage", "gzip file is damaged"),
        (gzip.compress(b"data_"), "is this a table of particles?"),
    ],
)
def test_files_that_are_no_tables(place, content, message):
    Path("particles.star").write_bytes(content)
    assert_refused(polarice(RUN), "particles.star", message)


def test_tables_that_are_not_there(place):
    assert_refused(polarice(RUN.replace("particles.star", "gone.star")), "gone.star: no such file")
    Path("folder.star").mkdir()
    assert_refused(polarice(RUN.replace("particles.star", "folder.star")), "folder.star cannot be read: it is a folder")


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("rlnDefocusU", "nan", "_rlnDefocusU is nan; remove the row, or"),
        ("rlnDefocusV", "abc", "_rlnDefocusV is 'abc', not a number"),
        ("rlnDefocusU", "1e300", "_rlnDefocusU is 1e+300; correct or remove the row"),
        ("rlnDefocusV", "-1e30", "_rlnDefocusV is -1e+30; correct or remove the row"),
        ("rlnDefocusAngle", "inf", "_rlnDefocusAngle is inf"),
        ("rlnCtfBfactor", "-1e9", "B factor -1e+09 A^2; correct or remove the row"),
        ("rlnOriginXAngst", "1e6", "outside of the box"),
        ("rlnOriginXAngst", "1e20", "_rlnOriginXAngst is 1e+20, not between -1e+07 and 1e+07"),
        ("rlnOriginYAngst", "nan", "_rlnOriginYAngst is nan"),
        ("rlnAnglePsi", "inf", "_rlnAnglePsi is inf"),
        ("rlnOpticsGroup", "2", "optics group 2 is not defined"),
        ("rlnOpticsGroup", "-1", "optics group -1 is not defined"),
        ("rlnOpticsGroup", "1.5", "not a whole number"),
        ("rlnImageName", "-3@stack.mrcs", "should read SECTION@STACK"),
        ("rlnImageName", "0@stack.mrcs", "should read SECTION@STACK"),
        ("rlnImageName", "x@stack.mrcs", "should read SECTION@STACK"),
        ("rlnImageName", "61@stack.mrcs", "the stack holds 60 sections, section 61 was asked for"),
        ("rlnImageName", "99999999999999999999999@stack.mrcs", "row 8"),
        ("rlnImageName", "1.5@stack.mrcs", "should read SECTION@STACK"),
        ("rlnImageName", "nan@stack.mrcs", "should read SECTION@STACK"),
        ("rlnImageName", "3@gone.mrcs", "image stack gone.mrcs not found"),
        ("rlnImageName", "3@.", "not found"),
        ("rlnImageName", "3@", "row 8"),
    ],
)
def test_a_cell_that_makes_no_sense_is_named_by_its_row(place, label, value, message):
    put(label, 7, value)
    assert_refused(polarice(RUN), "particles.star", "row 8", message)


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("rlnVoltage", 0.0, "at 0 kV"),
        ("rlnVoltage", -300.0, "_rlnVoltage is -300, and not between"),
        ("rlnSphericalAberration", 1e300, "_rlnSphericalAberration is 1e+300, and not between"),
        ("rlnAmplitudeContrast", 1.5, "_rlnAmplitudeContrast is 1.5, and not between"),
        ("rlnImageSize", 32, "a box of 24 pixels, the table says 32"),
        ("rlnImageSize", "nan", "data_optics, row 1: _rlnImageSize is nan"),
        ("rlnImagePixelSize", "nan", "data_optics, row 1: _rlnImagePixelSize is nan, and not between"),
        ("rlnImagePixelSize", -3.0, "data_optics, row 1: _rlnImagePixelSize is -3, and not between"),
    ],
)
def test_optics_that_make_no_sense(place, label, value, message):
    write_star(
        "particles.star",
        [
            Block("optics", table=Table.of({**SET.optics(), label: [value]}, {label: "%s"})),
            Block("particles", table=Table.of(SET.table())),
        ],
    )
    assert_refused(polarice(RUN), "particles.star", message)


def test_without_ctf_columns_it_says_what_to_do_and_that_works(place):
    SET.write_table(place, rlnDefocusU=None, rlnDefocusV=None)
    assert_refused(polarice(RUN), "no column _rlnDefocusU, _rlnDefocusV", "leave the CTF out with --no-ctf")
    assert polarice(f"{RUN} --no-ctf").code == 0
    assert read_star("out/run_it002_optimiser.star")["optimiser_general"].pairs["rlnDoCorrectCtf"] == "0"


# -- the images --------------------------------------------------------------------------------------------------------


def test_a_truncated_stack(place):
    os.truncate("stack.mrcs", 1024 + 24 * 24 * 4 * 41 + 100)
    assert_refused(polarice(RUN), "particles.star, row ", "stack.mrcs is cut off", "41 are there", "copy or extract")


@pytest.mark.parametrize("size", [0, 3, 1023, 1024])
def test_stacks_that_are_next_to_nothing(place, size):
    os.truncate("stack.mrcs", size)
    assert_refused(polarice(RUN), "stack.mrcs")


def test_a_stack_that_is_something_else(place):
    Path("stack.mrcs").write_bytes(b"\x89PNG" + bytes(range(256)) * 20)
    assert_refused(polarice(RUN), "stack.mrcs is a PNG picture, and not an MRC file")
    Path("stack.mrcs").unlink()
    assert_refused(polarice(RUN), "row 1: image stack stack.mrcs not found", "--image-dir")


@pytest.mark.parametrize("shape", [(60, 24, 32), (60, 32, 24)])
def test_images_that_are_not_square(place, shape):
    raw = bytearray(Path("stack.mrcs").read_bytes()[:1024])
    raw[:12] = np.array(shape[::-1], "<i4").tobytes()
    raw[:4], raw[4:8] = np.array([shape[2]], "<i4").tobytes(), np.array([shape[1]], "<i4").tobytes()
    raw[8:12] = np.array([shape[0]], "<i4").tobytes()
    Path("stack.mrcs").write_bytes(bytes(raw) + bytes(4 * int(np.prod(shape))))
    assert_refused(polarice(RUN), "row 1", f"{shape[2]} x {shape[1]} pixels; extract square ones")


def test_four_bit_images(place):
    raw = bytearray(Path("stack.mrcs").read_bytes())
    raw[12:16] = np.array([101], "<i4").tobytes()
    Path("stack.mrcs").write_bytes(bytes(raw))
    assert_refused(polarice(RUN), "row 1", "stack.mrcs: MRC mode 101 (4-bit) is for movies; convert it to mode 2")


@pytest.mark.parametrize(("scale", "words"), [(1e-30, ""), (1e-7, " --no-norm")])
def test_grey_values_next_to_nothing(place, images, scale, words):
    SET.write(place, (images * scale).astype(np.float32))
    message = "the images' grey values are too small"
    assert_refused(polarice(RUN + words), "particles.star", message, "extract the particles again, normalised")


def test_boxes_that_differ(place, images):
    write_stack("other.mrcs", images[:2, 2:-2, 2:-2], 3.0)
    put("rlnImageName", 9, "1@other.mrcs")
    assert_refused(polarice(RUN), "row 10", "other.mrcs has a box of 20 pixels", "rescale them to one box")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.nan, "not a number (NaN or infinite pixels)"),
        (-np.inf, "not a number (NaN or infinite pixels)"),
        (3.5, "constant (every pixel has the same value)"),
    ],
)
def test_one_bad_image_is_named_left_out_and_counted(place, images, monkeypatch, pixels, reason):
    told: list[Any] = []
    monkeypatch.setattr("polarice.report.write_report", lambda folder, report, *_: told.append(report) or folder)
    spoilt = images.copy()
    spoilt[17, 3:9] = pixels
    if pixels == 3.5:
        spoilt[17] = pixels
    SET.write(place, spoilt)
    ended = polarice(RUN)
    assert ended.code == 0
    assert f"left out: row 18 of particles.star, 000018@{place}/stack.mrcs: {reason}\n" in ended.err
    names = read_star("out/run_it002_data.star").table("particles").text("rlnImageName").tolist()
    assert names == [f"{i + 1:06d}@stack.mrcs" for i in range(60) if i != 17]
    (report,) = told
    assert [(each.where, each.reason) for each in report.left_out] == [(f"000018@{place}/stack.mrcs", reason)]
    assert ended.out == "59 particles in 3 classes, 1 left out; report: out\n"
    averages = open_stack("out/run_it002_classes.mrcs")
    assert np.isfinite(averages).all() and averages.std(axis=(1, 2)).min() > 0


def test_too_many_bad_images(place, images):
    spoilt = images.copy()
    spoilt[5:12] = np.nan
    SET.write(place, spoilt)
    ended = polarice(RUN)
    assert_refused(ended, "7 of 60 images cannot be used; the first is row 6", "extract the particles again")
    SET.write(place, images)
    assert polarice(RUN).code == 0  # once mended, the same command works


def test_images_of_huge_values_do_not_spoil_the_rest(place, images):
    spoilt = images.copy()
    spoilt[3] *= 1e30
    SET.write(place, spoilt)
    ended = polarice(RUN)
    assert ended.code == 0
    assert np.isfinite(open_stack("out/run_it002_classes.mrcs")).all()


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 61", "61 classes asked of 60 particles; ask for fewer with --k"),
        ("--k 0", "--k 0: must be"),
        ("--particle-diameter 73", "--particle-diameter 73: the box is 24 px = 72 A wide"),
        ("--particle-diameter 2", "give a diameter from 12 to 72 A"),
        ("--offset-range 13", "--offset-range 13: at most half the box, 12 px"),
        ("--offset-range 1e30", "at most half the box"),
        ("--offset-range nan", "--offset-range nan"),
        ("--memory inf", "--memory inf: must be at least 0.01 GiB"),
        ("--k 60 --threads 8 --memory 0.01", "60 classes of 24 px take up to 0.0"),
        (
            "--k 60 --threads 8 --memory 0.01",
            "--memory 0.01 allows 0.01; allow more, ask for fewer classes (--k), or compare",
        ),
        ("--offset-range 12 --offset-step 0.1", "shifts for each image, at most"),
        ("--image-dir gone --i other.star", "other.star"),
        ("--image-dir gone", "--image-dir gone: no such folder"),
    ],
)
def test_parameters_that_do_not_fit_the_particles(place, words, message):
    assert_refused(polarice(f"{RUN} {words}"), message)


def test_an_image_in_two_rows_is_told(place):
    names = SET.table()["rlnImageName"]
    SET.write_table(place, rlnImageName=[*names[:40], names[7], names[7], names[3], *names[43:]])
    ended = polarice(RUN)
    assert ended.code == 0
    assert "warning: particles.star: 2 images stand in several rows, the first in row 4 (000004@" in ended.err
    shutil.rmtree("out")
    SET.write_table(place)
    assert "warning" not in polarice(RUN).err


def test_no_cuda(place, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(polarice(f"{RUN} --device cuda"), "--device cuda: no CUDA device is there; use --device cpu")


def test_classes_to_begin_with_that_do_not_suit(place, monkeypatch):
    """None there, those of a run without an iteration, another number of them, another box."""
    Path("empty").mkdir()
    for ref, message in {"gone": "holds no iteration", "empty": "holds no iteration", "begun": "has 2 classes"}.items():
        if ref == "begun":
            assert polarice(f"{RUN} --k 2 --iter 1 --o begun").code == 0
        assert_refused(polarice(f"{RUN} --k 3 --o out --ref {ref}"), f"--ref {ref}", message)
        assert not Path("out").exists()
    Path("larger").mkdir()
    ParticleSet(n=60, box_px=40).write(Path("larger"))
    monkeypatch.chdir("larger")
    assert_refused(polarice(f"{RUN} --k 2 --ref ../begun"), "classes of 24 px, particles of 40")


def test_more_classes_than_usable_particles(place, images):
    spoilt = images.copy()
    spoilt[0] = np.nan
    SET.write(place, spoilt)
    assert_refused_after_look(polarice(f"{RUN} --k 60"), "60 classes asked of 59 usable particles")


def assert_refused_after_look(ended: Ended, message: str) -> None:
    assert ended.code == 2 and message in ended.err.splitlines()[-1] and not Path("out").exists()


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run(place):
    assert polarice(RUN).code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    ended = polarice(RUN)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "out: holds a run already" in ended.err and "polarice class2d --continue out" in ended.err
    assert before == {path.name: path.read_bytes() for path in Path("out").iterdir()}


@pytest.mark.parametrize("name", ["run_it025_data.star", "run_it000_model.star", "job.json"])
def test_a_folder_of_another_program_is_not_touched(place, name):
    Path("out").mkdir()
    Path("out", name).write_text("{}" if name == "job.json" else "somebody's work")
    ended = polarice(RUN)
    assert ended.code == 2 and "choose another folder with --o" in ended.err and "--continue" not in ended.err
    assert [path.name for path in Path("out").iterdir()] == [name]


def test_a_folder_that_is_a_file(place):
    Path("out").write_text("")
    ended = polarice(RUN)
    assert ended.code == 2 and "out: this is a file" in ended.err
    ended = polarice(RUN.replace("--o out", "--o out/deeper"))
    assert ended.code == 2 and "out/deeper: " in ended.err and ended.err.count("\n") == 1
    ended = polarice(RUN.replace("--o out", "--o " + "a" * 300))
    assert ended.code == 2 and ended.err.count("\n") == 1 and "aaa: no folder (File name too long);" in ended.err


def test_a_full_disk_at_once_leaves_no_folder(place, monkeypatch):
    fill_up(monkeypatch, "job.json")
    ended = polarice(RUN)
    assert ended.code == 2 and ended.err.count("\n") == 1 and "--continue" not in ended.err
    assert "disk full while writing out/job.json; free some space" in ended.err
    assert not Path("out").exists()


def test_a_folder_that_may_not_be_written(place, monkeypatch):
    Path("out").mkdir()
    Path("out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:  # who may write everywhere: the system's refusal is played

        def opened(file: Any, *args: Any, **more: Any) -> Any:
            if "out/.job" in str(file):
                raise PermissionError(errno.EACCES, "Permission denied")
            return open(file, *args, **more)

        monkeypatch.setattr("polarice.io.atomic.open", opened, raising=False)
    ended = polarice(RUN)
    assert ended.code == 2 and "no permission to write out/job.json; choose another folder" in ended.err
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("kind", ["classes.mrcs", "model.star", "data.star", "optimiser.star", "polarice.npz"])
def test_a_full_disk_while_writing(place, monkeypatch, kind):
    assert polarice(RUN.replace("--o out", "--o whole")).code == 0
    fill_up(monkeypatch, f"run_it002_{kind}")
    ended = polarice(RUN)
    assert ended.code == 2
    said = ended.err.splitlines()[-1]
    assert f"disk full while writing out/run_it002_{kind}" in said
    assert said.endswith("; to go on: polarice class2d --continue out")
    assert not [path.name for path in Path("out").iterdir() if ".tmp-" in path.name]
    assert not Path(f"out/run_it002_{kind}").exists()
    for first in ("data.star", "classes.mrcs", "polarice.npz"):
        assert Path(f"out/run_it001_{first}").read_bytes() == Path(f"whole/run_it001_{first}").read_bytes()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    stub_report(monkeypatch)
    assert polarice("class2d --continue out").code == 0
    for last in ("data.star", "classes.mrcs", "polarice.npz"):
        assert Path(f"out/run_it002_{last}").read_bytes() == Path(f"whole/run_it002_{last}").read_bytes()


def fill_up(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full as soon as the file `name` is flushed."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)


def test_particles_in_the_same_pixel_of_a_micrograph_are_told(place):
    n = SET.n
    more = {"rlnMicrographName": ["m.mrc"] * n, "rlnCoordinateX": np.arange(n) * 9.0, "rlnCoordinateY": np.ones(n)}
    more["rlnCoordinateX"][:6] = [0.2, 0.0, 9.0, 8.8, 27.0, 27.0]
    SET.write_table(place, **more)
    ended = polarice(f"{RUN} --iter 1")
    assert "3 particles lie in the same pixel of their micrograph as another" in ended.err


def test_a_table_that_has_moved_may_be_named_anew(place):
    assert polarice(f"{RUN} --iter 1").code == 0
    Path("tables").mkdir()
    Path("particles.star").rename("tables/particles.star")
    ended = polarice("class2d --continue out --iter 2")
    assert ended.code == 2 and "or name the table where it lies now, before --continue" in ended.err
    assert polarice("class2d tables/particles.star --continue out --iter 2").code == 0
