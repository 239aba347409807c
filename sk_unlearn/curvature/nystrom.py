"""A low-rank sketch of a Hessian as a preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 1e-4
"""Least factor of a direction, far above what float32 leaves of orthogonality."""


@dataclass(frozen=True)
class NystromFactors:
    """Preconditioner ``I + U diag(shrink) U^T`` from a randomised Nystrom approximation.

    With ``U diag(e) U^T`` near the matrix, ``shrink = (e_min + lam) / (e + lam) - 1`` makes its
    largest eigenvalues as small as the last one found (Frangella, Tropp and Udell 2023).

    Parameters
    ----------
    basis : Tensor of shape (p, r), float32
        Orthonormal columns.
    shrink : Tensor of shape (r,), float32
        In (-1, 0].
    """

    basis: Tensor
    shrink: Tensor

    @classmethod
    def of(
        cls, product: Callable[[Tensor], Tensor], size: int, rank: int, lam: float
    ) -> NystromFactors:
        """Sketch the matrix of `product` on a random block and on what the matrix makes of it.

        Parameters
        ----------
        product : callable
            ``V -> A V`` on columns (p, rank), symmetric and positive semi-definite.
        size, rank : int
            p, and how many products are spent.
        lam : float
            What is added to A; positive.

        Examples
        --------
        >>> import numpy as np
        >>> import torch
        >>> scale = torch.tensor([100.0, 10.0, 1.0])
        >>> factors = NystromFactors.of(lambda V: scale[:, None] * V, size=3, rank=3, lam=1.0)
        >>> factors.solve(np.array([101.0, 11.0, 2.0])).round(3)
        array([2., 2., 2.])
        """
        generator = torch.Generator().manual_seed(0)
        half = (rank + 1) // 2
        block, tests, images = torch.rand(size, half, generator=generator) - 0.5, [], []
        for width in (half, rank - half):
            for _ in range(2):
                for before in tests:
                    block = block - before @ (before.T @ block)
            tests.append(torch.linalg.qr(block[:, :width])[0])
            images.append(product(tests[-1]).float())
            block = images[-1]
        test, image = torch.cat(tests, dim=1), torch.cat(images, dim=1)
        del block, tests, images
        shift = float(torch.finfo(torch.float32).eps * torch.linalg.vector_norm(image) * rank**0.5)
        image.add_(test, alpha=shift)
        core = (test.T @ image).double()
        del test
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        good = values > shift / 2
        image = image @ (vectors[:, good] / values[good].sqrt()).float()
        basis, left = torch.linalg.qr(image)
        turn, roots, _ = torch.linalg.svd(left.double())
        found = (roots.square() - shift).clamp_min(0.0)
        factor = ((found[-1] + lam) / (found + lam)).clamp_min(_SMALLEST)
        return cls(basis @ turn.float(), (factor - 1.0).float())

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return the preconditioner times `gradient` (p,)."""
        g = torch.from_numpy(gradient).float()
        return (g + self.correction(g)).double().numpy()

    def correction(self, g: Tensor) -> Tensor:
        """Return what the preconditioner adds to a vector (p,), float32."""
        return self.basis @ (self.shrink * (self.basis.T @ g))
