"""A deletion beside its alternatives: doing nothing, retraining, and a model that knew nothing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import jensenshannon
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.utils import check_random_state

from ..exceptions import NotApplicableError
from ._confidence import refuse_regressor
from ._costs import NOTHING, Cost, Lesson, measured
from ._views import weights
from ._worlds import check_forget, unrecorded

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "calibration_error", "compare"]

_SETS = ("retained", "deleted", "test")
_RELEARNT = 1.05
_SHOWN = {
    **{f"accuracy_{name}": f"acc {name}" for name in _SETS},
    "log_loss_test": "loss test",
    "weight_distance": "dist w",
    "prediction_distance": "dist p",
    "relearn_epochs": "relearn",
    "wall_seconds": "seconds",
    "passes": "passes",
    "memory_mib": "MiB",
}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """One row per way to answer a deletion request.

    Parameters
    ----------
    rows : list of dict
        ``method``; ``accuracy_…``, ``log_loss_…`` (nats, mean over rows) and
        ``calibration_error_…`` on the retained, deleted and test rows; ``weight_distance``
        (Euclidean, all trainable weights; NaN where there are none to see) and
        ``prediction_distance`` (Jensen-Shannon distance in [0, 1], base 2, mean over test rows),
        both to "retrain (same init)"; ``relearn_epochs`` and ``relearn_seconds`` of training on
        the deleted rows alone until their loss is at most 5% above the fitted model's (infinite
        after 200 epochs; NaN for what is no net); ``wall_seconds`` and ``cpu_seconds`` of the
        answer; ``passes`` over the retained rows, as the training or the method counts them: an
        epoch is one, and so is each time a solver goes through all rows, for a value, a gradient,
        a Hessian product or factors (NaN for what does not count them); ``memory_mib``,
        growth of the process's resident memory during the answer (Linux; NaN elsewhere; not that
        of a GPU).
    certificate : Certificate
        Of the method's release.
    """

    rows: list[dict[str, Any]]
    certificate: Any

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas DataFrame, indexed by ``method``."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("method")

    def __repr__(self) -> str:
        """Return the main columns as a table."""
        width = max(len(row["method"]) for row in self.rows)
        lines = [" " * width + "".join(f"{title:>14}" for title in _SHOWN.values())]
        for row in self.rows:
            figures = "".join(f"{row[name]:>14.4g}" for name in _SHOWN)
            lines.append(f"{row['method']:<{width}}{figures}")
        return "\n".join(lines)


def compare(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    forget: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    epsilon: float = 1.0,
    delta: float = 1e-5,
) -> Comparison:
    """Answer one deletion request in every way there is, and measure.

    "do nothing" is the fitted model; "retrain" fits on the rows that remain, from the same and,
    where the estimator has a ``random_state``, from another initialisation; "unlearn" is the
    estimator's method; "control" is its release from weights that have learnt nothing, where the
    estimator has ``control`` and its method starts from weights. The distance between the two
    retrainings is the yardstick for the others.

    Parameters
    ----------
    estimator : classifier
        With ``unlearn(indices=..., epsilon=..., delta=...)``; it is cloned, not changed. An open
        ``random_state`` is drawn once, so that "same init" means it.
    X, y : array-like of shape (n, ...), (n,)
        Training rows and their labels.
    forget : array-like of int
        Positions of the rows to delete.
    X_test, y_test : array-like of shape (n_test, ...), (n_test,)
        Rows that were never trained on.
    epsilon, delta : float
        The guarantee to ask for.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If `forget` names no rows or all of them.
    TypeError
        For a regressor.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.audit import compare
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, random_state=0)
    >>> table = compare(clf, X[::2], y[::2], [0, 1], X[1::2], y[1::2])
    >>> [row["method"] for row in table.rows][:3]
    ['do nothing', 'retrain (same init)', 'retrain (other init)']
    """
    refuse_regressor(estimator)
    X, y = np.asarray(X), np.asarray(y)
    positions = check_forget(forget, len(y))
    keep = np.setdiff1d(np.arange(len(y)), positions)
    sets = dict(
        zip(
            _SETS,
            ((X[keep], y[keep]), (X[positions], y[positions]), (X_test, y_test)),
            strict=True,
        )
    )
    request = {"indices": positions.tolist(), "epsilon": epsilon, "delta": delta}
    base, other = _with_fixed_initialisation(estimator)
    fitted = clone(base).fit(X, y)
    retrained, cost = measured(lambda: clone(base).fit(*sets["retained"]))
    lesson = Lesson.of(fitted, *sets["deleted"])
    scale = _Scale(sets, retrained, nan if lesson is None else _RELEARNT * lesson.loss())
    rows = [
        scale.row("do nothing", fitted, NOTHING, 0.0),
        scale.row("retrain (same init)", retrained, cost, _passes_of_fit(retrained)),
    ]
    if other is not None:
        net, cost = measured(lambda: other.fit(*sets["retained"]))
        rows.append(scale.row("retrain (other init)", net, cost, _passes_of_fit(net)))
    released = deepcopy(fitted)
    _, cost = measured(lambda: released.unlearn(**request))
    certificate = released.certificate_
    passes = _passes(certificate)
    rows.append(scale.row(f"unlearn, {certificate.method}", released, cost, passes))
    if hasattr(fitted, "control"):
        subject = deepcopy(fitted)
        try:
            net, cost = measured(lambda: subject.control(**request))
        except NotApplicableError:  # a method that does nothing at deletion has none
            return Comparison(rows, certificate)
        rows.append(scale.row("control (no model)", net, cost, _passes(net.certificate_)))
    return Comparison(rows, certificate)


def calibration_error(
    y: ArrayLike, proba: ArrayLike, classes: ArrayLike, n_bins: int = 15
) -> float:
    """Return the expected calibration error of the predicted class (Guo et al. 2017).

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels.
    proba : array-like of shape (n, K)
        Probabilities, columns in the order of `classes`.
    classes : array-like of shape (K,)
        Labels of the columns.
    n_bins : int, default=15
        Bins of equal width in [0, 1], by confidence.

    Returns
    -------
    float
        Mean over rows of the distance between accuracy and mean confidence of their bin.

    Examples
    --------
    >>> round(calibration_error([0, 1], [[0.8, 0.2], [0.6, 0.4]], [0, 1]), 6)
    0.4
    """
    proba = np.asarray(proba, dtype=np.float64)
    confidence = proba.max(axis=1)
    right = np.asarray(classes)[proba.argmax(axis=1)] == np.asarray(y)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _with_fixed_initialisation(estimator: Any) -> tuple[Any, Any]:
    """Return a clone with a fixed ``random_state`` and one with another; None without any."""
    base = unrecorded(estimator)
    params = base.get_params()
    names = [name for name in params if name.split("__")[-1] == "random_state"]
    if not names:
        return base, None
    name = min(names, key=lambda name: name.count("__"))
    seed = params[name]
    if not isinstance(seed, int | np.integer):
        seed = int(check_random_state(seed).randint(2**31 - 1))
    return base.set_params(**{name: int(seed)}), clone(base).set_params(**{name: int(seed) + 1})


def _passes_of_fit(model: Any) -> float:
    """Return the passes over the rows that training made; NaN for what does not count them."""
    steps = getattr(model, "steps", None)
    return float(getattr(steps[-1][1] if steps else model, "n_passes_", nan))


def _passes(certificate: Any) -> float:
    """Return the passes over the retained rows that a release counted; NaN if it did not."""
    counted = getattr(certificate, "diagnostics", {}).get("passes")
    return nan if counted is None else float(counted)


@dataclass(frozen=True)
class _Scale:
    """What every model of the table is measured by."""

    sets: dict[str, tuple[Any, Any]]
    retrained: Any
    relearnt: float

    def row(self, name: str, model: Any, cost: Cost, passes: float) -> dict[str, Any]:
        """Return the figures of one model."""
        row: dict[str, Any] = {"method": name}
        sets = self.sets
        proba = {
            key: np.asarray(model.predict_proba(X), np.float64) for key, (X, _) in sets.items()
        }
        labels = {key: np.asarray(y) for key, (_, y) in sets.items()}
        for key in sets:
            right = model.classes_[proba[key].argmax(axis=1)] == labels[key]
            row[f"accuracy_{key}"] = float(right.mean())
        for key in sets:
            total = proba[key].sum(axis=1, keepdims=True)
            row[f"log_loss_{key}"] = float(
                log_loss(labels[key], proba[key] / total, labels=model.classes_)
            )
        for key in sets:
            row[f"calibration_error_{key}"] = calibration_error(
                labels[key], proba[key], model.classes_
            )
        row["weight_distance"] = _weight_distance(model, self.retrained)
        reference = np.asarray(self.retrained.predict_proba(sets["test"][0]), np.float64)
        row["prediction_distance"] = _prediction_distance(proba["test"], reference)
        lesson = Lesson.of(model, *sets["deleted"])
        relearning = (nan, nan) if lesson is None else lesson.learn(self.relearnt)
        row["relearn_epochs"], row["relearn_seconds"] = relearning
        row["wall_seconds"], row["cpu_seconds"] = cost.wall_seconds, cost.cpu_seconds
        row["passes"], row["memory_mib"] = passes, cost.memory_mib
        return row


def _weight_distance(model: Any, retrained: Any) -> float:
    try:
        return float(np.linalg.norm(weights(model) - weights(retrained)))
    except TypeError:
        return float("nan")


def _prediction_distance(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    distances = jensenshannon(p, q, base=2, axis=1)
    return float(np.nan_to_num(distances).mean())  # a rounding error below 0 under the root
