"""Checks that quote the bad value and say what to do."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np

from .assumptions import Assumption
from .exceptions import DeletionRequestError, NotApplicableError
from .methods import (
    Analytic,
    GradientClipping,
    ModelClipping,
    OutputPerturbation,
    Residual,
    Retrain,
    UnlearningMethod,
)

_NO_WEIGHTS = (
    "the statements that the certificates rest on are about the unweighted mean over rows, and "
    "weights computed from the data carry the deleted rows; repeat or drop rows instead"
)

_NO_CLASS_WEIGHTS = (
    "class weights that are counted from the data change with every deletion and carry the deleted "
    "rows, and the statements that the certificates rest on are about the unweighted mean over "
    "rows; move the decision threshold instead (sklearn.model_selection.FixedThresholdClassifier)"
)
_REASONS = {"class_weight": _NO_CLASS_WEIGHTS, "sample_weight": _NO_WEIGHTS}

SMALLEST_DELTA, LARGEST_EPSILON = 1e-12, 500.0

METHODS = {
    "analytic": Analytic,
    "residual": Residual,
    "retrain": Retrain,
    "output_perturbation": OutputPerturbation,
    "gradient_clipping": GradientClipping,
    "model_clipping": ModelClipping,
}


def check_keywords(kind: type, keywords: Iterable[str], prefixes: Iterable[str]) -> None:
    """Refuse a keyword that names nothing, with the likeliest spelling.

    Raises
    ------
    TypeError
        If a keyword is neither a parameter nor begins with a prefix and two underscores.
    """
    known = list(inspect.signature(kind).parameters)
    for name in keywords:
        # scikit-learn's checks pass one named like the catch-all itself; fit refuses it
        if name in known or any(name.startswith(f"{prefix}__") for prefix in prefixes):
            continue
        message = f"{kind.__name__}() got an unexpected keyword argument {name!r}"
        if name in _REASONS:
            raise TypeError(f"{message}: {_REASONS[name]}")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise TypeError(message + (f"; did you mean {close[0]!r}?" if close else ""))


def without_class_weight(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords less a ``class_weight`` of None, which is what there is.

    Raises
    ------
    ValueError
        For any other ``class_weight``.
    """
    weight = keywords.get("class_weight")
    if weight is not None:
        raise ValueError(f"class_weight={weight!r} is not supported: {_NO_CLASS_WEIGHTS}")
    return {name: value for name, value in keywords.items() if name != "class_weight"}


def check_fit_keywords(keywords: dict[str, Any]) -> None:
    """Refuse keywords of fit, with the reason for weights.

    Raises
    ------
    ValueError
        For ``sample_weight`` and ``class_weight``.
    TypeError
        For anything else.
    """
    for name, value in keywords.items():
        if name in _REASONS:
            if value is None:
                continue
            raise ValueError(f"{name} is not supported: {_REASONS[name]}")
        raise TypeError(f"fit() got an unexpected keyword argument {name!r}")


def check_hyperparameters(net: Any) -> None:
    """Check the net's own parameters, quoting the value.

    Raises
    ------
    ValueError
        If a value is outside its range or of the wrong type.
    """
    _number(net.lam, "lam", "a finite number >= 0", lambda v: v >= 0)
    _number(net.C, "C", "a finite number > 0", lambda v: v > 0)
    _number(net.lr, "lr", "a finite number > 0", lambda v: v > 0)
    _integer(net.max_epochs, "max_epochs", "a whole number >= 0", lambda v: v >= 0)
    _integer(
        net.batch_size, "batch_size", "a whole number >= 1, or -1", lambda v: v >= 1 or v == -1
    )
    if net.noise_seed is not None:
        _integer(net.noise_seed, "noise_seed", "None or a whole number >= 0", lambda v: v >= 0)
    if net.anchor not in ("zero", "init"):
        raise ValueError(f"anchor={net.anchor!r}; choose 'zero' or 'init'")
    if net.ledger is not None and not isinstance(net.ledger, str | os.PathLike):
        raise ValueError(f"ledger={net.ledger!r}; give a path, or None for a ledger in memory")
    if net.budget is not None:
        if not isinstance(net.budget, tuple | list) or len(net.budget) != 2:
            raise ValueError(f"budget={net.budget!r}; give (epsilon, delta), or None for no limit")
        check_guarantee(*net.budget)
    reduction = getattr(net.criterion, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(
            f"criterion with reduction={reduction!r}; the objective is a mean over rows, use 'mean'"
        )
    if getattr(net.criterion, "weight", None) is not None:
        raise ValueError(f"criterion with class weights is not supported: {_NO_CLASS_WEIGHTS}")


def check_guarantee(epsilon: float, delta: float) -> tuple[float, float]:
    """Return epsilon and delta as floats.

    Raises
    ------
    DeletionRequestError
        If epsilon is not in (0, 500], or delta not in [1e-12, 1): the noise as it is drawn ends at
        36 standard deviations, and the accountants are tested so far.
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real) or value != value:
            raise DeletionRequestError(f"{name}={value!r}; give a number")
    if not 0 < epsilon < inf:
        raise DeletionRequestError(f"epsilon={epsilon!r}; give a finite number > 0, such as 1.0")
    if not 0 < delta < 1:
        raise DeletionRequestError(f"delta={delta!r}; give a number between 0 and 1, such as 1e-5")
    if epsilon > LARGEST_EPSILON or delta < SMALLEST_DELTA:
        raise DeletionRequestError(
            f"epsilon={epsilon!r}, delta={delta!r} is beyond what the tails of the noise as it is "
            f"drawn are held to; ask for epsilon <= {LARGEST_EPSILON:g} and delta >= "
            f"{SMALLEST_DELTA:g}"
        )
    return float(epsilon), float(delta)


def check_additions(assumptions: Any, scope: Any) -> None:
    """Check what a caller adds to a certificate, before anything runs.

    Raises
    ------
    DeletionRequestError
        If they are no tuples (or lists) of assumptions and of texts.
    """
    for name, values, kind in (("assumptions", assumptions, Assumption), ("scope", scope, str)):
        plain = isinstance(values, tuple | list) and all(isinstance(v, kind) for v in values)
        if not plain:
            raise DeletionRequestError(f"{name}={values!r}; give a tuple of {kind.__name__}")


def resolve_method(method: Any, module: Any, criterion: Any, setting: Any) -> UnlearningMethod:
    """Return the method instance: as given, by its common name, or chosen for the module.

    Raises
    ------
    ValueError
        If the name is unknown or the object is no method.
    """
    if isinstance(method, UnlearningMethod):
        return method
    if method == "auto":
        return _choose_method(module, criterion, setting)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    names = ", ".join(repr(name) for name in ("auto", *METHODS))
    raise ValueError(
        f"method={method!r}; give an instance of sk_unlearn.methods, or one of {names}"
    )


def _choose_method(module: Any, criterion: Any, setting: Any) -> UnlearningMethod:
    """Return the cheapest method that is proved to keep the accuracy, or retraining."""
    for method in (Analytic(), Residual()):
        try:
            method.check(module, criterion, setting)
        except NotApplicableError:
            continue
        return method
    return Retrain()


def _number(value: Any, name: str, wanted: str, holds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(value):
        raise ValueError(f"{name}={value!r}; give {wanted}")
    if not holds(value):
        raise ValueError(f"{name}={value!r}; give {wanted}")


def _integer(value: Any, name: str, wanted: str, holds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not holds(value):
        raise ValueError(f"{name}={value!r}; give {wanted}")
