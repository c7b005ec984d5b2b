"""The first look: what cannot be used is named, the noise is measured, however images are dealt to threads."""

from dataclasses import replace

import numpy as np
import pytest

from align.test_fit import sample
from polarice.align import image_statistics as looks
from polarice.align.image_statistics import survey


class Spoilt:
    """A source with three images that cannot be used, on a bright background."""

    def __init__(self, source):
        self._source, self.box_px = source, source.box_px

    def read(self, rows):
        images = self._source.read(rows) + np.float32(1000)
        for place, row in enumerate(rows):
            if row in (3, 60, 61):
                images[place] = {3: np.nan, 60: 7.0, 61: images[place]}[int(row)]
        images[rows == 61, 0, 0] = np.inf
        return images


@pytest.mark.parametrize("workers", [1, 3])
def test_what_cannot_be_used_is_named(workers):
    images = sample().images
    images = replace(images, source=Spoilt(images.source))
    found = survey(images, np.arange(len(images)), 0, 16, workers)
    assert {row: reason.partition(" (")[0] for row, reason in found.bad.items()} == {
        3: "not a number",
        60: "constant",
        61: "not a number",
    }


def test_few_spectra_tell_the_noise_of_all(monkeypatch):
    images, rows = sample().images, np.arange(400)
    all_of_them = survey(images, rows, 0, 400)
    monkeypatch.setattr(looks, "SPECTRUM_IMAGES", 60)
    few = [survey(images, rows, 0, 4, workers) for workers in (1, 2)]  # most batches have no spectrum to be taken
    assert np.array_equal(few[0].noise_power, few[1].noise_power)
    outer = slice(all_of_them.noise_power.shape[1] // 2, None)
    assert few[0].noise_power[:, outer] == pytest.approx(all_of_them.noise_power[:, outer], rel=0.1)
    assert few[0].background_sd == pytest.approx(all_of_them.background_sd, rel=1e-5)
