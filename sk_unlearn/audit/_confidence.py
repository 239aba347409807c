"""How sure a model is of the label of a row, on the scale on which attacks compare it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_regressor

FloatArray = NDArray[np.float64]

LEAST = float(np.finfo(np.float32).tiny)


def logit_confidence(model: Any, X: Any, y: ArrayLike) -> FloatArray:
    """Return ``log(p_y / (1 - p_y))`` of each row, which is near normal over runs.

    Parameters
    ----------
    model : object
        With ``predict_proba`` and ``classes_``.
    X : array-like of shape (n_rows, ...)
        Target rows.
    y : array-like of shape (n_rows,)
        Their labels.

    Returns
    -------
    ndarray of shape (n_rows,)
        ``1 - p_y`` is summed over the other classes, and both are at least the smallest normal
        float32, so that each is finite (Carlini et al. 2022, section IV.C).

    Raises
    ------
    ValueError
        If the model's probabilities are none, or a label is unknown to the model.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> model = DummyClassifier().fit([[0], [0], [0], [0]], [0, 0, 0, 1])
    >>> logit_confidence(model, [[0], [0]], [0, 1]).round(4)
    array([ 1.0986, -1.0986])
    """
    columns, classes = probabilities(model, X)
    own = np.arange(columns.shape[1]) == class_indices(classes, y)[:, None]
    odds = [np.where(mask, columns, 0).sum(axis=1) for mask in (own, ~own)]
    hit, miss = np.log(np.maximum(odds, LEAST))
    return np.asarray(hit - miss)


def refuse_regressor(estimator: Any) -> None:
    """Refuse what has no probabilities of classes to look at.

    Raises
    ------
    TypeError
        Saying what can be audited instead.
    """
    if hasattr(estimator, "__sklearn_tags__") and is_regressor(estimator):
        raise TypeError(
            f"{type(estimator).__name__} is a regressor, and this audit looks at the probabilities "
            "of classes (predict_proba); audit_unlearning(..., view='weights') audits its releases"
        )


def probabilities(model: Any, X: Any) -> tuple[FloatArray, NDArray[Any]]:
    """Return (n, K) probabilities and the classes; ValueError for what are none."""
    refuse_regressor(model)
    classes = np.asarray(model.classes_)
    columns = np.asarray(model.predict_proba(X), dtype=np.float64)
    if columns.shape != (len(X), len(classes)):
        raise ValueError(
            f"predict_proba returned shape {columns.shape} for {len(X)} rows and {len(classes)} "
            "classes_; it must return one probability per row and class."
        )
    bad = ~((columns >= 0) & (columns <= 1 + 1e-6))
    if bad.any():
        raise ValueError(f"predict_proba returned {columns[bad][0]}, which is no probability.")
    return columns, classes


def class_indices(classes: NDArray[Any], y: ArrayLike) -> NDArray[np.int64]:
    """Return the column of each label; ValueError for one that the model does not know."""
    labels = np.asarray(y)
    order = np.argsort(classes)
    indices = order[np.minimum(np.searchsorted(classes[order], labels), len(classes) - 1)]
    unknown = classes[indices] != labels
    if unknown.any():
        raise ValueError(
            f"label {labels[unknown][0]!r} is not among the model's {len(classes)} classes_."
        )
    return indices
