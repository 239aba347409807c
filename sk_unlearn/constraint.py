"""The ball ``||w - w_ref|| <= C`` around the anchor: measure, project, follow an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_INSIDE = 1.0 - 1e-6
_INSIDE_FLOAT64 = 1.0 - 1e-9


class Ball:
    """Euclidean ball over all trainable parameters together (T8).

    Parameters
    ----------
    parameters : sequence of Tensor
        The parameters that are kept inside, changed in place.
    reference : sequence of Tensor or None
        Centre, one tensor for each parameter; None is the origin.
    radius : float
        Radius C. Projection goes a hair inside (1e-6 relative), because float32 rounding
        would otherwise exceed it.
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

    @torch.no_grad()
    def _distance(self, offsets: list[torch.Tensor]) -> torch.Tensor:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(offsets)))

    @torch.no_grad()
    def distance(self) -> float:
        """Euclidean distance of the parameters from the centre."""
        if self.reference is None:
            return float(self._distance(self.parameters))
        return float(self._distance(torch._foreach_sub(self.parameters, self.reference)))

    @torch.no_grad()
    def project_(self) -> None:
        """Move the parameters onto the ball, in place, without waiting for the device."""
        offsets = self.parameters
        if self.reference is not None:
            offsets = torch._foreach_sub(self.parameters, self.reference)
        shrink = torch.clamp(self.radius * _INSIDE / self._distance(offsets), max=1.0)
        torch._foreach_mul_(self.parameters, shrink)
        if self.reference is not None:
            torch._foreach_add_(self.parameters, torch._foreach_mul(self.reference, 1.0 - shrink))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Project after every step of `optimizer`.

        The hook lives on the optimizer, so mixins that bypass the training step cannot
        bypass it; pickling drops it, so it is attached again on loading.
        """
        optimizer.register_step_post_hook(lambda *_: self.project_())


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
    inner = radius * _INSIDE_FLOAT64
    if distance <= inner:
        return vector.copy()
    return reference + offset * (inner / distance)
