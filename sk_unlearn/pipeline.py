"""Deletion through scikit-learn pipelines and searches, and what the steps before the net leak."""

from __future__ import annotations

from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if

from ._pipeline_parts import net_and_steps, parts_of, transformed
from .assumptions import Assumption, Status
from .exceptions import NotApplicableError

REPLACEMENTS = (
    "sk_unlearn.preprocessing.PublicScaler(center=..., scale=...), "
    "PublicOneHotEncoder(categories=...) or ClipToBall(radius), scikit-learn's Normalizer or "
    "FunctionTransformer, or FrozenEstimator around a step that was fitted on public data"
)


def fitted_steps(step: Any, name: str = "") -> list[str]:
    """Return the names of the steps inside that learned something from the training rows.

    Parameters
    ----------
    step : transformer, Pipeline, FeatureUnion, ColumnTransformer or str
        Fitted or not. Steps that are ``"passthrough"``, frozen, or that say by their
        ``requires_fit`` tag that they learn nothing are data-independent.
    name : str
        How the step is called in the answer.

    Returns
    -------
    list of str
        Empty when nothing leaks.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import Normalizer, StandardScaler
    >>> from sk_unlearn.pipeline import fitted_steps
    >>> fitted_steps(make_pipeline(Normalizer(), StandardScaler()))
    ['standardscaler']
    """
    return [path for path, kind in _leaves(step, name) if kind == "fitted"]


def frozen_steps(step: Any, name: str = "") -> list[str]:
    """Return the names of the steps inside that are frozen, and so public, by declaration."""
    return [path for path, kind in _leaves(step, name) if kind == "frozen"]


def _leaves(step: Any, name: str) -> list[tuple[str, str]]:
    if step is None or (isinstance(step, str) and step in ("passthrough", "drop")):
        return []
    if isinstance(step, FrozenEstimator):
        return [(name, "frozen")]
    if isinstance(step, Pipeline):
        inner = [(key, part) for key, part in step.steps]
    elif isinstance(step, FeatureUnion):
        inner = [(key, part) for key, part in step.transformer_list]
    elif isinstance(step, ColumnTransformer):
        inner = [(key, part) for key, part, _ in getattr(step, "transformers_", step.transformers)]
        if not hasattr(step, "transformers_"):
            inner.append(("remainder", step.remainder))
    else:
        return [(name, "fitted")] if get_tags(step).requires_fit else []
    prefix = f"{name}." if name else ""
    return [leaf for key, part in inner for leaf in _leaves(part, prefix + key)]


def unlearn(
    estimator: Any,
    X_u: Any = None,
    y_u: Any = None,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    *,
    indices: Any = None,
    sample_ids: Any = None,
    X_r: Any = None,
    y_r: Any = None,
    allow_leaks: bool = False,
) -> Any:
    """Delete training rows from the net at the end of a fitted pipeline or search.

    Parameters
    ----------
    estimator : Pipeline, search with ``best_estimator_``, or net
        Fitted. Pipelines may be nested, with ColumnTransformer and FeatureUnion inside.
    X_u, y_u : array-like, optional
        Rows as they went into `estimator`; the steps before the net transform them.
    epsilon, delta, indices, sample_ids
        As in :meth:`sk_unlearn.CertifiedNeuralClassifier.unlearn`.
    X_r, y_r : array-like, optional
        The rows that stay, as they went into `estimator`; for nets with ``store_data=False``.
    allow_leaks : bool
        Go ahead although a step before the net was fitted on the rows: the certificate then
        names the step and is not formal.

    Returns
    -------
    estimator

    Raises
    ------
    NotApplicableError
        If a step was fitted on the rows, naming it and the public replacements; if the last
        step cannot unlearn.
    DeletionRequestError
        As in ``unlearn`` of the net; if a step cannot transform the rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import Normalizer
    >>> import sk_unlearn
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> net = sk_unlearn.CertifiedNeuralClassifier(LinearHead, C=100.0)
    >>> pipe = make_pipeline(Normalizer(), net).fit(X, y)
    >>> sk_unlearn.unlearn(pipe, X[:2], y[:2])[-1].certificate_.formal
    True
    """
    net, steps, promise = _through(estimator, allow_leaks)
    rest = {}
    if X_r is not None or y_r is not None:
        rest = {"X_r": transformed(X_r, steps, "X_r"), "y_r": y_r}
    net.unlearn(
        transformed(X_u, steps, "X_u"),
        y_u,
        epsilon,
        delta,
        indices=indices,
        sample_ids=sample_ids,
        **rest,
        **promise,
    )
    return estimator


def _through(
    estimator: Any, allow_leaks: bool
) -> tuple[Any, list[tuple[str, Any]], dict[str, tuple[Any, ...]]]:
    """Return the net, the steps before it, and what they add to a certificate."""
    net, steps = net_and_steps(estimator)
    leaks = [leaf for name, step in steps for leaf in fitted_steps(step, name)]
    if leaks and not allow_leaks:
        raise NotApplicableError(
            f"the steps {leaks} were fitted on the training rows, so what they pass on carries the "
            f"deleted ones. Replace them by {REPLACEMENTS}; or pass allow_leaks=True for a "
            "certificate that is not formal and says so"
        )
    scope = _scope(steps) + _cache_scope(estimator)
    return net, steps, {"assumptions": _leak_assumptions(leaks), "scope": scope}


def _leak_assumptions(leaks: list[str]) -> tuple[Assumption, ...]:
    if not leaks:
        return ()
    statement = (
        f"the pipeline steps {', '.join(leaks)} were fitted on the rows in question and are "
        "released as they are; that this gives nothing away is not proved"
    )
    return (Assumption("preprocessing", Status.ASSUMED, statement),)


def _scope(steps: list[tuple[str, Any]]) -> tuple[str, ...]:
    out = []
    if steps:
        names = ", ".join(name for name, _ in steps)
        out.append(f"whether the pipeline steps {names} compute each row from that row alone")
    frozen = [leaf for name, step in steps for leaf in frozen_steps(step, name)]
    if frozen:
        out.append(
            f"the pipeline steps {', '.join(frozen)}: frozen by declaration, so not fitted "
            "on the rows"
        )
    return tuple(out)


def _cache_scope(estimator: Any) -> tuple[str, ...]:
    if not any(getattr(part, "memory", None) is not None for part in parts_of(estimator)):
        return ()
    return ("the pipeline's cache on disk (memory=), which holds rows: clear it",)


def _last_can(method: str) -> Any:
    def check(pipeline: Pipeline) -> bool:
        return hasattr(pipeline.steps[-1][1], method)

    return check


class UnlearningPipeline(Pipeline):
    """A Pipeline with the ``unlearn`` of its last step; otherwise as in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.preprocessing import Normalizer
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.modules import LinearHead
    >>> from sk_unlearn.pipeline import UnlearningPipeline
    >>> X, y = load_iris(return_X_y=True)
    >>> net = CertifiedNeuralClassifier(LinearHead, C=100.0)
    >>> pipe = UnlearningPipeline([("norm", Normalizer()), ("net", net)]).fit(X, y)
    >>> pipe.unlearn(X[:2], y[:2]).certificate_.n_deleted
    2
    """

    @available_if(_last_can("unlearn"))
    def unlearn(
        self,
        X_u: Any = None,
        y_u: Any = None,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        X_r: Any = None,
        y_r: Any = None,
        allow_leaks: bool = False,
    ) -> UnlearningPipeline:
        """Delete training rows; see :func:`sk_unlearn.unlearn`."""
        return unlearn(
            self,
            X_u,
            y_u,
            epsilon,
            delta,
            indices=indices,
            sample_ids=sample_ids,
            X_r=X_r,
            y_r=y_r,
            allow_leaks=allow_leaks,
        )

    @available_if(_last_can("amend"))
    def amend(
        self,
        X_old: Any = None,
        y_old: Any = None,
        X_new: Any = None,
        y_new: Any = None,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        allow_leaks: bool = False,
    ) -> UnlearningPipeline:
        """Correct rows as they go into this pipeline; see the net's ``amend``.

        For `allow_leaks` see :func:`sk_unlearn.unlearn`.
        """
        net, steps, promise = _through(self, allow_leaks)
        net.amend(
            transformed(X_old, steps, "X_old"),
            y_old,
            transformed(X_new, steps, "X_new"),
            y_new,
            epsilon,
            delta,
            indices=indices,
            sample_ids=sample_ids,
            **promise,
        )
        return self

    @available_if(_last_can("request_deletion"))
    def request_deletion(
        self,
        X_u: Any = None,
        y_u: Any = None,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        request_id: str | None = None,
    ) -> str:
        """Queue rows as they went into this pipeline; see the net's ``request_deletion``."""
        net, steps = net_and_steps(self)
        rows = transformed(X_u, steps, "X_u")
        named = {"indices": indices, "sample_ids": sample_ids}
        return net.request_deletion(rows, y_u, **named, request_id=request_id)

    @available_if(_last_can("process_deletions"))
    def process_deletions(
        self, epsilon: float = 1.0, delta: float = 1e-5, *, allow_leaks: bool = False
    ) -> UnlearningPipeline:
        """Serve what waits in one release; see :func:`sk_unlearn.unlearn` for `allow_leaks`."""
        net, _, promise = _through(self, allow_leaks)
        net.process_deletions(epsilon, delta, **promise)
        return self

    @property
    def certificate_(self) -> Any:
        """Certificate of the last release of the net."""
        return net_and_steps(self)[0].certificate_
