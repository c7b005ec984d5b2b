"""A good file of another kind is called by its name, with what to do; it is not called damaged."""

from __future__ import annotations

import bz2
import json
import lzma
import struct

import numpy as np
import pytest

from polarice.io.arrays import read_arrays
from polarice.io.cryosparc import read_cs
from polarice.io.gain import read_defects, read_gain
from polarice.io.kinds import kind_of
from polarice.io.movies import open_movie
from polarice.io.mrc import header_dtype, read_header, write_stack
from polarice.io.stacks import read_named
from polarice.io.star import read_star
from polarice.types import InputError

STAR = "data_particles\nloop_\n_rlnImageName #1\n1@s.mrcs\n"
SAMPLES = {
    "bzip2": bz2.compress(bytes(2000)),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(2000),
    "with xz": lzma.compress(bytes(2000)),
    "zip archive": b"PK\x03\x04" + bytes(2000),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
    "dm3": struct.pack(">iii", 3, 2000, 1) + bytes(2000),
    "dm4": struct.pack(">iqi", 4, 2000, 1) + bytes(2000),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(2000),
    "UTF-16": STAR.encode("utf-16"),
    "JSON": json.dumps({"a": 1}).encode(),
    "XML or HTML": b"<!DOCTYPE html>",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
}
READERS = {
    "s.mrcs": read_header,
    "p.star": read_star,
    "p.cs": read_cs,
    "g.tif": lambda path: open_movie(path).__enter__(),
    "g.gain": lambda path: read_gain(path, (8, 8), True),
    "d.txt": lambda path: read_defects(path, (8, 8)),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", READERS)
def test_another_kind_is_called_by_its_name(tmp_path, kind, name):
    (tmp_path / name).write_bytes(SAMPLES[kind])
    assert kind in kind_of(tmp_path / name)[0]
    if kind == "JSON" and name == "d.txt":
        return  # a text like any other to the reader of lines, which names the line
    with pytest.raises(InputError) as error:
        READERS[name](tmp_path / name)
    assert f"{name} is " in str(error.value) and kind in str(error.value) and ", and not " in str(error.value)
    assert "damaged" not in str(error.value) and "copy" not in str(error.value)


def test_tables_and_images_are_not_taken_for_each_other(tmp_path):
    (tmp_path / "s.mrcs").write_text(STAR * 100)
    with pytest.raises(InputError, match="is a STAR table, and not an MRC file; give the file of images that it names"):
        read_header(tmp_path / "s.mrcs")
    (tmp_path / "t.star").write_bytes(b"II*\x00" + bytes(100))
    with pytest.raises(InputError, match=r"is a TIFF file, and not a STAR file"):
        read_star(tmp_path / "t.star")
    np.save(tmp_path / "a.npy", np.zeros(300))
    (tmp_path / "a.npy").rename(tmp_path / "a.mrc")
    with pytest.raises(InputError, match="is a NumPy array, or a table of cryoSPARC"):
        read_header(tmp_path / "a.mrc")
    (tmp_path / "dm.mrc").write_bytes(struct.pack("<10i", 8, 8, 3, 2, 0, 0, 0, 8, 8, 3) + bytes(984 + 768))
    assert kind_of(tmp_path / "dm.mrc") == ("", "") and read_header(tmp_path / "dm.mrc").n == 3


def test_a_table_without_loop_and_a_header_without_its_extension(tmp_path):
    (tmp_path / "p.star").write_text("data_particles\n\n_rlnImageName #1\n_rlnDefocusU #2\n1@s.mrcs 10000\n")
    with pytest.raises(InputError, match="line 5: rows of a table without the line loop_ before its labels"):
        read_star(tmp_path / "p.star")
    write_stack(tmp_path / "s.mrcs", np.zeros((2, 8, 8), np.float32), 1.0)
    content = np.frombuffer((tmp_path / "s.mrcs").read_bytes(), np.uint8).copy()
    header = content[:1024].view(header_dtype("<"))
    header["nsymbt"] = 512
    (tmp_path / "s.mrcs").write_bytes(content.tobytes())
    with pytest.raises(InputError, match="an extended header of 512 bytes, which is not there; set the field"):
        read_header(tmp_path / "s.mrcs")


def test_arrays_that_are_none(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, quat=np.eye(4))
    assert np.array_equal(read_arrays(path)["quat"], np.eye(4))
    np.savez(path, quat=np.array([{}], object))
    with pytest.raises(InputError) as error:
        read_arrays(path)
    assert "pickle" not in str(error.value)
    np.save(tmp_path / "b.npy", np.eye(4))
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(InputError, match=r"a\.npz is not an \.npz file of arrays"):
        read_arrays(path)


def test_relions_list_of_templates(tmp_path):
    images = np.arange(3 * 64, dtype=np.float32).reshape(3, 8, 8)
    write_stack(tmp_path / "t.mrcs", images, 2.5)
    (tmp_path / "c.star").write_text("data_\nloop_\n_rlnReferenceImage #1\n000003@t.mrcs\n000001@t.mrcs\n")
    found, pixel_size_A = read_named(tmp_path / "c.star", "rlnReferenceImage")
    assert np.array_equal(found, images[[2, 0]]) and pixel_size_A == 2.5
    assert np.array_equal(read_named(tmp_path / "t.mrcs", "rlnReferenceImage")[0], images)
    (tmp_path / "c.star").write_text("data_\nloop_\n_rlnReferenceImage #1\n000004@t.mrcs\n")
    with pytest.raises(InputError, match=r"c\.star, row 1: 000004@t\.mrcs: the stack has sections 1 to 3"):
        read_named(tmp_path / "c.star", "rlnReferenceImage")
    (tmp_path / "c.star").write_text(STAR)
    with pytest.raises(InputError, match="no table with _rlnReferenceImage"):
        read_named(tmp_path / "c.star", "rlnReferenceImage")
