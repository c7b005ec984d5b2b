"""Make the small map of the 70S ribosome that the demo simulates from.

python scripts/make_ribosome_map.py 7p6z.cif.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mrcfile
import numpy as np

from polarice.simulation.volume import species_of_model

PRODUCT = Path(__file__).parents[1] / "src/polarice/data/ribosome70S.mrc"
BOX_PX, PIXEL_SIZE_A = 64, 4.8  # 307 A: the ribosome is 299 A across
RESOLUTION_A = 12.0  # the amplitude has fallen to 1/e there


def ribosome(model: Path) -> np.ndarray:
    """Density (BOX_PX, BOX_PX, BOX_PX) int8, [z, y, x], about the centre of mass; its maximum is 127."""
    density = species_of_model(model, PIXEL_SIZE_A, resolution_A=RESOLUTION_A).density
    first = len(density) // 2 - BOX_PX // 2
    density = density[(slice(first, first + BOX_PX),) * 3]
    return np.rint(density * (127 / density.max())).astype(np.int8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="PDB entry 7P6Z, mmCIF")
    parser.add_argument("--o", type=Path, default=PRODUCT, help="the map to write")
    asked = parser.parse_args()
    density = ribosome(asked.model)
    with mrcfile.new(asked.o, density, overwrite=True) as mrc:
        mrc.voxel_size = PIXEL_SIZE_A
    print(f"{asked.o}: {BOX_PX} px of {PIXEL_SIZE_A} A, {asked.o.stat().st_size} bytes")


if __name__ == "__main__":
    main()
