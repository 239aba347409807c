"""LiSSA: the inverse-Hessian product from a recursion over small batches, all chains at once."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .batches import Batches
from .hvp import DampedOperator
from .solution import CURE_MARGIN, Solution, Solver, SolveStatus
from .spectrum import BatchedLanczos, SpectrumEstimate, extreme_eigenvalues

if TYPE_CHECKING:
    from ..objective import Objective

_PROBED_BATCHES = 32
_PROBE_STEPS = 8
_SCALE_MARGIN = 1.5
_GROWTH_ALLOWANCE = 10.0
_CHECKED_STEPS = 64


class LiSSA(Solver):
    r"""Average of chains ``h_i = g + (I - (H_i + damping I)/S) h_{i-1}``, each ``h_s/S`` (T11).

    ``H_i`` is the Hessian (`lam` included) of a fresh batch, drawn with replacement. With
    ``B = H + damping I`` the mean is off by ``-B^{-1} (I - B/S)^{s+1} g``; the noise falls as
    ``1/sqrt(repetitions)``. Nothing is believed but the residual on all rows. When that is too
    large the conditions are probed, and the status names the one that fails: ``S`` at least the
    norm of every ``H_i + damping I``, ``B`` positive definite, and ``||E[A_i^2]|| < 1`` for
    ``A_i = I - (H_i + damping I)/S``, without which the second moment diverges though the mean
    converges (batches with negative curvature).

    Parameters
    ----------
    repetitions : int
        Chains, advanced together: all of them, or, where a batch fills the cache of a CPU (or all
        batches the objective's memory budget), as large a part of them as does not.
    steps : int
        Steps ``s`` of each chain. About ``S / (damping + lambda_min) * log(1/tol)`` are needed.
    batch_size : int
        Rows per batch. At least all rows: one chain, without noise.
    scale : float or None
        ``S``. None: 1.5 times the largest norm of ``H_i + damping I`` among 32 batches, which is
        far above the norm of the full Hessian and still no bound.
    tol : float
        Residual, relative to ``||g||``, up to which the result counts as converged.
    random_state : int, RandomState or None
        Seeds the batches.

    References
    ----------
    Agarwal, Bullins & Hazan 2017; Zhang et al. 2024, Prop. 3.5.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.objective import Objective
    >>> X, y = torch.eye(2).repeat(5, 1), torch.zeros(10, 1)
    >>> F = Objective(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), X, y, lam=0.0)
    >>> solution = LiSSA(steps=50, random_state=0).solve(F, torch.zeros(2), torch.ones(2), 1.0)
    >>> solution.status.name, [round(x, 2) for x in solution.value.tolist()]
    ('CONVERGED', [0.5, 0.5])
    """

    def __init__(
        self,
        repetitions: int = 10,
        steps: int = 1000,
        batch_size: int = 10,
        scale: float | None = None,
        tol: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.repetitions = repetitions
        self.steps = steps
        self.batch_size = batch_size
        self.scale = scale
        self.tol = tol
        self.random_state = random_state

    def _solve(self, objective: Objective, w: Tensor, g: Tensor, damping: float) -> Solution:
        for name in ("repetitions", "steps", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) and value >= 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be None or a finite number > 0, got {self.scale!r}.")
        try:
            return self._run(objective, w, g, damping)
        except FloatingPointError:
            return Solution(torch.zeros_like(g), float(g.norm()), SolveStatus.NOT_FINITE, 0)

    def _run(self, objective: Objective, w: Tensor, g: Tensor, damping: float) -> Solution:
        batches = Batches(objective, w, self.repetitions, self.batch_size, self.random_state)
        probe = _Probe(batches, damping) if self.scale is None else None
        scale = self.scale or _SCALE_MARGIN * probe.norm or 1.0
        groups = range(batches.n_groups)
        chains = [_advance(batches, g, damping, scale, self.steps) for _ in groups]
        x = torch.cat(chains).mean(0) / scale
        norm = float((DampedOperator(batches.on_all_rows, damping)(x) - g).norm())
        n_products = batches.n_row_products / objective.n_rows
        solution = Solution(x, norm, SolveStatus.CONVERGED, n_products, f"scale={scale:.4g}.")
        if norm <= self.tol * float(g.norm()):
            return solution
        probe, detail = probe or _Probe(batches, damping), solution.detail
        if probe.norm > scale:
            why = f"A batch among {_PROBED_BATCHES} has norm {probe.norm:.4g}, damping included."
            n_products = batches.n_row_products / objective.n_rows
            failed = replace(solution, status=SolveStatus.SCALE_TOO_SMALL, n_products=n_products)
            return replace(failed, detail=f"{detail} {why}")
        ends = extreme_eigenvalues(objective.hessian_at(w))
        status, why, found = self._diagnose(ends, probe, scale, damping)
        n_products = batches.n_row_products / objective.n_rows + ends.n_products
        detail = f"{detail} {why}"
        return replace(solution, status=status, n_products=n_products, detail=detail, **found)

    def _diagnose(
        self, ends: SpectrumEstimate, probe: _Probe, scale: float, damping: float
    ) -> tuple[SolveStatus, str, dict[str, float]]:
        """Name the condition of (T11) that failed, the scale excepted, and what it was found by."""
        smallest = ends.smallest + damping
        if smallest <= 0:
            cure = CURE_MARGIN * (ends.smallest_error - ends.smallest)
            why = (
                f"Lowest eigenvalue {smallest:.3g}; a damping of {cure:.3g} should do (estimates)."
            )
            found = {"curvature": smallest, "sufficient_damping": cure}
            return SolveStatus.NEGATIVE_CURVATURE, why, found
        growth = probe.growth(scale)
        if growth >= 1:
            why = (
                f"||E[A_i^2]|| = {growth:.6g} and the smallest curvature of a batch is "
                f"{probe.smallest:.3g}, damping included (among {_PROBED_BATCHES} batches)."
            )
            return SolveStatus.INDEFINITE_BATCHES, why, {}
        needed = math.ceil(scale / smallest * math.log(2 / self.tol))
        if self.steps < needed:
            why = f"About {needed} steps are needed (estimate)."
            return SolveStatus.TOO_FEW_STEPS, why, {}
        return SolveStatus.TOO_NOISY, "", {}


class _Probe:
    """What a sample of batches shows of ``H_i + damping I``: its norm, its smallest curvature."""

    def __init__(self, batches: Batches, damping: float) -> None:
        self._batches, self._shift = batches, batches.lam + damping
        n_states = -(-_PROBED_BATCHES // batches.width)
        self._states = list(batches.states(1 if batches.every_row else n_states))
        p, rng = batches.objective.n_parameters, np.random.RandomState(0)
        ends = []
        for state in self._states:
            start = torch.from_numpy(rng.uniform(-1, 1, (batches.width, p)))
            start = start.to(batches.objective.device, batches.objective.dtype)
            lanczos = BatchedLanczos(lambda v, s=state: self._product(s, v), start)
            for _ in range(min(_PROBE_STEPS, p)):
                lanczos.step()
            ends.append(lanczos.ends()[0])
        ends = torch.cat(ends)
        self.norm, self.smallest = float(ends.abs().max()), float(ends.min())

    def _product(self, state: Any, vectors: Tensor) -> Tensor:
        parts = self._batches.product(state, self._batches.objective.split(vectors))
        return torch.cat([t.flatten(1) for t in parts], 1).add_(vectors, alpha=self._shift)

    def growth(self, scale: float) -> float:
        """Estimate ``||E[A_i^2]||`` over the sample, ``A_i = I - (H_i + damping I)/scale``."""
        objective, width = self._batches.objective, self._batches.width

        def mean_square(v: Tensor) -> Tensor:
            total = torch.zeros_like(v)
            for state in self._states:
                once = v - self._product(state, v.expand(width, -1)) / scale
                total += (once - self._product(state, once) / scale).mean(0)
            return total / len(self._states)

        start = np.random.RandomState(0).uniform(-1, 1, (1, objective.n_parameters))
        lanczos = BatchedLanczos(
            mean_square, torch.from_numpy(start).to(objective.device, objective.dtype)
        )
        for _ in range(min(_PROBE_STEPS, objective.n_parameters)):
            lanczos.step()
        return float(lanczos.ends()[0].max())


def _advance(batches: Batches, g: Tensor, damping: float, scale: float, steps: int) -> Tensor:
    """Run all chains, or stop when they leave the range that contractions allow."""
    chains = g.expand(batches.width, -1).clone()
    parts = batches.objective.split(chains)
    keep, limit = 1 - (batches.lam + damping) / scale, _GROWTH_ALLOWANCE * float(g.norm())
    for step, state in enumerate(batches.states(steps), start=1):
        products = batches.product(state, parts)
        torch.add(g, chains, alpha=keep, out=chains)
        torch._foreach_add_(parts, products, alpha=-1 / scale)
        if step % _CHECKED_STEPS == 0:
            # ||h_i|| <= (i + 1) ||g|| as long as no A_i expands
            if not float(chains.norm(dim=1).max()) <= limit * (step + 1):
                break
    return chains
