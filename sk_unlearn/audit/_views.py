"""What an auditor looks at after a release, and which number of it tells the two worlds apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._confidence import logit_confidence
from .membership import likelihood_ratio

FloatArray = NDArray[np.float64]
View = Callable[[Any], FloatArray]

_LEAST = 1e-9
VIEWS = ("weights", "predictions", "state")


def make_view(view: str, deleted: tuple[Any, Any], retained: tuple[Any, Any]) -> View:
    """Return the function that observes one released estimator as a vector.

    "weights": the trainable weights. "predictions": `logit_confidence` of the deleted rows.
    "state": the weights, all buffers, and the weights after one more ``partial_fit`` step on the
    retained rows, which shows what the optimizer still remembers.
    """
    if view == "weights":
        return weights
    if view == "predictions":
        return lambda estimator: logit_confidence(estimator, *deleted)

    def state(estimator: Any) -> FloatArray:
        if getattr(estimator.certificate_, "state", "released") == "secret":
            raise ValueError(
                "view='state' looks at what a method with state='secret' keeps to itself, and its "
                "certificate covers the released model only; use view='weights'"
            )
        seen = [weights(estimator), _flat(_module(estimator).buffers())]
        trained = deepcopy(estimator)
        if hasattr(trained, "max_epochs"):
            trained.set_params(max_epochs=1)
        trained.partial_fit(*retained)
        return np.concatenate([*seen, weights(trained)])

    return state


def weights(estimator: Any) -> FloatArray:
    """Return all trainable weights of a fitted net as one vector."""
    return _flat(p for p in _module(estimator).parameters() if p.requires_grad)


def score_runs(
    view: str, present: FloatArray, absent: FloatArray, center_difference: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """Return one score per run, large where presence is likely, by a statistic that none chose.

    Weights are projected on the difference of the two worlds' un-noised means, the likelihood
    ratio of two normal laws with the same spherical covariance. Where the method does not give
    the means away, the first quarter of the runs estimates them and is not scored. The other
    views have no such covariance: there the score is the likelihood ratio of independent normal
    laws, with means and variances from that quarter.
    """
    if view == "weights" and center_difference is not None:
        return present @ center_difference, absent @ center_difference
    first = len(present) // 4
    if view == "weights":
        difference = present[:first].mean(axis=0) - absent[:first].mean(axis=0)
        return present[first:] @ difference, absent[first:] @ difference
    law = np.array([present[:first], absent[:first]])
    scale = np.maximum(law.std(axis=1).max(axis=0), _LEAST * (1 + np.abs(law).max(axis=(0, 1))))
    present, absent = (
        likelihood_ratio(*(law / scale), world[first:] / scale).sum(axis=1)
        for world in (present, absent)
    )
    return present, absent


def _module(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    net = steps[-1][1] if steps else estimator
    if not hasattr(net, "module_"):
        raise TypeError(
            f"{type(net).__name__} has no module_ whose weights could be audited; use "
            "view='predictions'"
        )
    return net.module_


def _flat(tensors: Any) -> FloatArray:
    parts = [t.detach().cpu().numpy().ravel().astype(np.float64) for t in tensors]
    return np.concatenate(parts) if parts else np.empty(0)
