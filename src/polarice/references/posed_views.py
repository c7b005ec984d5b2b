"""The expectation of densities where poses are known: each image meets the slice of every map that lies at its pose.

Nothing is searched for, so a particle's posterior is over maps alone, and its field is put into each map's transform
where the slice was taken, with its share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import SIGNIFICANT
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.sweep import fill
from polarice.references.directions import angles_of, posed_views
from polarice.references.halfmaps import VolumeSums
from polarice.references.slices import FourierGrid
from polarice.references.symmetry import operators
from polarice.references.views import Found, Maps, Parts, Total, ViewGrid

FIELDS_HELD = 6  # of a batch, beside those of the maps
BATCHES_HELD = 4  # of --memory's share of a batch: each spreads on a grid of its own, which wants many images


@dataclass(frozen=True)
class PosedPass:
    """A pass over the images."""

    images: ParticleImages
    basis: PolarBasis
    batch_bytes: int
    group: np.ndarray = field(default_factory=lambda: operators("C1"))  # (g, 3, 3): the density stays the same

    def run(
        self, model: Maps, grids: tuple[ViewGrid, ...], parts: Parts, clock: Clock, temperature: float = 1.0
    ) -> tuple[Found, VolumeSums]:
        """New classes of the particles, and their sums; no grid of directions is looked at."""
        noise = temperature * model.ring_noise(self.basis.r_max)
        basis, store = self.basis, parts.store
        basis.prepare()
        store.reset(basis)
        kept, _ = store.parted(np.concatenate(parts.rows))
        fill(store, self.images, basis, store.missing(kept, parts.crop_centre_px[kept]), parts.crop_centre_px, 1, clock)
        found = parts.before.copied()
        total = Total.empty(
            self.images, FourierGrid(basis.box_px, basis.r_max, basis.device), len(model.densities), self.group
        )
        for rows, maps in zip(parts.rows, parts.maps, strict=True):
            with clock.counting("slicing"):
                transforms = [total.grid.transform(model.densities[each]) for each in maps]
            held = 4 * basis.r_max * basis.n_theta * (len(maps) + FIELDS_HELD)
            size = max(1, BATCHES_HELD * self.batch_bytes // held)
            for start in range(0, len(rows), size):
                with clock.counting("expectation"):
                    self._compare(rows[start : start + size], (maps, transforms), (model, noise), parts, (found, total))
                self.images.progress(len(rows[start : start + size]))
        return found, total.sums(temperature)

    def _compare(
        self,
        rows: np.ndarray,
        met: tuple[tuple[int, ...], list[Tensor]],
        compared: tuple[Maps, Tensor],
        parts: Parts,
        outcome: tuple[Found, Total],
    ) -> None:
        """The posterior and sums of some images; met: maps and their transforms; compared: model and noise."""
        (maps, transforms), (model, noise), (found, total) = met, compared, outcome
        basis, before = self.basis, parts.before
        views = posed_views(*angles_of(before.direction[rows]), -before.psi_deg[rows])
        polar = self.images.polar(basis, rows, parts.fields(self.images, basis, rows), parts.crop_centre_px[rows],
                                  before.shift_px[rows])  # fmt: skip
        seen = polar.ctf * (basis.weight / noise)[polar.optics_of][:, :, None]
        numerator, denominator = polar.field * seen, polar.ctf * seen
        slices = [total.grid.slices(each, basis, views) for each in transforms]
        scores = [
            (each * (numerator - 0.5 * each * denominator)).sum(dim=(1, 2), dtype=torch.float64) for each in slices
        ]
        weights = torch.stack(scores, dim=1) + model.log_prior[list(maps)].double()
        share = weights.softmax(dim=1)
        likelihood, best = weights.logsumexp(dim=1), share.max(dim=1)
        for place, number in enumerate(maps):
            mine = share[:, place, None, None].float()
            total.include_fields(number, slices[place], (mine * numerator, mine * denominator), basis, views)
            total.weight[number] += share[:, place].sum()
        squared_shift = torch.from_numpy((before.shift_px[rows] ** 2).sum(axis=1)).sum()
        total.include_images(
            polar, squared_shift=squared_shift, log_likelihood=likelihood.sum(), max_probability=best.values.sum()
        )
        found.class_of[rows] = np.array([model.class_of_map[each] for each in maps])[best.indices.cpu().numpy()]
        found.log_likelihood[rows] = likelihood.cpu().numpy()
        found.max_probability[rows] = best.values.cpu().numpy()
        found.significant[rows] = (share > SIGNIFICANT * best.values[:, None]).sum(dim=1).cpu().numpy()
