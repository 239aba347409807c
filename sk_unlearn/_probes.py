"""What an objective finds out about its module and loss by running a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .curvature.products import double_backward
from .exceptions import NotApplicableError

if TYPE_CHECKING:
    from .objective import Objective

_PROBED_ROWS = 4


def check_mean_over_rows(objective: Objective) -> None:
    """Check on the first rows that the loss is a mean over rows that do not see each other.

    Raises
    ------
    NotApplicableError
        If it is not, or the module is not deterministic, or writes to its input.
    ValueError
        If the loss is not finite.
    """
    if getattr(objective.loss, "weight", None) is not None:
        raise NotApplicableError(
            f"The loss {objective.loss!r} has weights, so it is no mean over rows: remove them."
        )
    X, y = (objective.cast(t[:_PROBED_ROWS]).clone() for t in (objective.X, objective.y))
    with torch.no_grad():
        unchanged = X._version
        together = objective.batch_loss(objective.like, X, y)
        if X._version != unchanged:
            raise NotApplicableError(
                f"{type(objective.module).__name__} writes to its input, which would change the "
                "data: take out the inplace=True of its first layers."
            )
        if together.shape != ():
            raise NotApplicableError(
                f"The loss has shape {tuple(together.shape)}, expected a scalar: use a criterion "
                "with reduction='mean'."
            )
        pairs = zip(X.split(1), y.split(1), strict=True)
        apart = torch.stack([objective.batch_loss(objective.like, *pair) for pair in pairs]).mean()
    if not (together.isfinite() and apart.isfinite()):
        raise ValueError(
            f"The loss of the first rows is {together.item()}: look for NaN or infinite entries "
            "in X, y and the module's parameters."
        )
    if not torch.isclose(together, apart, rtol=1e-3, atol=1e-5):
        raise NotApplicableError(
            f"The loss of {len(y)} rows is {together.item():.6g} and the mean of their losses is "
            f"{apart.item():.6g}: the loss must be a mean over rows (reduction='mean'), and the "
            "module deterministic, with rows that do not see each other."
        )


def graph_bytes_per_row(objective: Objective) -> int:
    """Estimate what a row adds to the graph of a double backward pass.

    Twice what it adds to the graph of a forward pass, which is measured.
    """
    first = objective.X[:1], objective.y[:1]
    two = (torch.cat([t, t]) for t in first)
    one, both = (_saved_bytes(objective, *map(objective.cast, pair)) for pair in (first, two))
    return max(2 * (both - one), objective.X[0].nbytes, 1)


def _saved_bytes(objective: Objective, X: Tensor, y: Tensor) -> int:
    saved: dict[tuple[int, int], int] = {}

    def count(t: Tensor) -> Tensor:
        saved[t.data_ptr(), t.numel()] = t.nbytes
        return t.detach()  # an output kept as it is would keep its own graph alive

    leaves = [p.clone().requires_grad_() for p in objective.like]
    with double_backward(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        objective.batch_loss(leaves, X, y)
    return sum(saved.values())
