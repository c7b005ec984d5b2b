"""Others' picks become centres; files go with micrographs by their names."""

import numpy as np
import pytest

from polarice.io.coordinates import Coordinates, coordinate_files, read_coordinates, twins, write_coordinates
from polarice.io.pairing import Matching
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
    picks = tmp_path / "picks/Micrographs"
    picks.mkdir(parents=True)
    for name in ("m1_autopick.star", "m1_autopick_old.star", "m10.box", "m2.png", "m3_manualpick.star"):
        (picks / name).write_text("1 2 3 4\n")
    names = [f"Micrographs/{stem}.mrc" for stem in ("m1", "m10", "m2", "m3")]
    files = coordinate_files(tmp_path / "picks", names, tmp_path).files
    found = [file.rpartition("/")[2] for file in files]
    assert found == ["m1_autopick.star", "m10.box", "", "m3_manualpick.star"]


def test_one_file_of_many_micrographs_is_split(tmp_path):
    (tmp_path / "all.txt").write_text("image_name x_coord y_coord score\nm1 10 20 1\nm2 30 40 2\nm1 50 60 3\n")
    files = coordinate_files(tmp_path / "all.txt", ["a/m1.mrc", "a/m2.mrc", "a/m3.mrc"], tmp_path / "job", 4.0).files
    assert files[2] == ""
    assert read_coordinates(files[0]).xy_px.tolist() == [[40, 80], [200, 240]]
    assert read_coordinates(files[1]).scores.tolist() == [2]


UNREADABLE = {  # file, what is in it: what is said
    ("a.txt", "x y\n1 2\n"): "no column image_name",
    ("a.txt", "image_name x_coord y_coord\nm 1\n"): "line 2",
    ("a.box", "1 2 3\n"): "line 1.*not 4 numbers",
    ("a.box", "1 2 nan 4\n"): "coordinate 1 is not a finite number",
    ("a.txt", "x_coord y_coord image_name\n1 2\n"): "a.txt, line 2: '1 2' is not a row of coordinates",
    ("a.cbox", "1 2 3 4 0.5\n1 2 3 4 nan\n"): "a.cbox: the score of coordinate 2 is no number, or beyond 1",
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


def folder_of(root, files: dict[str, str]):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


BOX = "1 2 4 4\n"


def test_folders_of_one_name_are_told_apart(tmp_path):
    picks = folder_of(tmp_path / "picks", {"A/001_pick.box": BOX, "B/001_pick.box": BOX})
    here = coordinate_files(picks, ["data/B/001.mrc", "/raw/A/001.mrc"], tmp_path).files
    assert here == [str(picks / "B/001_pick.box"), str(picks / "A/001_pick.box")]
    alone = coordinate_files(picks, ["B/001.mrc"], tmp_path)
    assert alone.files == [str(picks / "B/001_pick.box")]
    assert "1 left aside of another folder" in alone.remarks[0] and "--coord-names bare" in alone.remarks[0]
    with pytest.raises(InputError, match=r"nothing there belongs to 001.*2 left aside of another folder"):
        coordinate_files(picks, ["C/001.mrc"], tmp_path)
    job = coordinate_files(picks, ["Import/job002/A/001.mrc"], tmp_path)
    assert job.files == [str(picks / "A/001_pick.box")]


def test_a_name_that_goes_on_belongs_to_another(tmp_path):
    names = {"m1_2.box": BOX, "m10.box": BOX, "m1b_pick.box": BOX, "m1_DW_autopick.box": BOX, "m1_pick.box": BOX}
    found = coordinate_files(folder_of(tmp_path / "p", names), ["m1.mrc"], tmp_path)
    assert found.files == [str(tmp_path / "p/m1_pick.box")]
    assert len(found.remarks) == 1 and ": 2 left aside with no known suffix" in found.remarks[0]


def test_what_fits_two_is_refused_with_both_names(tmp_path):
    one = folder_of(tmp_path / "one", {"x_pick.box": BOX})
    with pytest.raises(InputError, match=r"x_pick.box fits two micrographs, A/x.mrc and B/x.mrc"):
        coordinate_files(one, ["A/x.mrc", "B/x.mrc"], tmp_path)
    two = folder_of(tmp_path / "two", {"x_autopick.star": "data_\n", "x.box": BOX})
    with pytest.raises(InputError, match=r"x.mrc: both .*x.box and .*x_autopick.star .*--coord-suffix"):
        coordinate_files(two, ["x.mrc"], tmp_path)
    for suffix, file in (("_autopick", "x_autopick.star"), (".box", "x.box"), ("_autopick.star", "x_autopick.star")):
        found = coordinate_files(two, ["A/x.mrc"], tmp_path, matching=Matching(suffix=suffix))
        assert found.files == [str(two / file)]


STAR = "data_\nloop_\n_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\n"


def test_rows_go_by_folder_and_the_rest_is_counted(tmp_path):
    folder_of(tmp_path, {"all.star": STAR + "A/x.mrc 1 2\nB/x.mrc 3 4\nA/x.mrc 5 6\nA/x_1.mrc 7 8\nA/x_1.mrc 7 9\n"})
    found = coordinate_files(tmp_path / "all.star", ["j/B/x.mrc.gz", "j/A/x.mrc.gz"], tmp_path / "o", 2.0)
    assert len(set(found.files)) == 2
    assert read_coordinates(found.files[0]).xy_px.tolist() == [[6, 8]]
    assert read_coordinates(found.files[1]).xy_px.tolist() == [[2, 4], [10, 12]]
    assert ": 2 left aside of no micrograph of the table (the first: A/x_1.mrc)" in found.remarks[0]
    with pytest.raises(InputError, match=r"rows of A/x.mrc and of B/x.mrc both fit x.mrc"):
        coordinate_files(tmp_path / "all.star", ["x.mrc"], tmp_path / "o")


def test_cryosparc_s_numbers_are_seen_and_taken_off(tmp_path):
    number = "000123456789012345678"
    rows = f"J3/m/{number}_m0_patch_aligned_doseweighted.mrc 1 2\nJ3/m/{number}_m1_patch_aligned.mrc 3 4\n"
    folder_of(tmp_path, {"p.star": STAR + rows})
    with pytest.raises(InputError, match=r"2 left aside with cryoSPARC's number of 21 digits.*--coord-names cryosparc"):
        coordinate_files(tmp_path / "p.star", ["Mic/m0.mrc", "Mic/m1.mrc"], tmp_path)
    names = ["Mic/m1.mrc", f"Mic/{number}_m0.mrc"]
    found = coordinate_files(tmp_path / "p.star", names, tmp_path, matching=Matching("cryosparc"))
    assert [read_coordinates(file).xy_px.tolist() for file in found.files] == [[[3, 4]], [[1, 2]]]
    assert found.remarks == ()


def test_a_table_that_names_files_of_coordinates(tmp_path, monkeypatch):
    """RELION's autopick.star, whose names begin at the project's folder, from anywhere."""
    job = tmp_path / "project/AutoPick/job006"
    (job / "Movies").mkdir(parents=True)
    names = ["MotionCorr/job002/Movies/a.mrc", "MotionCorr/job002/Movies/b.mrc"]
    for n in range(2):
        text = f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{10 * n + 5} 7\n"
        (job / f"Movies/pick{n}_autopick.star").write_text(text)
    head = "# version 30001\ndata_coordinate_files\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\n"
    rows = [f"{names[1 - n]} AutoPick/job006/Movies/pick{1 - n}_autopick.star\n" for n in range(2)]  # b first
    listed = job / "autopick.star"
    listed.write_text(head + "".join(rows))
    for folder in (tmp_path, tmp_path / "project"):
        monkeypatch.chdir(folder)
        found = coordinate_files(listed, [*names, "MotionCorr/job002/Movies/c.mrc"], tmp_path / "out")
        assert [read_coordinates(file).xy_px[0, 0] for file in found.files[:2]] == [5, 15] and found.files[2] == ""
    scaled = coordinate_files(listed, names, tmp_path / "out", 2.0)
    assert [read_coordinates(file).xy_px.tolist() for file in scaled.files] == [[[10, 14]], [[30, 14]]]
    listed.write_text(head + rows[0] + rows[0])
    with pytest.raises(InputError, match=r"rows 1 and 2: both fit .*b\.mrc"):
        coordinate_files(listed, names, tmp_path / "out")
    listed.write_text(head + f"{names[0]} AutoPick/job007/a.star\n")
    with pytest.raises(InputError, match=r"row 1: AutoPick/job007/a\.star not found"):
        coordinate_files(listed, names, tmp_path / "out")


def test_twins():
    xy = np.array([[5.0, 5], [9, 9], [5, 5], [5.6, 5.6], [9, 10]])
    assert twins(xy).tolist() == [False, False, True, True, False]
    assert twins(xy, 1.5).tolist() == [False, False, True, True, True]
    assert twins(xy[:1]).tolist() == [False] and twins(xy[:0]).tolist() == []


def test_a_table_without_rows(tmp_path):
    (tmp_path / "a.txt").write_text("image_name x_coord y_coord score\n")
    found = read_coordinates(tmp_path / "a.txt")
    assert found.xy_px.shape == (0, 2) and found.scores.shape == (0,)
    with pytest.raises(InputError, match="nothing there belongs to m1"):
        coordinate_files(tmp_path / "a.txt", ["m1.mrc"], tmp_path)
