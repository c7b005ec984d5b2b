"""Small tables of micrographs, for the tests of jobs that treat one after another."""

from __future__ import annotations

HEAD = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnMicrographPixelSize #6
g1 1 300.0 2.7 0.1 {pixel_A}

# version 30001

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
"""


def table_text(names: list[str], pixel_A: float = 1.5) -> str:
    """A table of micrographs of one optics group, as RELION writes it."""
    return HEAD.format(pixel_A=pixel_A) + "".join(f"{name} 1\n" for name in names) + "\n"
