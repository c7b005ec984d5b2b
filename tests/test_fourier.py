"""The Fourier convention against direct sums and SciPy, for odd and even boxes, NumPy and torch."""

import numpy as np
import pytest

from polarice import fourier

BOXES = (8, 9)


def images(box: int, count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, box, box))


def direct_transform(image: np.ndarray) -> np.ndarray:
    """1/N sum f(x) exp(-2 pi i k.x / N), by matrices, origin at N // 2."""
    box = len(image)
    axis = np.arange(box) - box // 2
    kernel = np.exp(-2j * np.pi * np.outer(axis, axis) / box)
    return kernel @ image @ kernel.T / box


@pytest.mark.parametrize("box", BOXES)
def test_transform_is_the_direct_sum(box):
    stack = images(box)
    got = fourier.centred_fft2(stack)
    assert np.allclose(got, [direct_transform(image) for image in stack], atol=1e-12)
    assert np.allclose(fourier.centred_ifft2(got), stack, atol=1e-12)


@pytest.mark.parametrize("box", BOXES)
def test_torch_gives_what_numpy_gives_and_arguments_stay(box):
    torch = pytest.importorskip("torch")
    stack = images(box)
    tensor, kept = torch.from_numpy(stack.copy()), stack.copy()
    shell = fourier.shell_of(box)
    for function in (
        fourier.centred_fft2,
        fourier.centred_ifft2,
        lambda x: fourier.rescale(x, box + 3),
        lambda x: fourier.rescale(x, box - 2),
        lambda x: fourier.rescale(x, box),
        lambda x: fourier.frc(x[:2], x[1:]),
        lambda x: fourier.shell_mean(x**2, shell),
    ):
        assert np.allclose(function(tensor).numpy(), function(stack), atol=1e-12)
        assert np.array_equal(stack, kept)
        assert np.array_equal(tensor.numpy(), kept)


def test_white_noise_has_its_pixel_variance_at_every_frequency():
    power = np.abs(fourier.centred_fft2(2 * images(16, 4000))) ** 2
    assert np.allclose(fourier.shell_mean(power.mean(0), fourier.shell_of(16)), 4, rtol=0.08)


def test_single_precision_stays_single():
    stack = images(8).astype(np.float32)
    assert fourier.centred_fft2(stack).dtype == np.complex64
    assert fourier.rescale(stack, 6).dtype == np.float32


@pytest.mark.parametrize("box", BOXES)
def test_shells_against_a_loop(box):
    stack, shell = images(box), fourier.shell_of(box)
    for y in range(box):
        for x in range(box):
            assert shell[y, x] == round(float(np.hypot(y - box // 2, x - box // 2)))
    expected = [[image[shell == s].mean() for s in range(box // 2 + 1)] for image in stack]
    assert np.allclose(fourier.shell_mean(stack, shell), expected)
    assert np.allclose(fourier.shell_sum(1j * stack, shell)[0, 1], 1j * stack[0][shell == 1].sum())


def test_shells_of_a_volume_and_empty_shells():
    volume = np.random.default_rng(1).normal(size=(7, 7, 7))
    shell = fourier.shell_of(7, 3)
    assert np.allclose(fourier.shell_mean(volume, shell), [volume[shell == s].mean() for s in range(4)])
    beyond = fourier.shell_mean(volume, shell, shells=12)
    assert beyond[int(shell.max())] == pytest.approx(volume[shell == shell.max()].mean())
    assert np.all(beyond[int(shell.max()) + 1 :] == 0)


@pytest.mark.parametrize(("old", "new"), [(8, 12), (8, 11), (9, 12), (9, 13), (12, 8), (12, 7), (13, 8), (13, 9)])
def test_rescale_is_scipys_resample_about_the_centre(old, new):
    resample = pytest.importorskip("scipy.signal").resample
    stack = images(old)
    expected = np.fft.ifftshift(stack, (-2, -1))
    for axis in (-1, -2):
        expected = resample(expected, new, axis=axis)
    assert np.allclose(fourier.rescale(stack, new), np.fft.fftshift(expected, (-2, -1)), atol=1e-12)


@pytest.mark.parametrize("box", BOXES)
def test_rescale_there_and_back_and_its_mean(box):
    stack = images(box)
    larger = fourier.rescale(stack, box + 5)
    assert np.allclose(fourier.rescale(larger, box), stack, atol=1e-12)
    assert np.allclose(larger.mean((1, 2)), stack.mean((1, 2)))


@pytest.mark.parametrize(("old", "new"), [(64, 48), (65, 48), (64, 47), (48, 81)])
def test_rescale_keeps_a_smooth_particle_where_it_is(old, new):
    def blob(box):  # 3 % of the box right of, 5 % below the origin
        y, x = fourier.centred_grid(box)
        return np.exp(-((x / box - 0.03) ** 2 + (y / box - 0.05) ** 2) / (2 * 0.06**2))

    assert np.abs(fourier.rescale(blob(old), new) - blob(new)).max() < 1e-6


@pytest.mark.parametrize("box", BOXES)
def test_frc_against_a_loop(box):
    first, second = images(box, 2, 1), images(box, 2, 2) + images(box, 2, 1)
    shell = fourier.shell_of(box)
    got = fourier.frc(first, second)
    for n in range(2):
        a, b = direct_transform(first[n]), direct_transform(second[n])
        for s in range(box // 2 + 1):
            m = shell == s
            expected = (a[m] * b[m].conj()).sum().real / np.sqrt((abs(a[m]) ** 2).sum() * (abs(b[m]) ** 2).sum())
            assert got[n, s] == pytest.approx(expected)
    assert np.allclose(fourier.frc(first, -3 * first), -1)
    assert np.all(fourier.frc(first, 0 * first) == 0)


@pytest.mark.parametrize("box", (32, 33))
def test_soft_disc(box):
    disc, radius = fourier.soft_disc(box, 8, 4), np.hypot(*fourier.centred_grid(box))
    assert np.all(disc[radius <= 8] == 1)
    assert np.all(disc[radius >= 12] == 0)
    assert disc[box // 2, box // 2 + 10] == pytest.approx(0.5)
    assert disc[box // 2, box // 2 + 9] == pytest.approx(0.5 + 0.5 * np.cos(np.pi / 4))
    assert fourier.soft_disc(box, 8, 0).sum() == (radius <= 8).sum()
