"""Which class averages show a particle: features of an average, hard gates, and a score from 0 (junk) to 1.

The gates follow the field's best open description, SIMPLE 3's rejection of class averages (github.com/hael/SIMPLE:
share, resolution, place of the largest bright region), as far as no good class of the simulated sets fails them, and
one of our own, for averages of boxes that leave their micrograph (streaks: the nearest pixels repeated). The score is a
logistic regression on features of the same kind, SIMPLE's variance of the 40-100 A band in the centre over that at the
edge among them; scripts/fit_class_score.py fits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from polarice.selection.classes import ClassSet, listed

EMPTY_SHARE = 5e-4  # of the particles, below which a class is not looked at (SIMPLE, of a pool)
COARSE_A, COARSE_PERIODS = 40.0, 1.5  # resolution; periods across the diameter, where that is coarser
OFF_CENTRE = 0.5  # of the radius, of the largest bright region's centre
MOST_AT_RIM = 0.5  # of the last tenth of the circle that this region covers
STREAKED = 2.0  # `Features.streak` from which on an average is streaked: e^2 times the power along other directions
BAND_A = (100.0, 40.0)  # of the centre's and the edge's variance
CENTRE, EDGE = 0.5, 0.8  # of the particle's radius: within, beyond
SECTORS = 36  # of half a turn, of directions in Fourier space
CAPS = 24  # caps of the circle, of a full turn, that are looked at for streaks
CAP = (0.275, 0.425)  # of the radius: where a cap begins and is full
BEYOND = 1.1  # times the particles' median resolution, in frequency
FAINTEST = 1e-5  # share of the power below which these waves say nothing
MOST_SPREADS = 3.0  # features beyond are held there
RESOLVED_PERIODS = 4.0  # across the diameter, of the median particle's class, for averages to tell anything
WORTH_TELLING = 0.3  # of the score's exponent


@dataclass(frozen=True, eq=False)
class Features:
    """Figures of K classes, each (K,); no unit, so that box, pixel and contrast do not matter.

    How many particles a class has is not among them: rare views are to stay.
    """

    too_coarse: np.ndarray  # log of the class's resolution over the particles' median one; 0 where it is finer
    faint: np.ndarray  # log of the particles' median standard deviation in the circle over the class's, or 0
    strong: np.ndarray  # the opposite
    centre: np.ndarray  # log of the band's variance in the centre over that at the edge
    slope: np.ndarray  # share of the variance that a plane explains
    off_centre: np.ndarray  # distance of the largest bright region's centre from the origin, of the radius
    at_rim: np.ndarray  # share of the rim that it covers
    streak: np.ndarray  # log of the power across the outward direction over the median one, in the worst cap

    def table(self) -> np.ndarray:
        """(K, features), those of the score, in the order of SCORED."""
        return np.stack([getattr(self, name) for name in SCORED], axis=1)


SCORED = tuple(each.name for each in fields(Features) if each.name != "streak")  # streaks are a gate
# Middle and spread of each feature, and weights of the logistic regression: scripts/fit_class_score.py, its SEED 17, on
# 18 simulated sets; docs/select.md says on what, and what they reach.
MIDDLE = {
    "too_coarse": 0.0,
    "faint": 0.0,
    "strong": 0.026,
    "centre": 0.299,
    "slope": 0.045,
    "off_centre": 0.085,
    "at_rim": 0.031,
}
SPREAD = {
    "too_coarse": 0.369,
    "faint": 0.125,
    "strong": 0.837,
    "centre": 1.146,
    "slope": 0.275,
    "off_centre": 0.237,
    "at_rim": 0.279,
}
WEIGHTS = {
    "too_coarse": -0.806,
    "faint": -0.377,
    "strong": -1.238,
    "centre": 0.393,
    "slope": -0.44,
    "off_centre": -0.746,
    "at_rim": -0.398,
}
OFFSET = 3.115
STREAKS, AT_EDGE, ONE_SIDED = "streaks", "bright up to the mask's edge", "off centre"
_DOUBTS = {
    STREAKS: "Streaked, of particles cut by the edge of their micrographs",
    AT_EDGE: "Bright up to the mask's edge, as carbon and contamination are",
    ONE_SIDED: "Off centre",
}
WORDS = {  # what a feature says where it speaks against a class
    "too_coarse": "coarser than the others",
    "faint": "fainter than the others",
    "strong": "stronger than the others",
    "centre": "as much at the edge as in the middle",
    "slope": "brighter on one side",
    "off_centre": "off centre",
    "at_rim": "bright at the mask's edge",
}


def features_of(classes: ClassSet) -> Features:
    """Features of all classes; an average without contrast has 0 in all that is of its picture."""
    assert classes.averages is not None and classes.resolution_A is not None
    averages = np.nan_to_num(classes.averages.astype(np.float64))
    box = averages.shape[-1]
    radius = min(classes.diameter_A / classes.pixel_size_A / 2 or box / 2, box / 2)
    resolution = np.clip(np.nan_to_num(classes.resolution_A, posinf=2 * radius * classes.pixel_size_A), 0.1, 1e4)
    usual_A = median_of_particles(resolution, classes.counts)
    seen = _Circle.of(box, radius, classes.pixel_size_A, usual_A)
    pictures = [_of_picture(average, seen) for average in averages]
    deviation = np.array([average[seen.inside].std() for average in averages])
    usual = median_of_particles(deviation, classes.counts) or 1.0
    contrast = np.log(np.maximum(deviation, 1e-6 * usual) / usual)
    return Features(
        too_coarse=np.maximum(np.log(resolution / usual_A), 0),
        faint=np.maximum(-contrast, 0),
        strong=np.maximum(contrast, 0),
        **{name: np.array([picture[name] for picture in pictures]) for name in _PICTURE},
    )


def median_of_particles(values: np.ndarray, counts: np.ndarray) -> float:
    """The value of the particle in the middle, when each has that of its class."""
    order = np.argsort(values)
    total = np.cumsum(counts[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)]) if total[-1] else float(np.median(values))


@dataclass(frozen=True, eq=False)
class _Circle:
    """Masks and frequencies that all averages of a run share; arrays are (N, N)."""

    inside: np.ndarray  # bool, the particle's circle
    y: np.ndarray  # of the radius
    x: np.ndarray
    caps: np.ndarray  # (CAPS, N, N) weights of caps of the circle, soft at their edges
    frequency: np.ndarray  # in 1/A, as fft2 has it
    beyond: np.ndarray  # bool, waves finer than the particles' median resolution
    sector: np.ndarray  # int
    diameter_A: float

    @staticmethod
    def of(box: int, radius: float, pixel_size_A: float, usual_A: float) -> _Circle:
        y, x = (axis / radius for axis in np.meshgrid(*[np.arange(box) - box // 2] * 2, indexing="ij"))
        f = np.fft.fftfreq(box, pixel_size_A)
        fy, fx = np.meshgrid(f, f, indexing="ij")
        sector = np.floor(np.mod(np.arctan2(fy, fx), np.pi) / np.pi * SECTORS).astype(int) % SECTORS
        frequency, diameter_A, nyquist = np.hypot(fy, fx), 2 * radius * pixel_size_A, 0.5 / pixel_size_A
        least = min(max(8 / diameter_A, BEYOND / usual_A), 0.6 * nyquist)
        soft = np.clip((1 - np.hypot(y, x)) / 0.1, 0, 1)
        angle = 2 * np.pi * np.arange(CAPS)[:, None, None] / CAPS
        caps = soft * np.clip((x * np.cos(angle) + y * np.sin(angle) - CAP[0]) / (CAP[1] - CAP[0]), 0, 1)
        beyond = (frequency > least) & (frequency < 0.96 * nyquist)
        return _Circle(np.hypot(y, x) <= 1, y, x, caps, frequency, beyond, sector, diameter_A)

    @property
    def r(self) -> np.ndarray:
        return np.hypot(self.y, self.x)


_PICTURE = ("centre", "slope", "off_centre", "at_rim", "streak")


def _of_picture(average: np.ndarray, seen: _Circle) -> dict[str, float]:
    pixels = average[seen.inside]
    deviation = pixels.std()
    if not deviation > 1e-12 * max(np.abs(pixels).max(initial=0), 1e-300):
        return dict.fromkeys(_PICTURE, 0.0)
    z = np.where(seen.inside, (average - pixels.mean()) / deviation, 0)
    return {"centre": _centre(z, seen), "slope": _slope(z, seen), "streak": _streak(z, seen), **_region(z, seen)}


def _centre(z: np.ndarray, seen: _Circle) -> float:
    coarse, fine = (1 / wave for wave in BAND_A)
    coarse = min(coarse, 2 / seen.diameter_A)
    band = (seen.frequency >= coarse) & (seen.frequency <= max(fine, 4 * coarse))
    filtered = np.fft.ifft2(np.fft.fft2(z) * band).real
    edge = (seen.r > EDGE) & seen.inside
    return float(np.log(max(filtered[seen.r <= CENTRE].var(), 1e-6) / max(filtered[edge].var(), 1e-6)))


def _slope(z: np.ndarray, seen: _Circle) -> float:
    values, inside = z[seen.inside], seen.inside
    return float(sum(np.mean(values * axis[inside]) ** 2 / np.mean(axis[inside] ** 2) for axis in (seen.y, seen.x)))


def _streak(z: np.ndarray, seen: _Circle) -> float:
    """Repeated pixels run outwards in a cap of the circle: there the power of fine waves, where other averages hold
    nothing, lies in the one direction across them."""
    from scipy.fft import rfft2

    half = z.shape[1] // 2 + 1  # the other half of the waves says the same
    fine, worst = seen.beyond[:, :half], 0.0
    sector, count = seen.sector[:, :half][fine], np.bincount(seen.sector[:, :half][fine], minlength=SECTORS)
    if (count == 0).any():
        return 0.0
    means = np.einsum("yx,cyx->c", z, seen.caps) / seen.caps.sum(axis=(1, 2))
    powers = np.abs(rfft2(((z - means[:, None, None]) * seen.caps).astype(np.float32))) ** 2
    for number, power in enumerate(powers):
        if power[fine].sum() > FAINTEST * power.sum():
            mean = np.bincount(sector, power[fine], SECTORS) / count
            across = int((number / CAPS * 2 + 0.5) % 1 * SECTORS)
            strongest = mean[[across - 1, across, (across + 1) % SECTORS]].mean()
            worst = max(worst, float(np.log(max(strongest, 1e-30) / max(float(np.median(mean)), 1e-30))))
    return worst


def _region(z: np.ndarray, seen: _Circle) -> dict[str, float]:
    """The largest region brighter than Otsu's threshold (Otsu 1979) after fine waves are taken off."""
    from scipy.ndimage import label

    low = np.exp(-((seen.frequency * seen.diameter_A / 12) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(z) * low).real
    bright = seen.inside & (smooth > _otsu(smooth[seen.inside]))
    regions, count = label(bright)
    if not count:
        return {"off_centre": 0.0, "at_rim": 0.0}
    largest = regions == 1 + int(np.argmax(np.bincount(regions[bright])[1:]))
    return {
        "off_centre": float(np.hypot(seen.y[largest].mean(), seen.x[largest].mean())),
        "at_rim": float(largest[(seen.r > 0.9) & seen.inside].mean()),
    }


def _otsu(values: np.ndarray) -> float:
    """The threshold between two groups of values whose means differ most."""
    counts, edges = np.histogram(values, 64)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * middle)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))])


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is thought of K classes."""

    scores: np.ndarray  # (K,) 0 to 1; 0 where a gate was not passed
    gates: tuple[str, ...]  # (K,) the gates not passed, "" where all are
    reasons: tuple[str, ...]  # (K,) the gates, or what speaks most against the class, in words


def judge(classes: ClassSet) -> Judgement:
    """Score and reasons of every class. Averages are white particles on a darker ground."""
    features = features_of(classes)
    gates = gates_of(classes, features)
    scaled = (features.table() - _column(MIDDLE)) / _column(SPREAD)
    parts = np.clip(scaled, -MOST_SPREADS, MOST_SPREADS) * _column(WEIGHTS)
    scores = 1 / (1 + np.exp(-(parts.sum(axis=1) + OFFSET)))
    scores = np.where([bool(text) for text in gates], 0.0, scores)
    reasons = tuple(gate or _against(part) for gate, part in zip(gates, parts, strict=True))
    return Judgement(scores, gates, reasons)


def _against(part: np.ndarray) -> str:
    """The two features that take most from a score, in words."""
    words = [WORDS[SCORED[place]] for place in np.argsort(part)[:2].tolist() if part[place] < -WORTH_TELLING]
    return ", ".join(dict.fromkeys(words))


def gates_of(classes: ClassSet, features: Features) -> tuple[str, ...]:
    """Of each of K classes the gates that it does not pass, in words; "" where it passes all."""
    assert classes.resolution_A is not None
    coarse = max(COARSE_A, classes.diameter_A / COARSE_PERIODS)
    checks = (
        (classes.counts == 0, "no particles"),
        ((classes.counts > 0) & (classes.shares < EMPTY_SHARE), "hardly any particles"),
        (classes.resolution_A > coarse, f"coarser than {coarse:g} A"),
        (features.off_centre > OFF_CENTRE, ONE_SIDED),
        (features.at_rim > MOST_AT_RIM, AT_EDGE),
        (features.streak > STREAKED, STREAKS),
    )
    return tuple("; ".join(words for broken, words in checks if broken[k]) for k in range(len(classes)))


def _column(values: Mapping[str, float]) -> np.ndarray:
    return np.array([values[name] for name in SCORED])


def unresolved(classes: ClassSet) -> str:
    """What is to be said where averages resolve so little that noise looks as particles do; else ""."""
    assert classes.resolution_A is not None and classes.averages is not None
    usual_A = median_of_particles(classes.resolution_A, classes.counts)
    diameter_A = classes.diameter_A or classes.averages.shape[-1] * classes.pixel_size_A
    if usual_A * RESOLVED_PERIODS <= diameter_A:
        return ""
    return (
        f"the classes resolve little ({usual_A:.0f} A where the particle is {diameter_A:.0f} A wide): averages of "
        "noise look alike, and scores mean little; classify more particles, into fewer classes, or in a larger box"
    )


def doubts(judged: Judgement) -> str:
    """Classes that did not pass a gate, in sentences; "" where there are none. Empty ones are not told."""
    said = []
    for gate, words in _DOUBTS.items():
        numbers = [k + 1 for k, text in enumerate(judged.gates) if gate in text.split("; ")]
        said += [f"{words}: {listed(np.array(numbers))}."] if numbers else []
    return " ".join(said)
