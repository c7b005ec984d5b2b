"""cryoSPARC's tables against RELION's of the same particles, and there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polarice.io.cryosparc import (
    cs_of_tables,
    dark,
    euler_of_pose,
    join,
    not_converted,
    not_held,
    pose_of_euler,
    read_cs,
    tables_of_cs,
    write_cs,
)
from polarice.io.star import read_star
from polarice.types import InputError

DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


@needs_data
def test_the_same_particles_in_both_formats():
    optics, particles = tables_of_cs(read_cs(DATA / "particles_small/empiar_10076_7.cs"))
    star = read_star(DATA / "particles_small/empiar_10076_7.star").blocks[0].table
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        assert np.allclose(particles.numbers(label), star.numbers(label), rtol=1e-6)
    names = [text.lstrip("0").removesuffix(":mrcs") for text in particles.text("rlnImageName")]
    assert names == star.text("rlnImageName").tolist()
    assert optics.numbers("rlnImagePixelSize")[0] == pytest.approx(5e4 / 38168, rel=1e-4)


@needs_data
@pytest.mark.parametrize("name", ["t20s_cryosparc_J209_particles.cs", "cryosparc_P12_J24_001_particles.cs"])
def test_there_and_back(tmp_path, name):
    rows = read_cs(DATA / "metadata" / name)
    write_cs(tmp_path / "again.cs", cs_of_tables(*tables_of_cs(rows)))
    again = read_cs(tmp_path / "again.cs")
    for column in ("blob/idx", "alignments3D/class", "alignments3D/split", "blob/path"):
        assert np.array_equal(again[column], rows[column])
    for column in ("alignments3D/shift", "ctf/df1_A", "blob/psize_A", "ctf/cs_mm"):
        assert np.allclose(again[column], rows[column], rtol=1e-5, atol=1e-5)
    turn = np.abs(matrices(again["alignments3D/pose"]) - matrices(rows["alignments3D/pose"])).max()
    assert turn < 1e-5


def matrices(vectors):
    """Rodrigues' formula, written out."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None].astype(float)
    x, y, z = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T.astype(float)
    o = np.zeros_like(x)
    cross = np.moveaxis(np.array([[o, -z, y], [z, o, -x], [-y, x, o]]), 2, 0)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def test_euler_angles_are_those_of_relions_matrix():
    """RELION's matrix A(rot, tilt, psi), rows written out, is the transpose of the rotation that the vector gives."""
    angles = np.random.default_rng(0).uniform([-180, 1, -180], [180, 179, 180], (50, 3))
    a, b, g = np.deg2rad(angles).T
    third = np.stack([np.sin(b) * np.cos(a), np.sin(b) * np.sin(a), np.cos(b)], -1)
    first = np.stack(
        [
            np.cos(g) * np.cos(b) * np.cos(a) - np.sin(g) * np.sin(a),
            np.cos(g) * np.cos(b) * np.sin(a) + np.sin(g) * np.cos(a),
            -np.cos(g) * np.sin(b),
        ],
        -1,
    )
    turned = matrices(pose_of_euler(angles))
    assert np.allclose(turned[:, :, 2], third, atol=1e-9) and np.allclose(turned[:, :, 0], first, atol=1e-9)
    assert np.allclose(euler_of_pose(pose_of_euler(angles)), angles, atol=1e-6)


def made(n=4):
    kind = [
        ("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/shape", "<u4", 2), ("blob/psize_A", "<f4"),
        ("alignments2D/pose", "<f4"), ("alignments2D/shift", "<f4", 2), ("alignments2D/class", "<u4"),
    ]  # fmt: skip
    rows = np.zeros(n, kind)
    rows["uid"], rows["blob/path"], rows["blob/idx"] = np.arange(n) + 10, b">J1/a.mrc", np.arange(n)
    rows["blob/shape"], rows["blob/psize_A"] = 64, 2.0
    rows["alignments2D/pose"], rows["alignments2D/shift"], rows["alignments2D/class"] = np.pi / 2, (1, -2), 3
    return rows


def test_two_dimensional_poses_places_and_passthrough():
    where = np.zeros(3, [("uid", "<u8"), ("location/micrograph_path", "S9"), ("location/micrograph_shape", "<u4", 2),
                         ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4")])  # fmt: skip
    where["uid"], where["location/micrograph_path"] = [13, 11, 99], b"m.mrc"
    where["location/micrograph_shape"], where["location/center_x_frac"] = (100, 200), 0.25
    where["location/center_y_frac"] = [0.1, 0.2, 0.3]
    rows = join(made(), where)
    assert rows["uid"].tolist() == [11, 13]
    _, table = tables_of_cs(rows)
    assert table.text("rlnImageName").tolist() == ["000002@J1/a.mrc:mrcs", "000004@J1/a.mrc:mrcs"]
    assert table.numbers("rlnAnglePsi") == pytest.approx(90) and table.integers("rlnClassNumber").tolist() == [4, 4]
    assert table.numbers("rlnOriginXAngst") == pytest.approx(2)
    assert table.numbers("rlnOriginYAngst") == pytest.approx(-4)
    assert table.numbers("rlnCoordinateX") == pytest.approx(50)
    assert table.numbers("rlnCoordinateY") == pytest.approx([20, 10])
    flipped = tables_of_cs(rows, flip_y=True)[1]
    assert flipped.numbers("rlnCoordinateY") == pytest.approx([80, 90])
    again = cs_of_tables(*tables_of_cs(rows), shapes=np.tile([100, 200], (2, 1)))
    assert again["location/center_y_frac"] == pytest.approx([0.2, 0.1])
    assert again["alignments2D/pose"] == pytest.approx(np.pi / 2)
    assert again["blob/path"].tolist() == [b"J1/a.mrc"] * 2 and again["blob/idx"].tolist() == [1, 3]


def test_each_particle_lies_on_a_micrograph_of_its_own_size():
    optics, table = tables_of_cs(made(2))
    table = table.with_columns(
        {"rlnMicrographName": ["a.mrc", "b.mrc"], "rlnCoordinateX": [50.0, 50.0], "rlnCoordinateY": [20.0, 20.0]}
    )
    rows = cs_of_tables(optics, table, shapes=np.array([[100, 200], [200, 100]]))
    assert rows["location/center_x_frac"].tolist() == [0.25, 0.5]
    assert rows["location/center_y_frac"] == pytest.approx([0.2, 0.1])
    assert rows["location/micrograph_shape"].tolist() == [[100, 200], [200, 100]]


def test_rot_counts_where_no_particle_is_tilted():
    optics, table = tables_of_cs(made(2))
    rows = cs_of_tables(optics, table.with_columns({"rlnAngleRot": [30.0, -60.0], "rlnAngleTilt": [0.0, 0.0]}))
    assert rows["alignments3D/pose"][:, 2] == pytest.approx(np.deg2rad([120, 30]))


def test_half_sets_of_which_some_particles_are_in_none():
    rows = made(3)
    kind = [(name, rows.dtype[name]) for name in rows.dtype.names] + [("alignments2D/split", "<u4")]
    split = np.zeros(3, kind)
    for name in rows.dtype.names:
        split[name] = rows[name]
    split["alignments2D/split"] = [0, 1, 2**32 - 1]
    assert tables_of_cs(split)[1].integers("rlnRandomSubset").tolist() == [1, 2, 0]
    split["alignments2D/split"] = 0
    assert "rlnRandomSubset" not in tables_of_cs(split)[1]


def test_numbers_that_make_no_sense_are_named():
    rows = made(3)
    whole = rows.astype([(name, "<f4" if name == "blob/idx" else rows.dtype[name]) for name in rows.dtype.names])
    whole["blob/idx"][1] = 1.5
    with pytest.raises(InputError, match=r"row 2: blob/idx is 1\.5"):
        tables_of_cs(whole)
    optics, table = tables_of_cs(rows)
    with pytest.raises(InputError, match=r"row 2: optics group 7 is not in the optics table"):
        cs_of_tables(optics, table.with_columns({"rlnOpticsGroup": [1, 7, 1]}))
    signed = np.zeros(2, [("uid", "<u8"), ("blob/sign", "S3")])
    with pytest.raises(InputError, match="column blob/sign has type"):
        dark(signed)
    assert not dark(rows).any()


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.cs").write_bytes(b"\x93NUMPY broken")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"a\.cs cannot be read"):
        read_cs(tmp_path / "a.cs")
    with pytest.raises(InputError, match="no column uid"):
        read_cs(tmp_path / "b.npy")
    with pytest.raises(InputError, match="no such file"):
        read_cs(tmp_path / "c.cs")
    np.save(tmp_path / "d.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="another kind of file") as told:
        read_cs(tmp_path / "d.npy")
    assert "pickle" not in str(told.value)


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    write_cs(tmp_path / "a.cs", made(4))
    whole = (tmp_path / "a.cs").read_bytes()
    (tmp_path / "a.cs").write_bytes(
        whole.replace(b"(4,)", b"(4" + b"0" * 12 + b",)").replace(b" " * 12 + b"\n", b"\n", 1)
    )
    with pytest.raises(InputError, match="cut off or damaged"):
        read_cs(tmp_path / "a.cs")


def with_column(rows, name, values):
    wide = np.zeros(
        len(rows), [*((each, rows.dtype[each]) for each in rows.dtype.names), (name, values.dtype, values.shape[1:])]
    )
    for each in rows.dtype.names:
        wide[each] = rows[each]
    wide[name] = values
    return wide


def test_the_table_of_the_job_wins_over_alignments_that_it_passes_on():
    passed = with_column(made()[["uid"]], "alignments3D/pose", np.ones((4, 3), np.float32))
    passed = with_column(passed, "alignments3D/shift", np.ones((4, 2), np.float32))
    table = tables_of_cs(join(made(), passed))[1]
    assert table.numbers("rlnAnglePsi") == pytest.approx(90) and "rlnAngleTilt" not in table
    bare = made()[["uid", "blob/path", "blob/idx", "blob/shape", "blob/psize_A"]]
    assert "rlnAngleTilt" in tables_of_cs(join(bare, passed))[1]


def test_rows_keep_their_own_pixel_sizes_and_boxes():
    rows = made()
    rows["blob/psize_A"], rows["blob/shape"][3] = [2, 6, 2, 2], 128
    optics, table = tables_of_cs(rows)
    of = table.integers("rlnOpticsGroup") - 1
    assert optics.numbers("rlnImagePixelSize")[of].tolist() == [2, 6, 2, 2]
    assert optics.integers("rlnImageSize")[of].tolist() == [64, 64, 64, 128]
    assert sorted(optics.text("rlnOpticsGroupName")) == ["expGroup1_1", "expGroup1_2", "expGroup1_3"]
    assert table.numbers("rlnOriginXAngst") == pytest.approx([2, 6, 2, 2])


def test_no_class_and_no_half_stay_none():
    rows = with_column(made(), "alignments2D/split", np.zeros(4, np.uint32))
    rows["alignments2D/class"][1] = 2**32 - 1
    table = tables_of_cs(rows)[1]
    assert table.integers("rlnClassNumber").tolist() == [4, 0, 4, 4] and "rlnRandomSubset" not in table
    rows["alignments2D/split"][:2] = 1
    optics, table = tables_of_cs(rows)
    assert table.integers("rlnRandomSubset").tolist() == [2, 2, 1, 1]
    assert not_held(table) == ["rlnClassNumber"]
    back = cs_of_tables(optics, table)
    assert "alignments2D/class" not in back.dtype.names
    assert back["alignments2D/split"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[[name for name in rows.dtype.names if name != "blob/shape"]], "no column blob/shape"),
        (
            lambda rows: rows[[name for name in rows.dtype.names if not name.endswith("shift")]],
            "no column alignments2D/shift",
        ),
        (lambda rows: put(rows, "alignments2D/pose", np.nan), "row 3: alignments2D/pose is not a finite number"),
        (lambda rows: put(rows, "blob/psize_A", 0), "row 3: blob/psize_A is 0"),
        (lambda rows: put(rows, "blob/path", b"a b.mrc"), "row 3: blob/path is 'a b.mrc'"),
        (
            lambda rows: with_column(
                made()[["uid", "blob/path", "blob/idx", "blob/shape"]], "blob/psize_A", np.ones((4, 2))
            ),
            "has type",
        ),
    ],
)
def test_what_a_row_lacks_is_named(change, said):
    with pytest.raises(InputError, match=said):
        tables_of_cs(change(made()), where="p.cs")


def put(rows, name, value):
    rows[name][2] = value
    return rows


def test_what_is_not_converted_is_told_and_a_uid_with_two_rows_refused():
    rows = made(3)
    wide = np.zeros(3, [*((name, rows.dtype[name]) for name in rows.dtype.names), ("ctf/tilt_A", "<f4", 2)])
    assert not_converted(wide) == []
    wide["ctf/tilt_A"][1] = (0, 30)
    assert not_converted(wide) == ["ctf/tilt_A (1 rows)"]
    where = np.zeros(4, [("uid", "<u8"), ("location/center_x_frac", "<f4")])
    where["uid"] = [10, 11, 11, 12]
    assert len(join(rows, where)) == 3  # the same row twice
    where["location/center_x_frac"][2] = 0.9
    with pytest.raises(InputError, match="pass: uid 11 stands there more than once, with other values"):
        join(rows, where, "pass")
