"""Movies through real files: every kind gives the frames that were written, damaged ones are named."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

import numpy as np
import pytest

from polarice.io import movies, mrc
from polarice.io.eer import write_eer
from polarice.io.movies import Events, open_movie, read_frames
from polarice.io.mrc import header_dtype, nibbles, open_stack, read_header
from polarice.io.pictures import read_picture
from polarice.types import InputError

tifffile = pytest.importorskip("tifffile")
rng = np.random.default_rng(1)
FRAMES = rng.poisson(3, (4, 30, 41)).astype(np.uint8).clip(max=15)


def read(path, **kwargs):
    with open_movie(path, **kwargs) as movie:
        frames = read_frames(movie, 2)
        assert (movie.frames, *movie.shape) == frames.shape
        return frames


def write_mrc(path, frames, mode):
    header = np.zeros((), header_dtype("<"))
    n, ny, nx = frames.shape
    header["nx"], header["ny"], header["nz"], header["mode"], header["map"] = nx, ny, n, mode, b"MAP "
    header["m"], header["cell_A"] = (nx, ny, n), (nx * 0.8, ny * 0.8, n)
    if mode == 101:
        wide = np.pad(frames, ((0, 0), (0, 0), (0, nx % 2)))
        data = (wide[..., 0::2] | wide[..., 1::2] << 4).astype(np.uint8)
    else:
        data = frames.astype({0: "i1", 1: "<i2", 2: "<f4", 6: "<u2", 12: "<f2"}[mode])
    path.write_bytes(header.tobytes() + data.tobytes())
    return path


@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12, 101])
@pytest.mark.parametrize("nx", [40, 41])
def test_mrc_of_every_mode(tmp_path, mode, nx):
    path = write_mrc(tmp_path / "a.mrc", FRAMES[..., :nx], mode)
    assert np.array_equal(read(path), FRAMES[..., :nx])
    with open_movie(path) as movie:
        assert movie.pixel_size_A == pytest.approx(0.8)


@pytest.mark.parametrize(("flags", "bytes_are"), [(0, np.uint8), (1, np.int8)])
def test_bytes_are_what_the_stamp_of_serialem_says(tmp_path, flags, bytes_are):
    counts = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write_mrc(tmp_path / "a.mrc", counts.view(np.int8), 0)
    assert read(path).dtype == np.int8  # MRC2014, no stamp
    content = bytearray(path.read_bytes())
    content[152:160] = struct.pack("<ii", 1146047817, flags)
    path.write_bytes(content)
    assert np.array_equal(read(path), counts.view(bytes_are))


def test_bytes_beyond_what_signed_ones_hold_are_unsigned(tmp_path):
    counts = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write_mrc(tmp_path / "a.mrc", counts.view(np.int8), 0)
    content = bytearray(path.read_bytes())
    for limits, bytes_are in (((0, 255), np.uint8), ((-128, 127), np.int8), ((0, 127), np.int8)):
        content[76:84] = struct.pack("<ff", *limits)
        path.write_bytes(content)
        assert read(path).dtype == bytes_are


def test_frames_of_the_size_of_packed_ones(tmp_path, monkeypatch):
    """Two K3 frames in super-resolution, as IMOD and RELION know them by their size; a small stand-in for it here."""
    assert (8184, 5760) in movies.PACKED_SIZES and (7420, 3838) in movies.PACKED_SIZES
    for module in (movies, mrc):
        monkeypatch.setattr(module, "PACKED_SIZES", {(30, 20)})
    wide = FRAMES[..., :40]
    packed = (wide[..., 0::2] | wide[..., 1::2] << 4).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", packed[:, ::-1], photometric="minisblack")
    assert np.array_equal(read(tmp_path / "a.tif"), wide)
    assert np.array_equal(read(write_mrc(tmp_path / "a.mrc", packed.view(np.int8), 0)), wide)
    tifffile.imwrite(tmp_path / "b.tif", packed[:, ::-1].astype(np.uint16), photometric="minisblack")
    assert read(tmp_path / "b.tif").shape == (4, 30, 20)


@pytest.mark.parametrize("stamped", [True, False])
def test_two_pixels_in_a_byte_are_told_by_imods_flag_or_serialems_label(tmp_path, stamped):
    wide = FRAMES[..., :40]
    packed = (wide[..., 0::2] | wide[..., 1::2] << 4).astype(np.uint8)
    path = write_mrc(tmp_path / "a.mrc", packed.view(np.int8), 0)  # nx counts bytes
    content = bytearray(path.read_bytes())
    if stamped:
        content[152:160] = struct.pack("<ii", 1146047817, 16)
    else:
        content[224:250] = b"SerialEM: 4 bits packed".ljust(26)
    path.write_bytes(content)
    assert np.array_equal(read(path), FRAMES[..., :40])
    with open_movie(path) as movie:
        assert movie.pixel_size_A == pytest.approx(0.8)


def test_stacks_and_micrographs_heed_the_stamp_of_unsigned_bytes(tmp_path):
    counts = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write_mrc(tmp_path / "a.mrc", counts.view(np.int8), 0)
    content = bytearray(path.read_bytes())
    content[152:160] = struct.pack("<ii", 1146047817, 0)
    path.write_bytes(content)
    assert np.array_equal(open_stack(path), counts)
    assert read_picture(path).pixels.max() == 255


def test_a_directory_that_leads_to_itself_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, FRAMES[:1], photometric="minisblack")
    data = bytearray(path.read_bytes())
    place = struct.unpack("<I", data[4:8])[0]
    link = place + 2 + 12 * struct.unpack("<H", data[place : place + 2])[0]
    data[link : link + 4] = struct.pack("<I", place)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.tif.*leads back"):
        read(path)


def test_a_pipe_is_no_movie(tmp_path):
    os.mkfifo(tmp_path / "a.mrc")
    with pytest.raises(InputError, match=r"a\.mrc is not a file"):
        read(tmp_path / "a.mrc")
    with pytest.raises(InputError, match=r"a\.mrc is not a file"):
        read_header(tmp_path / "a.mrc")


def test_raw_frames_left_over_are_told(tmp_path):
    event = (np.array([5]), np.array([0]))
    write_eer(tmp_path / "a.eer", [event] * 12, (32, 32))
    with open_movie(tmp_path / "a.eer", Events(5)) as movie:
        assert movie.frames == 2
        assert movie.unused.startswith("the last 2 of 12 raw frames (17% of the dose)")
        assert movie.unused.endswith("--eer-grouping 4 leaves none")
    with open_movie(tmp_path / "a.eer", Events(4)) as movie:
        assert movie.unused == ""
    with open_movie(tmp_path / "a.eer", Events(11)) as movie:
        assert movie.unused.endswith("--eer-grouping 6 leaves none")  # 12 would leave one fraction
    write_eer(tmp_path / "b.eer", [event] * 13, (32, 32))
    with open_movie(tmp_path / "b.eer", Events(5)) as movie:
        assert movie.unused.endswith("are not used")  # 13 is a prime number


def test_four_bit_files_are_for_movies_alone(tmp_path):
    with pytest.raises(InputError, match="4 bits"):
        open_stack(write_mrc(tmp_path / "a.mrc", FRAMES, 101))
    assert nibbles(np.array([0x21, 0x43], np.uint8), 3).tolist() == [1, 2, 3]


KINDS = [{"compression": "lzw"}, {"compression": "zlib"}, {}, {"bigtiff": True, "compression": "lzw"}]


@pytest.mark.parametrize("options", KINDS)
def test_tiff_is_upside_down(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", FRAMES, photometric="minisblack", rowsperstrip=7, **options)
    assert np.array_equal(read(tmp_path / "a.tif"), FRAMES[:, ::-1])


def electrons(frames=6, shape=(32, 64), n=90):
    """Raw frames, and their counts at the finest upsampling."""
    counts, raw = np.zeros((frames, shape[0] * 4, shape[1] * 4), int), []
    for frame in counts:
        pixel = np.sort(rng.choice(shape[0] * shape[1], n, replace=False))
        part = rng.integers(0, 16, n)
        y, x = np.divmod(pixel, shape[1])
        frame[4 * y + part // 4, 4 * x + part % 4] += 1
        raw.append((pixel, part))
    return raw, counts


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_threads_read_every_frame_as_it_is(tmp_path, compression):
    """One file is open for all of them; without a lock they read each other's places."""
    frames = np.random.default_rng(0).integers(0, 9, (60, 256, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", compression=compression)
    for _ in range(5):
        with open_movie(tmp_path / "a.tif") as movie:
            np.testing.assert_array_equal(read_frames(movie, 8), frames[:, ::-1])


@pytest.mark.parametrize("upsampling", [1, 2, 4])
def test_eer_fractions_hold_every_electron_in_its_place(tmp_path, upsampling):
    raw, counts = electrons(frames=7)
    write_eer(tmp_path / "a.eer", raw, (32, 64), [("exposureTime", "2.0")])
    step = 4 // upsampling
    expected = counts[:6].reshape(2, 3, 32 * upsampling, step, 64 * upsampling, step).sum((1, 3, 5))  # one left over
    assert np.array_equal(read(tmp_path / "a.eer", events=Events(3, upsampling)), expected)


def test_eer_with_too_few_raw_frames_for_a_fraction_is_refused(tmp_path):
    write_eer(tmp_path / "a.eer", electrons(3)[0], (32, 64))
    with pytest.raises(InputError, match="3 raw frames, fewer than the 40"):
        read(tmp_path / "a.eer")


def test_long_gaps_and_empty_frames_survive(tmp_path):
    shape, one = (64, 64), (np.array([5000 % 4096]), np.array([7]))
    write_eer(tmp_path / "a.eer", [one, (np.array([], int), np.array([], int)), one], shape)
    frames = read(tmp_path / "a.eer", events=Events(1))
    assert frames.sum((1, 2)).tolist() == [1, 0, 1] and frames[0].ravel()[904] == 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("name", ["a.tif", "a.mrc", "a.eer"])
def test_a_file_that_is_cut_off_is_named(tmp_path, name, share):
    path = tmp_path / name
    if name == "a.tif":
        tifffile.imwrite(path, FRAMES, photometric="minisblack", compression="lzw")
    elif name == "a.mrc":
        write_mrc(path, FRAMES, 1)
    else:
        write_eer(path, electrons()[0], (32, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=str(path)):
        read(path, events=Events(2))


def test_pages_of_different_sizes_and_strange_files_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(FRAMES[0], photometric="minisblack")
        writer.write(FRAMES[0, 1:], photometric="minisblack")
    (tmp_path / "b.tif").write_bytes(b"no tiff at all, but long enough for a header")
    (tmp_path / "c.png").write_bytes(b"x")
    wrong = {"a.tif": "29 x 41, 30 x 41", "b.tif": "not a TIFF", "c.png": "ends in", "d.tif": "no such"}
    for name, what in wrong.items():
        with pytest.raises(InputError, match=f"{name}.*{what}"):
            read(tmp_path / name)


@pytest.mark.skipif(shutil.which("relion_convert_to_tiff") is None, reason="needs relion_convert_to_tiff")
def test_relion_puts_every_electron_in_the_same_place(tmp_path):
    """RELION takes sensors of 4096 x 4096 pixels alone; it writes TIFF upside down, and so we read it."""
    raw = [(np.sort(rng.choice(4096 * 1000, 3000, replace=False)), rng.integers(0, 16, 3000)) for _ in range(2)]
    write_eer(tmp_path / "a.eer", raw, (4096, 4096))
    words = "relion_convert_to_tiff --i a.eer --o out --eer_grouping 2 --eer_upsampling 2"
    subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(read(tmp_path / "out/a.tif"), read(tmp_path / "a.eer", events=Events(2, 2)))
