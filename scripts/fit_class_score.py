"""The weights of `polarice select --auto`: fitted on simulated classes, junk among them, and tried on species left out.

    .venv/bin/python scripts/fit_class_score.py sets FOLDER DATA  # simulate and classify: some 15 minutes, one thread
    .venv/bin/python scripts/fit_class_score.py fit FOLDER        # print weights, precision and recall

DATA holds the published maps and the model that SPECIMENS names.

Six specimens (one a mixture of two species) at three signal-to-noise ratios, each with 30 to 50 % junk: noise, edges of
carbon, contamination, boxes beside particles, slow waves of the ice, and particles cut by the edge of their micrograph,
whose nearest pixels are repeated; a third of the particles have a neighbour that touches them. A class is good where
more than half of its particles are whole particles of any species. Everything follows from SEED.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from polarice.selection.classes import ClassSet
    from polarice.simulation import Simulation

SEED = 17
BOX_PX, PARTICLES, CLASSES, ITERATIONS = 64, 1200, 25, 20
CUT = 0.08  # share of the particles that lie at the edge of their micrograph
CROWDED = 0.35  # share of the particles that have a neighbour
KINDS = ("particle", "noise", "edge", "contamination", "cut", "beside", "slow")
RIDGE = 5.0
CLEAR = 0.75  # share of whole particles, or of others, from which on nobody would argue
MOST_SPREADS = 3.0  # features beyond are held there
FEWEST = 5  # particles of a class that counts in the fit
SNR = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Specimen:
    """What is simulated: maps or models, the pixel size of its images, and its particle's diameter."""

    name: str
    files: tuple[str, ...]
    pixel_size_A: float
    diameter_A: float


SPECIMENS = (
    Specimen("70S", ("maps/ribosome70S_7p6z_96px_3.6A.mrc",), 5.4, 290.0),
    Specimen("26S", ("maps/proteasome26S_u123_b1_c1.mrc",), 6.85, 400.0),
    Specimen("GroEL", ("maps/emd_1997.map",), 3.2, 170.0),
    Specimen("betagal", ("maps/betagal_relion_100px_3.54A.mrc",), 4.4, 200.0),
    Specimen("apoferritin", ("models/apoferritin_ca_apo_sym.pdb",), 3.2, 150.0),
    Specimen("70S+26S", ("maps/ribosome70S_7p6z_96px_3.6A.mrc", "maps/proteasome26S_u123_b1_c1.mrc"), 6.85, 400.0),
)


def sets() -> list[tuple[str, Specimen, float, int]]:
    """Name, specimen, SNR and seed of every simulated set."""
    return [
        (f"{specimen.name}_{snr:g}", specimen, snr, SEED + 10 * number + place)
        for number, specimen in enumerate(SPECIMENS)
        for place, snr in enumerate(SNR)
    ]


def make(folder: Path, data: Path) -> None:
    """Simulate and classify every set that is not there yet."""
    from polarice.jobs import class2d
    from polarice.jobs import simulate as simulated
    from polarice.project import registry

    for name, specimen, snr, seed in sets():
        images, classes = folder / f"{name}_images", folder / name
        if (classes / "RELION_JOB_EXIT_SUCCESS").exists():
            continue
        params = simulated.Params(
            inputs=tuple(data / file for file in specimen.files),
            o=images,
            particles=PARTICLES,
            box=BOX_PX,
            angpix=specimen.pixel_size_A,
            model_resolution=8.0 if specimen.files[0].endswith(".pdb") else None,
            orientations="preferred" if seed % 2 else "uniform",
            concentration=2.0,
            snr=snr,
            junk=(0.3, 0.4, 0.5)[seed % 3],
            noise_exponent=float(seed % 2),
            seed=seed,
            threads=1,
        )
        registry.run("simulate", params)
        simulation = simulated.simulation_of(params)
        crowd_some(images, specimen, simulation, seed)
        misplace_some(images, specimen, simulation, seed)
        cut_some(images, seed)
        registry.run(
            "class2d",
            class2d.Params(
                particles=images / "particles.star",
                o=classes,
                k=CLASSES,
                iter=ITERATIONS,
                particle_diameter=specimen.diameter_A,
                seed=seed,
                threads=1,
            ),
        )


def crowd_some(images: Path, specimen: Specimen, simulation: Simulation, seed: int) -> None:
    """Add to a share of the particles the signal of another one that touches them, in a random direction."""
    import mrcfile

    from polarice.simulation import simulate

    source, rng = simulate(simulation), np.random.default_rng([seed, 3])
    whole = np.flatnonzero(~source.truth.is_junk)
    chosen = rng.choice(whole, round(CROWDED * len(whole)), replace=False)
    scale = simulation.noise.snr**0.5 / source.signal_sd
    with mrcfile.open(images / "particles.mrcs", "r+") as stack:
        for row in chosen.tolist():
            distance, angle = specimen.diameter_A / specimen.pixel_size_A * rng.uniform(0.9, 1.1), rng.uniform(0, 6.283)
            dx, dy = round(distance * np.cos(angle)), round(distance * np.sin(angle))
            stack.data[row] += scale * moved(source.signal(int(rng.choice(whole))), dx, dy)


def misplace_some(images: Path, specimen: Specimen, simulation: Simulation, seed: int) -> None:
    """Of images of noise, a third become boxes beside particles, and a third get slow waves of the ice."""
    import mrcfile

    from polarice.simulation import simulate

    source, rng = simulate(simulation), np.random.default_rng([seed, 4])
    truth = source.truth
    whole = np.flatnonzero(~truth.is_junk)
    noise = rng.permutation(np.flatnonzero(truth.label == truth.label_names.index("noise")))
    beside, slow = noise[: len(noise) // 3], noise[len(noise) // 3 : 2 * len(noise) // 3]
    scale = simulation.noise.snr**0.5 / source.signal_sd
    y, x = np.meshgrid(*[np.arange(BOX_PX) - BOX_PX // 2] * 2, indexing="ij")
    with mrcfile.open(images / "particles.mrcs", "r+") as stack:
        for row in beside.tolist():
            first, apart = rng.uniform(0, 6.283), rng.uniform(1.4, 2.2)
            for number in range(int(rng.integers(1, 4))):
                distance = specimen.diameter_A / specimen.pixel_size_A * rng.uniform(0.55, 0.75)
                angle = first + number * apart
                dx, dy = round(distance * np.cos(angle)), round(distance * np.sin(angle))
                stack.data[row] += scale * moved(source.signal(int(rng.choice(whole))), dx, dy)
        for row in slow.tolist():
            angle, waves, phase = rng.uniform(0, 6.283), rng.uniform(0.7, 2.5), rng.uniform(0, 6.283)
            along = (x * np.cos(angle) + y * np.sin(angle)) / BOX_PX
            stack.data[row] += rng.uniform(0.5, 1.5) * np.cos(2 * np.pi * waves * along + phase)
    np.savez(images / "misplaced.npz", beside=beside, slow=slow)


def moved(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """The image shifted by whole pixels, 0 where nothing comes from."""
    size = len(image)
    grown = np.zeros((3 * size, 3 * size), image.dtype)
    grown[size : 2 * size, size : 2 * size] = image
    return grown[size - dy : 2 * size - dy, size - dx : 2 * size - dx]


def cut_some(images: Path, seed: int) -> None:
    """Cut a share of the particles at a line through their box, behind which the nearest pixels are repeated."""
    import mrcfile

    truth = dict(np.load(images / "truth.npz"))
    rng = np.random.default_rng([seed, 2])
    whole = np.flatnonzero(truth["label"] < np.count_nonzero(species_of(truth)))
    chosen = rng.choice(whole, round(CUT * PARTICLES), replace=False)
    with mrcfile.open(images / "particles.mrcs", "r+") as stack:
        for row in chosen.tolist():
            edge = int(rng.integers(BOX_PX // 4, BOX_PX // 2 + BOX_PX // 8))
            image = np.rot90(stack.data[row], turns := int(rng.integers(4))).copy()
            image[:edge] = image[edge]
            stack.data[row] = np.rot90(image, -turns)
    np.save(images / "cut.npy", np.sort(chosen))


def species_of(truth: dict[str, np.ndarray]) -> np.ndarray:
    """(labels,) bool: which labels of the truth are species, and no junk."""
    return ~np.isin(truth["label_names"].astype(str), ("noise", "edge", "contamination"))


def truth_of(images: Path) -> np.ndarray:
    """(n,) text: of every image the one of KINDS that it is."""
    truth = dict(np.load(images / "truth.npz"))
    names = np.where(species_of(truth), "particle", truth["label_names"].astype(str))
    kinds = names[truth["label"]].astype("U16")
    kinds[np.load(images / "cut.npy")] = "cut"
    misplaced = np.load(images / "misplaced.npz")
    for kind in misplaced:
        kinds[misplaced[kind]] = kind
    return kinds


def classes_in(folder: Path, images: Path) -> tuple[ClassSet, np.ndarray, np.ndarray]:
    """The classes of a set, the share of whole particles (K,) in each, and how many images of each kind (K, kinds)."""
    from polarice.io.class_files import read_classes, run_files
    from polarice.io.rows import read_rows
    from polarice.selection.classes import ClassSet

    files = run_files(folder)
    table, known = read_rows(files.data).table, read_classes(files)
    class_of = table.integers("rlnClassNumber") - 1
    section = np.array([int(text.partition("@")[0]) - 1 for text in table.text("rlnImageName").tolist()])
    kind = truth_of(images)[section]
    assert known is not None, "a run of class2d leaves its model file"
    counts = np.bincount(class_of, minlength=len(known))
    kinds = np.stack([np.bincount(class_of[kind == each], minlength=len(known)) for each in KINDS], axis=1)
    found = ClassSet(counts, known.resolution_A, known.averages, known.pixel_size_A, known.diameter_A)
    return found, kinds[:, 0] / np.maximum(counts, 1), kinds


def logistic(x: np.ndarray, good: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients (features + 1,), the last the offset, of a logistic regression with the ridge RIDGE, by Newton."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    ridge = np.diag(np.r_[np.full(x.shape[1] - 1, RIDGE), 1e-6])
    b = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ b, -30, 30)))
        gradient = x.T @ (weight * (p - good)) + ridge @ b
        hessian = (x.T * (weight * p * (1 - p))) @ x + ridge
        step = np.linalg.solve(hessian, gradient)
        b -= step
        if np.abs(step).max() < 1e-9:
            break
    return b


def scaled(x: np.ndarray, middle: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.clip((x - middle) / spread, -MOST_SPREADS, MOST_SPREADS)


def fit(folder: Path) -> None:
    """Print what is fitted on all sets, and precision and recall for each specimen by a fit on the others."""
    from polarice.selection.quality import SCORED, features_of, gates_of

    parts = []
    for name, specimen, _, _ in sets():
        if not (folder / name / "RELION_JOB_EXIT_SUCCESS").exists():
            continue
        classes, purity, _ = classes_in(folder / name, folder / f"{name}_images")
        features = features_of(classes)
        gate = np.array([bool(text) for text in gates_of(classes, features)])
        parts.append((features.table(), purity, classes.counts, gate, np.full(len(classes), specimen.name)))
    x, purity, count, gate, name_of = (np.concatenate(each) for each in zip(*parts, strict=True))
    used, good = count >= FEWEST, purity > 0.5
    plain = np.maximum(purity, 1 - purity) >= CLEAR
    middle = np.median(x[used], axis=0)
    spread = np.maximum((np.percentile(x[used], 90, axis=0) - np.percentile(x[used], 10, axis=0)) / 2.56, 0.05)
    z = scaled(x, middle, spread)
    passing = used & ~gate
    print(f"{len(x)} classes, {used.sum()} of {FEWEST} particles or more, {good[used].sum()} of them good")
    print(f"gates leave out {gate[used & ~good].sum()} bad classes and {gate[used & good].sum()} good ones")
    total, clear = np.zeros((4, 2)), np.zeros((4, 2))
    for left_out in dict.fromkeys(name_of.tolist()):
        mine = name_of == left_out
        b = logistic(z[passing & ~mine], good[passing & ~mine], np.ones((passing & ~mine).sum()))
        chosen = (z @ b[:-1] + b[-1] > 0) & ~gate
        print(f"{left_out}: {words(table := counted(chosen[mine], good[mine], count[mine]))}")
        total += table
        clear += counted(chosen[mine & plain], good[mine & plain], count[mine & plain])
    print(f"all, each by a fit on the other specimens: {words(total)}")
    print(f"of classes that are clear: {words(clear)}")
    b = logistic(z[passing], good[passing], np.ones(passing.sum()))
    print("# fitted by scripts/fit_class_score.py")
    for label, values in (("MIDDLE", middle), ("SPREAD", spread), ("WEIGHTS", b[:-1])):
        print(f"{label} = {dict(zip(SCORED, values.round(3).tolist(), strict=True))}")
    print(f"OFFSET = {b[-1]:.3f}")


def counted(chosen: np.ndarray, good: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(4, 2) classes and particles: rightly and wrongly chosen, wrongly and rightly left out."""
    found = (chosen & good, chosen & ~good, ~chosen & good, ~chosen & ~good)
    return np.array([((both & (count > 0)).sum(), count[both].sum()) for both in found])


def words(table: np.ndarray) -> str:
    (tp, tpn), (fp, fpn), (fn, fnn), _ = table
    return (
        f"classes: precision {tp / (tp + fp):.3f}, recall {tp / (tp + fn):.3f} of {tp + fn:.0f}; "
        f"weighted by particles: {tpn / (tpn + fpn):.3f}, {tpn / (tpn + fnn):.3f}"
    )


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "sets":
        make(folder, Path(sys.argv[3]))
    else:
        fit(folder)
