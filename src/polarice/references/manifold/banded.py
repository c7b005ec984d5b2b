"""Symmetric positive definite systems in which the first unknown meets all others, and those meet near ones only.

    A = | a  c' |       B block tridiagonal: diagonal blocks T_i, below them E_i
        | c  B  |

B = L L' with L_i L_i' = T_i - N_i N_i' and N_i = E_i L_(i-1)'^-1, and the first unknown is eliminated last: the
Cholesky factor of A with its first row at the end (Golub and Van Loan, Matrix Computations, 4.5). One block is a full
system.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Systems:
    """Several of one shape; M unknowns, float64."""

    border: Tensor  # (system, M) a, then c
    diagonal: list[Tensor]  # T_i, (system, n_i, n_i)
    below: list[Tensor]  # E_i of all blocks but the first, (system, n_i, n_(i-1))

    def shifted(self, shift: Tensor, corner: float) -> Systems:
        """The same with shift (system,) added to the diagonal of B, and `corner` to the whole diagonal."""
        border = self.border.clone()
        border[:, 0] += corner
        identity = [torch.eye(block.shape[-1], dtype=block.dtype, device=block.device) for block in self.diagonal]
        added = (shift + corner)[:, None, None]
        return Systems(
            border, [block + added * eye for block, eye in zip(self.diagonal, identity, strict=True)], self.below
        )

    def trace(self) -> Tensor:
        """(system,) of A."""
        return self.border[:, 0] + sum(block.diagonal(dim1=1, dim2=2).sum(dim=1) for block in self.diagonal)

    def factors(self) -> Factors:
        """Raises torch.linalg.LinAlgError where a system is not positive definite."""
        lower, coupling = [torch.linalg.cholesky(self.diagonal[0])], []
        for block, below in zip(self.diagonal[1:], self.below, strict=True):
            coupling.append(torch.linalg.solve_triangular(lower[-1].mT, below, upper=True, left=False))
            lower.append(torch.linalg.cholesky(torch.baddbmm(block, coupling[-1], coupling[-1].mT, alpha=-1)))
        plain = Factors(lower, coupling, self.border[:, :0, None], self.border[:, :1, None])
        border = plain.down(self.border[:, 1:, None])
        corner = torch.linalg.cholesky(self.border[:, :1, None] - border.mT @ border)
        return Factors(lower, coupling, border, corner)


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of several systems."""

    lower: list[Tensor]  # L_i, (system, n_i, n_i)
    coupling: list[Tensor]  # N_i of all blocks but the first
    border: Tensor  # (system, M - 1, 1) L^-1 c
    corner: Tensor  # (system, 1, 1)

    def solve(self, right: Tensor) -> Tensor:
        """A^-1 right, (system, M, column)."""
        found = self.half(right)
        found[:, :1] /= self.corner
        self._up(found[:, 1:].sub_(self.border * found[:, :1]))
        return found

    def half(self, right: Tensor) -> Tensor:
        """H right with H' H = A^-1: (system, M, column)."""
        found = torch.empty_like(right)
        self.down(right[:, 1:], out=found[:, 1:])
        torch.sub(right[:, :1], self.border.mT @ found[:, 1:], out=found[:, :1]).div_(self.corner)
        return found

    def down(self, right: Tensor, out: Tensor | None = None) -> Tensor:
        """L^-1 right, (system, M - 1, column)."""
        found = torch.empty_like(right) if out is None else out
        before = None
        for i, (rows, lower) in enumerate(zip(self._rows(), self.lower, strict=True)):
            left = right[:, rows]
            if before is not None:
                left = torch.baddbmm(left, self.coupling[i - 1], found[:, before], alpha=-1)
            found[:, rows] = torch.linalg.solve_triangular(lower, left, upper=False)
            before = rows
        return found

    def _up(self, values: Tensor) -> None:
        """L'^-1 values, in their place."""
        after = None
        for i, (rows, lower) in reversed(list(enumerate(zip(self._rows(), self.lower, strict=True)))):
            left = values[:, rows]
            if after is not None:
                left = torch.baddbmm(left, self.coupling[i].mT, values[:, after], alpha=-1)
            values[:, rows] = torch.linalg.solve_triangular(lower.mT, left, upper=True)
            after = rows

    def _rows(self) -> list[slice]:
        ends = list(itertools.accumulate((block.shape[-1] for block in self.lower), initial=0))
        return [slice(a, b) for a, b in itertools.pairwise(ends)]
