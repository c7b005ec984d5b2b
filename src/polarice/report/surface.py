"""Three views of a map's surface as one PNG, for the pages of jobs that make maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polarice.report.montage import png_bytes

if TYPE_CHECKING:
    from torch import Tensor

SIDE_PX = 400


def surface_png(
    density: Tensor, level: float, values: Tensor | None = None, limits: tuple[float, float] = (0.0, 1.0)
) -> bytes:
    """Along z, x and y, of a density (N, N, N) at a level; coloured by values (N, N, N) where these are given, which
    are blue at the lower limit and red at the upper."""
    from matplotlib import colormaps
    from PIL import Image

    from polarice.postprocessing.surface import by_value, picture

    colours = (
        None
        if values is None
        else by_value(values, limits, lambda share: np.asarray(colormaps["turbo"](0.1 + 0.82 * share)))
    )
    return png_bytes(Image.fromarray(picture(density, level, SIDE_PX, colours)))
