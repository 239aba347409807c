"""What a release's certificate rests on and leaves out, beyond its method's own theorem."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ._permanent import backbone_assumptions, backbone_scope
from .assumptions import Assumption, Status
from .methods import Outcome
from .noise import grid_step

SCOPE = (
    "someone who also holds a model released before this deletion",
    "requests that were chosen by looking at something released while the rows were present",
    "hyper-parameters, preprocessing, early stopping or classes chosen by looking at the rows",
    "copies of the data or of the estimator kept elsewhere, and how long the deletion took",
    "that a request was refused or failed, which can depend on the rows, and what was changed then",
    "the last bits of floating-point arithmetic: the statement is about real numbers, released on "
    "a fixed public grid",
)

_SECRET_SCOPE = (
    "anything but the released model: the estimator, its pickles included, holds un-noised weights",
    "rows that are still there, and a set of rows before its last one is deleted (T19)",
)


def release_assumptions(net: Any, outcome: Outcome, duplicates: int) -> list[Assumption]:
    """Return the assumptions on noise, buffers and state of a release of `net`."""
    out = backbone_assumptions(net)
    sigma = getattr(outcome.event, "sigma", None)
    if sigma is not None:
        grid = f"on the public grid {grid_step(float(np.min(sigma))):.3g}"
        if net.noise_seed is None:
            source = "drawn from the operating system's entropy, released "
            out.append(Assumption("noise", Status.BY_CONSTRUCTION, source + grid))
        else:
            source = "drawn from noise_seed, which stays secret and is used once; released "
            out.append(Assumption("noise", Status.ASSUMED, source + grid))
    if not net.method_.covers_buffers:
        out.append(
            Assumption(
                "buffers",
                Status.BY_CONSTRUCTION,
                "no buffer of the module changed in training: all that was learned is released "
                "with noise",
            )
        )
    seen = f"{duplicates} retained rows are equal to a deleted one" if duplicates else ""
    if net.method_.state == "secret":
        return [*out, *_secret_state(net.method_, seen)]
    return [
        *out,
        Assumption(
            "state",
            Status.BY_CONSTRUCTION,
            "optimizer state, history, generator state, solver state and the deleted rows are "
            "dropped from the estimator, so that later releases are computed from this one and do "
            "not weaken it (T18)",
            seen,
        ),
    ]


def _secret_state(method: Any, seen: str) -> list[Assumption]:
    """Return the assumptions of a release after which un-noised state is kept (T19).

    The composition theorem is about the sequence of released models and needs nothing beyond
    that the state is no part of it. But the state outlives the release in a file or a process
    that someone could hand on, and whoever sees it sees the un-noised weights, as whoever sees a
    ``noise_seed`` can take the noise off. Both rest on the operator's conduct, so both are ASSUMED,
    and a release with secret state is not formal.
    """
    out = [
        Assumption(
            "state",
            Status.BY_CONSTRUCTION,
            "optimizer state, history, generator state and the deleted rows are dropped from the "
            "estimator",
            seen,
        ),
        Assumption(
            "secrecy",
            Status.ASSUMED,
            "the operator shows the un-noised state that the estimator keeps, and pickles of it, "
            "to nobody (T19)",
        ),
    ]
    horizon = getattr(method, "horizon", None)
    if horizon is not None:
        out.append(
            Assumption(
                "horizon",
                Status.BY_CONSTRUCTION,
                f"no more than {horizon} releases after fit, none weaker than one before it; each "
                f"spends 1/{horizon} of mu squared (T19)",
            )
        )
    return out


def release_scope(net: Any, outcome: Outcome) -> tuple[str, ...]:
    """Return what the certificate of a release of `net` does not say."""
    training = (*_training_scope(net), *backbone_scope(net))
    return (*SCOPE, *outcome.scope, *_state_scope(net.method_), *training)


def _state_scope(method: Any) -> tuple[str, ...]:
    if method.state != "secret":
        return ()
    if getattr(method, "horizon", None) is not None:
        return _SECRET_SCOPE
    later = (
        "releases before and after this one: rows deleted earlier since fit have the composed "
        "guarantee, and so will the rows of this one after the next (T19)"
    )
    return (*_SECRET_SCOPE, later)


def _training_scope(net: Any) -> list[str]:
    out = []
    if net.rows_ is None:
        out.append("whether X_r, y_r are the training rows that remain: the caller says so")
    if isinstance(net.fit_config_["module"], nn.Module):
        out.append("whether the module instance handed to fit had seen the rows before")
    if net.fit_config_["train_split"]:
        out.append("a validation split was used in training")
    if net.fit_config_["callbacks"]:
        out.append("callbacks ran in training; what they keep or wrote elsewhere is not covered")
    return out
