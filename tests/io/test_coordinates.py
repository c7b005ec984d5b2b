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


def folder_of(root, names):
    """Files of one coordinate each, x being their place in `names`."""
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{place} 0 0 0\n")
    return root


@pytest.mark.parametrize(
    ("names", "files", "found"),
    [
        (["M/m1.mrc", "M/m10.mrc", "M/m2.mrc"], ["M/m1_autopick.box", "M/m10.box", "M/m2.png"], [0, 1, None]),
        (["a/1.mrc", "b/1.mrc"], ["b/1_pick.box", "a/1_pick.box"], [1, 0]),
        (["x/a/1.mrc", "y/a/1.mrc"], ["y/a/1.box", "x/a/1.box"], [1, 0]),
        (["M/m_1.mrc"], ["m_1_2.box", "m_1.box"], [1]),  # m_1_2 is another micrograph, which the table left out
        (["M/m_1.mrc"], ["m_12.box", "m_1.a.box"], [1]),
        (["a/1.mrc", "a/2.mrc"], ["b/1.box", "a/2.box"], [None, 1]),  # of a set that the table left out
        (["MotionCorr/job002/raw/1.mrc"], ["job003/raw/1_autopick.box"], [0]),
        (["raw/1.mrc.gz", "raw/2.tif", "raw/3_frames.eer"], ["1.box", "2_x.box", "3_frames.box"], [0, 1, 2]),
        (["/data/set/May_05.31.00.mrc"], ["May_05.31.00_joac1137.box"], [0]),
    ],
)
def test_files_go_with_micrographs_by_names_and_folders(tmp_path, names, files, found):
    picks = folder_of(tmp_path / "picks", files)
    got = coordinate_files(picks, names, tmp_path)
    assert [int(read_coordinates(file).xy_px[0, 0]) if file else None for file in got] == found


@pytest.mark.parametrize(
    ("names", "files", "said"),
    [
        (["a/1.mrc", "b/1.mrc"], ["1.box"], r"1\.box: fits two micrographs, a/1\.mrc and b/1\.mrc"),
        (["a/1.mrc"], ["1_pick.box", "1_pick_old.box"], r"1_pick\.box and 1_pick_old\.box: both hold .* of a/1\.mrc"),
        (["a/1.mrc"], ["b/1_pick.box"], r"b/1_pick\.box stands in another folder"),
        (["M/m_1.mrc"], ["m_1_2.box"], "nothing there belongs to m_1"),
        (["M/m.mrc"], [f"{7:021d}_m.box"], "cryoSPARC's number of 21 digits"),
    ],
)
def test_what_fits_two_or_none_is_refused(tmp_path, names, files, said):
    with pytest.raises(InputError, match=said):
        coordinate_files(folder_of(tmp_path / "picks", files), names, tmp_path)


def test_what_goes_with_no_micrograph_is_counted(tmp_path, capsys):
    coordinate_files(folder_of(tmp_path / "picks", ["1.box", "2.box", "3.box"]), ["1.mrc"], tmp_path)
    assert "2 of 3 files go with no micrograph: 2.box, 3.box" in capsys.readouterr().err
    (tmp_path / "all.txt").write_text("image_name x_coord y_coord\na/m 1 2\nb/m 3 4\nb/m 5 6\n")
    files = coordinate_files(tmp_path / "all.txt", ["b/m.mrc"], tmp_path / "job")
    assert read_coordinates(files[0]).xy_px.tolist() == [[3, 4], [5, 6]]
    assert "1 of 3 rows go with no micrograph: a/m" in capsys.readouterr().err


def test_rows_of_one_name_in_two_folders_get_a_file_each(tmp_path):
    (tmp_path / "all.txt").write_text("image_name x_coord y_coord\na/m.mrc 1 2\nb/m.mrc 3 4\n")
    files = coordinate_files(tmp_path / "all.txt", ["a/m.mrc", "b/m.mrc"], tmp_path / "job", 2.0)
    assert [read_coordinates(file).xy_px.tolist() for file in files] == [[[2, 4]], [[6, 8]]]
    (tmp_path / "bare.txt").write_text("image_name x_coord y_coord\nm 1 2\n")
    with pytest.raises(InputError, match=r"m: fits two micrographs, a/m\.mrc and b/m\.mrc"):
        coordinate_files(tmp_path / "bare.txt", ["a/m.mrc", "b/m.mrc"], tmp_path / "job")


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
