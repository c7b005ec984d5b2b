"""Laws of the polar basis: transform, inner product, adjoint, rotation, shift."""

import math

import numpy as np
import pytest
import torch

from align.phantoms import Blobs
from polarice.align import oracle
from polarice.align.polar import PolarBasis, next_fast

BOXES = [47, 48]


def basis_of(box: int) -> PolarBasis:
    return PolarBasis(box, box / 4, box // 3, slack_px=4.0)


def compact_images(box: int, n: int = 3, seed: int = 0) -> torch.Tensor:
    """(n, N, N) float32 noise under a wide Gaussian: everything a ring can hold, and compact."""
    x = np.arange(box) - box // 2
    envelope = np.exp(-(x[:, None] ** 2 + x**2) / (2 * (box / 16) ** 2))
    noise = np.random.default_rng(seed).standard_normal((n, box, box))
    return torch.from_numpy(noise * envelope).float()


def band_passed(box: int, n: int = 3, seed: int = 0) -> torch.Tensor:
    """(n, N, N) float32: such images without the origin and without anything near the last ring."""
    r_max, disc = basis_of(box).r_max, oracle.Disc(box, box)
    window = np.exp(-0.5 * ((disc.radius - r_max / 2) / (r_max / 9)) ** 2)
    transform = oracle.transform_at(compact_images(box, n, seed).numpy(), disc.frequency) * window
    return torch.from_numpy(oracle.to_images(disc, transform)).float()


def complex_field(field: torch.Tensor) -> np.ndarray:
    """F on the whole circle from g = Re F + Im F."""
    g = field.double().numpy()
    opposite = np.roll(g, g.shape[-1] // 2, axis=-1)
    return (g + opposite) / 2 + 1j * (g - opposite) / 2


@pytest.mark.parametrize("box", [*BOXES, 96])
def test_sample_is_the_direct_fourier_sum(box):
    basis = basis_of(box)
    images = torch.from_numpy(np.random.default_rng(1).standard_normal((2, box, box))).float()  # up to the corners
    frequency = np.stack([k.numpy().ravel() for k in basis.frequency], axis=1)
    truth = oracle.transform_at(images.numpy(), frequency).reshape(2, basis.r_max, basis.n_theta)
    difference = complex_field(basis.sample(images)) - truth
    assert np.linalg.norm(difference) < 2e-5 * np.linalg.norm(truth)
    assert np.abs(difference).max() < 1e-4 * np.abs(truth).max()


@pytest.mark.parametrize("box", BOXES)
def test_sample_agrees_with_finufft(box):
    finufft = pytest.importorskip("finufft")
    basis, images = basis_of(box), compact_images(box)
    kx, ky = (k.numpy().ravel() * (2 * math.pi / box) for k in basis.frequency)
    truth = np.stack([finufft.nufft2d2(ky, kx, i.numpy().astype(complex), eps=1e-9, isign=-1) for i in images]) / box
    difference = complex_field(basis.sample(images)).reshape(len(images), -1) - truth
    assert np.linalg.norm(difference) < 2e-5 * np.linalg.norm(truth)


def test_sample_takes_each_image_alone():
    """Whatever else is in the batch, and in whatever order, to the last bit or two; its argument is left as it was."""
    basis, images = basis_of(48), compact_images(48, n=17)
    together, before = basis.sample(images), images.clone()
    for size in (1, 5, 16):
        alone = torch.cat([basis.sample(images[i : i + size]) for i in range(0, 17, size)])
        assert (alone - together).abs().max() < 1e-6 * together.abs().max()
    assert (basis.sample(images.flip(0)).flip(0) - together).abs().max() < 1e-6 * together.abs().max()
    assert torch.equal(basis.sample(images), together)  # the same batch again: bit for bit
    assert torch.equal(images, before)


@pytest.mark.parametrize("box", BOXES)
def test_inner_products_are_those_of_the_pixels(box):
    """Parseval: sum_r w_r sum_theta g1 g2 = sum over pixels, for images that hold nothing outside the rings."""
    basis, first, second = basis_of(box), band_passed(box, seed=1), band_passed(box, seed=2)
    a, b = basis.sample(first), basis.sample(second)
    polar = torch.einsum("r,irt,jrt->ij", basis.weight, a, b)
    pixels = torch.einsum("iyx,jyx->ij", first, second)
    norm = first.flatten(1).norm(dim=1)[:, None] * second.flatten(1).norm(dim=1)
    assert ((polar - pixels) / norm).abs().max() < 2e-5
    own = torch.einsum("r,irt->i", basis.weight, a.square())
    assert (own / first.square().sum(dim=(1, 2)) - 1).abs().max() < 2e-5


@pytest.mark.parametrize("box", BOXES)
def test_to_images_is_the_adjoint_of_sample(box):
    """<sample x, y>_w = <x, to_images y> for any image and any field, the weights w_r being the inner product's."""
    basis = basis_of(box)
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((3, box, box))).float()
    y = torch.from_numpy(rng.standard_normal((3, basis.r_max, basis.n_theta))).float()
    left = (basis.weight[:, None] * basis.sample(x) * y).sum(dim=(1, 2))
    right = (x * basis.to_images(y)).sum(dim=(1, 2))
    size = (basis.weight[:, None] * basis.sample(x).square()).sum(dim=(1, 2)).sqrt()
    assert ((left - right).abs() / (size * y.norm())).max() < 1e-5


@pytest.mark.parametrize("box", BOXES)
def test_round_trip(box):
    """Inside the circle that the box holds; ring sampling leaves a ghost of 0.3 % in the corners beyond."""
    basis, images = basis_of(box), band_passed(box)
    x = np.arange(box) - box // 2
    inside = torch.from_numpy(np.hypot(x[:, None], x) < box / 2 - 2)
    back = basis.to_images(basis.sample(images))
    assert ((back - images) * inside).norm() < 2e-4 * images.norm()
    assert (back - images).norm() < 5e-3 * images.norm()


@pytest.mark.parametrize("box", BOXES)
def test_rotation_is_a_roll_of_the_circle(box):
    """An image turned by n cells from x towards y has its field rolled by +n cells."""
    basis, blobs = basis_of(box), Blobs.random(box / 6, seed=4)
    cells = np.array([0, 1, 7, basis.n_theta // 2, basis.n_theta - 3])
    images = np.stack([blobs.image(box, 360 * c / basis.n_theta) for c in cells])
    fields = basis.sample(torch.from_numpy(images).float())
    for field, cell in zip(fields, cells, strict=True):
        assert (field - torch.roll(fields[0], int(cell), dims=-1)).norm() < 2e-5 * fields[0].norm()


@pytest.mark.parametrize("box", BOXES)
def test_unshift_moves_back(box):
    """The field of an image at +t, unshifted by t, is the field of the image at the origin."""
    basis, blobs = basis_of(box), Blobs.random(box / 6, seed=5)
    shifts = np.array([[0.0, 0.0], [3.0, 0.0], [-1.25, 2.5], [0.4, -3.7]])
    images = np.stack([blobs.image(box, 20.0, t) for t in shifts])
    fields = basis.sample(torch.from_numpy(images).float())
    back = basis.unshift(fields, basis.shift_phases(torch.from_numpy(shifts)))
    assert (back - fields[0]).flatten(1).norm(dim=1).max() < 3e-5 * fields[0].norm()


def test_harmonics_hold_a_compact_particle():
    """What lies beyond the last harmonic of a ring is below 1e-3 of the field, and field() inverts harmonics()."""
    box = 64
    basis, blobs = PolarBasis(box, 16.0, 24), Blobs.random(14.0, seed=6, sigma_px=1.0)
    field = basis.sample(torch.from_numpy(blobs.image(box)[None]).float())
    spectrum = torch.fft.rfft(field)[0]
    beyond = torch.arange(spectrum.shape[-1])[None] > torch.from_numpy(basis.harmonics_of_ring)[:, None]
    assert spectrum[beyond].norm() < 1e-3 * spectrum.norm()
    assert (basis.field(basis.harmonics(field)) - field).norm() < 1e-3 * field.norm()
    first = basis.first_ring
    for q in (0, 5, basis.n_q - 1):
        assert (basis.harmonics_of_ring[first[q] :] >= q).all() and (basis.harmonics_of_ring[: first[q]] < q).all()


def test_float32_against_float64():
    """The transform in single precision: rounding, not more than the kernel's own error."""
    basis, images = basis_of(48), compact_images(48)
    frequency = np.stack([k.numpy().ravel() for k in basis.frequency], axis=1)
    truth = torch.from_numpy(oracle.transform_at(images.numpy(), frequency))
    exact = (truth.real + truth.imag).reshape(3, basis.r_max, -1)
    assert (basis.sample(images) - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("n", "fast"), [(1, 16), (16, 16), (17, 32), (81, 96), (97, 128), (129, 144), (161, 192), (193, 240)]
)
def test_next_fast(n, fast):
    assert next_fast(n) == fast
