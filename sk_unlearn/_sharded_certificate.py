"""What a deletion by shards promises, and on what that rests."""

from __future__ import annotations

from typing import Any

from ._statement import SCOPE
from .assumptions import Assumption, Status
from .certificate import Certificate
from .events import ExactRelease

_HOW = (
    "the shards and slices that saw the rows were trained again without them; a row's shard "
    "depends on no other row"
)
_ASSUMPTIONS = (
    Assumption(
        "assignment",
        Status.BY_CONSTRUCTION,
        "shard and slice of a row are a salted hash of its features; the salt depends on no row",
    ),
    Assumption(
        "retraining",
        Status.BY_CONSTRUCTION,
        "every model is a clone of the estimator that was given the retained rows of its shard "
        "alone, or goes on from a checkpoint that saw no deleted row",
    ),
    Assumption(
        "state",
        Status.BY_CONSTRUCTION,
        "the deleted rows and every model that saw them are dropped",
    ),
)
_SCOPE = (
    *SCOPE,
    "requests chosen after looking at the models, also at those released after an earlier "
    "deletion: which shard a row is in shows in them (Gupta et al. 2021)",
    "what the estimator keeps outside itself, such as caches and log files",
)


def certify(
    net: Any,
    n_deleted: int,
    n_retained: int,
    diagnostics: dict[str, Any],
    assumptions: tuple[Assumption, ...],
    scope: tuple[str, ...],
) -> Certificate:
    """Return the certificate of an exact deletion, with what the caller adds to it."""
    return Certificate.issue(
        ExactRelease(_HOW),
        0.0,
        0.0,
        (*_ASSUMPTIONS, *assumptions),
        method=" ".join(repr(net).split()),
        n_deleted=n_deleted,
        n_retained=n_retained,
        n_parameters=None,
        scope=(*_SCOPE, *scope),
        weights_norm=None,
        diagnostics=diagnostics,
    )
