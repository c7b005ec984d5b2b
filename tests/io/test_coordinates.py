"""Others' picks become centres; files go with micrographs by their names."""

import numpy as np
import pytest

from polarice.io.coordinates import Coordinates, coordinate_files, read_coordinates, write_coordinates
from polarice.types import InputError

CBOX = (
    "\ndata_global\n\n_version 1.0\n\ndata_cryolo\n\nloop_\n_CoordinateX #1\n_CoordinateY #2\n_Width #3\n_Height #4\n"
)
CBOX += "_Confidence #5\n10.0 20.0 8 6 0.75\n\n"


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("a.star", "\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n14 23\n", None),
        ("a.star", "\ndata_\nloop_\n_rlnAutopickFigureOfMerit\n_rlnCoordinateX\n_rlnCoordinateY\n.75 14 23\n", 0.75),
        ("a.box", "10\t20\t8\t6\n", None),
        ("a.box", "10 20 8 6 -3\n\n", None),
        ("a.cbox", "10 20 8 6 0.75 8 6\n", 0.75),
        ("a.cbox", CBOX, 0.75),
        ("a.txt", "image_name\tx_coord\ty_coord\tscore\na\t14\t23\t0.75\n", 0.75),
        ("a.csv", "image_name,x_coord,y_coord\nfolder/a.mrc,14,23\n", None),
    ],
)
def test_centres(tmp_path, name, text, score):
    (tmp_path / name).write_text(text)
    found = read_coordinates(tmp_path / name)
    assert found.xy_px.tolist() == [[14.0, 23.0]]
    assert (found.scores is None) if score is None else found.scores.tolist() == [score]
    assert read_coordinates(tmp_path / name, scale=2.0).xy_px.tolist() == [[28.0, 46.0]]


def test_round_trip_and_none(tmp_path):
    xy = np.array([[1.5, 2.25], [300.125, 4.0]])
    write_coordinates(tmp_path / "a.star", Coordinates(xy, np.array([0.5, -0.25])))
    back = read_coordinates(tmp_path / "a.star")
    assert np.array_equal(back.xy_px, xy)
    assert back.scores.tolist() == [0.5, -0.25]
    write_coordinates(tmp_path / "b.star", Coordinates(xy[:0], None))
    assert len(read_coordinates(tmp_path / "b.star").xy_px) == 0


def test_files_go_with_micrographs(tmp_path):
    picks = tmp_path / "picks/deep"
    picks.mkdir(parents=True)
    for name in ("m1_autopick.star", "m1_autopick_old.star", "m10.box", "m2.png", "m3_manualpick.star"):
        (picks / name).write_text("1 2 3 4\n")
    names = [f"Micrographs/{stem}.mrc" for stem in ("m1", "m10", "m2", "m3")]
    files = coordinate_files(tmp_path / "picks", names, tmp_path)
    found = [file.rpartition("/")[2] for file in files]
    assert found == ["m1_autopick.star", "m10.box", "", "m3_manualpick.star"]


def test_one_file_of_many_micrographs_is_split(tmp_path):
    (tmp_path / "all.txt").write_text("image_name x_coord y_coord score\nm1 10 20 1\nm2 30 40 2\nm1 50 60 3\n")
    files = coordinate_files(tmp_path / "all.txt", ["a/m1.mrc", "a/m2.mrc", "a/m3.mrc"], tmp_path / "job", 4.0)
    assert files[2] == ""
    assert read_coordinates(files[0]).xy_px.tolist() == [[40, 80], [200, 240]]
    assert read_coordinates(files[1]).scores.tolist() == [2]


UNREADABLE = {  # file, what is in it: what is said
    ("a.txt", "x y\n1 2\n"): "no column image_name",
    ("a.txt", "image_name x_coord y_coord\nm 1\n"): "line 2",
    ("a.box", "1 2 3\n"): "line 1.*not 4 numbers",
    ("a.box", "1 2 nan 4\n"): "coordinate 1 is not a finite number",
    ("a.star", "data_\nloop_\n_rlnX\n1\n"): "no column _rlnCoordinateX",
    ("a.box", "1 2 3 4\n\udcff\udcfe"): "a.box: byte 9 is no text",
    ("a.json", "{}"): "coordinates are read from",
}


@pytest.mark.parametrize("file", UNREADABLE)
def test_what_cannot_be_read(tmp_path, file):
    name, text = file
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=UNREADABLE[file]):
        read_coordinates(tmp_path / name)


def test_nothing_fits(tmp_path):
    (tmp_path / "other.star").write_text("data_\n")
    with pytest.raises(InputError, match="nothing there belongs to m1"):
        coordinate_files(tmp_path, ["m1.mrc"], tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        coordinate_files(tmp_path / "none", ["m1.mrc"], tmp_path)
