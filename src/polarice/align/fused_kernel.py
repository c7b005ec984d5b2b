"""The kernel of `fused`; importing it takes Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_pairs", "n_columns", "n_q", "n_angles"])  # one compilation serves most sizes
def log_sum_tile(
    spectrum, columns, prior, cosine, sine, found,  # (q, column, re and im), (pair,), (pair,), 2 of (q, angle), (pair,)
    n_pairs, n_columns, n_q, n_angles,
    listed: tl.constexpr, pair_tile: tl.constexpr, harmonic_tile: tl.constexpr, angle_tile: tl.constexpr,
    harmonic_tiles: tl.constexpr, angle_tiles: tl.constexpr, products: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64) * pair_tile + tl.arange(0, pair_tile)
    there = pair < n_pairs
    column = tl.load(columns + pair, mask=there, other=0) if listed else pair
    peak = tl.full((pair_tile,), float("-inf"), tl.float32)
    total = tl.zeros((pair_tile,), tl.float32)
    for along_circle in range(angle_tiles):
        angle = along_circle * angle_tile + tl.arange(0, angle_tile)  # of the half circle: 0 to n_angles / 2
        even = tl.zeros((pair_tile, angle_tile), tl.float32)  # the weights' parts that are even and odd in the angle
        odd = tl.zeros((pair_tile, angle_tile), tl.float32)
        for block in range(harmonic_tiles):
            q = block * harmonic_tile + tl.arange(0, harmonic_tile)
            known = (q < n_q)[None, :] & there[:, None]
            place = spectrum + 2 * (q[None, :].to(tl.int64) * n_columns + column[:, None])
            real = tl.load(place, mask=known, other=0.0)
            imaginary = tl.load(place + 1, mask=known, other=0.0)
            wave = q[:, None] * n_angles + angle[None, :]
            inside = (q < n_q)[:, None] & (angle < n_angles)[None, :]
            even = tl.dot(real, tl.load(cosine + wave, mask=inside, other=0.0), even, input_precision=products)
            odd = tl.dot(imaginary, tl.load(sine + wave, mask=inside, other=0.0), odd, input_precision=products)
        here = 2 * angle <= n_angles
        twice = (angle > 0) & (2 * angle < n_angles)  # stands for the angle and for that on the other side
        first = tl.where(here[None, :], even + odd, float("-inf"))
        second = tl.where(twice[None, :], even - odd, float("-inf"))
        higher = tl.maximum(peak, tl.max(tl.maximum(first, second), axis=1))
        both = tl.exp(first - higher[:, None]) + tl.exp(second - higher[:, None])
        total = total * tl.exp(peak - higher) + tl.sum(both, axis=1)
        peak = higher
    tl.store(found + pair, peak + tl.log(total) + tl.load(prior + pair, mask=there, other=0.0), mask=there)
