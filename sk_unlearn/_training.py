"""Training: all or nothing, under the constraint, for the method that will unlearn."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ._interrupt import watch_interrupt
from ._net import to_vector
from ._permanent import PermanentMixin
from ._rows import TrainingRows
from ._validation import resolve_method
from .exceptions import NotApplicableError, UnlearningWarning
from .noise import NoiseSource


class TrainingMixin(PermanentMixin):
    """What ``fit``, ``partial_fit`` and retraining have in common."""

    _inferred_: tuple[str, ...] = ("n_features_in_", "input_shape_")

    def _train_on(
        self,
        X: Any,
        y: Any,
        sample_ids: Any,
        cold: bool,
        build: bool,
        permanent: Any = None,
        **targets: Any,
    ) -> TrainingMixin:
        before = dict(vars(self))
        try:
            rows = self._encode_rows(X, y, sample_ids, reset=cold, **targets)
            rows = self._declare_permanent(rows, permanent, cold)
            if not build:
                self._train_a_copy()
            self._fit_rows(rows, cold, build)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def _train_a_copy(self) -> None:
        """Leave the present weights, moments and history untouched until training succeeds."""
        copies = deepcopy((self.module_, self.optimizer_, self.history_))
        vars(self).update(zip(("module_", "optimizer_", "history_"), copies, strict=True))
        self._ball().follow(self.optimizer_)

    def _set_weights(self, weights: np.ndarray) -> None:
        like = self._trainable()[0]
        vector = torch.as_tensor(weights).to(like.device, like.dtype)
        nn.utils.vector_to_parameters(vector, self._trainable())

    def _fit_rows(
        self, rows: TrainingRows, cold: bool, build: bool = True, forward_interrupt: bool = False
    ) -> None:
        joined = rows if cold or self.rows_ is None else self.rows_.joined(rows)
        if not cold and self.rows_ is None and not self.method_.trains:
            raise NotApplicableError(
                f"{self.method_!r} solves for all rows together, and this net kept none of the "
                "earlier ones; use store_data=True for partial_fit"
            )
        if build:
            self._freeze_setting()
            self.__dict__.pop("certificate_", None)
        with self._seeded(restart=cold):
            if build:
                self.initialize()
                joined = replace(joined, features=None)
                if joined.permanent is not None:
                    self._train_backbone(joined)
            if cold:
                self._check_output(rows)
                self.method_ = clone(
                    resolve_method(self.method, self.module_, self.criterion_, self._setting())
                )
                self.method_state_, self.n_releases_, self.release_mus_ = None, 0, ()
            self._check_method()
            buffers = {name: b.clone() for name, b in self.module_.named_buffers()}
            self.notify("on_train_begin", X=rows.X, y=rows.y)
            if self.method_.trains:
                self._gradient_steps(rows, forward_interrupt)
            self.notify("on_train_end", X=rows.X, y=rows.y)
        self._check_buffers(buffers)
        self._finish(joined, cold, len(rows))

    def _gradient_steps(self, rows: TrainingRows, forward_interrupt: bool) -> None:
        """Train; callbacks stop early with a KeyboardInterrupt, a user with a signal."""
        with watch_interrupt() as pressed:
            try:
                self.fit_loop(rows.X, rows.y)
            except KeyboardInterrupt:
                if pressed and forward_interrupt:
                    raise
                if pressed:
                    warnings.warn(
                        "training was interrupted; the model is what it was by then",
                        UnlearningWarning,
                        stacklevel=4,
                    )

    def _finish(self, rows: TrainingRows, cold: bool, n_new: int) -> None:
        if not np.isfinite(to_vector(self._trainable())).all():
            raise ValueError(
                f"training diverged: weights are not finite (lr={self.lr}); lower lr or scale X"
            )
        if self.method_.state == "secret":
            self.method_state_ = None
        rows = self._with_features(rows)
        nothing = rows.take(np.empty(0, dtype=np.int64))
        problem = self._problem(rows, nothing, lambda: (self.module_, 0.0), NoiseSource())
        solved, self.method_state_ = self.method_.prepare(problem)
        self._set_weights(solved)
        self._ball().project_()
        keep = self.store_data
        self.n_rows_ = len(rows) if cold or keep else self.n_rows_ + n_new
        self.rows_ = rows.hashed() if keep else None

    def _check_method(self) -> None:
        """Ask the method whether its theorem covers this net, before any training."""
        self.method_.check(self.module_, self.criterion_, self._setting())
        if self.method_.covers_buffers:
            return
        self.module_.train()
        for name, layer in self.module_.named_modules():
            if isinstance(layer, _NormBase) and layer.track_running_stats and layer.training:
                raise NotApplicableError(
                    f"layer {name!r} ({type(layer).__name__}) keeps running statistics of the "
                    "data, "
                    f"which noise on the weights does not cover; use GroupNorm, or keep the layer "
                    f"in eval mode with public statistics, or method=Retrain()"
                )

    def _check_buffers(self, before: dict[str, torch.Tensor]) -> None:
        if self.method_.covers_buffers:
            return
        for name, buffer in self.module_.named_buffers():
            if not torch.equal(buffer, before[name]):
                raise NotApplicableError(
                    f"buffer {name!r} changed during training: it was computed from the data, and "
                    "noise on the weights does not cover it; make it a parameter, keep it "
                    "constant, "
                    "or use method=Retrain()"
                )

    def _refit(self, retained: TrainingRows) -> tuple[nn.Module, float]:
        config = self.fit_config_ | {"method": "retrain", "verbose": self.verbose}
        net = clone(type(self)(**config))
        vars(net).update((name, vars(self)[name]) for name in self._inferred_)
        net._fit_rows(retained, cold=True, forward_interrupt=True)
        return net.module_, float(len(net.history_))
