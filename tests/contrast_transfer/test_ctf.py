"""The contrast transfer function against a plain formula, torch-ctf and its limits."""

import numpy as np
import pytest

from polarice.contrast_transfer import ctf, ctf_image, frequency_grid, wavelength_A
from polarice.types import CTFParameters, Optics

OPTICS = Optics("opticsGroup1", 1.7, 300.0, 2.7, 0.1, 0)


def parameters(n: int = 5, seed: int = 0, **given) -> CTFParameters:
    rng = np.random.default_rng(seed)
    u = rng.uniform(8000, 30000, n)
    values = {
        "defocus_u_A": u,
        "defocus_v_A": u - rng.uniform(0, 900, n),
        "defocus_angle_deg": rng.uniform(-180, 180, n),
        "phase_shift_deg": np.zeros(n),
        "bfactor_A2": np.zeros(n),
        "scale": np.ones(n),
    }
    return CTFParameters(**(values | given))


def plain(optics: Optics, p: CTFParameters, i: int, box: int) -> np.ndarray:
    """The formula with its arc tangent, on the uncentred grid, then shifted."""
    f = np.fft.fftfreq(box, optics.pixel_size_A)
    fy, fx = np.meshgrid(f, f, indexing="ij")
    s2, volts = fx**2 + fy**2, optics.voltage_kV * 1e3
    wavelength = 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))
    u, v, angle = p.defocus_u_A[i], p.defocus_v_A[i], np.deg2rad(p.defocus_angle_deg[i])
    d = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(fy, fx) - angle))
    chi = np.pi * wavelength * d * s2 - np.pi / 2 * optics.cs_mm * 1e7 * wavelength**3 * s2**2
    chi += np.deg2rad(p.phase_shift_deg[i])
    a = optics.amplitude_contrast
    wave = np.sqrt(1 - a**2) * np.sin(chi) + a * np.cos(chi)
    return np.fft.fftshift(wave * np.exp(-p.bfactor_A2[i] * s2 / 4) * p.scale[i])


@pytest.mark.parametrize("box", (48, 49))
@pytest.mark.parametrize("full", (False, True))
def test_formula(box, full):
    rng = np.random.default_rng(3)
    extra = {
        "phase_shift_deg": rng.uniform(0, 120, 5),
        "bfactor_A2": rng.uniform(0, 90, 5),
        "scale": rng.uniform(0.5, 2, 5),
    }
    p = parameters(**(extra if full else {}))
    got = ctf_image(OPTICS, p, box)
    assert np.abs(got - [plain(OPTICS, p, i, box) for i in range(5)]).max() < 1e-9


def test_torch_and_single_precision():
    torch = pytest.importorskip("torch")
    p = parameters(bfactor_A2=np.full(5, 40.0))
    for value in p.__dict__.values():
        value.flags.writeable = False
    fx, fy = frequency_grid(64, OPTICS.pixel_size_A)
    exact = ctf(OPTICS, p, fx, fy)
    assert np.abs(ctf(OPTICS, p, torch.from_numpy(fx), torch.from_numpy(fy)).numpy() - exact).max() < 1e-12
    single = ctf(OPTICS, p, torch.from_numpy(fx).float(), torch.from_numpy(fy).float())
    assert single.dtype == torch.float32
    assert np.abs(single.numpy() - exact).max() < 2e-4
    assert np.abs(ctf_image(OPTICS, p, 64, dtype=np.float32) - exact).max() < 2e-4


def test_sign_and_first_peak():
    p = parameters(1, defocus_u_A=np.array([15000.0]), defocus_v_A=np.array([15000.0]))
    f = np.linspace(0, 0.1, 2001)
    curve = ctf(OPTICS, p, f, 0 * f)[0]
    assert curve[0] == pytest.approx(0.1)  # amplitude contrast, positive: white particles
    peak = int(np.flatnonzero(np.diff(curve) < 0)[0])
    assert curve[: peak + 1].min() == curve[0]
    intact = ctf(OPTICS, p, f, 0 * f, intact_first_peak=True)[0]
    assert np.all(intact[:peak] == 1)
    negative = np.flatnonzero(curve < 0)[0]
    later = slice(negative, negative + np.flatnonzero(curve[negative:] > 0)[0])
    assert np.array_equal(intact[later], curve[later])
    zero = f[np.flatnonzero(np.diff(np.sign(curve)))[0]]  # first zero: pi lambda d s^2 + arcsin(A) close to pi
    assert zero == pytest.approx(np.sqrt((np.pi - np.arcsin(0.1)) / (np.pi * wavelength_A(300) * 15000)), rel=0.005)


@pytest.mark.parametrize(("voltage", "wavelength"), [(300, 0.0196875), (200, 0.0250793), (120, 0.0334921)])
def test_wavelength(voltage, wavelength):
    assert wavelength_A(voltage) == pytest.approx(wavelength, rel=1e-4)


def test_astigmatism_turns_from_x_to_y():
    """Along the angle of defocus U the CTF is that of U alone, across it that of V."""
    p = parameters(1, defocus_angle_deg=np.array([30.0]))
    angle, s = np.deg2rad(30), np.linspace(0, 0.2, 50)
    for direction, defocus in ((angle, p.defocus_u_A), (angle + np.pi / 2, p.defocus_v_A)):
        round_one = parameters(1, defocus_u_A=defocus, defocus_v_A=defocus)
        along = ctf(OPTICS, p, s * np.cos(direction), s * np.sin(direction))
        assert np.allclose(along, ctf(OPTICS, round_one, s, 0 * s), atol=1e-9)


def test_against_torch_ctf():
    """An independent implementation (teamtomo); its sign is the opposite of RELION's positive contrast."""
    torch = pytest.importorskip("torch")
    torch_ctf = pytest.importorskip("torch_ctf")
    p = parameters(1)
    u, v = float(p.defocus_u_A[0]), float(p.defocus_v_A[0])
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=torch.tensor([(u + v) / 2e4], dtype=torch.float64),
        astigmatism=torch.tensor([(u - v) / 2e4], dtype=torch.float64),
        astigmatism_angle=torch.tensor(p.defocus_angle_deg),
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        phase_shift=0.0,
        pixel_size=OPTICS.pixel_size_A,
        image_shape=(48, 48),
        rfft=False,
        fftshift=True,
    )
    ours = ctf_image(OPTICS, p, 48)[0]
    theirs = np.squeeze(theirs.numpy())
    assert np.abs(ours - np.sign((ours * theirs).sum()) * theirs).max() < 2e-3
