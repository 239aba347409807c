"""The two ends of a spectrum, by Lanczos: estimates from inside, never bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from .hvp import HessianOperator

_BASIS_BYTES = 2**30
_MIN_PRODUCTS = 20


@dataclass(frozen=True)
class SpectrumEstimate:
    """What Lanczos saw of a symmetric operator's spectrum.

    Parameters
    ----------
    smallest, largest : float
        Ritz values. Up to rounding they lie between the true ends: the smallest eigenvalue is
        at most `smallest`, the largest at least `largest`, and a start that misses an
        eigenvector misses its eigenvalue.
    smallest_error, largest_error : float
        Norm of the residual of the Ritz vector: *some* eigenvalue is that close to the estimate.
    n_products : int
        Products with the operator.
    is_bound : bool
        False: a certificate must not rest on these figures.
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    n_products: int
    is_bound: bool = False


def extreme_eigenvalues(
    operator: HessianOperator,
    *,
    tol: float = 1e-2,
    max_products: int = 100,
    random_state: int | np.random.RandomState | None = 0,
) -> SpectrumEstimate:
    """Estimate the smallest and the largest eigenvalue of a symmetric operator.

    Lanczos with full reorthogonalisation, until both residuals are at most `tol` times the
    eigenvalue (or 1% of the spectral norm, if that is larger), but not before 20 products; or
    until the products or 1 GiB of basis vectors are spent.

    Parameters
    ----------
    operator : HessianOperator
        Or any callable ``v -> A v`` with `n_parameters`, `dtype` and `device`.
    tol : float
    max_products : int
    random_state : int, RandomState or None
        Seeds the start vector.

    Returns
    -------
    SpectrumEstimate

    Raises
    ------
    FloatingPointError
        If a product is not finite.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.objective import Objective
    >>> X, y = torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.zeros(3, 1)
    >>> F = Objective(torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss(), X, y, lam=0.0)
    >>> ends = extreme_eigenvalues(F.hessian_at(torch.zeros(3)))
    >>> print(f"{ends.smallest:.4f} {ends.largest:.4f} {ends.is_bound}")
    0.6667 10.6667 False
    """
    p = operator.n_parameters
    start = check_random_state(random_state).uniform(-1, 1, (1, p))
    start = torch.from_numpy(start).to(operator.device, operator.dtype)
    lanczos = BatchedLanczos(lambda v: operator(v[0])[None], start)
    fits = max(2, _BASIS_BYTES // (p * start.element_size()))
    for _ in range(min(p, max_products, fits)):
        lanczos.step()
        ends, errors = (pair[0] for pair in lanczos.ends())
        settled = errors <= tol * ends.abs().clamp_min(0.01 * ends.abs().max())
        if lanczos.n_steps >= _MIN_PRODUCTS and settled.all():
            break
    return SpectrumEstimate(*ends.tolist(), *errors.tolist(), n_products=lanczos.n_steps)


class BatchedLanczos:
    """Lanczos on many symmetric operators at once, with full reorthogonalisation.

    Parameters
    ----------
    product : callable
        ``V -> A V`` for `V` of shape (m, p): row ``i`` times the ``i``-th operator.
    start : Tensor of shape (m, p)

    Raises
    ------
    FloatingPointError
        In :meth:`step`, if a product is not finite.

    Examples
    --------
    >>> import torch
    >>> lanczos = BatchedLanczos(lambda v: v * torch.tensor([[1.0, 3.0]]), torch.ones(1, 2))
    >>> lanczos.step(), lanczos.step()
    (None, None)
    >>> [round(end, 4) for end in lanczos.ends()[0][0].tolist()]
    [1.0, 3.0]
    """

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor) -> None:
        self._product = product
        self._basis = [start / start.norm(dim=1, keepdim=True)]
        self._diagonal: list[Tensor] = []
        self._off_diagonal: list[Tensor] = []

    @property
    def n_steps(self) -> int:
        """Products of each operator so far."""
        return len(self._diagonal)

    def step(self) -> None:
        """Enlarge the Krylov spaces by one vector."""
        q = self._basis[-1]
        image = self._product(q)
        rayleigh, scale = (q * image).sum(1), image.norm(dim=1)
        if not scale.isfinite().all():
            raise FloatingPointError("A product with the operator has NaN or infinite entries.")
        for _ in range(2):  # twice is enough
            for previous in self._basis:
                image = image - (previous * image).sum(1, keepdim=True) * previous
        norm = image.norm(dim=1)
        # An exhausted space stays as it is: an entry decoupled from it, at a value it holds.
        alive = norm > 100 * torch.finfo(norm.dtype).eps * scale
        if self._diagonal:
            exhausted = self._off_diagonal[-1] == 0
            rayleigh = torch.where(exhausted, self._diagonal[0], rayleigh)
            alive = alive & ~exhausted
        self._diagonal.append(rayleigh)
        self._off_diagonal.append(torch.where(alive, norm, 0))
        self._basis.append(torch.where(alive[:, None], image / norm[:, None], 0))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the outer Ritz values and their residual norms, each of shape (m, 2)."""
        diagonal = torch.stack(self._diagonal, -1).double()
        matrix = torch.diag_embed(diagonal)
        if self.n_steps > 1:
            off = torch.stack(self._off_diagonal[:-1], -1).double()
            matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        residuals = self._off_diagonal[-1][:, None].double() * vectors[:, -1, :].abs()
        return values[:, [0, -1]], residuals[:, [0, -1]]
