"""Ordinary training from released weights, with nothing kept from before (T7)."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from ._net import to_vector
from ._rows import TrainingRows


class FineTuningMixin:
    """What the estimator lends a method for the steps that need no guarantee of their own."""

    def _fine_tune(self, weights: np.ndarray, epochs: int, retained: TrainingRows) -> np.ndarray:
        """Train on from `weights` for `epochs` as configured at fit; return the new weights.

        Optimizer, history and generator are new; of the fitted net only constants are used: the
        architecture with its buffers and frozen weights, the anchor, C and lam. The user's
        callbacks do not run: they may hold, or load, what they saw before.
        """
        config = {"method": "retrain", "max_epochs": int(epochs), "callbacks": None}
        net = clone(type(self)(**(self.fit_config_ | config | {"verbose": self.verbose})))
        vars(net).update((name, vars(self)[name]) for name in self._inferred_)
        with net._seeded(restart=True):
            net.initialize()
            module = deepcopy(self.module_)
            for parameter in module.parameters():
                parameter.grad = None
            net.module_, net.reference_ = module, self.reference_
            net._set_weights(weights)
            net._ball().project_()
            net._initialize_optimizer()
            net.notify("on_train_begin", X=retained.X, y=retained.y)
            net._gradient_steps(retained, forward_interrupt=True)
            net.notify("on_train_end", X=retained.X, y=retained.y)
        trained = to_vector(net._trainable())
        if not np.isfinite(trained).all():
            raise ValueError(
                f"fine-tuning diverged: weights are not finite (lr={net.lr}); lower lr, or "
                "finetune_epochs=0. Nothing was changed."
            )
        return trained

    def _public_seed(self) -> int:
        """Return a seed for batches that no training has advanced; new for each release."""
        state = self.fit_config_["random_state"]
        if state is None:
            return int(np.random.SeedSequence().entropy)
        return int(check_random_state(deepcopy(state)).randint(2**31 - 1)) + self.n_releases_
