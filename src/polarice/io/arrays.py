"""Files of NumPy arrays (.npz), read without anything that could run as a program, and within bounds."""

from __future__ import annotations

import math
import os
import zipfile
from typing import Any

import numpy as np

from polarice.types import InputError

MOST_UNPACKED_BYTES = 1 << 32  # of a file that somebody gives; a million quaternions have 32 MB
Arrays = dict[str, Any]


def read_arrays(path: str | os.PathLike[str]) -> Arrays:
    """All arrays of an .npz file, compressed or not. Raises InputError where it is none, or would be too large."""
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise InputError(f"{path} is not an .npz file of arrays")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as stored:
                if sum(info.file_size for info in stored.zip.infolist()) > MOST_UNPACKED_BYTES:
                    raise InputError(f"{path}: more than {MOST_UNPACKED_BYTES >> 30} GiB of arrays")
                require_plain(stored.zip, compressed=True)
                return dict(stored)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib, numpy and its parser of headers each have their own
        raise InputError(f"{path} cannot be read as an .npz file ({in_short(error)})") from None


def in_short(error: Exception) -> str:
    """What a library says of a file, in one line, and without advice to load what could run as a program."""
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "it is no file of arrays" if "pickle" in words else words[:200]


def require_plain(archive: zipfile.ZipFile, compressed: bool = False) -> None:
    """Raise ValueError, before memory is taken, where the arrays are not numbers laid plainly in the file.

    Where they are not `compressed`, no array can be larger than the file itself.
    """
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED and not compressed:
            raise ValueError(f"{info.filename} is compressed")
        with archive.open(info) as stream:
            major, _ = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, kind = read(stream)
            begin = stream.tell()
        name = info.filename.removesuffix(".npy")
        if kind.kind not in ("biufcU" if compressed else "biufc"):
            raise ValueError(f"{name} holds no plain numbers")
        if math.prod(shape) * kind.itemsize != info.file_size - begin:
            raise ValueError(f"{name} is not as long as its header says")
