"""Images with pixels that no specimen makes: X-rays on the camera, hot pixels, damaged files.

An image is an outlier where a pixel lies more than FARTHEST robust standard deviations from its median. Nothing in a
micrograph is darker than no electrons at all, which is the root of the electrons per pixel from the mean: 20 deviations
at 50 e/A^2 and 3 A per pixel, 70 at 10 A. So gold, ice and carbon stay, and so does what is too weak to do harm. Noise
reaches 100 deviations in one pixel of 10^2000.
"""

from __future__ import annotations

import numpy as np

FARTHEST = 100.0  # robust standard deviations
CLIPPED = 5.0  # from here on pixels of an outlier are replaced by its median, where it is to be kept
QUARTILE = 0.6745  # of a normal distribution, in standard deviations
LOOKED_AT = 10.0  # deviations from the mean below which an image cannot be an outlier, but for the next
FAR_SD = 4.0  # times the deviation that quartiles tell, which an image of many such pixels has
FEW = 1e-3  # share of the pixels of an image without noise
SOME_PIXELS = 256  # that the quartiles are taken of


def outliers(pixels: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> dict[int, str]:
    """Outliers among images (n, N, N), place -> what is wrong; mean and sd (n,) are those of the images' backgrounds.

    Mean and deviation tell which images need a closer look: a pixel that is far out moves them, but not by so much; and
    many such pixels make the deviation larger than the quartiles of some of the pixels tell. Each image is judged by
    itself.
    """
    flat = pixels.reshape(len(pixels), -1)
    with np.errstate(all="ignore"):  # what is not finite is looked for
        reach = np.maximum(flat.max(axis=1) - mean, mean - flat.min(axis=1))
        low, high = np.percentile(flat[:, _spread(flat.shape[1])], [25, 75], axis=1)
        usual = (high - low) / (2 * QUARTILE)
        suspect = ~(reach <= LOOKED_AT * sd) | ~np.isfinite(sd) | ~(sd <= FAR_SD * usual)
    found = {}
    for i in np.flatnonzero(suspect).tolist():
        if not np.isfinite(flat[i]).all():
            continue
        median, deviation = robust(flat[i])
        far = np.abs(flat[i].astype(np.float64) - median)
        worst = int(far.argmax())
        count = int((far > FARTHEST * deviation).sum())
        if count and (deviation > 0 or count <= max(1, FEW * far.size)):  # without noise, a few pixels alone are odd
            found[i] = (
                f"an outlier ({count} px far outside, up to {flat[i][worst]:.3g}; the rest deviate by {deviation:.3g})"
            )
    return found


def _spread(count: int) -> np.ndarray:
    """Places of some pixels among `count`, in all rows and columns alike: steps of the golden section."""
    some = min(SOME_PIXELS, count)
    return np.unique((np.arange(some) * 0.6180339887498949 % 1 * count).astype(np.int64))


def robust(values: np.ndarray) -> tuple[float, float]:
    """Median and standard deviation, in spite of a twentieth of outliers; 0 where nearly all values are the same.

    The deviation is that of the quartiles or, where it is more, that of the middle nine tenths: a particle without
    noise covers less than the quartiles show, and counts of few electrons have the same quartiles.
    """
    first, low, median, high, last = np.percentile(values, [5, 25, 50, 75, 95])
    middle = values[(values >= first) & (values <= last)].std(dtype=np.float64)
    return float(median), max(float(high - low) / (2 * QUARTILE), float(middle))


def clipped(image: np.ndarray) -> np.ndarray:
    """An image (N, N) with its median where it lies far outside."""
    median, deviation = robust(image.reshape(-1))
    if deviation == 0:
        return image
    far = np.abs(image.astype(np.float64) - median) > CLIPPED * deviation
    return np.where(far, np.float32(median), image).astype(np.float32)
