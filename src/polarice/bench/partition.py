"""How well classes of aligned particles part what is different: particles of known states, features, and scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from polarice.references.manifold.aligned import AlignedImages
    from polarice.references.manifold.aligned_particles import AlignedParticles


def simulate_states(params: Any, views: int, arc_deg: float) -> Path:
    """Simulate `params` (of simulate) from a few views, turned anyhow in the plane, and write aligned.star beside.

    Views are at random; with arc_deg, anywhere on an arc of so many degrees instead. aligned.star knows the true angles
    and shifts and nothing else; views.npz which view each particle shows (view (n,)), or where on the arc (0 to 1).
    """
    from scipy.spatial.transform import Rotation

    from polarice.io.particles import pose_columns, read_particles, write_particles
    from polarice.jobs import simulate

    folder = params.o
    aligned = Path(folder / "aligned.star")
    if aligned.exists():
        return aligned
    n = params.particles
    rng = np.random.default_rng([params.seed, 5])
    if arc_deg:
        view = rng.uniform(0, 1, n)
        tilted = Rotation.from_euler("y", arc_deg * view[:, None], degrees=True) * Rotation.random(rng=rng)
    else:
        view = rng.integers(0, views, n)
        tilted = Rotation.random(views, rng=rng)[view]
    psi = rng.uniform(0, 360, n)
    folder.mkdir(parents=True, exist_ok=True)
    turned = Rotation.from_euler("z", psi[:, None], degrees=True) * tilted
    np.savez(folder / "views.npz", quat=turned.as_quat(), view=view)
    simulate.run(replace(params, orientations=str(folder / "views.npz")))
    table = read_particles(folder / "truth.star")
    known = replace(table.particles.pose, class_of=np.zeros(n, np.int32), psi_deg=psi)
    flat = {"rlnAngleRot": np.zeros(n), "rlnAngleTilt": np.zeros(n)}
    write_particles(aligned, table, columns=pose_columns(known, params.angpix) | flat)
    return aligned


def truth_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the state of every particle, a number for each species seen from each view; and its view or place."""
    with np.load(folder / "truth.npz") as truth, np.load(folder / "views.npz") as views:
        label, view = truth["label"].astype(np.int64), views["view"]
    return (label if view.dtype.kind == "f" else label * (int(view.max()) + 1) + view), view


def features(params: Any) -> np.ndarray:
    """(n, d) float32 of a table (params of sml): images in their aligned frame, times their CTF, white noise.

    Their products are those of the images: what any clustering of plain vectors may start from.
    """
    posed, noise_power = _posed(params)
    batch = _all_of(posed)
    noise = noise_power[:, 1 : posed.basis.r_max + 1]
    scale = (posed.basis.weight / noise).sqrt().float()[batch.optics_of][:, posed.packed.ring_of]
    found = np.zeros((len(posed.images), posed.packed.d), np.float32)
    found[posed.rows] = (batch.vector * scale).cpu().numpy()
    return found


def untied(params: Any) -> np.ndarray:
    """(n,) classes of a table (params of sml), poses held: as many averages as the map has nodes, nothing ties them.

    That is MAP: expectation maximization of averages with a Gaussian prior each, begun with random labels, on more and
    more rings. It is a map whose Gaussians are too narrow to reach from one node to the next.
    """
    import torch

    from polarice.align.images import Clock
    from polarice.references.manifold.latent import LatentGrid
    from polarice.references.manifold.model import Manifold, ManifoldPrior, ring_ramp
    from polarice.references.manifold.nodes import expect_nodes
    from polarice.references.plain import PlainAverages

    posed, noise_power = _posed(params)
    k, pose = params.classes, posed.images.particles.pose
    grid = LatentGrid((k,), (k,), width=0.1, device=posed.basis.device)
    model = Manifold.empty(posed.basis, grid, noise_power, posed.images.preparation.mask_fraction)
    label = np.random.default_rng([params.seed, 6]).integers(0, k, len(pose.psi_deg))
    plain = PlainAverages.of(posed, pose, label, (k, model.scale, model.mask_fraction), Clock()).vector
    mean = plain.mean(dim=0, keepdim=True)
    model = replace(model, coefficients=torch.cat([mean, plain - mean]))
    images = _all_of(posed)
    for rings in ring_ramp(posed.basis, params.iter):
        model = model.maximize(expect_nodes(model.packed, model.nodes(posed.even), images, rings)[1], ManifoldPrior())
    found = np.full(len(pose.psi_deg), -1)
    found[posed.rows] = expect_nodes(model.packed, model.nodes(posed.even), images)[0].node_of.cpu().numpy()
    return found


def _posed(params: Any) -> tuple[AlignedParticles, torch.Tensor]:
    """The images of a table under its poses, and their noise power (group, shell) float64."""
    import torch

    from polarice.runs.manifold_start import aligned_particles
    from polarice.runs.particle_job import check_images, open_particles
    from polarice.runs.resources import device_of

    table, images = open_particles(params, device_of(params))
    looked = check_images(table, images, params)
    posed = aligned_particles(images, looked, params)
    return posed, torch.from_numpy(looked.noise_power).to(posed.basis.device)


def _all_of(posed: AlignedParticles) -> AlignedImages:
    from polarice.align.images import Clock

    return posed.subset(posed.rows, posed.images.particles.pose, Clock())


def found_in(data_star: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the simulated set, their classes, and their first latent coordinate (0 where there is none)."""
    from polarice.io.particles import read_particles

    table = read_particles(data_star, need_ctf=False)
    rows = table.particles.section
    name = "polariceLatent1"
    latent = table.table.numbers(name) if name in table.table else np.zeros(len(rows))
    return rows, table.particles.pose.class_of, latent


def scores(class_of: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """Purity, adjusted Rand index, and how many classes are in use."""
    from polarice.simulation.score import adjusted_rand_index, purity

    return {
        "purity": purity(class_of, state),
        "ari": adjusted_rand_index(class_of, state),
        "classes": len(np.unique(class_of)),
    }


def order(latent: np.ndarray, place: np.ndarray) -> float:
    """How well a coordinate keeps an order, in either direction: Spearman's correlation, 0 to 1."""
    from polarice.simulation.score import rank_correlation

    return abs(rank_correlation(latent, place))
