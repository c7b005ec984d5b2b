"""cryoSPARC's tables against RELION's of the same particles, and there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polarice.io.cryosparc import (
    cs_of_tables,
    euler_of_pose,
    join,
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
    names = [text.lstrip("0") for text in particles.text("rlnImageName")]
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
    assert table.text("rlnImageName").tolist() == ["000002@J1/a.mrc", "000004@J1/a.mrc"]
    assert table.numbers("rlnAnglePsi") == pytest.approx(90) and table.integers("rlnClassNumber").tolist() == [4, 4]
    assert table.numbers("rlnOriginXAngst") == pytest.approx(2)
    assert table.numbers("rlnOriginYAngst") == pytest.approx(-4)
    assert table.numbers("rlnCoordinateX") == pytest.approx(50)
    assert table.numbers("rlnCoordinateY") == pytest.approx([20, 10])
    flipped = tables_of_cs(rows, flip_y=True)[1]
    assert flipped.numbers("rlnCoordinateY") == pytest.approx([80, 90])
    again = cs_of_tables(*tables_of_cs(rows), shape=(100, 200))
    assert again["location/center_y_frac"] == pytest.approx([0.2, 0.1])
    assert again["alignments2D/pose"] == pytest.approx(np.pi / 2)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.cs").write_bytes(b"\x93NUMPY broken")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"a\.cs cannot be read"):
        read_cs(tmp_path / "a.cs")
    with pytest.raises(InputError, match="no column uid"):
        read_cs(tmp_path / "b.npy")
    with pytest.raises(InputError, match="no such file"):
        read_cs(tmp_path / "c.cs")
