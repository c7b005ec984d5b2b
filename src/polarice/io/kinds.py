"""What kind of file a file is, by its first bytes: a good file of another kind is called by its name, not damaged."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from polarice.types import InputError

FIRST_BYTES = 4096
TABLES = ("particles.star", "micrographs.star", "movies.star")  # that jobs end with
IMAGES = ("*.mrc", "*.tif", "*.tiff", "*.eer", "*.mrcs")
_RUN = re.compile(r"run.*_it(\d+)_data\.star")
_MAGIC = (  # how a file begins, what it is, what to do with it
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it with unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"PK\x03\x04", "a zip archive", "unpack it with unzip"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "convert it to MRC (e2proc2d.py of EMAN2 does)"),
    (b"II*\x00", "a TIFF file", "convert it to MRC (tif2mrc of IMOD does)"),
    (b"MM\x00*", "a TIFF file", "convert it to MRC (tif2mrc of IMOD does)"),
    (b"II+\x00", "a BigTIFF file", "convert it to MRC (tif2mrc of IMOD does)"),
    (b"MM\x00+", "a BigTIFF file", "convert it to MRC (tif2mrc of IMOD does)"),
    (b"\x00\x00\x00\x03", "a file of Digital Micrograph (dm3)", "convert it to MRC (dm2mrc of IMOD does)"),
    (b"\x00\x00\x00\x04", "a file of Digital Micrograph (dm4)", "convert it to MRC (dm2mrc of IMOD does)"),
    (b"\x93NUMPY", "a NumPy array, or a table of cryoSPARC (.cs)", "cryoSPARC's tables: polarice import makes a .star"),
    (b"\x89PNG", "a PNG picture", "give the file that it was made of"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the file that it was made of"),
    (b"%PDF", "a PDF document", "give another file"),
    (b"\x7fELF", "a program", "give another file"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"SIMPLE  =", "a FITS file", "convert it to MRC"),
    (b"CDF\x01", "a netCDF file", "convert it to MRC"),
    (b"CDF\x02", "a netCDF file", "convert it to MRC"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
)
_DM = (b"\x00\x00\x00\x03", b"\x00\x00\x00\x04")


def kind_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """What a file is, and what to do with it; ("", "") where its first bytes do not tell."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(FIRST_BYTES)
    except OSError:
        return "", ""
    for magic, name, remedy in _MAGIC:
        if head.startswith(magic) and (magic not in _DM or _is_dm(head)):
            return name, remedy
    if head[208:212] in (b"MAP ", b"MAP\0"):
        return "an MRC file", "give the table that names it, or rename it to .mrc"
    return _kind_of_text(head)


def _is_dm(head: bytes) -> bool:
    """Whether it goes on as Digital Micrograph's files do: a length, then 0 or 1 for the order of bytes."""
    length_bytes = 4 if head[3] == 3 else 8
    order = head[4 + length_bytes : 8 + length_bytes]
    return order in (b"\x00\x00\x00\x00", b"\x00\x00\x00\x01")


def _kind_of_text(head: bytes) -> tuple[str, str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(head, final=len(head) < FIRST_BYTES).lstrip("\ufeff")
    except UnicodeDecodeError:
        return "", ""
    if not text.strip() or not all(character.isprintable() or character in "\t\r\n\f" for character in text):
        return "", ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].startswith("<"):
        return "a page of XML or HTML", "give another file; was a page saved in place of the file?"
    if lines and lines[0].startswith(("{", "[")):
        return "a JSON text", "give another file"
    if any(line.lower().startswith("data_") for line in lines):
        return "a STAR table", "give the file of images that it names"
    return "a text", "give another file"


def require_no_other_kind(path: str | os.PathLike[str], wanted: str, *, but: tuple[str, ...] = ()) -> None:
    """Raise InputError where a file is recognised as one of another kind than `wanted` ("an MRC file").

    but  words of kinds that are welcome: "TIFF", "text"
    """
    kind, remedy = kind_of(path)
    if kind and not any(word in kind for word in but):
        raise InputError(f"{path} is {kind}, and not {wanted}; {remedy}")


def require_no_folder(path: Path) -> None:
    """Raise InputError for a folder with tables or images in it, and for an image, where a table is wanted.

    It names the table, or the command that makes one.
    """
    if path.is_dir():
        tables = sorted(each.name for each in path.glob("*.star") if each.name in TABLES or _RUN.fullmatch(each.name))
        if tables:
            raise InputError(f"{path} is a folder; give its table: {path / max(tables, key=_iteration)}")
        found = next((each for pattern in IMAGES for each in path.glob(pattern)), None)
        if found is not None:
            what = f"{path}/*{found.suffix}"
            raise InputError(f"{path} is a folder; make a table of what is in it: polarice import '{what}' --o Import")
    if path.suffix.lower() in (".mrc", ".tif", ".tiff", ".eer") and path.exists():
        raise InputError(
            f"{path} is an image, and not a table; one is made by: polarice import '{path.parent}/*{path.suffix}' --o "
            "Import"
        )


def _iteration(name: str) -> int:
    match = _RUN.fullmatch(name)
    return int(match[1]) if match else -1
