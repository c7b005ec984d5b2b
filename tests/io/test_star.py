"""STAR files: what stood there stays there, and what is written is what RELION, starfile and gemmi read."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from polarice.io.star import Block, Table, read_star, write_star
from polarice.types import InputError
from programs import relion

DATA = Path(__file__).parents[2] / "../shared/data"
TABLES = [
    "metadata/em-testdata_betagal_particles_1k.star",
    "metadata/em-testdata_run_it025_data.star.gz",
    "metadata/em-testdata_run_it025_model.star",
    "metadata/em-testdata_corrected_micrographs.star",
    "metadata/em-testdata_movie_frameImage.star",
    "metadata/alphacryo4d_26S_sub1_25k.star.gz",
    "particles_small/empiar_10076_7.star",
    "particles_small/relion31_helical_5.star",
    "particles_small/sta_testing_bin8.star",
    "particles_small/aspire_sample_particles_relion30.star",
    "particles_small/aspire_sample_particles_relion31.star",
    "formats/rln_proj_65.star",
    "apoferritin_empiar10146/coords/May08_03.05.02_avg_joac1137.star",
]
ODD = b"""# made by hand\r
data_optics\r
loop_\r
_rlnOpticsGroup #1\r
_rlnOpticsGroupName #2\r
1 "first group"\r
\r
data_\r
\r
_general 5\r
_text 'two words'\r
data_particles\r
\r
loop_\r
_rlnImageName #1 [where it is]\r
_rlnAnglePsi\t#2\r
_mine\r
_rlnComment #4\r
# a comment between labels and rows\r
data_1/001@a#1.mrcs\t001   1.500000 "a b"\r
\r
  data_2 -7e0 +3 ""   # behind the row\r
 loop_ 2 bob's 'it is "so"'\r
\r
   \r
"""


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared data {name} not here")
    return path


def write(tmp_path, text, name="a.star"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells_by_hand(path):
    """Every row of the file's tables, split by Python (for files without quotes)."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [line for line in lines if not line[0].startswith(("_", "data_", "loop_"))]


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_a_real_file_passes_through_exactly(tmp_path, name):
    path = shared(name)
    star = read_star(path)
    rows = [
        row
        for block in star
        if block.table
        for row in zip(*(block.table.text(x) for x in block.table.labels), strict=True)
    ]
    assert [list(row) for row in rows] == cells_by_hand(path)
    write_star(tmp_path / "out.star", star)
    assert cells_by_hand(tmp_path / "out.star") == cells_by_hand(path)
    again = read_star(tmp_path / "out.star")
    assert again.names == star.names
    assert [block.pairs for block in again] == [block.pairs for block in star]


@pytest.mark.parametrize("name", [name for name in TABLES if not name.endswith(".gz")])
def test_numbers_agree_with_starfile(name):
    starfile = pytest.importorskip("starfile")
    path = shared(name)
    star = read_star(path)
    for key, frame in starfile.read(path, always_dict=True).items():
        if not hasattr(frame, "columns"):
            continue
        table = star.table(str(key))
        assert list(frame.columns) == list(table.labels)
        for label in frame.columns:
            if frame[label].dtype.kind in "if":
                np.testing.assert_allclose(table.numbers(label), frame[label].to_numpy(), rtol=1e-15)


def test_the_patient_reader(tmp_path):
    star = read_star(write(tmp_path, ODD))
    assert star.names == ("optics", "", "particles")
    assert star.table("optics").text("rlnOpticsGroupName").tolist() == ["first group"]
    assert star[""].pairs == {"general": "5", "text": "two words"}
    table = star.table("particles")
    assert table.labels == ("rlnImageName", "rlnAnglePsi", "mine", "rlnComment")
    assert table.text("rlnImageName").tolist() == ["data_1/001@a#1.mrcs", "data_2", "loop_"]
    assert table.text("rlnAnglePsi").tolist() == ["001", "-7e0", "2"]
    assert table.numbers("rlnAnglePsi").tolist() == [1.0, -7.0, 2.0]
    assert table.text("mine").tolist() == ["1.500000", "+3", "bob's"]
    assert table.text("rlnComment").tolist() == ["a b", "", 'it is "so"']


def test_odd_cells_are_written_exactly(tmp_path):
    star = read_star(write(tmp_path, ODD))
    changed = star.table("particles").with_columns({"rlnAnglePsi": [1.0, -0.25, 3e-7]})
    write_star(tmp_path / "out.star", [star["optics"], Block("particles", table=changed)])
    lines = (tmp_path / "out.star").read_text().splitlines()
    assert lines[-4:-1] == [
        'data_1/001@a#1.mrcs     1.000000 1.500000 "a b"',
        'data_2    -0.250000 +3 ""',
        "loop_     0.000000 bob's 'it is \"so\"'",
    ]
    assert lines[:10] == [
        "",
        "# version 30001",
        "",
        "data_optics",
        "",
        "loop_ ",
        "_rlnOpticsGroup #1 ",
        "_rlnOpticsGroupName #2 ",
        '1 "first group"',
        " ",
    ]
    assert "\r" not in (tmp_path / "out.star").read_bytes().decode()


@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n", " \n \n", "\r\n\r\n"])
def test_any_end_of_file(tmp_path, ending):
    star = read_star(write(tmp_path, "data_x\nloop_\n_a\n_b\n1 2\n3 4" + ending))
    assert star.table("x").integers("b").tolist() == [2, 4]


def test_one_column_tables_and_empty_ones(tmp_path):
    text = "data_a\nloop_\n_name\ndata_1.mrc\ndata_2.mrc\n\ndata_b\nloop_\n_name\n_x #2\ndata_c\n_y 3\n"
    star = read_star(write(tmp_path, text))
    assert star.table("a").text("name").tolist() == ["data_1.mrc", "data_2.mrc"]
    assert len(star.table("b")) == 0
    assert star["c"].pairs == {"y": "3"}
    write_star(tmp_path / "out.star", star)
    assert len(read_star(tmp_path / "out.star").table("b")) == 0


def test_take_and_replace(tmp_path):
    table = read_star(write(tmp_path, "data_x\nloop_\n_a\n_b\n_c\n001 x  1.0\n002 y\t2.0\n003 z 3.0\n")).table("x")
    part = table.with_columns({"b": ["p q", "r", "s"], "d": [1, 2, 3]}).take(np.array([2, 0]))
    write_star(tmp_path / "out.star", [Block("x", table=part)])
    assert cells_by_hand(tmp_path / "out.star") == [["003", "s", "3.0", "3"], ["001", '"p', 'q"', "1.0", "1"]]
    again = read_star(tmp_path / "out.star").table("x")
    assert again.text("b").tolist() == ["s", "p q"]
    assert table.labels == ("a", "b", "c")
    assert table.text("b").tolist() == ["x", "y", "z"]
    assert table.without("b").take(np.array([False, True, False])).text("c").tolist() == ["2.0"]


def test_numbers_are_written_as_relion_writes_them(tmp_path):
    values = {
        "x": [0.0, 1.5, 4.180408e-4, -181489.7],
        "rlnClassNumber": [1.0, 2.0, 3.0, 40.0],
        "rlnVoltage": [300, 200, 1, 2],
    }
    write_star(tmp_path / "out.star", [Block("x", table=Table.of(values, {"rlnVoltage": "%.1f"}))])
    assert (tmp_path / "out.star").read_text().splitlines()[9:13] == [
        "    0.000000            1 300.0",
        "    1.500000            2 200.0",
        "4.180408e-04            3 1.0",
        "-1.814897e+05           40 2.0",
    ]
    pairs = Block.of_pairs("g", {"a": 5, "b": 0.5, "c": "two words", "d": True, "e": np.float32(2e6), "f": ""})
    write_star(tmp_path / "out.star", [pairs])
    assert read_star(tmp_path / "out.star")["g"].pairs == {
        "a": "5", "b": "0.500000", "c": "two words", "d": "1", "e": "2.000000e+06", "f": "",
    }  # fmt: skip


@pytest.mark.parametrize("values", [[1.0, np.nan], [np.inf, 0.0], ["a", "b\nc"]])
def test_what_cannot_stand_in_a_table_is_refused(tmp_path, values):
    with pytest.raises(ValueError, match=r"not a finite number|line end"):
        write_star(tmp_path / "out.star", [Block("x", table=Table.of({"x": np.array(values)}))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a STAR file"),
        ("hello\n", "line 1: a line that begins with data_ was expected, found 'hello'"),
        ("data_x\nloop_\n_a\n_b\n1 2\n3\n", r"data_x, row 2 \(line 6\): 1 values where the table has 2 columns"),
        ("data_x\nloop_\n_a\n_b\n1 2\n3 4 5\n", r"row 2 \(line 6\): 3 values where the table has 2 columns"),
        ("data_x\nloop_\n_a\n_b\n1\n2 3 4\n", r"row 1 \(line 5\): 1 values"),
        ("data_x\nloop_\n_a\n_a\n1 2\n", "column _a stands there twice"),
        ("data_x\n1 2\n", "line 2: '1 2' stands outside of any table"),
    ],
)
def test_files_that_cannot_be_read_say_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_star(write(tmp_path, text))


def test_a_late_bad_row_is_named(tmp_path):
    rows = "".join(f"{n} x {n}.5\n" for n in range(1, 400_001))
    bad = rows.replace("\n333333 x", "\n333333").replace("\n350000 x 350000.5", "\n350000 x oops")
    with pytest.raises(InputError, match=r"row 333333 \(line 333338\): 2 values"):
        read_star(write(tmp_path, "data_x\nloop_\n_a\n_b\n_c\n" + bad))
    table = read_star(write(tmp_path, "data_x\nloop_\n_a\n_b\n_c\n" + bad.replace("333333 333", "333333 x 333"))).table(
        "x"
    )
    with pytest.raises(InputError, match=r"row 350000: _c is 'oops', not a number; correct or remove the row"):
        table.numbers("c")
    assert table.integers("a").sum() == 400_001 * 200_000
    with pytest.raises(InputError, match=r"no column _zz; it has _a, _b, _c"):
        table.numbers("zz")


def test_missing_files_folders_and_broken_gzip(tmp_path):
    with pytest.raises(InputError, match=r"no such file"):
        read_star(tmp_path / "none.star")
    with pytest.raises(InputError, match=r"cannot be read"):
        read_star(tmp_path)
    with pytest.raises(InputError, match=r"the gzip file is damaged"):
        read_star(write(tmp_path, gzip.compress(b"data_x\n" * 1000)[:-20]))


def test_relion_reads_what_we_write(tmp_path):
    star = read_star(shared("metadata/em-testdata_run_it025_data.star.gz"))
    psi = np.linspace(-179, 180, len(star.table("particles")))
    changed = star.table("particles").with_columns({"rlnAnglePsi": psi, "rlnOwnColumn": psi * 2})
    write_star(tmp_path / "ours.star", [star["optics"], Block("particles", table=changed)])
    relion("relion_star_handler", "--i", "ours.star", "--o", "theirs.star", folder=tmp_path)
    theirs = read_star(tmp_path / "theirs.star").table("particles")
    np.testing.assert_allclose(theirs.numbers("rlnAnglePsi"), psi, atol=2e-5)  # RELION writes 5 digits of negatives
    for label in ("rlnImageName", "rlnMicrographName", "rlnOwnColumn", "rlnClassNumber"):
        assert theirs.text(label).tolist() == changed.text(label).tolist()


def test_gemmi_reads_what_we_write(tmp_path):
    cif = pytest.importorskip("gemmi").cif
    star = read_star(shared("metadata/em-testdata_betagal_particles_1k.star"))
    write_star(tmp_path / "ours.star", star)
    block = cif.read(str(tmp_path / "ours.star")).find_block("particles")
    for label in star.table("particles").labels:
        assert list(block.find_loop(f"_{label}")) == star.table("particles").text(label).tolist()
