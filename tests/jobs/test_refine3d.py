"""initial3d and refine3d as a user runs them, on particles whose views are known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jobs.runs import polarice as run
from polarice.bench.folder import DATA
from polarice.io.mrc import read_volume, write_volume
from polarice.io.particles import read_particles, write_particles
from polarice.io.star import read_star
from polarice.jobs import simulate

MPIRUN = Path(sys.prefix) / "bin/mpirun"
BOX, ANGPIX, N = 32, 11.0, 240
REFINE = "refine3d p/particles.star --particle-diameter 300 --iter 4 --threads 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Particles of the bundled ribosome, their map, and a refinement of four iterations."""
    folder = tmp_path_factory.mktemp("refine3d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run(
            simulate.Params(
                inputs=(DATA / "ribosome70S.mrc",), o=Path("p"), particles=N, box=BOX, angpix=ANGPIX, snr=0.3,
                shift_sigma=0.5, seed=3, threads=2,
            )
        )  # fmt: skip
        write_volume("ref.mrc", truth_map(), ANGPIX)
        alone(f"{REFINE} --ref ref.mrc --o out")
    return folder


def alone(line: str) -> str:
    """Run `polarice LINE` in a process of its own, where bits do not depend on what else lies in memory; its stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "polarice", *line.split()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def truth_map() -> np.ndarray:
    """The ribosome in the particles' box and pixels: its transform cut."""
    density, pixel_A = read_volume(DATA / "ribosome70S.mrc")
    wide = round(BOX * ANGPIX / pixel_A)
    padded = np.zeros((wide,) * 3, np.float32)
    start = wide // 2 - len(density) // 2
    inside = [slice(max(0, start), max(0, start) + min(wide, len(density)))] * 3
    cut = [slice(max(0, -start), max(0, -start) + min(wide, len(density)))] * 3
    padded[tuple(inside)] = density[tuple(cut)]
    transform = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(padded)))
    middle = wide // 2
    kept = [slice(middle - BOX // 2, middle + BOX // 2)] * 3
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(transform[tuple(kept)]))).real.astype(np.float32)


def pose_error_deg(table: Path) -> float:
    """Median angle between found and true rotations, after the rotation that fits best; both hands are not tried."""
    with np.load("p/truth.npz") as truth:
        true = Rotation.from_quat(truth["quat"]).as_matrix()
    found = read_star(table).table("particles")
    euler = np.stack([found.numbers(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    matrices = Rotation.from_euler("ZYZ", euler, degrees=True).inv().as_matrix()
    between = np.einsum("nji,njk->nik", matrices, true[: len(matrices)])
    best = 180.0
    for each in between[:40]:
        angle = np.degrees(np.arccos(np.clip((np.einsum("ij,nij->n", each, between) - 1) / 2, -1, 1)))
        best = min(best, float(np.median(angle)))
    return best


def test_refinement_finds_the_views_and_tells_the_resolution(made, monkeypatch):
    monkeypatch.chdir(made)
    history = [json.loads(line) for line in Path("out/history.jsonl").read_text().splitlines()]
    assert [row["number"] for row in history] == [1, 2, 3, 4]
    assert pose_error_deg(Path("out/run_data.star")) < 20  # in 15 degree steps; at random 120
    assert history[-1]["resolution_A"] < 40
    assert history[-1]["max_probability"] > 0.05
    density, pixel_A = read_volume("out/run_class001.mrc")
    assert density.shape == (BOX,) * 3 and pixel_A == pytest.approx(ANGPIX)
    true = truth_map()
    assert np.corrcoef(density.ravel(), true.ravel())[0, 1] > 0.8
    table = read_star("out/run_data.star").table("particles")
    assert sorted(np.unique(table.numbers("rlnRandomSubset"))) == [1, 2]
    fsc = read_star("out/run_fsc.star").table("fsc").numbers("rlnGoldStandardFsc")
    assert len(fsc) == BOX // 2 + 1 and fsc[1] > 0.9 and np.abs(fsc).max() <= 1
    page = Path("out/report.html").read_text()
    assert "halves agree" in page and page.count("data:image/png") == 5
    optimiser = read_star("out/run_it004_optimiser.star")["optimiser_general"].pairs
    for half in (1, 2):
        model = read_star(optimiser[f"rlnModelStarFile{half if half == 2 else ''}"])
        classes = model.table("model_classes")
        assert classes.text("rlnReferenceImage")[0] == f"out/run_it004_half{half}_class001.mrc"
        assert np.allclose(model.table("model_class_1").numbers("rlnGoldStandardFsc"), fsc, atol=1e-5)
        assert model.table("model_class_1").numbers("rlnReferenceTau2")[2] > 0


def test_halves_never_mix(made, monkeypatch):
    """Half 1's map is the same whatever half 2's images are, beyond the shells that are joined."""
    monkeypatch.chdir(made)
    table = read_particles("p/particles.star")
    subset = np.arange(N) % 2 + 1
    write_particles("halves.star", table, columns={"rlnRandomSubset": subset})
    shuffled = np.arange(N)
    shuffled[1::2] = 1  # half 2 is one image over and over
    names = table.table.text("rlnImageName")[shuffled]
    write_particles("other.star", table, columns={"rlnRandomSubset": subset, "rlnImageName": names})
    for name in ("halves", "other"):
        line = f"refine3d {name}.star --ref ref.mrc --particle-diameter 300 --iter 1 --no-firstiter-cc"
        ended = run(f"{line} --low-resol-join-halves 1000 --seed 5 --o {name}_out --threads 1")
        assert ended.code == 0, ended.err
    one, other = (read_volume(f"{name}_out/run_half1_class001_unfil.mrc")[0] for name in ("halves", "other"))
    its, theirs = (read_volume(f"{name}_out/run_half2_class001_unfil.mrc")[0] for name in ("halves", "other"))
    scale = float((one * other).sum() / (one * one).sum())  # noise and grey scale are of both halves
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99 and scale == pytest.approx(1, abs=0.2)
    assert np.corrcoef(its.ravel(), theirs.ravel())[0, 1] < 0.9


def test_a_run_that_goes_on_repeats_the_bits(made, monkeypatch):
    monkeypatch.chdir(made)
    shutil.copytree("out", "again")
    for path in [*Path("again").glob("run_it00[34]_*"), *Path("again").glob("run_[chd]*"), Path("again/report.html")]:
        path.unlink()
    assert "going on after iteration 2 of 4" in alone("refine3d --continue again")
    for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_data.star"):
        assert (Path("again") / name).read_bytes() == (Path("out") / name).read_bytes(), name


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun (the package mpich) is installed here")
def test_two_ranks_make_the_map_of_one(made, monkeypatch):
    monkeypatch.chdir(made)
    words = f"{REFINE} --ref ref.mrc --o ranks".replace("--threads 2", "--threads 1").split()
    done = subprocess.run(
        [MPIRUN, "-n", "2", sys.executable, "-m", "polarice", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_volume(f"{name}/run_class001.mrc")[0] for name in ("out", "ranks"))
    assert np.abs(one - two).max() < 1e-3 * np.abs(one).max()
    assert json.loads(Path("ranks/usage.json").read_text())["ranks"] == 2


def test_a_map_from_known_angles(made, monkeypatch):
    """The truth's angles give the map, and halves agree farther than after refinement; without halves, that is told."""
    monkeypatch.chdir(made)
    table = read_particles("p/truth.star")
    write_particles("known.star", table, columns={"rlnRandomSubset": np.arange(N) % 2 + 1})
    ended = run("reconstruct known.star --o known --particle-diameter 300")
    assert ended.code == 0 and "halves agree up to" in ended.out, ended.err
    density, true = read_volume("known/run_class001.mrc")[0], truth_map()
    assert np.corrcoef(density.ravel(), true.ravel())[0, 1] > 0.9
    fsc = read_star("known/run_fsc.star").table("fsc").numbers("rlnGoldStandardFsc")
    assert (fsc[1:10] > 0.5).all()
    ended = run("reconstruct p/truth.star --o whole --sym D2")
    assert ended.code == 0 and "no half sets (rlnRandomSubset), so nothing is known" in ended.out
    density = read_volume("whole/run_class001.mrc")[0]
    turned = np.roll(density[:, ::-1, ::-1], (1, 1), axis=(1, 2))  # two-fold about z through pixel N // 2
    assert np.corrcoef(turned[1:, 1:, 1:].ravel(), density[1:, 1:, 1:].ravel())[0, 1] > 0.999
    ended = run("reconstruct p/particles.star --o none5")
    assert ended.code == 2 and "has no _rlnAngleRot, _rlnAngleTilt" in ended.err and not Path("none5").exists()
    ended = run("reconstruct known.star --o none6 --sym X")
    assert ended.code == 2 and "no such point group" in ended.err and not Path("none6").exists()


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("small", "24 x 24 x 24 voxels, the particles' box is 32 px"),
        ("coarse", "13 A a voxel, and the particles' pixels are 11 A"),
        ("nan", "voxels that are not numbers"),
        ("flat", "every voxel is the same"),
    ],
)
def test_references_that_cannot_be_used(made, monkeypatch, ref, message):
    monkeypatch.chdir(made)
    density = truth_map()
    if ref == "small":
        density = density[:24, :24, :24]
    if ref == "nan":
        density[3, 3, 3] = np.nan
    if ref == "flat":
        density[:] = 1
    write_volume(f"{ref}.mrc", density, 13.0 if ref == "coarse" else ANGPIX)
    ended = run(f"{REFINE} --ref {ref}.mrc --o {ref}_out")
    assert ended.code == 2 and message in ended.err
    assert not Path(f"{ref}_out").exists()


def test_half_sets_that_make_no_halves(made, monkeypatch):
    monkeypatch.chdir(made)
    table = read_particles("p/particles.star")
    for name, subset, message in (
        ("one", np.ones(N, int), "puts 240 particles into half 1 and 0 into half 2"),
        ("three", np.arange(N) % 3 + 1, "row 3: _rlnRandomSubset is neither 1 nor 2"),
    ):
        write_particles(f"{name}.star", table, columns={"rlnRandomSubset": subset})
        ended = run(f"refine3d {name}.star --ref ref.mrc --particle-diameter 300 --o {name}_out")
        assert ended.code == 2 and message in ended.err
    ended = run("refine3d p/particles.star --ref ref.mrc --memory 0.01 --o none")
    assert ended.code == 2 and "the transforms of two half maps of 32 px take up to" in ended.err
    ended = run("refine3d p/particles.star --o none")
    assert ended.code == 2 and "--ref: refine3d begins with a map" in ended.err


def test_a_first_map_from_classes(made, monkeypatch):
    """The likelier starts agree on the views of the classes, which are near the true ones up to hand."""
    monkeypatch.chdir(made)
    ended = run("class2d p/particles.star --o classes --k 16 --iter 12 --particle-diameter 300 --threads 2")
    assert ended.code == 0, ended.err
    ended = run("initial3d classes --o first --seeds 3 --iter 25 --threads 2")
    assert ended.code == 0, ended.err
    assert "of 3 starts found the map of the best one" in ended.out
    told = json.loads(Path("first/seeds.json").read_text())
    likelihoods = [each["log_likelihood"] for each in told["starts"]]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert told["starts"][0]["apart_deg"] == pytest.approx(0, abs=1e-3)
    density, pixel_A = read_volume("first/initial_model.mrc")
    assert density.shape == (BOX,) * 3 and pixel_A == pytest.approx(ANGPIX) and density.min() >= 0
    assert Path("first/report.html").read_text().count("data:image/png") >= 9
    ended = run("initial3d classes --o first --seeds 1 --iter 5")
    assert ended.code == 0, ended.err  # its own folder may be made anew
    few = run("class2d p/particles.star --o few --k 3 --iter 2 --particle-diameter 300")
    assert few.code == 0, few.err
    ended = run("initial3d few --o none3")
    assert ended.code == 2 and "a map wants at least 8" in ended.err and not Path("none3").exists()
    ended = run("initial3d p --o none4")
    assert (ended.code == 2 and "job.json" in ended.err) or "is of simulate" in ended.err


def test_nothing_that_is_not_its_own_is_written_over(made, monkeypatch):
    """A map of the same name that is the reference or a stranger's, and its own half maps of a table before."""
    monkeypatch.chdir(made)
    Path("mine").mkdir()
    shutil.copy("ref.mrc", "mine/run_class001.mrc")
    before = Path("mine/run_class001.mrc").read_bytes()
    ended = run(f"{REFINE} --ref mine/run_class001.mrc --o mine")
    assert ended.code == 2 and "run_class001.mrc" in ended.err
    assert Path("mine/run_class001.mrc").read_bytes() == before
    write_particles("halved.star", read_particles("p/truth.star"), columns={"rlnRandomSubset": np.arange(N) % 2 + 1})
    for table, there in (("halved.star", True), ("p/truth.star", False)):
        ended = run(f"reconstruct {table} --o twice")
        assert ended.code == 0, ended.err
        assert Path("twice/run_half1_class001_unfil.mrc").exists() == there


def test_what_one_bad_image_does_to_a_map_from_known_angles(made, monkeypatch):
    """It is left out and told; and half 2 alone is one set."""
    from polarice.io.mrc import open_stack, write_stack

    monkeypatch.chdir(made)
    images = np.array(open_stack("p/particles.mrcs")[:])
    images[5, 3, 3] = np.nan
    write_stack("bad.mrcs", images, ANGPIX)
    names = [f"{i + 1:06d}@bad.mrcs" for i in range(N)]
    table = read_particles("p/truth.star")
    write_particles("bad.star", table, columns={"rlnImageName": names, "rlnRandomSubset": np.arange(N) % 2 + 1})
    ended = run("reconstruct bad.star --o bad --maxres 60")
    assert ended.code == 0 and "left out: row 6 of bad.star" in ended.err and f"{N - 1} particles" in ended.out
    assert np.isfinite(read_volume("bad/run_class001.mrc")[0]).all()
    fsc = read_star("bad/run_fsc.star").table("fsc").numbers("rlnGoldStandardFsc")
    assert (fsc[int(BOX * ANGPIX / 60) + 1 :] == 0).all()
    write_particles("second.star", table, columns={"rlnRandomSubset": np.full(N, 2)})
    ended = run("reconstruct second.star --o second")
    assert ended.code == 0 and "all of one half set" in ended.out
    whole, second = (read_volume(f"{name}/run_class001.mrc")[0] for name in ("whole", "second"))
    assert 0.2 < second.std() / whole.std() < 5


def test_a_run_that_used_up_its_iterations_takes_more(made, monkeypatch):
    monkeypatch.chdir(made)
    alone(f"{REFINE} --ref ref.mrc --o more".replace("--iter 4", "--iter 1"))
    told = alone("refine3d --continue more --iter 2")
    assert "going on after iteration 1 of 2" in told and "iteration 2:" in told


def test_a_workflow_goes_on_to_the_map(made, monkeypatch):
    monkeypatch.chdir(made)
    Path("flow.toml").write_text(
        """
        threads = 2
        [[step]]
        name = "averages"
        job = "class2d"
        particles = "p/particles.star"
        k = 12
        iter = 6
        particle_diameter = 300
        [[step]]
        job = "initial3d"
        classes = "{averages}"
        seeds = 1
        iter = 6
        [[step]]
        job = "refine3d"
        particles = "p/particles.star"
        ref = "{initial3d}/initial_model.mrc"
        particle_diameter = 300
        iter = 1
        """
    )
    ended = run("run flow.toml")
    assert ended.code == 0, ended.err
    assert Path("refine3d/run_class001.mrc").exists()
    ended = run("run flow.toml")
    assert ended.out.count("done before, nothing has changed") == 3, ended.out + ended.err


def test_a_solvent_mask_holds_references_and_corrects_the_fsc(made, monkeypatch):
    monkeypatch.chdir(made)
    assert run("mask ref.mrc --o m --lowpass 0 --extend-inimask 1 --width-soft-edge 3").code == 0
    mask, true = read_volume("m/mask.mrc")[0], truth_map()
    alone(f"{REFINE} --ref ref.mrc --solvent-mask m/mask.mrc --solvent-correct-fsc --o masked")
    half = read_volume("masked/run_it004_half1_class001.mrc")[0]
    assert np.abs(half[mask == 0]).max() == 0 < np.abs(half[mask > 0.5]).max()

    def alike(folder: str) -> float:
        density = read_volume(f"{folder}/run_class001.mrc")[0]
        return float(np.corrcoef(density[mask > 0.5], true[mask > 0.5])[0, 1])

    assert alike("masked") > alike("out") - 0.02
    write_volume("wide.mrc", np.ones((BOX + 2,) * 3, np.float32), ANGPIX)
    ended = run(f"{REFINE} --ref ref.mrc --solvent-mask wide.mrc --o bad_mask")
    assert ended.code == 2 and f"wide.mrc: a box of {BOX + 2} voxels" in ended.err and not Path("bad_mask").exists()
    assert "no effect without --solvent-mask" in run(f"{REFINE} --ref none.mrc --solvent-correct-fsc --o bad_mask").err
