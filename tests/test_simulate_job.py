"""`polarice simulate` from files to files, and its conventions against RELION's own programs."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy.spatial.transform import Rotation

from polarice.cli import main
from polarice.fourier import centred_fft2, centred_grid
from polarice.io.mrc import open_stack, read_header, read_volume, write_volume
from polarice.io.particles import StackSource, read_particles
from polarice.io.star import Block, Table, read_star, write_star
from polarice.jobs.simulate import Params, run, simulation_of
from polarice.simulation import Species, euler_of_quat, simulate, species_of_map, species_of_model
from polarice.types import InputError
from programs import relion

DATA = Path(__file__).parents[1] / "../shared/data"


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"shared/data/{name} is not here")
    return DATA / name


def chiral_map(size: int = 48, pixel_A: float = 4.0) -> np.ndarray:
    """Blobs along a helix of growing size: no symmetry, no mirror plane. (z, y, x)"""
    axis = (np.arange(size) - size // 2) * pixel_A
    density = np.zeros((size,) * 3, np.float32)
    for step in range(9):
        centre = (40 * np.cos(step * 0.9), 40 * np.sin(step * 0.9), 13 * (step - 4))
        x, y, z = (np.exp(-((axis - c) ** 2) / (2 * (7 + 0.5 * step) ** 2)) for c in centre)
        density += z[:, None, None] * y[:, None] * x
    return density


@pytest.fixture
def map_path(tmp_path) -> Path:
    write_volume(tmp_path / "helix.mrc", chiral_map(), 4.0)
    return tmp_path / "helix.mrc"


def test_files_and_truth(map_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Params((Path("helix.mrc"),), o=Path("out"), particles=300, box=40, snr=0.5, junk=0.1, threads=1))
    images, header = open_stack("out/particles.mrcs"), read_header("out/particles.mrcs")
    assert images.shape == (300, 40, 40)
    assert header.pixel_size_A == pytest.approx(4.0)
    again = simulate(simulation_of(Params((Path("helix.mrc"),), particles=300, box=40, snr=0.5, junk=0.1)))
    assert np.array_equal(images[[3, 299]], again.read(np.array([3, 299])))
    truth, star = np.load("out/truth.npz"), read_star("out/truth.star")
    table = star.table("particles")
    assert set(truth) == {"quat", "shift", "pixel_size", "label", "label_names"}
    assert np.bincount(truth["label"]).tolist() == [270, 10, 10, 10]
    euler = np.stack([table.numbers(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    assert np.abs(euler - euler_of_quat(truth["quat"])).max() < 1e-5
    assert np.abs(table.numbers("rlnOriginYAngst") + 4.0 * truth["shift"][:, 1]).max() < 1e-5
    assert np.array_equal(table.integers("rlnClassNumber"), truth["label"] + 1)
    blind = read_star("out/particles.star").table("particles")
    assert "rlnAngleRot" not in blind
    assert blind.text("rlnImageName")[299] == "000300@out/particles.mrcs"
    assert np.array_equal(blind.numbers("rlnDefocusU"), table.numbers("rlnDefocusU"))
    ours = read_particles("out/particles.star").particles
    assert np.array_equal(StackSource(ours).read(np.array([7, 2])), images[[7, 2]])
    assert np.abs(ours.ctf.defocus_angle_deg - again.truth.ctf.defocus_angle_deg).max() < 1e-5
    assert ours.optics == (again.optics,)
    assert json.loads(Path("out/job.json").read_text())["params"]["box"] == 40


def test_no_ctf_leaves_no_ctf_columns(map_path, tmp_path):
    run(Params((map_path,), o=tmp_path / "out", particles=5, ctf=False))
    labels = read_star(tmp_path / "out/particles.star").table("particles").labels
    assert labels == ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup")


@pytest.mark.parametrize(("dtype", "scale", "error"), [("float16", 1, 2e-3), ("int8", 20, 0.026)])
def test_other_grey_values(map_path, tmp_path, dtype, scale, error):
    run(Params((map_path,), o=tmp_path / "a", particles=20, box=32))
    run(Params((map_path,), o=tmp_path / "b", particles=20, box=32, dtype=dtype))
    exact, coarse = (open_stack(tmp_path / name / "particles.mrcs").astype(np.float32) for name in "ab")
    assert np.abs(np.clip(exact, -6, 6) - np.clip(coarse / scale, -6, 6)).max() < error


def test_maps_that_are_not_cubic(tmp_path):
    full = chiral_map(48)
    write_volume(tmp_path / "cut.mrc", full[2:46, 8:41, 10:39], 4.0)  # origin voxels 22, 16, 14 at 24, 24, 24
    species = species_of_map(tmp_path / "cut.mrc", threshold=0.0)
    assert species.density.shape == (44, 44, 44)
    assert species.pixel_size_A == pytest.approx(4.0)
    whole = species_of_map_of(full, tmp_path).density[2:46, 2:46, 2:46]
    inside = np.s_[:, 6:39, 8:37]
    ratio = species.density[inside] / whole[inside]
    assert np.ptp(ratio[whole[inside] > 0.01]) < 1e-3


def species_of_map_of(volume: np.ndarray, folder: Path) -> Species:
    write_volume(folder / "whole.mrc", volume, 4.0)
    return species_of_map(folder / "whole.mrc", threshold=0.0)


def test_solvent_is_taken_away(tmp_path):
    write_volume(tmp_path / "lifted.mrc", chiral_map() + 0.3, 4.0)
    lifted = species_of_map(tmp_path / "lifted.mrc").density
    assert np.median(lifted) < 1e-3
    assert np.corrcoef(lifted.ravel(), chiral_map().ravel())[0, 1] > 0.9999


def test_pixel_sizes(tmp_path):
    write_volume(tmp_path / "silent.mrc", chiral_map(), 0.0)
    with pytest.raises(InputError, match=r"silent\.mrc.*--angpix"):
        simulation_of(Params((tmp_path / "silent.mrc",)))
    assert simulation_of(Params((tmp_path / "silent.mrc",), angpix=5.0)).species[0].pixel_size_A == 5.0
    write_volume(tmp_path / "told.mrc", chiral_map(), 4.0)
    coarse = simulation_of(Params((tmp_path / "told.mrc",), angpix=6.0))
    assert (coarse.pixel_size_A, coarse.species[0].pixel_size_A, coarse.box_px) == (6.0, 4.0, 32)
    overruled = simulation_of(Params((tmp_path / "told.mrc",), map_angpix=3.0))
    assert (overruled.pixel_size_A, overruled.species[0].pixel_size_A, overruled.box_px) == (3.0, 3.0, 48)


def atom(number: int, name: str, x: float, y: float, z: float, bfactor: float) -> str:
    return (
        f"ATOM  {number:5d}  {name:<3} ALA A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{bfactor:6.2f}"
        f"           {name[0]}\n"
    )


def test_atoms_have_the_electron_scattering_factors(tmp_path):
    """The transform of a pair of carbons against the Gaussians of gemmi's table and the B-factor."""
    gemmi = pytest.importorskip("gemmi")
    (tmp_path / "pair.pdb").write_text(atom(1, "C", 3, 4, 5, 60) + atom(2, "CB", 13, 0, -5, 60) + "END\n")
    species = species_of_model(tmp_path / "pair.pdb", 1.5)
    size = len(species.density)
    projection = species.density.sum(0).astype(float)
    transform = centred_fft2(projection) * size
    ky, kx = centred_grid(size)
    fx, fy = kx / size / 1.5, ky / size / 1.5
    squared = fx**2 + fy**2
    factor = gemmi.Element("C").c4322
    form = sum(a * np.exp(-b * squared / 4) for a, b in zip(factor.a, factor.b, strict=True))
    expected = form * np.exp(-60 * squared / 4) * 2 * np.cos(2 * np.pi * (5 * fx - 2 * fy))
    to_device = squared < 0.32**2
    scale = transform[size // 2, size // 2].real / expected[size // 2, size // 2]
    assert np.abs(transform - scale * expected)[to_device].max() < 0.01 * np.abs(scale * expected).max()


def test_calpha_models_are_blurred(tmp_path):
    pytest.importorskip("gemmi")
    (tmp_path / "ca.pdb").write_text("".join(atom(i, "CA", 10 * i, 0, 0, 5) for i in range(1, 4)) + "END\n")
    row = species_of_model(tmp_path / "ca.pdb", 1.0).density.sum((0, 1))
    middle = len(row) // 2
    assert row[[middle - 10, middle, middle + 10]] == pytest.approx(row[middle], rel=1e-3)
    sigma = np.sqrt(300 / (8 * np.pi**2))  # the atom's own width comes on top
    assert 0 < row[middle + 3] / row[middle] - np.exp(-9 / (2 * sigma**2)) < 0.12
    sharp = species_of_model(tmp_path / "ca.pdb", 1.0, bfactor_A2=20).density.sum((0, 1))
    assert sharp[middle + 3] / sharp[middle] < 0.1


def test_real_inputs():
    pytest.importorskip("gemmi")
    apo = species_of_model(shared("models/apoferritin_ca_apo_sym.pdb"), 3.0).density
    distance = np.sqrt(sum(np.ix_(*[(np.arange(len(apo)) - len(apo) // 2) ** 2.0] * 3))) * 3.0
    assert 45 < (apo * distance).sum() / apo.sum() < 55  # a hollow shell of about 130 A across
    assert apo[distance < 25].max() < 0.1
    odd = species_of_map(shared("maps/emd_3400_86.mrc"))
    assert len(set(odd.density.shape)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (Path("nothing.mrc"),)}, "nothing.mrc"),
        ({"inputs": (Path("nothing.pdb"),), "angpix": 2.0}, "nothing.pdb"),
        ({"inputs": (Path("model.pdb"),)}, "--angpix"),
        ({"inputs": (Path("picture.png"),)}, "neither a map nor an atomic model"),
        ({"fractions": (0.5, 0.5)}, "--fractions"),
        ({"orientations": "sideways"}, "--orientations sideways"),
        ({"orientations": "preferred", "preferred_axis": (0.0, 1.0)}, "--preferred-axis"),
        ({"noise_spectrum": Path("spectrum.txt")}, "spectrum.txt"),
        ({"snr": 0.0}, "SNR"),
        ({"angpix": 0.001}, "--angpix 0.001: the box would be 192000 px wide; give a larger one, or a --box"),
        ({"o": Path("helix.mrc")}, "cannot make the folder"),
    ],
)
def test_bad_input_is_named(map_path, monkeypatch, changes, message):
    monkeypatch.chdir(map_path.parent)
    with pytest.raises(InputError, match=message):
        run(Params(**({"inputs": (map_path,), "particles": 2} | changes)))


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(InputError, match=r"empty\.pdb.*no atoms"):
        species_of_model(tmp_path / "empty.pdb", 2.0)
    write_volume(tmp_path / "flat.mrc", np.ones((8, 8, 8)), 1.0)
    with pytest.raises(InputError, match=r"flat\.mrc.*no density"):
        species_of_map(tmp_path / "flat.mrc")
    write_volume(tmp_path / "nan.mrc", np.full((8, 8, 8), np.nan), 1.0)
    with pytest.raises(InputError, match=r"nan\.mrc.*NaN"):
        species_of_map(tmp_path / "nan.mrc")


def test_an_atom_far_from_all_others_is_named(tmp_path):
    """And takes no memory."""
    lines = [
        f"ATOM  {n + 1:5d}  CA  ALA A{n + 1:4d}    {3.0 * n if n < 19 else 4000.0:8.3f}{n % 3:8.3f}{0:8.3f}  1.00 20.00"
        "           C"
        for n in range(20)
    ]
    (tmp_path / "far.pdb").write_text("\n".join([*lines, "END", ""]))
    with pytest.raises(InputError, match=r"far\.pdb: an atom lies \d{4} A from the model's centre, and half of all"):
        species_of_model(tmp_path / "far.pdb", 4.0)
    (tmp_path / "near.pdb").write_text("\n".join([*lines[:19], "END", ""]))
    assert species_of_model(tmp_path / "near.pdb", 2.0).density.max() > 0


def test_orientations_from_files(map_path, tmp_path):
    quat = Rotation.random(12, random_state=3).as_quat()
    np.savez(tmp_path / "given.npz", quat=quat)
    angles = dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), euler_of_quat(quat).T, strict=True))
    write_star(tmp_path / "given.star", [Block("particles", table=Table.of(angles))])
    (tmp_path / "broken.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", angles=quat)
    for name in ("broken.npz", "other.npz"):
        with pytest.raises(InputError, match=name):
            simulation_of(Params((map_path,), orientations=str(tmp_path / name)))
    for name in ("given.npz", "given.star"):
        simulation = simulation_of(Params((map_path,), orientations=str(tmp_path / name)))
        assert simulation.particles == 12
        apart = Rotation.from_quat(simulation.orientations.quat) * Rotation.from_quat(quat).inv()
        assert np.rad2deg(apart.magnitude()).max() < 1e-4


def test_relion_reconstructs_the_map_from_our_truth(map_path, tmp_path, monkeypatch):
    """Euler angles, origins, CTF sign and hand, all at once."""
    monkeypatch.chdir(tmp_path)
    run(Params((Path("helix.mrc"),), o=Path("out"), particles=500, snr=float("inf"), astigmatism=2000.0))
    relion("relion_reconstruct", "--i", "out/truth.star", "--o", "back.mrc", "--ctf", folder=tmp_path)
    back, truth = read_volume("back.mrc")[0], chiral_map()
    ball = np.sqrt(sum(np.ix_(*[(np.arange(48) - 24) ** 2.0] * 3))) < 0.42 * 48
    assert np.corrcoef(back[ball], truth[ball])[0, 1] > 0.98
    mirrored = np.roll(truth[:, :, ::-1], 1, axis=2)
    assert np.corrcoef(back[ball], mirrored[ball])[0, 1] < 0.8


def test_relion_projects_the_same_images(map_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Params((Path("helix.mrc"),), o=Path("out"), particles=12, snr=float("inf"), astigmatism=3000.0))
    words = ("--i", "helix.mrc", "--ang", "out/truth.star", "--o", "theirs", "--ctf", "--angpix", "4.0")
    relion("relion_project", *words, folder=tmp_path)
    ours, theirs = open_stack("out/particles.mrcs"), open_stack("theirs.mrcs")
    for mine, other in zip(ours, theirs, strict=True):
        assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.995


def test_no_noise_is_an_infinite_signal_to_noise_ratio(map_path, tmp_path):
    """The one option that may be infinite."""
    command = ["simulate", str(map_path), "--o", str(tmp_path / "out"), "--particles", "2", "--no-ctf"]
    assert main([*command, "--snr", "inf"]) == 0
    corner = open_stack(tmp_path / "out/particles.mrcs")[:, :3, :3]
    assert np.abs(corner).max() < 1e-3 * np.abs(open_stack(tmp_path / "out/particles.mrcs")).max()
    assert main([*command, "--threshold", "inf"]) == 2


def test_a_simulation_takes_the_place_of_an_earlier_one_alone(map_path, tmp_path, monkeypatch, capsys):
    """Cut off while the stack is written, it leaves no truth of other images; results of another job stay."""
    command = ["simulate", str(map_path), "--o", str(tmp_path / "out"), "--particles", "2"]
    assert main(command) == 0 and main([*command, "--seed", "2"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("polarice.jobs.simulate._write_truth", interrupt)
        assert main([*command, "--seed", "3"]) == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "RELION_JOB_EXIT_ABORTED", "job.json", "particles.mrcs", "state.json"
    ]  # fmt: skip
    assert main(command) == 0  # the stack that was cut off is this job's own
    (tmp_path / "out/job.json").write_text('{"job": "class2d"}')
    assert main(command) == 2
    assert "holds the results of a job (class2d); choose another folder with --o" in capsys.readouterr().err
    assert (tmp_path / "out/job.json").read_text() == '{"job": "class2d"}'


def test_neither_a_stranger_s_files_nor_an_input_are_written_over(map_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = map_path.read_bytes()
    Path("mine").mkdir()
    Path("mine/particles.star").write_text("my only table")
    assert main(["simulate", str(map_path), "--o", "mine", "--particles", "2"]) == 2
    assert "mine/particles.star: stands where simulate would write" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["particles.star"]
    Path("out").mkdir()
    Path("out/truth.star").symlink_to(map_path)  # an output that leads to an input
    assert main(["simulate", str(map_path), "--o", "out", "--particles", "2"]) == 2
    assert "an input of this job, which out/truth.star would write over" in capsys.readouterr().err
    assert map_path.read_bytes() == own and [path.name for path in Path("out").iterdir()] == ["truth.star"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
