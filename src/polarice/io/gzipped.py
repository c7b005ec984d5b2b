"""Files that may be gzipped, and what is said where the system cannot read them."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from polarice.types import InputError

MAGIC = b"\x1f\x8b"


@contextmanager
def naming_source(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system and gzip say against reading `path` into an InputError with a remedy."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except IsADirectoryError:
        raise InputError(f"{path} cannot be read: it is a folder; name the file in it that is meant") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path}: the gzip file is damaged or cut off; copy it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
