"""Reading images: the order asked for, whatever the order on disk, and clear words where a stack is wrong."""

import gzip
import os
import threading

import numpy as np
import pytest

from polarice.io import stacks
from polarice.io.mrc import write_stack
from polarice.io.particles import read_particles
from polarice.io.stacks import StackSource, disk_order, find_stacks
from polarice.types import InputError, Optics, Particles, Pose2D

BOX = 6


def particles(paths, stack_of, section, box=BOX):
    n = len(section)
    zero = np.zeros(n, np.int32)
    return Particles(
        tuple(str(path) for path in paths), np.asarray(stack_of, np.int32), np.asarray(section, np.int64),
        (Optics("one", 2.0, 300.0, 2.7, 0.1, box),), zero, ("m",), zero, None, Pose2D.unknown(n),
    )  # fmt: skip


def make(tmp_path, sizes, suffix=".mrcs"):
    """Stacks in which every pixel of an image is 100 * stack + section."""
    paths = []
    for number, size in enumerate(sizes):
        values = 100.0 * number + np.arange(size, dtype=np.float32)
        path = tmp_path / f"s{number}.mrcs"
        write_stack(path, np.broadcast_to(values[:, None, None], (size, BOX, BOX)), 2.0)
        if suffix == ".gz":
            packed = tmp_path / f"s{number}.mrcs.gz"
            packed.write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
            path = packed
        paths.append(path)
    return paths


@pytest.mark.parametrize("suffix", [".mrcs", ".gz"])
def test_shuffled_rows_come_in_the_order_asked_for(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(stacks, "OPEN_STACKS", 3)
    rng = np.random.default_rng(0)
    paths = make(tmp_path, [20] * 10, suffix)
    stack_of, section = rng.integers(0, 10, 500), rng.integers(0, 20, 500)  # with repetitions
    source = StackSource(particles(paths, stack_of, section))
    source.check()
    assert (len(source), source.box_px) == (500, BOX)
    for rows in (rng.permutation(500), np.arange(500), np.array([7, 7, 3]), np.arange(500) % 3 == 0, np.array([], int)):
        images = source.read(rows)
        assert images.dtype == np.float32
        values = (100 * stack_of + section)[rows]
        np.testing.assert_array_equal(images, np.broadcast_to(values[:, None, None], (len(values), BOX, BOX)))
        assert len(source._open) <= 3


def test_disk_order_walks_every_stack_forwards(tmp_path):
    rng = np.random.default_rng(1)
    table = particles(make(tmp_path, [50] * 4), rng.integers(0, 4, 300), rng.integers(0, 50, 300))
    order = disk_order(table)
    assert sorted(order) == list(range(300))
    place = table.stack_of[order] * 1000 + table.section[order]
    assert (np.diff(place) >= 0).all()


def test_neighbouring_sections_are_copied_in_one_piece(tmp_path, monkeypatch):
    source = StackSource(particles(make(tmp_path, [100]), np.zeros(100), np.arange(100)))
    pieces = []

    class Spy:
        def __len__(self):
            return 100

        def __getitem__(self, key):
            pieces.append((key.start, key.stop))
            return np.zeros((key.stop - key.start, BOX, BOX))

    monkeypatch.setattr(source, "_sections", lambda stack, row, copied: Spy())
    source.read(np.random.default_rng(2).permutation(np.r_[0:40, 60:100]))
    assert pieces == [(0, 40), (60, 100)]


def test_two_threads_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "OPEN_STACKS", 2)
    rng = np.random.default_rng(3)
    stack_of, section = rng.integers(0, 8, 400), rng.integers(0, 10, 400)
    source = StackSource(particles(make(tmp_path, [10] * 8), stack_of, section))
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed)
        for _ in range(50):
            rows = order.integers(0, 400, 40)
            if not np.array_equal(source.read(rows)[:, 0, 0], (100 * stack_of + section)[rows]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_every_header_is_read_once(tmp_path, monkeypatch):
    paths = make(tmp_path, [5] * 20)
    read, opened = stacks.read_header, []
    monkeypatch.setattr(stacks, "read_header", lambda path, unsigned: opened.append(path) or read(path, unsigned))
    source = StackSource(particles(paths, np.arange(400) % 20, np.arange(400) % 5))
    source.check()
    source.check()
    source.read(np.arange(400))
    assert sorted(opened) == sorted(str(path) for path in paths)


def test_unsigned_stacks(tmp_path):
    write_stack(tmp_path / "a.mrcs", np.full((1, BOX, BOX), -1.0), 2.0, np.int8)
    table = particles([tmp_path / "a.mrcs"], [0], [0])
    assert StackSource(table).read(np.array([0])).max() == -1
    assert StackSource(table, unsigned=True).read(np.array([0])).min() == 255


def test_a_stack_with_too_few_sections(tmp_path):
    table = particles(make(tmp_path, [5, 5]), [0, 1, 1, 1], [4, 0, 9, 5])
    source = StackSource(table, table="set.star")
    message = (
        r"set.star, row 3 \(image 10@.*s1.mrcs\): the stack holds 5 sections, section 10 was asked for; check that"
    )
    with pytest.raises(InputError, match=message):
        source.check()
    with pytest.raises(InputError, match=message):
        source.read(np.array([2, 1]))
    assert source.read(np.array([1])).max() == 100.0


def test_a_stack_that_is_cut_off(tmp_path):
    paths = make(tmp_path, [5, 5])
    os.truncate(paths[1], 1024 + 3 * BOX * BOX * 4 + 11)
    message = r"row 2 \(image 4@.*\): .*s1.mrcs is cut off: its header says 5 sections of 6 x 6 pixels, 3 are there"
    with pytest.raises(InputError, match=message):
        StackSource(particles(paths, [0, 1, 1], [0, 3, 0])).check()
    with pytest.raises(InputError, match="cut off"):
        StackSource(particles(paths, [0, 1, 1], [0, 3, 0])).read(np.array([1]))


def test_a_gzipped_stack_that_is_cut_off(tmp_path):
    (path,) = make(tmp_path, [50], ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"s0.mrcs.gz: the gzip file is damaged or cut off"):
        StackSource(particles([path], [0], [3])).read(np.array([0]))


def test_boxes_that_do_not_agree(tmp_path):
    paths = make(tmp_path, [2])
    write_stack(tmp_path / "big.mrcs", np.zeros((2, 8, 8)), 2.0)
    with pytest.raises(InputError, match=r"row 2: .*big.mrcs has a box of 8 pixels, .*s0.mrcs one of 6; rescale"):
        StackSource(particles([*paths, tmp_path / "big.mrcs"], [0, 1], [0, 0])).check()
    with pytest.raises(InputError, match=r"row 1: .*a box of 6 pixels, the table says 10 for optics group one"):
        StackSource(particles(paths, [0], [0], box=10)).check()
    with pytest.raises(InputError, match="has no particles"):
        StackSource(particles(paths, [], []))


def test_a_stack_that_went_away(tmp_path):
    paths = make(tmp_path, [2, 2])
    source = StackSource(particles(paths, [0, 1], [0, 0]))
    paths[1].unlink()
    with pytest.raises(InputError, match=r"s1.mrcs: no such file"):
        source.check()


def test_the_unpacked_copies_go_with_the_source(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    source = StackSource(particles(make(tmp_path, [2], ".gz"), [0], [1]))
    assert source.read(np.array([0])).max() == 1.0
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del source
    assert list((tmp_path / "temporary").iterdir()) == []


def _flat(tmp_path, *names: str):
    for name in names:
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / name).touch()
    return tmp_path / "flat"


def test_the_longest_tail_in_the_image_folder_counts(tmp_path):
    flat = _flat(tmp_path, "m.mrcs", "g1/m.mrcs", "g2/m.mrcs")
    names = ["/gone/p/g1/m.mrcs", "p/g2/m.mrcs", "./p/../g2/m.mrcs"]
    found = find_stacks(names, [0, 1, 2], tmp_path / "t.star", flat)
    assert [os.path.relpath(path, flat) for path in found] == ["g1/m.mrcs", "g2/m.mrcs", "g2/m.mrcs"]


@pytest.mark.parametrize("first", [[], ["m.mrcs"]])
def test_two_stacks_do_not_become_one_in_the_image_folder(tmp_path, first):
    flat = _flat(tmp_path, "m.mrcs")
    names = [*first, "g1/m.mrcs", "/data/g1/m.mrcs", "g2/m.mrcs"]
    with pytest.raises(InputError, match=r"image stacks /data/g1/m.mrcs and g2/m.mrcs would both be .*--image-dir"):
        find_stacks(names, range(len(names)), tmp_path / "t.star", flat)
    assert len(set(find_stacks(names[:-1], range(len(names) - 1), tmp_path / "t.star", flat))) == 1


def test_stacks_of_one_group_that_state_several_pixel_sizes(tmp_path):
    for name, size_A in (("a.mrcs", 2.0), ("b.mrcs", 1.0), ("c.mrcs", 2.01), ("d.mrcs", 3.0)):
        write_stack(tmp_path / name, np.zeros((2, 8, 8), np.float32), size_A)

    def told(*names: str) -> str:
        rows = "".join(f"{n + 1}@{tmp_path}/{name} 1\n" for name in names for n in range(2))
        labels = "_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnImagePixelSize #3\n_rlnImageSize #4\n"
        optics = f"data_optics\n\nloop_\n{labels}1 one 2.0 8\n\n"
        table = f"{optics}data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n{rows}"
        (tmp_path / "p.star").write_text(table)
        return StackSource(read_particles(tmp_path / "p.star", need_ctf=False).particles, table="p.star").mixed_sizes()

    assert told("a.mrcs", "b.mrcs", "c.mrcs") == ""
    assert told("a.mrcs", "b.mrcs", "d.mrcs") == (
        f"p.star, row 5: stacks of optics group one state several pixel sizes, {tmp_path}/a.mrcs 2 A and "
        f"{tmp_path}/d.mrcs 3 A; 2 A is used for all"
    )


def test_what_is_wrong_inside_a_gzipped_stack_is_told_by_its_own_name(tmp_path):
    """An extended header that is not there shows only when the stack is unpacked, under another name."""
    [path] = make(tmp_path, [3], ".gz")
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[92:96] = (1 << 20).to_bytes(4, "little")
    path.write_bytes(gzip.compress(bytes(plain)))
    source = StackSource(particles([path], [0], [0]))
    with pytest.raises(InputError, match=r"s0\.mrcs\.gz: its header announces an extended header"):
        source.read(np.array([0]))
