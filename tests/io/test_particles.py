"""Tables of particles: both ages of RELION, conventions, what is missing, and what goes out again."""

import os
from pathlib import Path

import numpy as np
import pytest

from polarice.io.mrc import write_stack
from polarice.io.optics import not_corrected
from polarice.io.particles import StackSource, pose_columns, read_particles, write_particles
from polarice.io.star import read_star
from polarice.io.table import Table
from polarice.types import InputError, Pose2D
from programs import relion

DATA = Path(__file__).parents[2] / "../shared/data"
OPTICS = """data_optics
loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
"""
LABELS = ["rlnImageName", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnOpticsGroup"]
OLD = [*LABELS[:5], "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMagnification"]
OLD += ["rlnDetectorPixelSize", "rlnOriginX", "rlnOriginY", "rlnAnglePsi", "rlnNote"]


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared data {name} not here")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a stack of 4 images of 8 pixels in it, away from the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "project").mkdir()
    write_stack(tmp_path / "project/s.mrcs", np.arange(256, dtype=np.float32).reshape(4, 8, 8), 2.0)
    return tmp_path / "project"


def table(folder, rows, labels=LABELS, optics="1 one 300 2.7 0.1 2.0 8\n", name="particles.star"):
    text = (OPTICS + optics + "\n" if optics else "") + "data_particles\nloop_\n"
    text += "".join(f"_{label}\n" for label in labels) + "".join(f"{row}\n" for row in rows)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


ROWS = [f"{n + 1:06d}@s.mrcs m{n // 2}.mrc {10000 + n} 9000 {10 * n} 1" for n in range(4)]


def test_a_table_of_relion_31(folder):
    labels = [*LABELS, "rlnClassNumber", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnPhaseShift"]
    rows = [f"{row} {n + 1} {30 * n} {n} -{n}.5 9{n}" for n, row in enumerate(ROWS)]
    found = read_particles(table(folder, rows, labels)).particles
    (group,) = found.optics
    assert (group.name, group.pixel_size_A, group.voltage_kV, group.cs_mm) == ("one", 2.0, 300.0, 2.7)
    assert (group.amplitude_contrast, group.box_px) == (0.1, 8)
    assert found.stacks == (str(folder / "s.mrcs"),)
    assert found.section.tolist() == [0, 1, 2, 3]
    assert (found.group_names, found.group_of.tolist()) == (("m0.mrc", "m1.mrc"), [0, 0, 1, 1])
    assert found.ctf.defocus_u_A.tolist() == [10000, 10001, 10002, 10003]
    assert found.ctf.defocus_v_A.tolist() == [9000] * 4
    assert found.ctf.defocus_angle_deg.tolist() == [0, 10, 20, 30]
    assert found.ctf.phase_shift_deg.tolist() == [90, 91, 92, 93]
    assert found.ctf.bfactor_A2.tolist() == [0] * 4
    assert found.ctf.scale.tolist() == [1] * 4
    assert found.pose.class_of.tolist() == [0, 1, 2, 3]
    assert found.pose.psi_deg.tolist() == [0, -30, -60, -90]
    assert found.pose.shift_px.tolist() == [[0, 0.25], [-0.5, 0.75], [-1, 1.25], [-1.5, 1.75]]


def test_a_pose_that_is_not_there_is_unknown(folder):
    pose = read_particles(table(folder, ROWS)).particles.pose
    assert pose.class_of.tolist() == [-1] * 4
    assert not pose.psi_deg.any()
    assert not pose.shift_px.any()


def old_rows():
    microscopes = ["300 2.7 0.1", "200 2.7 0.1", "300 2.7 0.1", "200 2.7 0.1"]
    return [f"{row[:-2]} {microscopes[n]} 50000 10 {n}.5 -2 -170 00{n}" for n, row in enumerate(ROWS)]


def test_a_table_up_to_relion_30_becomes_one_of_31(folder):
    found = read_particles(table(folder, old_rows(), OLD, optics=""))
    assert [(g.voltage_kV, g.pixel_size_A, g.box_px) for g in found.particles.optics] == [(300, 2, 8), (200, 2, 8)]
    assert found.particles.optics_of.tolist() == [0, 1, 0, 1]
    assert found.particles.pose.shift_px.tolist() == [[-0.5, 2], [-1.5, 2], [-2.5, 2], [-3.5, 2]]
    write_particles(folder / "out.star", found)
    out = read_star(folder / "out.star")
    assert out.names == ("optics", "particles")
    particles = out.table("particles")
    kept = [label for label in OLD if label not in OLD[5:8] and label not in ("rlnOriginX", "rlnOriginY")]
    assert list(particles.labels) == [*kept, "rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroup"]
    assert particles.numbers("rlnOriginXAngst").tolist() == [1, 3, 5, 7]
    assert particles.text("rlnNote").tolist() == ["000", "001", "002", "003"]
    assert out.table("optics").numbers("rlnImagePixelSize").tolist() == [2, 2]
    again = read_particles(folder / "out.star").particles
    assert again.optics == found.particles.optics
    np.testing.assert_array_equal(again.pose.shift_px, found.particles.pose.shift_px)
    np.testing.assert_array_equal(again.optics_of, found.particles.optics_of)


def test_writing_replaces_what_is_told_and_nothing_else(folder):
    found = read_particles(
        table(folder, [f"{row} 00{n} 1.50" for n, row in enumerate(ROWS)], [*LABELS, "mine", "rlnAnglePsi"])
    )
    pose = Pose2D(np.array([4, 5]), np.array([-179.0, 190.0]), np.array([[1.5, -2.0], [0.0, 0.25]]))
    rows = np.array([3, 1])
    write_particles(folder / "out.star", found, rows, pose_columns(pose, 2.0))
    out = read_star(folder / "out.star").table("particles")
    assert out.text("mine").tolist() == ["003", "001"]
    assert out.text("rlnImageName").tolist() == ["000004@s.mrcs", "000002@s.mrcs"]
    assert out.integers("rlnClassNumber").tolist() == [5, 6]
    assert out.numbers("rlnAnglePsi").tolist() == [179.0, 170.0]
    assert out.text("rlnOriginXAngst").tolist() == ["-3.000000", "0.000000"]
    again = read_particles(folder / "out.star").particles
    assert again.pose.class_of.tolist() == [4, 5]
    assert again.pose.psi_deg.tolist() == [-179.0, -170.0]
    assert again.pose.shift_px.tolist() == [[1.5, -2.0], [0.0, 0.25]]
    assert found.take(rows).particles.section.tolist() == [3, 1]
    assert found.take(rows).table.text("mine").tolist() == ["003", "001"]


@pytest.mark.parametrize("where", ["image_dir", "flat", "cwd", "table", "parent"])
def test_where_stacks_are_looked_for(tmp_path, monkeypatch, where):
    name, other = "Extract/job1/s.mrcs", tmp_path / "other"
    place = {"flat": other / "s.mrcs", "table": tmp_path / "p/tables" / name, "parent": tmp_path / "p" / name}
    place = place.get(where, other / name)
    place.parent.mkdir(parents=True)
    write_stack(place, np.zeros((4, 8, 8)), 2.0)
    path = table(tmp_path / "p/tables", [row.replace("s.mrcs", name) for row in ROWS])
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(other if where == "cwd" else tmp_path / "away")
    found = read_particles(path, image_dir=other if where in ("image_dir", "flat") else None)
    assert found.particles.stacks == (str(place),)


def test_image_dir_comes_first(folder, tmp_path):
    write_stack(tmp_path / "s.mrcs", np.zeros((4, 8, 8)), 2.0)
    assert read_particles(table(folder, ROWS), image_dir=tmp_path).particles.stacks == (str(tmp_path / "s.mrcs"),)


def test_images_in_files_of_their_own(folder):
    write_stack(folder / "one_image_with_a_long_name.mrc", np.zeros((1, 8, 8)), 2.0)
    rows = [ROWS[0], "one_image_with_a_long_name.mrc m.mrc 10000 9000 0 1", ROWS[3]]
    found = read_particles(table(folder, rows)).particles
    assert [Path(path).name for path in found.stacks] == ["s.mrcs", "one_image_with_a_long_name.mrc"]
    assert found.section.tolist() == [0, 0, 3]
    assert found.stack_of.tolist() == [0, 1, 0]


TWO = "1 one 300 2.7 0.1 {} {}\n2 two 200 2.7 0.1 {} {}\n"


ONE = "1 one 300 2.7 0.1 2 8\n"
GROUPS = [ROWS[0], ROWS[1][:-1] + "2"]
UNUSABLE = {
    "empty": ([], ONE, "has no particles"),
    "stack": (
        [ROWS[0], "000001@none.mrcs m 1 1 0 1"],
        ONE,
        "row 2: image stack none.mrcs not found; looked in .*project.*--image-dir",
    ),
    "section 0": (
        ["000000@s.mrcs m 1 1 0 1"],
        ONE,
        "row 1: _rlnImageName is '000000@s.mrcs'; it should read SECTION@STACK",
    ),
    "section x": ([ROWS[0], "x1@s.mrcs m 1 1 0 1"], ONE, "row 2: _rlnImageName is 'x1@s.mrcs'"),
    "defocus": (
        [ROWS[0], "000001@s.mrcs m nan 1 0 1"],
        ONE,
        "row 2: _rlnDefocusU is nan; remove the row, or .*--no-ctf",
    ),
    "group": (
        [ROWS[0], ROWS[1][:-1] + "7"],
        ONE,
        "row 2: optics group 7 is not defined in data_optics, which has 1; add it",
    ),
    "no group": (ROWS, "", "data_optics defines no optics group; add one"),
    "group twice": (
        GROUPS,
        TWO.format(2, 8, 2, 8).replace("2 two", "1 two"),
        "data_optics, row 2: optics group 1 is defined in row 1 already; give each its own number",
    ),
    "pixel size": (
        GROUPS,
        TWO.format(2, 8, 3, 8),
        "different pixel sizes cannot be mixed .one: 2 A, box 8 px; two: 3 A, box 8 px.; rescale .* or split",
    ),
    "box": (GROUPS, TWO.format(2, 8, 2, 10), "different boxes cannot be mixed"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_tables_that_cannot_be_used_say_why(folder, case):
    rows, optics, message = UNUSABLE[case]
    with pytest.raises(InputError, match=message) as caught:
        read_particles(table(folder, rows, optics=optics or "\n"))
    assert str(folder / "particles.star") in str(caught.value)


def test_groups_of_one_scale_are_mixed_and_unused_ones_do_not_matter(folder):
    rows = [ROWS[0], ROWS[1][:-1] + "2"]
    found = read_particles(table(folder, rows, optics=TWO.format(2, 8, 2.0001, 8))).particles
    assert [found.optics[g].voltage_kV for g in found.optics_of] == [300, 200]
    assert len(read_particles(table(folder, ROWS, optics=TWO.format(2, 8, 3, 10))).particles) == 4


def test_a_single_optics_group_as_pairs(folder):
    """The same as in a table, and a table when it is written again."""
    path = table(folder, ROWS, optics=ONE)
    expected = read_particles(path)
    head, _, rest = path.read_text().partition("data_particles")
    labels = [line.split()[0] for line in head.splitlines() if line.startswith("_")]
    pairs = "".join(f"{label} {value}\n" for label, value in zip(labels, ONE.split(), strict=True))
    path.write_text(f"data_optics\n{pairs}\ndata_particles{rest}")
    found = read_particles(path)
    assert found.particles.optics == expected.particles.optics
    write_particles(folder / "again.star", found)
    assert read_particles(folder / "again.star").particles.optics == expected.particles.optics
    assert read_star(folder / "again.star").table("optics").text("rlnVoltage").tolist() == ["300"]


def test_a_table_without_ctf(folder):
    path = table(folder, [f"{n}@s.mrcs 1" for n in (1, 2)], ["rlnImageName", "rlnOpticsGroup"])
    with pytest.raises(InputError, match=r"no column _rlnDefocusU, _rlnDefocusV, _rlnDefocusAngle; .*--no-ctf"):
        read_particles(path)
    found = read_particles(path, need_ctf=False).particles
    assert found.ctf is None
    assert found.group_names == found.stacks


def test_pixel_size_from_the_header_or_told(folder):
    path = table(folder, ["1@s.mrcs"], ["rlnImageName"], optics="")
    assert read_particles(path, need_ctf=False).particles.optics[0].pixel_size_A == 2.0
    write_stack(folder / "s.mrcs", np.zeros((1, 8, 8)), 0.0)
    with pytest.raises(InputError, match=r"no pixel size for optics group opticsGroup1, .*; give it with --angpix"):
        read_particles(path, need_ctf=False)
    found = read_particles(path, need_ctf=False, pixel_size_A=3.5)
    assert (found.particles.optics[0].pixel_size_A, found.particles.optics[0].box_px) == (3.5, 8)


def test_a_pixel_size_in_the_tables_place(folder):
    """Shifts in pixels are what the images show: they stay, and their Angstrom follow."""
    path = table(
        folder, ["1@s.mrcs 3.0 -1.5 1"], ["rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroup"]
    )
    stated = read_particles(path, need_ctf=False)
    was = stated.particles.optics[0].pixel_size_A
    found = read_particles(path, need_ctf=False, pixel_size_A=2 * was)
    assert found.remark == f"{path}: it states {was:.4g} A per pixel; {2 * was:.4g} A is used" and stated.remark == ""
    assert np.array_equal(found.particles.pose.shift_px, stated.particles.pose.shift_px)
    write_particles(folder / "again.star", found)
    again = read_particles(folder / "again.star", need_ctf=False)
    assert again.particles.optics[0].pixel_size_A == 2 * was and "the header of" in again.remark
    assert again.table.numbers("rlnOriginXAngst").tolist() == [6.0]
    assert np.allclose(again.particles.pose.shift_px, stated.particles.pose.shift_px)


@pytest.mark.parametrize(
    ("name", "n", "box", "pixel_size_A"),
    [("empiar_10076_7", 7, 320, 1.31), ("sta_testing_bin8", 219, 64, 1.96)],
)
def test_real_particles(name, n, box, pixel_size_A):
    found = read_particles(shared(f"particles_small/{name}.star")).particles
    assert len(found) == n
    assert (found.optics[0].pixel_size_A, found.optics[0].box_px) == (pytest.approx(pixel_size_A, abs=1e-5), box)
    source = StackSource(found)
    source.check()
    images = source.read(np.arange(n))
    assert images.shape == (n, box, box)
    if name.startswith("empiar"):
        np.testing.assert_allclose(images.std(), 1.005142, atol=1e-5)  # the header's own figure


def test_a_real_old_table_of_25000(tmp_path):
    path = shared("metadata/alphacryo4d_26S_sub1_25k.star.gz")
    with pytest.raises(InputError, match=r"--image-dir"):
        read_particles(path)
    for stack in {name.partition("@")[2] for name in read_star(path).blocks[0].table.text("rlnImageName")}:
        write_stack(tmp_path / stack, np.zeros((1, 4, 4)), 2.5)
    with pytest.raises(
        InputError, match=r"no column _rlnVoltage, _rlnSphericalAberration, _rlnAmplitudeContrast; .*--no-ctf"
    ):
        read_particles(path, image_dir=tmp_path)
    found = read_particles(path, image_dir=tmp_path, need_ctf=False)
    particles = found.particles
    assert (len(particles), len(particles.stacks)) == (25_000, 3)
    assert (particles.section[0], Path(particles.stacks[0]).name) == (37_773, "0817_0830_sc_bin2.mrcs")
    assert particles.pose.psi_deg[0] == 66.76799
    assert particles.pose.shift_px[0].tolist() == [0.362636, 0.559386]
    write_particles(tmp_path / "out.star", found)
    out, before = read_star(tmp_path / "out.star").table("particles"), read_star(path).blocks[0].table
    for label in set(before.labels) - {"rlnOriginX", "rlnOriginY"}:
        assert out.text(label).tolist() == before.text(label).tolist()
    np.testing.assert_allclose(out.numbers("rlnOriginXAngst"), 2.5 * before.numbers("rlnOriginX"), atol=1e-6)
    with pytest.raises(InputError, match=r"row 1 \(image 37774@.*0817_0830_sc_bin2.mrcs\): the stack holds 1 section"):
        StackSource(particles).read(np.array([0]))


@pytest.mark.parametrize("name", ["sta_testing_bin8", "made"])
def test_relion_reads_our_table_and_finds_the_same_images(folder, name):
    if name == "made":
        found = read_particles(table(folder, old_rows(), OLD, optics=""))
    else:
        found = read_particles(shared(f"particles_small/{name}.star"))
        os.symlink(found.particles.stacks[0], folder / Path(found.particles.stacks[0]).name)
    rows = np.random.default_rng(0).permutation(len(found.particles))
    write_particles(folder / "ours.star", found, rows)
    relion("relion_stack_create", "--i", "ours.star", "--o", "theirs", "--one_by_one", folder=folder)
    theirs = read_particles(folder / "theirs.star")
    ours = StackSource(found.particles).read(rows)
    for image, name in zip(
        StackSource(theirs.particles).read(np.arange(len(rows))), theirs.table.text("rlnImageName"), strict=True
    ):
        np.testing.assert_allclose(image, ours[int(name.partition("@")[0]) - 1], rtol=1e-6)


def test_what_the_optics_table_says_has_been_done_to_the_images(folder):
    """Multiplied by the CTF or by its sign, by group; the columns go on into what is written."""
    optics = OPTICS + "_rlnCtfDataAreCtfPremultiplied #8\n_rlnCtfDataArePhaseFlipped #9\n"
    optics += "1 one 300 2.7 0.1 2.0 8 1 0\n2 two 300 2.7 0.1 2.0 8 0 1\n"
    rows = [ROWS[0], ROWS[1][:-1] + "2"]
    body = "\ndata_particles\nloop_\n" + "".join(f"_{label}\n" for label in LABELS) + "\n".join(rows) + "\n"
    (folder / "p.star").write_text(optics + body)
    found = read_particles(folder / "p.star")
    assert [(o.ctf_premultiplied, o.phase_flipped) for o in found.particles.optics] == [(True, False), (False, True)]
    write_particles(folder / "out.star", found)
    assert read_particles(folder / "out.star").particles.optics == found.particles.optics
    (folder / "p.star").write_text(optics.replace("8 1 0", "8 2 0") + body)
    with pytest.raises(InputError, match=r"row 1: _rlnCtfDataAreCtfPremultiplied is 2; it should be 0 or 1"):
        read_particles(folder / "p.star")


def test_volumes_and_tilt_series_are_refused(folder):
    optics = OPTICS + "_rlnImageDimensionality #8\n1 one 300 2.7 0.1 2.0 8 3\n"
    body = "\ndata_particles\nloop_\n" + "".join(f"_{label}\n" for label in LABELS) + "\n".join(ROWS) + "\n"
    (folder / "p.star").write_text(optics + body)
    with pytest.raises(InputError, match=r"row 1: _rlnImageDimensionality is 3; .* extract particles from micrographs"):
        read_particles(folder / "p.star")
    general = "data_general\n_rlnTomoSubTomosAre2DStacks 1\n\n"
    (folder / "p.star").write_text(general + OPTICS + "1 one 300 2.7 0.1 2.0 8\n" + body)
    with pytest.raises(InputError, match=r"data_general: _rlnTomoSubTomosAre2DStacks: .* extract"):
        read_particles(folder / "p.star")


def test_a_name_without_a_section_is_no_stack_of_several(folder):
    rows = [ROWS[0], ROWS[1].replace("000002@", "")]
    with pytest.raises(InputError, match=r"row 2: _rlnImageName names .*s\.mrcs without a section, and it has 4"):
        read_particles(table(folder, rows))


OLD_SIZES = [*OLD[:8], "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize"]


@pytest.mark.parametrize(
    ("sizes", "used", "told"),
    [
        ("10000 8.0 2.0", 8.0, "_rlnPixelSize of 4 rows says 2 A; 8 A is used"),
        ("10000 8.0 8.0", 8.0, ""),
        ("0 8.0 2.0", 2.0, ""),  # no magnification: the other column is all there is
    ],
)
def test_of_two_pixel_sizes_of_old_tables_the_detector_s_counts(folder, sizes, used, told):
    write_stack(folder / "s.mrcs", np.arange(256, dtype=np.float32).reshape(4, 8, 8), used)
    rows = [f"{n + 1:06d}@s.mrcs m.mrc 10000 9000 0 300 2.7 0.1 {sizes}" for n in range(4)]
    found = read_particles(table(folder, rows, OLD_SIZES, ""))
    assert [group.pixel_size_A for group in found.particles.optics] == [used]
    assert found.optics_table.numbers("rlnImagePixelSize").tolist() == [used]
    assert told in found.remark and bool(told) == bool(found.remark)


@pytest.mark.parametrize(
    ("label", "header_A", "used", "told"),
    [
        ("rlnImagePixelSize", 2.0, 2.0, ""),
        ("rlnImagePixelSize", 3.0, 2.0, "states 2 A per pixel of images, the header of"),
        ("rlnImagePixelSize", 1.0, 2.0, ""),  # nobody has said
        ("rlnMicrographPixelSize", 4.0, 4.0, "states 2 A per pixel of micrographs, the header of"),
        ("rlnMicrographPixelSize", 1.0, 2.0, ""),
    ],
)
def test_the_table_is_held_to_the_headers_of_its_stacks(folder, label, header_A, used, told):
    write_stack(folder / "s.mrcs", np.arange(256, dtype=np.float32).reshape(4, 8, 8), header_A)
    path = table(folder, ROWS)
    path.write_text(path.read_text().replace("rlnImagePixelSize", label))
    found = read_particles(path)
    assert found.particles.optics[0].pixel_size_A == used
    assert told in found.remark and bool(told) == bool(found.remark)
    assert read_particles(path, pixel_size_A=2.0).remark == ""


def test_names_that_relion_reads_as_of_another_kind(folder):
    (folder / "s.mrcs").rename(folder / "s.mrc")
    named = [row.replace("s.mrcs", "s.mrc:mrcs") for row in ROWS]
    assert read_particles(table(folder, named)).particles.stacks == (str(folder / "s.mrc"),)
    with pytest.raises(InputError, match=r"s\.mrc:spi: read as 'spi'; only MRC stacks"):
        read_particles(table(folder, [row.replace("s.mrcs", "s.mrc:spi") for row in ROWS]))


@pytest.mark.parametrize(
    ("defoci", "told"),
    [
        ("1.5 1.4", "all defoci are below 100 A (1.5): are they in micrometres, and not Angstrom?"),
        ("-15000 -14000", "all defoci are negative (-15000), which is overfocus; underfocus is positive"),
        ("15000 -200", ""),
    ],
)
def test_defoci_that_nobody_means_are_told(folder, defoci, told):
    path = table(folder, [f"{n + 1:06d}@s.mrcs m.mrc {defoci} 0 1" for n in range(4)])
    assert read_particles(path).remark == (f"{path}: {told}" if told else "")


def test_aberrations_that_are_not_corrected_are_told(folder):
    path = table(folder, ROWS)
    text = path.read_text().replace("_rlnVoltage #3", "_rlnBeamTiltX #3\n_rlnVoltage")
    path.write_text(text.replace("1 one 300", "1 one 0.7 300"))
    assert read_particles(path).remark == f"{path}: _rlnBeamTiltX of the optics table are not corrected for"
    both = {"rlnEvenZernike": ["[0,0,0]", "[0,1.5,0]"], "rlnMagMat00": [1.0, 1.0], "rlnMagMat01": [0.0, 0.02]}
    assert not_corrected(Table.of(both)) == "_rlnEvenZernike, _rlnMagMat01 of the optics table are not corrected for"
    none = {"rlnEvenZernike": ["[0,0]"], "rlnMagMat00": [1.0], "rlnMagMat01": [0.0]}
    assert not_corrected(Table.of(none)) == ""
