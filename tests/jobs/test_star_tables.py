"""polarice star: tables joined, split, made unique, subtracted and regrouped, against RELION's handler and by count."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice
from jobs.sets import ParticleSet
from polarice.io.rows import read_rows
from polarice.io.star import Block, Table, read_star, write_star
from programs import relion


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """one/, two/ and three/particles.star: 40, 30 and 20 particles; three's microscope has another voltage."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, n) in enumerate({"one": 40, "two": 30, "three": 20}.items()):
        made = ParticleSet(n=n, box_px=16, seed=seed, columns={"rlnComment": [f"'{name} {i}'"[1:-1] for i in range(n)]})
        Path(name).mkdir()
        made.write(Path(name))
    text = Path("three/particles.star").read_text()
    Path("three/particles.star").write_text(text.replace("300.000000", "200.000000"))
    return tmp_path


def run(line: str):
    ended = polarice(line)
    assert ended.code == 0, ended.err
    return ended


def particles(path: str) -> Table:
    return read_star(path).table("particles")


def test_join_merges_optics_groups_that_are_the_same(tables):
    ended = run("star join one two three --o all")
    assert (
        "optics group opticsGroup1 of three/particles.star differs from another of this name: now opticsGroup1_2"
        in (ended.out)
    )
    optics = read_star("all/particles.star").table("optics")
    assert optics.text("rlnOpticsGroupName").tolist() == ["opticsGroup1", "opticsGroup1_2"]
    assert optics.numbers("rlnVoltage").tolist() == [300.0, 200.0]
    table = particles("all/particles.star")
    assert table.integers("rlnOpticsGroup").tolist() == [1] * 70 + [2] * 20
    assert table.text("rlnImageName")[[0, 40, 70]].tolist() == [
        f"000001@{n}/stack.mrcs" for n in ("one", "two", "three")
    ]
    assert table.text("rlnComment")[[39, 69]].tolist() == ["one 39", "two 29"]
    for label in ("rlnDefocusU", "rlnDefocusAngle"):
        parts = [particles(f"{name}/particles.star").numbers(label) for name in ("one", "two", "three")]
        assert np.array_equal(table.numbers(label), np.concatenate(parts))
    again = run("star join all one --o twice")  # the renamed group is known, and one's is the first
    assert "differs" not in again.out and "40 rows name an image that stands in a row before" in again.out
    assert len(read_star("twice/particles.star").table("optics")) == 2


def test_join_is_relions_combine(tables):
    run("star join one two --o ours")
    relion("relion_star_handler", "--i", "one/particles.star two/particles.star", "--o", "theirs.star", "--combine")
    ours, theirs = particles("ours/particles.star"), particles("theirs.star")
    np.testing.assert_allclose(ours.numbers("rlnDefocusU"), theirs.numbers("rlnDefocusU"), atol=1e-3)
    assert ours.integers("rlnOpticsGroup").tolist() == theirs.integers("rlnOpticsGroup").tolist()
    assert len(read_star("theirs.star").table("optics")) == len(read_star("ours/particles.star").table("optics")) == 1


def test_columns_that_one_table_lacks(tables):
    """A phase shift that is not there is 0; a score that is not there is not made up, and told."""
    star = read_star("two/particles.star")
    table = star.table("particles").with_columns(
        {"rlnPhaseShift": np.full(30, 90.0), "rlnAutopickFigureOfMerit": np.ones(30)}
    )
    write_star("two/particles.star", [star["optics"], Block("particles", table=table)])
    ended = run("star join one two --o all")
    assert particles("all/particles.star").numbers("rlnPhaseShift").tolist() == [0.0] * 40 + [90.0] * 30
    assert "columns that not all tables have are left out: _rlnAutopickFigureOfMerit" in ended.out


def test_split_gives_every_row_once(tables):
    run("star split one --o parts --parts 3 --random --seed 4")
    names = [particles(f"parts/particles_split{k}.star").text("rlnImageName").tolist() for k in (1, 2, 3)]
    assert [len(each) for each in names] == [14, 13, 13]
    every = [name for each in names for name in each]
    assert sorted(every) == [f"{i:06d}@one/stack.mrcs" for i in range(1, 41)] and every != sorted(every)
    run("star split one --o sized --size 15")
    assert [len(particles(f"sized/particles_split{k}.star")) for k in (1, 2, 3)] == [15, 15, 10]
    assert particles("sized/particles_split2.star").text("rlnImageName")[0] == "000016@one/stack.mrcs"


def test_unique_and_subtract(tables):
    run("star split one --o parts --parts 4")
    ended = run("star unique one parts/particles_split2.star two --o u")
    assert "10 of 80 rows are the same as one before by their name" in ended.out
    assert len(particles("u/particles.star")) == 70 and len(particles("u/particles_excluded.star")) == 10
    ended = run("star subtract u parts/particles_split1.star parts/particles_split3.star --o less")
    assert "20 of 70 particles of u/particles.star stand in the other tables" in ended.out
    left = particles("less/particles.star").text("rlnImageName").tolist()
    rest = [f"{i:06d}@one/stack.mrcs" for i in [*range(11, 21), *range(31, 41)]]
    assert left == rest + [f"{i:06d}@two/stack.mrcs" for i in range(1, 31)]
    ended = run("star unique one --by rlnMicrographName --o m")
    assert len(particles("m/particles.star")) == 1  # 60 particles a micrograph
    ended = polarice("star subtract one u --o none")
    assert ended.code == 2 and "all of its 40 particles stand in the other tables" in ended.err


def test_groups_are_full_and_of_like_defocus(tables):
    n, rng = 400, np.random.default_rng(0)
    micrograph = rng.integers(0, 40, n)
    defocus = rng.uniform(10_000, 30_000, 40)[micrograph]
    star = read_rows("one/particles.star").star
    columns = {
        "rlnImageName": [f"{i + 1:06d}@one/stack.mrcs" for i in range(n)],
        "rlnMicrographName": [f"m{k}.mrc" for k in micrograph],
        "rlnDefocusU": defocus,
        "rlnOpticsGroup": np.ones(n, int),
    }
    write_star("many.star", [star["optics"], Block("particles", table=Table.of(columns))])
    run("star regroup many.star --group-size 60 --o g")
    table = particles("g/particles.star")
    names, of = table.codes("rlnGroupName")
    assert 4 <= len(names) <= 6 and np.bincount(of).min() >= 60
    ranges = sorted((defocus[of == k].min(), defocus[of == k].max()) for k in range(len(names)))
    assert all(one[1] < other[0] for one, other in pairwise(ranges))
    whole = {
        name: {k for k, m in zip(of.tolist(), micrograph.tolist(), strict=True) if m == name}
        for name in set(micrograph)
    }
    assert all(len(groups) == 1 for groups in whole.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("star shuffle one", "must be one of join, split, unique, subtract, regroup"),
        ("star join one", "join takes two tables or more"),
        ("star split one two --parts 2", "split takes one table"),
        ("star split one", "give either --parts or --size"),
        ("star split one --parts 41", "at most 40 are possible"),
        ("star regroup one", "give --group-size"),
        ("star join one two --size 3", "--size belongs to split, not to join"),
        ("star join one nowhere", "nowhere"),
        ("star unique one --by rlnNothing", "no column _rlnNothing"),
    ],
)
def test_what_cannot_be_done_is_said(tables, line, message):
    ended = polarice(f"{line} --o out")
    assert ended.code == 2 and message in ended.err, ended.err
    assert not Path("out").exists()


def test_a_step_of_a_workflow(tables):
    Path("flow.toml").write_text(
        '[[step]]\njob = "star"\nname = "all"\nwhat = "join"\ntables = ["one/particles.star", "two/particles.star"]\n'
        '[[step]]\njob = "star"\nname = "halves"\nwhat = "split"\ntables = "{all.data}"\nparts = 2\n'
    )
    run("run flow.toml")
    assert len(particles("halves/particles_split2.star")) == 35
    assert run("run flow.toml").out.count("nothing has changed") == 2
