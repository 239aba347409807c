"""The net inside a fitted pipeline or search, and the steps before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sklearn.base import MetaEstimatorMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .exceptions import DeletionRequestError, NotApplicableError

_NOTHING = (None, "passthrough")


def transformed(X: Any, steps: list[tuple[str, Any]], name: str) -> Any:
    """Pass rows, or None, through steps; complain of `name` where one refuses them."""
    if X is None:
        return None
    for step_name, step in steps:
        try:
            X = step.transform(X)
        except Exception as error:
            raise DeletionRequestError(
                f"{name} cannot pass through the step {step_name!r}: {error}"
            ) from error
    return X


def net_and_steps(estimator: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return the net and all transformers before it, outermost first."""
    if hasattr(estimator, "best_estimator_"):
        return net_and_steps(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        check_is_fitted(estimator)
        net, inner = net_and_steps(estimator.steps[-1][1])
        own = [(name, step) for name, step in estimator.steps[:-1] if step not in _NOTHING]
        return net, own + inner
    if not hasattr(estimator, "unlearn"):
        if isinstance(estimator, MetaEstimatorMixin) and not hasattr(estimator, "refit"):
            raise NotApplicableError(
                f"{type(estimator).__name__} has no unlearn: whatever it fitted on the rows, "
                "models, weights or thresholds, carries the deleted ones; take them out of the "
                "data and fit it again, or unlearn from a net that stands alone, in a Pipeline or "
                "in a search"
            )
        raise NotApplicableError(
            f"{type(estimator).__name__} has no unlearn; the last step must be a net of sk_unlearn "
            "(for a search: refit=True, and fitted)"
        )
    return estimator, []


def trial_copy(estimator: Any) -> tuple[Any, Any]:
    """Return a copy for deletions that do not count, and the net in it.

    Steps and rows are shared with `estimator`; weights and record are the copy's own.
    """
    if hasattr(estimator, "best_estimator_"):
        inner, net = trial_copy(estimator.best_estimator_)
        return _altered(estimator, best_estimator_=inner), net
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner, net = trial_copy(last)
        return _altered(estimator, steps=[*estimator.steps[:-1], (name, inner)]), net
    net, _ = net_and_steps(estimator)
    twin = net._trial_copy()
    return twin, twin


def _altered(estimator: Any, **attributes: Any) -> Any:
    twin = object.__new__(type(estimator))
    vars(twin).update(vars(estimator) | attributes)
    return twin


def parts_of(estimator: Any) -> Iterator[Any]:
    """Yield the fitted search or pipeline and every pipeline or transformer inside."""
    yield estimator
    inner = [getattr(estimator, "best_estimator_", None)]
    for name in ("steps", "transformer_list", "transformers_"):
        inner += [part[1] for part in getattr(estimator, name, ())]
    for part in inner:
        yield from parts_of(part) if part is not None else ()
