"""MRC files: every mode and byte order against mrcfile, real files, and files that are wrong."""

import gzip
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from polarice.io import star
from polarice.io.mrc import (
    LEAST_VOXEL_A,
    MOST_VOXEL_A,
    StackWriter,
    header_dtype,
    open_sections,
    open_stack,
    read_header,
    read_volume,
    write_stack,
    write_volume,
)
from polarice.types import InputError
from programs import relion

DATA = Path(__file__).parents[2] / "../shared/data"
TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared data {name} not here")
    return path


def images(box, dtype="f4", n=3):
    values = np.random.default_rng(box).normal(scale=30, size=(n, box, box + 2))
    return (np.abs(values) if dtype[0] == "u" else values).astype(dtype)


def raw_file(path, pixels, endian="<", extended=0, stamp=True, mode=2):
    """A file made by hand from the standard."""
    header = np.zeros((), header_dtype(endian))
    header["nz"], header["ny"], header["nx"] = pixels.shape
    header["mode"], header["nsymbt"] = mode, extended
    header["m"], header["cell_A"] = pixels.shape[::-1], np.array(pixels.shape[::-1]) * 1.5
    header["map"] = b"MAP "
    if stamp:
        header["machst"] = (0x44, 0x44, 0, 0) if endian == "<" else (0x11, 0x11, 0, 0)
    path.write_bytes(header.tobytes() + bytes(extended) + pixels.astype(pixels.dtype.newbyteorder(endian)).tobytes())
    return path


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("stamp", [True, False])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("mode", TYPES)
def test_modes_and_byte_orders(tmp_path, mode, endian, stamp, box):
    pixels = images(box, TYPES[mode])
    path = raw_file(tmp_path / "a.mrcs", pixels, endian, extended=160, stamp=stamp, mode=mode)
    np.testing.assert_array_equal(open_stack(path), pixels)
    header = read_header(path)
    assert (header.n, header.ny, header.nx, header.mode, header.endian) == (3, box, box + 2, mode, endian)
    assert (header.pixel_size_A, header.offset, header.there) == (1.5, 1184, 3)
    packed = tmp_path / "a.mrcs.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(open_stack(packed), pixels)
    if stamp:
        mrcfile = pytest.importorskip("mrcfile")
        with mrcfile.open(path) as other:
            np.testing.assert_array_equal(other.data, open_stack(path))


def test_unsigned_bytes_when_told(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = raw_file(tmp_path / "old.mrc", pixels, mode=0)
    np.testing.assert_array_equal(open_stack(path, unsigned=True), pixels)
    np.testing.assert_array_equal(open_stack(path), pixels.view(np.int8))


@pytest.mark.parametrize("folder", ["particles_small", "formats", "maps"])
def test_real_files_agree_with_mrcfile(folder):
    mrcfile = pytest.importorskip("mrcfile")
    paths = [path for path in sorted(shared(folder).iterdir()) if path.suffix in (".mrc", ".mrcs", ".map")]
    assert len(paths) > 1
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two of them lack the map string
            other = mrcfile.open(path, permissive=True)
        with other:
            pixels = open_stack(path)
            np.testing.assert_array_equal(pixels, other.data.reshape(pixels.shape), err_msg=str(path))
            stated = float(other.voxel_size.x)
            expected = stated if LEAST_VOXEL_A <= stated <= MOST_VOXEL_A else 0.0  # one states 0.0002 A
            assert read_header(path).pixel_size_A == pytest.approx(expected, rel=1e-6)


def test_real_big_endian_micrograph():
    header = read_header(shared("formats/spider_2dcrystal_bigendian.mrc"))
    assert (header.endian, header.nx, header.ny, header.n, header.pixel_size_A) == (">", 1000, 1000, 1, 1.0)


def test_volumes(tmp_path):
    volume, pixel_size_A = read_volume(shared("maps/emd_7795_54.mrc"))
    assert (volume.shape, volume.dtype, round(pixel_size_A, 6)) == ((62, 58, 84), np.float32, 1.8)
    assert read_volume(shared("maps/clean70SRibosome_vol_65p.mrc"))[1] == 0.0
    with pytest.raises(InputError, match=r"0.4483 x 0.3925 x 0.4587 A are not cubes; resample"):
        read_volume(shared("maps/EMD-3001.map"))
    with pytest.raises(InputError, match=r"holds 5 image\(s\), not a volume"):
        read_volume(shared("formats/rln_proj_65.mrcs"))
    write_volume(tmp_path / "v.mrc", volume, 1.8)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.mrc")[0], volume)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1), (2, 3, 1), (1, 3, 2)])
def test_axis_order_is_turned_to_zyx(tmp_path, axes):
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)  # (z, y, x)
    stored = volume.transpose([3 - axis for axis in axes[::-1]])  # sections, rows, columns
    path = raw_file(tmp_path / "v.mrc", stored)
    header = np.fromfile(path, header_dtype("<"), 1)
    header["axes"], header["m"], header["cell_A"] = axes, (6, 5, 4), (12, 10, 8)
    path.write_bytes(header.tobytes() + stored.tobytes())
    read, pixel_size_A = read_volume(path)
    np.testing.assert_array_equal(read, volume)
    assert pixel_size_A == 2.0


@pytest.mark.parametrize(("dtype", "mode", "error"), [("f4", 2, 0), ("f2", 12, 0.02), ("i1", 0, 0.5)])
def test_written_stacks(tmp_path, dtype, mode, error):
    mrcfile = pytest.importorskip("mrcfile")
    pixels = np.random.default_rng(1).normal(5, 20, (4, 9, 9)).astype(np.float32)
    path = tmp_path / "a.mrcs"
    write_stack(path, pixels, 1.25, np.dtype(dtype))
    assert np.abs(open_stack(path).astype(np.float32) - pixels).max() <= error
    complaints = io.StringIO()
    if dtype != "f2":  # there mrcfile sums in float16 and overflows itself
        assert mrcfile.validate(path, print_file=complaints), complaints.getvalue()
    with mrcfile.open(path) as other:
        header = other.header
        np.testing.assert_array_equal(other.data, open_stack(path))
        assert (header.mode, header.ispg, header.mz, other.is_image_stack()) == (mode, 0, 1, True)
        assert [float(other.voxel_size[axis]) for axis in "xyz"] == [1.25] * 3
        found = [float(header[name]) for name in ("dmin", "dmax", "dmean", "rms")]
    stored = open_stack(path).astype(np.float64)
    np.testing.assert_allclose(found, [stored.min(), stored.max(), stored.mean(), stored.std()], rtol=1e-6)


def test_statistics_of_float16_do_not_overflow(tmp_path):
    write_stack(tmp_path / "a.mrcs", np.full((2, 64, 64), 6e4, np.float32), 1.0, np.float16)
    header = np.fromfile(tmp_path / "a.mrcs", header_dtype("<"), 1)[0]
    assert (header["dmean"], header["rms"]) == (6e4, 0)


def test_writing_in_batches_is_writing_at_once(tmp_path):
    pixels = np.random.default_rng(2).normal(size=(7, 8, 8)).astype(np.float32)
    write_stack(tmp_path / "once.mrcs", pixels, 2.0)
    with StackWriter(tmp_path / "batches.mrcs", 7, 8, 2.0) as writer:
        for low in range(0, 7, 3):
            writer.append(pixels[low : low + 3])
    np.testing.assert_array_equal(open_stack(tmp_path / "once.mrcs"), open_stack(tmp_path / "batches.mrcs"))
    assert pixels.flags.writeable


def test_an_unfinished_or_unfit_stack_is_not_there(tmp_path):
    with (
        pytest.raises(ValueError, match=r"1 of 2 images written"),
        StackWriter(tmp_path / "a.mrcs", 2, 4, 1.0) as writer,
    ):
        writer.append(np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match=r"does not fit"):
        write_stack(tmp_path / "a.mrcs", np.zeros((1, 4, 5)), 1.0)
    with pytest.raises(ValueError, match=r"do not fit int8"):
        write_stack(tmp_path / "a.mrcs", np.full((1, 4, 4), 200.0), 1.0, np.int8)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_wrong_say_so(tmp_path):
    with pytest.raises(InputError, match=r"no such file"):
        read_header(tmp_path / "none.mrc")
    (tmp_path / "short.mrc").write_bytes(b"MAP\0")
    with pytest.raises(InputError, match=r"only 4 bytes"):
        read_header(tmp_path / "short.mrc")
    (tmp_path / "noise.mrc").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"is not an MRC file, or its header is damaged"):
        read_header(tmp_path / "noise.mrc")
    with pytest.raises(InputError, match=r"MRC mode 4 \(complex float32\) cannot be read; convert it"):
        read_header(raw_file(tmp_path / "complex.mrc", images(8), mode=4))
    path = raw_file(tmp_path / "cut.mrcs", images(8))
    os.truncate(path, 1024 + 8 * 10 * 4 * 2 + 7)
    assert read_header(path).there == 2
    with pytest.raises(
        InputError, match=r"cut.mrcs is cut off: its header says 3 sections of 10 x 8 pixels, 2 are there"
    ):
        open_stack(path)
    packed = tmp_path / "cut.mrcs.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"2 are there"):
        open_stack(packed)
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"the gzip file is damaged or cut off"):
        open_stack(packed)


def test_relion_reads_our_stack(tmp_path):
    pixels = np.random.default_rng(3).normal(2, 3, (3, 33, 33)).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", pixels, 1.75)
    relion("relion_image_handler", "--i", "a.mrcs", "--o", "b.mrcs", "--multiply_constant", 2, folder=tmp_path)
    np.testing.assert_allclose(open_stack(tmp_path / "b.mrcs"), 2 * pixels, rtol=1e-6)
    assert read_header(tmp_path / "b.mrcs").pixel_size_A == pytest.approx(1.75)


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path):
    """A mapping would end the process with a bus error."""
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((64, 32, 32), np.float32), 1.0)
    sections = open_sections(path)
    assert sections[63].mean() == 1.0
    os.truncate(path, 1024 + 10 * 4096)
    assert sections[2:4].shape == (2, 32, 32)
    with pytest.raises(InputError, match=r"s\.mrcs is cut off: its header says 64 sections of 32 x 32 pixels, 10 are"):
        sections[:]


def test_a_gzipped_file_is_unpacked_as_far_as_its_header_says(tmp_path):
    """What stands behind it, a gigabyte of zeros say, takes neither memory nor disk."""
    path = tmp_path / "s.mrcs"
    write_stack(path, np.ones((2, 8, 8), np.float32), 1.0)
    with gzip.open(tmp_path / "bomb.mrcs.gz", "wb", 1) as stream:
        stream.write(path.read_bytes())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    sections = open_sections(tmp_path / "bomb.mrcs.gz")
    assert os.fstat(sections._file).st_size == path.stat().st_size
    np.testing.assert_array_equal(sections[:], open_stack(path))


def test_a_gzipped_table_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(star, "MOST_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "p.star").write_bytes(gzip.compress(b"data_x\n_rlnX 1\n" + b"\n" * (1 << 20)))
    with pytest.raises(InputError, match=r"p\.star: more than 0 GiB when unpacked; unpack it first"):
        star.read_star(tmp_path / "p.star")
