"""Electron event files (EER): raw frames of single electrons summed to fractions, and a writer for simulated ones.

An EER file is a TIFF file whose pages are raw frames, of 4096 x 4096 pixels as a rule. A page lists its electrons in
the order of the pixels: how many pixels without an electron come before (7 or 8 bits; all bits set: so many pixels to
pass and no electron), then where in the pixel it fell, 2 bits along x and 2 along y whose higher bit is set in the
first half of the pixel; little endian, padded to whole 16-bit words (Guo et al. 2020, IUCrJ 7, 860). imagecodecs
decodes them. RELION and Polarice keep the order of rows, where TIFF movies are turned upside down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from polarice.io.atomic import replacing

COMPRESSIONS = {65000: 8, 65001: 7, 65002: 0}  # bits of a skip; 65002 states its own
SUBPIXEL_BITS = 2
UPSAMPLINGS = (1, 2, 4)  # pixels along each side of a sensor pixel


def fraction(pages: Sequence[Any], upsampling: int = 1) -> np.ndarray:
    """The sum of raw frames (tifffile's pages): counts (ny, nx), uint8 where they cannot be more than 255, else uint16.

    Raises ValueError for a frame that is cut off or damaged.
    """
    import imagecodecs

    shape = (pages[0].imagelength * upsampling, pages[0].imagewidth * upsampling)
    total = np.zeros(shape, np.uint8 if len(pages) < 256 else np.uint16)
    for page in pages:  # the decoder adds to `out`
        data = b"".join(_strips(page))
        imagecodecs.eer_decode(data, shape, *_bits(page), superres=UPSAMPLINGS.index(upsampling), out=total)
    return total


def _strips(page: Any) -> Iterator[bytes]:
    handle = page.parent.filehandle
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        with handle.lock:
            handle.seek(offset)
            data = handle.read(size)
        if len(data) < size:
            raise ValueError("the file is cut off")
        yield data


def _bits(page: Any) -> tuple[int, int, int]:
    """Bits of a skip, of x and of y within the pixel."""
    if skip := COMPRESSIONS[int(page.compression)]:
        return skip, SUBPIXEL_BITS, SUBPIXEL_BITS
    return int(page.tags[65007].value), int(page.tags[65008].value), int(page.tags[65009].value)


def encode(pixel: np.ndarray, subpixel: np.ndarray, pixels: int, skip_bits: int = 7) -> bytes:
    """One raw frame: electrons at `pixel` (n,), row-major and rising, each at `subpixel` = x + 4 y of its 4 x 4 parts.

    `pixels` is how many the frame has. Inverse of the decoder.
    """
    most = (1 << skip_bits) - 1
    gap = np.diff(pixel, prepend=-1, append=pixels) - 1  # the last one: behind the last electron
    long = gap // most
    symbols = np.repeat(np.full(len(gap), most), long + 1)  # skips of `most`, then what is left
    last = np.cumsum(long + 1) - 1
    symbols[last] = gap - long * most
    lengths = np.full(len(symbols), skip_bits)
    symbols[last[:-1]] |= (subpixel ^ 0b1010) << skip_bits
    lengths[last[:-1]] += 2 * SUBPIXEL_BITS
    start = np.cumsum(lengths) - lengths
    bits = np.zeros(-(-int(start[-1] + lengths[-1]) // 16) * 16, np.uint8)
    for place in range(skip_bits + 2 * SUBPIXEL_BITS):
        there = lengths > place
        bits[start[there] + place] = symbols[there] >> place & 1
    return np.packbits(bits, bitorder="little").tobytes()


def write_eer(
    path: str | os.PathLike[str],
    frames: Iterable[tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    metadata: Sequence[tuple[str, str]] = (),
) -> None:
    """Write raw frames, each (pixel, subpixel) as `encode` takes them, of (ny, nx) = `shape`, 7-bit skips.

    `metadata` goes into the first page as the camera's XML, (name, text) each.
    """
    items = "".join(f'<item name="{name}">{text}</item>' for name, text in metadata)
    xml = f"<metadata>{items}</metadata>".encode()
    with replacing(path) as stream:
        stream.write(b"II\x2b\x00\x08\x00\x00\x00" + bytes(8))  # BigTIFF; the first directory's place comes later
        link = 8
        for number, (pixel, subpixel) in enumerate(frames):
            data = encode(pixel, subpixel, shape[0] * shape[1])
            offset = stream.tell()
            stream.write(data)
            place = stream.tell()
            more = [(65001, 7, len(xml), place)] if number == 0 and items else []
            if more:
                stream.write(xml + bytes(-len(xml) % 8))
            tags = [
                (256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 1, 1), (259, 3, 1, 65001), (262, 3, 1, 1),
                (273, 16, 1, offset), (277, 3, 1, 1), (278, 4, 1, shape[0]), (279, 16, 1, len(data)), *more,
            ]  # fmt: skip
            place = stream.tell()
            entries = b"".join(
                np.array([code, kind], "<u2").tobytes() + np.array([count, value], "<u8").tobytes()
                for code, kind, count, value in tags
            )
            stream.write(np.array([len(tags)], "<u8").tobytes() + entries + bytes(8))
            end = stream.tell()
            stream.seek(link)
            stream.write(np.array([place], "<u8").tobytes())
            stream.seek(end)
            link = end - 8
