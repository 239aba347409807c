"""What every certified net shares: scikit-learn's contract, the constraint, the training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from skorch.callbacks import EpochTimer, PassthroughScoring, PrintLog
from skorch.utils import is_dataset
from torch import nn

from ._tables import numbers_wanted
from ._validation import check_hyperparameters, check_keywords
from .constraint import Ball
from .exceptions import NotApplicableError
from .methods import Problem, Rows, Setting
from .modules import MLP
from .noise import NoiseSource
from .objective import penalty


class CertifiedNetMixin:
    """Plumbing between skorch, scikit-learn and the unlearning methods.

    skorch's bookkeeping stands on the class, so that ``__init__`` leaves nothing but
    parameters in the instance.
    """

    history_ = None
    initialized_ = False
    virtual_params_ = MappingProxyType({})
    _modules: ClassVar = ["module"]
    _criteria: ClassVar = ["criterion"]
    _optimizers: ClassVar = ["optimizer"]
    cuda_dependent_attributes_: ClassVar = ["module_", "criterion_", "optimizer_"]

    __repr__ = BaseEstimator.__repr__

    def _keep_parameters_only(self, keywords: dict[str, Any]) -> None:
        check_keywords(type(self), keywords, self.prefixes_)
        for name in ("history_", "initialized_", "virtual_params_"):
            self.__dict__.pop(name, None)

    def _get_param_names(self) -> list[str]:
        return [name for name in super()._get_param_names() if not name.startswith("_")]

    def set_params(self, **params: Any) -> CertifiedNetMixin:
        """Set parameters; they take effect at the next fit.

        Only the optimizer's own (``lr``, ``optimizer__…``) act on a fitted net at once.
        """
        now = {k: v for k, v in params.items() if k == "lr" or k.startswith("optimizer__")}
        nested = {k: v for k, v in params.items() if k.split("__")[0] in ("callbacks", "method")}
        nested = {k: v for k, v in nested.items() if not k.startswith("callbacks__")}
        later = {k: v for k, v in params.items() if k not in now | nested}
        BaseEstimator.set_params(self, **nested)
        fitted = self.__dict__.pop("initialized_", None)
        try:
            super().set_params(**later)
        finally:
            if fitted is not None:
                self.initialized_ = fitted
        return super().set_params(**now)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("print_log", PrintLog()),
        ]

    def check_data(self, X: Any, y: Any = None) -> None:
        """Do nothing: rows are validated before they get here."""

    def _validate_X(self, X: Any) -> Any:
        self.check_is_fitted()
        if is_dataset(X):
            return X
        with numbers_wanted(X):
            X = validate_data(self, X, reset=False, dtype=np.float32, order="C", allow_nd=True)
        if X.shape[1:] != self.input_shape_:
            raise ValueError(
                f"X has rows of the shape {X.shape[1:]}, but {type(self).__name__} was fitted on "
                f"rows of the shape {self.input_shape_}"
            )
        return X

    @contextmanager
    def _seeded(self, restart: bool) -> Iterator[None]:
        """Run on this net's own random stream; the caller's global one is left as it was."""
        device = torch.device(self.device or "cpu")
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            state = None if restart else self.__dict__.get("rng_state_")
            if state is None:
                torch.manual_seed(check_random_state(self.random_state).randint(2**31 - 1))
            else:
                torch.set_rng_state(state)
            try:
                yield
            finally:
                self.rng_state_ = torch.get_rng_state()

    def _freeze_setting(self) -> None:
        """Fix what the guarantee is about, so that later ``set_params`` cannot shift it."""
        check_hyperparameters(self)
        self.fit_config_ = self.get_params(deep=False) | {
            "random_state": deepcopy(self.random_state)
        }
        self.lam_, self.C_ = float(self.lam), float(self.C)

    def initialize(self) -> CertifiedNetMixin:
        """Build module, criterion and optimizer, as fit does first."""
        if not hasattr(self, "lam_"):
            self._freeze_setting()
        super().initialize()
        if any(p.requires_grad for p in self.criterion_.parameters()):
            raise NotApplicableError(
                f"criterion {self.criterion_!r} has trainable parameters; no method covers them, "
                "so "
                "put them into the module"
            )
        self._ball().project_()
        return self

    def initialize_module(self) -> CertifiedNetMixin:
        """Build the module, sized from the data where its signature asks for it."""
        module = MLP if self.module is None else self.module
        keywords = self.get_params_for("module")
        if isinstance(module, nn.Module):
            module = deepcopy(module)
            if keywords:
                self.module_ = self.initialized_instance(type(module), keywords)
                return self._set_reference()
        else:
            accepted = inspect.signature(module).parameters
            for name, value in self._sizes().items():
                if name in accepted:
                    keywords.setdefault(name, value)
        self.module_ = self.initialized_instance(module, keywords)
        return self._set_reference()

    def initialize_criterion(self) -> CertifiedNetMixin:
        """Build the criterion: the one given, else the module's own, else the default."""
        criterion = self.criterion
        if criterion is None:
            criterion = getattr(self.module_, "criterion", self._default_criterion)
        self.criterion_ = self.initialized_instance(criterion, self.get_params_for("criterion"))
        return self

    def _sizes(self) -> dict[str, Any]:
        shape = getattr(self, "input_shape_", None)
        if shape is None:
            return {}
        return {"n_features_in": int(np.prod(shape)), "input_shape": shape}

    def _set_reference(self) -> CertifiedNetMixin:
        at_zero = self.fit_config_["anchor"] == "zero"
        self.reference_ = None if at_zero else [p.detach().clone() for p in self._trainable()]
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> CertifiedNetMixin:
        """Build the optimizer and let the ball follow it."""
        super().initialize_optimizer(*args, **kwargs)
        self._ball().follow(self.optimizer_)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "optimizer_" in self.__dict__:
            self._ball().follow(self.optimizer_)

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.module_.parameters() if p.requires_grad]

    def _ball(self) -> Ball:
        parameters = self._trainable()
        if self.reference_ is not None:
            pairs = zip(self.reference_, parameters, strict=True)
            self.reference_ = [r.to(p.device) for r, p in pairs]
        return Ball(parameters, self.reference_, self.C_)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Project once more: skorch lets an interrupt fall between step and projection."""
        self._ball().project_()

    def get_loss(
        self, y_pred: torch.Tensor, y_true: torch.Tensor, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the mean loss of a batch; in training, plus the penalty."""
        loss = super().get_loss(y_pred, y_true, X=X, training=training)
        if training and self.lam_:
            loss = loss + penalty(self._trainable(), self.reference_, self.lam_)
        return loss

    def _setting(self) -> Setting:
        size = sum(p.numel() for p in self._trainable())
        names = tuple(name for name, p in self.module_.named_parameters() if p.requires_grad)
        return Setting(self.lam_, self.C_, size, self._n_outputs(), names)

    def _problem(
        self, retained: Any, deleted: Any, refit: Any, noise: NoiseSource, corrected: Any = ()
    ) -> Problem:
        return Problem(
            setting=self._setting(),
            module=self.module_,
            criterion=self.criterion_,
            parameters=to_vector(self._trainable()),
            reference=self._reference_vector(),
            retained=Rows(retained.X, retained.y, retained.features),
            deleted=Rows(deleted.X, deleted.y, deleted.features),
            noise=noise,
            refit=refit,
            finetune=lambda weights, epochs: self._fine_tune(weights, epochs, retained),
            seed=self._public_seed(),
            state=self.method_state_,
            verbose=self.verbose,
            corrected=np.asarray(corrected, dtype=np.int64),
        )

    def _reference_vector(self) -> np.ndarray:
        if self.reference_ is None:
            return np.zeros(sum(p.numel() for p in self._trainable()))
        return to_vector(self.reference_)


def to_vector(tensors: list[torch.Tensor]) -> np.ndarray:
    """Return parameters as one float64 vector on the CPU."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    return flat.cpu().numpy().astype(np.float64)
