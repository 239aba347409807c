"""Permanent rows: they train the network below the convex part, and are never deleted."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import nn

from ._rows import TrainingRows
from .assumptions import Assumption, Status
from .exceptions import NotApplicableError
from .frozen_features import features_of
from .modules import FeatureHead

BACKBONE = Assumption(
    "backbone",
    Status.BY_CONSTRUCTION,
    "the frozen network is a function of its architecture or the weights it came with, the rows "
    "declared permanent, public constants and a random stream of its own: no row that can be "
    "deleted entered it",
)


class PermanentMixin:
    """What ``fit(..., permanent=mask)`` adds to training."""

    def _declare_permanent(self, rows: TrainingRows, permanent: Any, cold: bool) -> TrainingRows:
        if permanent is None:
            return rows
        mask = np.asarray(permanent)
        if mask.dtype != bool or mask.shape != (len(rows),):
            raise ValueError(
                f"permanent has the dtype {mask.dtype} and the shape {mask.shape}; give one bool "
                f"for each of the {len(rows)} rows: True for rows that will never be deleted"
            )
        if not mask.any():
            raise ValueError(
                "permanent is False for all rows; leave it out to keep the network's initialisation"
            )
        if not cold:
            raise ValueError(
                "permanent is for a fit from scratch: the network below the head is trained once; "
                "use warm_start=False, or partial_fit for further rows that can be deleted"
            )
        if not self.store_data:
            raise ValueError(
                "permanent needs store_data=True: without the rows a request to delete a permanent "
                "one could not be refused"
            )
        return replace(rows, permanent=mask.copy())

    def _train_backbone(self, rows: TrainingRows) -> None:
        """Train the module's backbone on the permanent rows alone, as an ordinary net."""
        module = self.module_
        if not (hasattr(module, "backbone") and hasattr(module, "set_backbone")):
            raise NotApplicableError(
                f"permanent rows train a network below a convex part, and {type(module).__name__} "
                "has none; use sk_unlearn.modules.FeatureHead, or leave permanent out"
            )
        own = {k: v for k, v in self.fit_config_.items() if not k.startswith("module__")}
        config = {
            "module": module.backbone,
            "criterion": deepcopy(self.criterion_),
            "method": "retrain",
            "callbacks": None,
            "train_split": None,
            "anchor": "zero",
            "verbose": self.verbose,
            "random_state": self._backbone_seed(),
        }
        net = clone(type(self)(**(own | config)))
        vars(net).update((name, vars(self)[name]) for name in self._inferred_)
        chosen = rows.permanent
        net._fit_rows(TrainingRows(rows.X[chosen], rows.y[chosen]), True, forward_interrupt=True)
        module.set_backbone(net.module_)
        self._set_reference()
        self._initialize_optimizer()

    def _backbone_seed(self) -> int:
        state = self.fit_config_["random_state"]
        if state is None:
            return int(np.random.SeedSequence().generate_state(1)[0])
        return int(check_random_state(deepcopy(state)).randint(2**31 - 1))

    def _with_features(self, rows: TrainingRows) -> TrainingRows:
        """Return the rows with what a frozen network makes of them, for methods that solve."""
        wanted = isinstance(self.module_, FeatureHead) and not self.method_.trains
        if not wanted or rows.features is not None:
            return rows
        return replace(rows, features=features_of(self.module_, rows.X))


def backbone_assumptions(net: Any) -> list[Assumption]:
    """Return what a release of `net` rests on, if permanent rows trained a part of it."""
    return [] if _n_permanent(net) == 0 else [BACKBONE]


def backbone_scope(net: Any) -> list[str]:
    """Return what the certificate of `net` does not cover in the network below the head."""
    out = []
    n = _n_permanent(net)
    if n:
        out.append(
            f"the {n} permanent rows: they trained the frozen network and cannot be deleted; the "
            "certificate is about every other row"
        )
    config = net.fit_config_.items()
    if any(isinstance(v, nn.Module) for k, v in config if k.startswith("module__")):
        out.append("whether the network handed to the module had seen the rows before")
    return out


def _n_permanent(net: Any) -> int:
    permanent = None if net.rows_ is None else net.rows_.permanent
    return 0 if permanent is None else int(permanent.sum())
