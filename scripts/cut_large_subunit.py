"""Maps of a ribosome and of its 50S part, in one frame: a mixture to sort.

The small subunit, mRNA, tRNA and the nascent peptide are left out of the part.

python scripts/cut_large_subunit.py 7p6z.cif.gz --angpix 3.6 --box 96
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
from scipy import ndimage

from polarice.simulation.volume import species_of_model

KEPT = ("50S", "23S", "5S")  # what an entity's description begins with


def large_subunit(path: Path) -> gemmi.Structure:
    """The structure without polymers whose entity is not of the large subunit; ions go as well."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    described = gemmi.cif.read(str(path)).sole_block().find("_entity.", ["id", "pdbx_description"])
    kept = {row[0] for row in described if row.str(1).startswith(KEPT)}
    subchains = {name for entity in structure.entities if entity.name in kept for name in entity.subchains}
    for chain in structure[0]:
        for place in reversed(range(len(chain))):
            if chain[place].subchain not in subchains:
                del chain[place]
    structure.remove_empty_chains()
    return structure


def centre_of(path: Path) -> np.ndarray:
    """(x, y, z) centre of mass without waters, Angstrom."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.remove_waters()
    return np.array(structure[0].calculate_center_of_mass().tolist())


def density_of(path: Path, pixel_size_A: float, box_px: int, centre_A: np.ndarray) -> np.ndarray:
    """(N, N, N) density [z, y, x] of a model, `centre_A` at pixel N // 2."""
    density = species_of_model(path, pixel_size_A).density
    moved = ndimage.fourier_shift(np.fft.fftn(density), ((centre_of(path) - centre_A) / pixel_size_A)[::-1])
    density = np.fft.ifftn(moved).real.astype(np.float32)
    size = min(len(density), box_px)
    inside, place = (slice(n // 2 - size // 2, n // 2 - size // 2 + size) for n in (len(density), box_px))
    found = np.zeros((box_px,) * 3, np.float32)
    found[place, place, place] = density[inside, inside, inside]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="PDB entry 7P6Z, mmCIF")
    parser.add_argument("--angpix", type=float, default=3.6, help="pixel size of the maps, A")
    parser.add_argument("--box", type=int, default=96, help="box of the maps, px")
    asked = parser.parse_args()
    part = Path("50S.cif")
    large_subunit(asked.model).make_mmcif_document().write_file(str(part))
    centre_A = centre_of(asked.model)
    for name, model in (("70S.mrc", asked.model), ("50S.mrc", part)):
        with mrcfile.new(name, density_of(model, asked.angpix, asked.box, centre_A), overwrite=True) as mrc:
            mrc.voxel_size = asked.angpix
        print(f"{name}: {asked.box} px of {asked.angpix} A")


if __name__ == "__main__":
    main()
