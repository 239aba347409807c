"""The ball ``||w - w_ref|| <= C`` around the anchor: measure, project, follow an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_HAIR = 2e-5
_HAIR_FLOAT64 = 1e-9
_ROW = 4096
_TINY = 1e-30


class Ball:
    """Euclidean ball over all trainable parameters together (T8).

    Parameters
    ----------
    parameters : sequence of Tensor
        The parameters that are kept inside, changed in place.
    reference : sequence of Tensor or None
        Centre, one tensor for each parameter; None is the origin.
    radius : float
        Radius C. Projection goes a hair inside (2e-5 relative, and 4 float32 units of the
        anchor), because rounding would otherwise exceed it.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        reference: Sequence[torch.Tensor] | None,
        radius: float,
    ) -> None:
        self.parameters = list(parameters)
        self.reference = None if reference is None else list(reference)
        self.radius = radius
        anchor = 0.0 if self.reference is None else float(_norm(self.reference))
        unit = max(torch.finfo(p.dtype).eps for p in self.parameters)
        self._inner = max(radius * (1.0 - _HAIR - 4 * unit) - 4 * unit * anchor, _TINY)

    @torch.no_grad()
    def distance(self) -> float:
        """Euclidean distance of the parameters from the centre."""
        return float(_norm(self._offsets()))

    def _offsets(self) -> Sequence[torch.Tensor]:
        if self.reference is None:
            return self.parameters
        return torch._foreach_sub(self.parameters, self.reference)

    @torch.no_grad()
    def project_(self) -> None:
        """Move the parameters onto the ball, in place, without waiting for the device."""
        shrink = torch.clamp(self._inner / _norm(self._offsets()), max=1.0)
        torch._foreach_mul_(self.parameters, shrink)
        if self.reference is not None:
            torch._foreach_add_(self.parameters, torch._foreach_mul(self.reference, 1.0 - shrink))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Project after every step of `optimizer`.

        The hook lives on the optimizer, so mixins that bypass the training step cannot
        bypass it; pickling drops it, so it is attached again on loading.
        """
        optimizer.register_step_post_hook(lambda *_: self.project_())


@torch.no_grad()
def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all tensors together, within half a `_HAIR`.

    torch sums the squares of a row one after the other; of ten million float32 numbers that
    is off by 4e-4. So long tensors are cut into rows, and few norms are summed pairwise.
    """
    flat = [t.reshape(-1) for t in tensors]
    long = [v for v in flat if len(v) > _ROW]
    short = [v for v in flat if len(v) <= _ROW] + [v[len(v) // _ROW * _ROW :] for v in long]
    norms = [torch.linalg.vector_norm(v.unfold(0, _ROW, _ROW), dim=1) for v in long]
    norms.append(torch.stack(torch._foreach_norm(short)))
    return torch.cat(norms).square().sum().sqrt()


def project(vector: np.ndarray, reference: np.ndarray, radius: float) -> np.ndarray:
    """Return the nearest point of the ball, in float64; a non-finite vector gives the centre.

    The ball is a hair smaller (1e-9 relative) for every vector alike, so that rounding does
    not leave it, and so that the map has no jump and does not expand distances (T12). The
    centre for a vector that is not finite keeps (T8) true in both worlds even when training
    diverged in one of them.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_unlearn.constraint import project
    >>> bool(np.linalg.norm(project(np.full(4, 9.0), np.zeros(4), 1.0)) <= 1.0)
    True
    """
    offset = vector - reference
    distance = float(np.linalg.norm(offset))
    if not np.isfinite(distance):
        return reference.copy()
    inner = radius * (1.0 - _HAIR_FLOAT64)
    if distance <= inner:
        return vector.copy()
    return reference + offset * (inner / distance)
