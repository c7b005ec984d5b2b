"""The particles as the engine reads them: batches of polar fields with their CTF, from any source of images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages
from polarice.align.outliers import clipped
from polarice.align.pixels import PixelStore
from polarice.align.polar import PolarBasis
from polarice.align.premultiplied import divided
from polarice.align.prepare import Preparation
from polarice.align.transfer import sent, to_device
from polarice.contrast_transfer import ctf, wavelength_A
from polarice.types import CTFParameters, ImageSource, Particles

Item = TypeVar("Item")


@dataclass
class Clock:
    """Seconds spent, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def waiting(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counting what is waited for them to `stage`."""
        since = time.perf_counter()
        for item in items:
            self.add(stage, since)
            yield item
            since = time.perf_counter()
        self.add(stage, since)

    def share(self, clocks: Sequence[Clock]) -> None:
        """Count the mean of clocks that ran side by side."""
        for clock in clocks:
            for stage, seconds in clock.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds / len(clocks)

    @contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        """What passes inside is counted to `stage`."""
        since = time.perf_counter()
        yield
        self.add(stage, since)

    def add(self, stage: str, since: float) -> float:
        """Count what has passed since `since` to `stage`; returns now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True)
class ParticleImages:
    """A table, its images and how they are prepared.

    read_ahead  turns an iterable into one whose next items are made while the engine works
    apply_ctf   False: images are taken as they are (`--no-ctf`)
    """

    particles: Particles
    source: ImageSource
    preparation: Preparation
    device: torch.device
    read_ahead: Callable[[Iterable[Any]], Iterable[Any]] = iter
    apply_ctf: bool = True
    intact_first_peak: bool = False
    clipped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows of outliers to be clipped
    progress: Callable[[int], object] = int  # told how many images have been compared
    pixels: PixelStore | None = None  # what `batches` has brought to a card

    def __len__(self) -> int:
        return len(self.particles)

    @property
    def groups(self) -> int:
        return len(self.particles.optics)

    @property
    def pixel_size_A(self) -> float:
        return self.particles.optics[int(self.particles.optics_of[0])].pixel_size_A  # the same in all that are used

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images (row, N, N) float32: outliers clipped, those multiplied by their CTF as the plain ones."""
        images = self.source.read(rows)
        for i in np.flatnonzero(np.isin(rows, self.clipped)) if len(self.clipped) else ():
            images[i] = clipped(images[i])
        return self.plain(rows, images)

    @property
    def multiplied(self) -> bool:
        """Some images have been multiplied by their CTF, and that matters."""
        return self.apply_ctf and any(group.ctf_premultiplied for group in self.particles.optics)

    def plain(self, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Images (row, N, N) as stored, those that have been multiplied by their CTF as the plain ones (in place)."""
        parameters = self.particles.ctf
        if parameters is None or not self.multiplied:
            return images
        optics_of = self.particles.optics_of[rows]
        for group in np.unique(optics_of):
            optics, mine = self.particles.optics[group], np.flatnonzero(optics_of == group)
            if optics.ctf_premultiplied:
                images[mine] = divided(images[mine], optics, parameters.take(rows[mine]))
        return images

    def raw(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, images (batch, N, N) float32) in batches of `size`."""
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        yield from zip(chunks, self.read_ahead(self.read(chunk) for chunk in chunks), strict=True)

    def stored(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `raw`, the images as they are stored."""
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        yield from zip(chunks, self.read_ahead(self.source.read(chunk) for chunk in chunks), strict=True)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows, images (batch, N, N)) in batches of `size`, read and brought to the device while the engine works.

        Where pixels are kept, what is at hand is not read again.
        """
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        kept = self.pixels
        away = [chunk for chunk in chunks if kept is None or not kept.holds(chunk)]
        with closing(self.sent(torch.from_numpy(self.read(chunk)) for chunk in away)) as arriving:
            places = zip(away, arriving, strict=True)
            if kept is None:
                yield from places
                return
            missing = {int(chunk[0]) for chunk in away}
            for chunk in chunks:
                if int(chunk[0]) in missing:
                    _, pixels = next(places)
                    kept.put(chunk, pixels)
                    yield chunk, pixels
                else:
                    yield chunk, kept.take(chunk)

    def sent(self, batches: Iterable[Tensor]) -> Generator[Tensor]:
        """Batches that lie on the processor, made ahead and brought to the device."""
        return sent(batches, self.device, self.read_ahead)

    def fields(self, basis: PolarBasis, images: np.ndarray | Tensor, crop_centre_px: np.ndarray) -> Tensor:
        """Polar fields (batch, ring, n_theta) of images (batch, N, N), cut around whole-pixel centres (batch, 2)."""
        pixels = torch.as_tensor(images).to(self.device, torch.float32)
        return basis.sample(self.preparation(pixels, torch.from_numpy(crop_centre_px)))

    def polar(
        self, basis: PolarBasis, rows: np.ndarray, field: Tensor, crop_centre_px: np.ndarray, centre_px: np.ndarray
    ) -> PolarImages:
        """Fields of images cut around `cut_px`, moved the rest of the way to their centres; with their CTFs."""
        rest_px = (centre_px - crop_centre_px).astype(np.float32)
        return PolarImages(
            field=basis.unshifted(field, to_device(rest_px, self.device)) if rest_px.any() else field,
            ctf=self.polar_ctf(basis, rows),
            optics_of=to_device(self.particles.optics_of[rows].astype(np.int64), self.device),
            centre_px=to_device(centre_px.astype(np.float32), self.device),
        )

    def polar_ctf(self, basis: PolarBasis, rows: np.ndarray) -> Tensor:
        """CTF on the rings, (batch, ring, n_theta) float32; it is the same at theta and theta + pi."""
        half = basis.n_theta // 2
        values = torch.ones(len(rows), basis.r_max, half, device=self.device)
        parameters = self.particles.ctf
        if parameters is not None and self.apply_ctf:
            fx, fy = (k[:, :half].float() / (basis.box_px * self.pixel_size_A) for k in basis.frequency)
            optics_of = self.particles.optics_of[rows]
            for group in np.unique(optics_of):
                mine = np.flatnonzero(optics_of == group)
                optics = self.particles.optics[group]
                found = ctf(optics, parameters.take(rows[mine]), fx, fy, self.intact_first_peak)
                values.index_copy_(0, to_device(mine, self.device), found.abs() if optics.phase_flipped else found)
        return torch.cat([values, values], dim=2)

    def even_harmonics(self, basis: PolarBasis) -> int:
        """How many even angular harmonics CTF^2 has on the outermost ring, for the most astigmatic particle.

        2 chi varies by 2 pi lambda (dU - dV) / 2 s^2 cos 2 theta; its harmonic 2 m falls as the Bessel function J_m.
        """
        if self.particles.ctf is None or not self.apply_ctf:
            return 1
        phase = max(
            _astigmatic_phase(self.particles.ctf, wavelength_A(voltage_kV), self._highest_frequency(basis))
            for voltage_kV in {self.particles.optics[g].voltage_kV for g in np.unique(self.particles.optics_of)}
        )
        wanted = 1 if phase < 1e-3 else math.ceil(phase + 2.5 * phase ** (1 / 3) + 1.5)
        return min(wanted, (basis.n_q + 1) // 2)

    def _highest_frequency(self, basis: PolarBasis) -> float:
        return basis.r_max / (basis.box_px * self.pixel_size_A)


def _astigmatic_phase(parameters: CTFParameters, wavelength: float, frequency: float) -> float:
    difference = np.abs(parameters.defocus_u_A - parameters.defocus_v_A).max(initial=0.0)
    return math.pi * wavelength * float(difference) * frequency**2
