"""How much of an average is signal, ring by ring."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_GAP_RINGS = 2
SMOOTHING_RINGS = 1  # signal-to-noise ratios are averaged over this many rings on either side


def smooth_ssnr(power: Tensor, error: Tensor) -> Tensor:
    """(K, ring) signal-to-noise ratio of averages of a mean square `power`, in which noise has left `error`."""
    ssnr = torch.where(torch.isfinite(error), (power / error - 1).clamp_min(0), torch.zeros_like(power))
    kernel = ssnr.new_ones(1, 1, 2 * SMOOTHING_RINGS + 1)
    total = torch.nn.functional.conv1d(ssnr[:, None], kernel, padding=SMOOTHING_RINGS)[:, 0]
    count = torch.nn.functional.conv1d(torch.ones_like(ssnr)[:, None], kernel, padding=SMOOTHING_RINGS)[:, 0]
    return total / count


def resolved_px(ssnr: Tensor) -> Tensor:
    """(K,) last ring before the SSNR (K, ring) falls below 1; at least 1.

    Gaps of up to MAX_GAP_RINGS do not count: a hollow or round particle's transform has zeros.
    """
    above = ssnr >= 1
    padded = torch.nn.functional.pad(above.double()[:, None], (0, MAX_GAP_RINGS))
    bridged = torch.nn.functional.max_pool1d(padded, MAX_GAP_RINGS + 1, stride=1)[:, 0]
    reach = bridged.to(torch.int64).cumprod(dim=1)
    last = (reach * above * torch.arange(1, above.shape[1] + 1, device=above.device)).amax(dim=1)
    return last.clamp_min(1)
