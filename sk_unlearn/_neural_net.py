"""What the classifier and the regressor share: parameters, fit, rows in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import is_regressor
from sklearn.utils.validation import validate_data
from skorch import NeuralNet
from skorch.utils import is_dataset
from torch import nn

from ._amend import AmendMixin
from ._control import ControlMixin
from ._data import BatchIterator, TensorDataset
from ._fine_tuning import FineTuningMixin
from ._net import CertifiedNetMixin
from ._plan import PlanMixin
from ._rows import TrainingRows, as_ids
from ._saving import SavingMixin
from ._tables import numbers_wanted
from ._training import TrainingMixin
from ._unlearning import UnlearningMixin
from ._validation import check_fit_keywords
from .methods import UnlearningMethod
from .modules import FeatureHead, LinearHead, Linearized


class CertifiedNeuralNet(
    UnlearningMixin,
    AmendMixin,
    ControlMixin,
    PlanMixin,
    SavingMixin,
    FineTuningMixin,
    TrainingMixin,
    CertifiedNetMixin,
):
    """A skorch net that can forget, whatever its targets are; to be mixed with one of skorch's."""

    prefixes_: ClassVar = [*NeuralNet.prefixes_, "module", "criterion", "optimizer"]
    _default_criterion: type[nn.Module]
    _outputs_are: str

    def __init__(
        self,
        module: Any = None,
        *,
        lam: float = 1e-3,
        C: float = 20.0,
        anchor: str = "zero",
        method: UnlearningMethod | str = "auto",
        store_data: bool = True,
        ledger: Any = None,
        budget: tuple[float, float] | None = None,
        noise_seed: int | None = None,
        random_state: Any = None,
        criterion: Any = None,
        optimizer: Any = torch.optim.Adam,
        lr: float = 0.01,
        max_epochs: int = 30,
        batch_size: int = 128,
        iterator_train: Any = BatchIterator,
        iterator_train__shuffle: bool = True,
        iterator_valid: Any = BatchIterator,
        dataset: Any = TensorDataset,
        train_split: Any = None,
        callbacks: Any = None,
        predict_nonlinearity: Any = "auto",
        warm_start: bool = False,
        verbose: int = 0,
        device: Any = "cpu",
        compile: bool = False,
        use_caching: Any = "auto",
        torch_load_kwargs: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_train__shuffle=iterator_train__shuffle,
            iterator_valid=iterator_valid,
            dataset=dataset,
            train_split=train_split,
            callbacks=callbacks,
            predict_nonlinearity=predict_nonlinearity,
            warm_start=warm_start,
            verbose=verbose,
            device=device,
            compile=compile,
            use_caching=use_caching,
            torch_load_kwargs=torch_load_kwargs,
            **kwargs,
        )
        self.lam = lam
        self.C = C
        self.anchor = anchor
        self.method = method
        self.store_data = store_data
        self.ledger = ledger
        self.budget = budget
        self.noise_seed = noise_seed
        self.random_state = random_state
        self._keep_parameters_only(kwargs)

    def fit(
        self, X: Any, y: Any, sample_ids: Any = None, permanent: Any = None, **fit_params: Any
    ) -> CertifiedNeuralNet:
        """Train on rows from scratch (or on, with ``warm_start=True``).

        Parameters
        ----------
        X : array-like of shape (n, ...)
            Rows; kept as float32.
        y : array-like
            Labels of any kind of shape (n,), or the regressor's targets.
        sample_ids : array-like of shape (n,), optional
            Whose row it is; ids may repeat (one person, many rows).
        permanent : array-like of bool of shape (n,), optional
            Rows that will never be deleted (consented, public, synthetic). They train the network
            below the head of a :class:`~sk_unlearn.modules.FeatureHead` by ordinary gradient
            steps; then it is frozen, and all rows train the head. Deleting one is refused.
        **fit_params
            None is supported; ``sample_weight`` is refused with the reason.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If data or parameters are not usable; the message quotes the value. The
            estimator is then as before.
        NotApplicableError
            If the method's theorem does not cover this net, or there is nothing below its head
            that permanent rows could train.
        """
        check_fit_keywords(fit_params)
        cold = not (self.warm_start and hasattr(self, "n_rows_"))
        return self._train_on(X, y, sample_ids, cold, build=cold, permanent=permanent)

    def partial_fit(
        self, X: Any, y: Any, sample_ids: Any = None, **fit_params: Any
    ) -> CertifiedNeuralNet:
        """Train on, for ``max_epochs``, on these rows.

        The rows join the training rows; rows that are there already are not counted twice.
        Methods that solve (``Residual``) solve for all rows together.

        Parameters
        ----------
        X, y, sample_ids
            As in :meth:`fit`.
        **fit_params
            As in :meth:`fit`.

        Returns
        -------
        self
        """
        check_fit_keywords(fit_params)
        cold = not hasattr(self, "n_rows_")
        return self._train_on(X, y, sample_ids, cold, build=not self.initialized_)

    def _encode_rows(
        self, X: Any, y: Any, sample_ids: Any, *, reset: bool, **targets: Any
    ) -> TrainingRows:
        if is_dataset(X):
            raise TypeError(
                f"X is a {type(X).__name__}; torch Datasets are not supported, because rows must "
                "be stored and found again: pass arrays"
            )
        kind = {"dtype": np.float32, "order": "C", "allow_nd": True}
        with numbers_wanted(X):
            X, y = validate_data(self, X, y, reset=reset, multi_output=True, **kind)
        y = self._encode_targets(y, reset=reset, **targets)
        if reset:
            self.input_shape_ = X.shape[1:]
        elif X.shape[1:] != self.input_shape_:
            raise ValueError(
                f"rows have the shape {X.shape[1:]}; this net was fitted on {self.input_shape_}"
            )
        ids = None if sample_ids is None else as_ids(sample_ids)
        if ids is not None and len(ids) != len(y):
            raise ValueError(f"{len(ids)} sample_ids for {len(y)} rows; give one for each")
        return TrainingRows(np.array(X), y, ids)

    def _encode_request(self, X: Any, y: Any) -> TrainingRows:
        return self._encode_rows(X, y, None, reset=False)

    @abstractmethod
    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        """Return y as the module's criterion takes it; with `reset`, learn what it looks like."""

    @abstractmethod
    def _n_outputs(self) -> int:
        """Return how many numbers the module returns for a row."""

    @abstractmethod
    def _label_names(self) -> np.ndarray | None:
        """Return what the encoded labels stand for, or None where they stand for themselves."""

    @torch.no_grad()
    def _check_output(self, rows: TrainingRows) -> None:
        self.module_.eval()
        if isinstance(self.module_, LinearHead | FeatureHead | Linearized):
            numbers = self.module_.multi_class == "squared"
            if numbers != is_regressor(self):
                raise ValueError(
                    f"{type(self.module_).__name__} with multi_class={self.module_.multi_class!r} "
                    f"is for {'numbers' if numbers else 'classes'}; {type(self).__name__} "
                    "needs "
                    + (
                        "LinearHead, RidgeHead, or another multi_class"
                        if numbers
                        else "LinearRegressor, or multi_class='squared'"
                    )
                )
        output = self._first(self.infer(torch.as_tensor(rows.X[:2])))
        wanted = (min(2, len(rows)), self._n_outputs())
        if tuple(output.shape) != wanted:
            raise ValueError(
                f"the module returned the shape {tuple(output.shape)} for {wanted[0]} rows and "
                f"{wanted[1]} {self._outputs_are}; it must return the shape {wanted}"
            )

    @property
    def coef_(self) -> np.ndarray:
        """Weights of a linear head, shaped as in scikit-learn's linear models."""
        return self._linear()[0]

    @property
    def intercept_(self) -> Any:
        """Bias of a linear head, shaped as in scikit-learn's linear models."""
        return self._linear()[1]

    def _linear(self) -> tuple[np.ndarray, Any]:
        module = vars(self).get("module_")
        if not isinstance(module, LinearHead):
            what = "before fit" if module is None else f"with module {type(module).__name__}"
            raise AttributeError(f"{type(self).__name__} has no coef_ and intercept_ {what}")
        layer = module.linear
        return tuple(p.detach().cpu().numpy().copy() for p in (layer.weight, layer.bias))

    @property
    def n_iter_(self) -> int:
        """Newton steps of the last fit; nothing that a release must drop outlives it."""
        steps = getattr(vars(self).get("method_state_"), "n_iter", None)
        if steps is None:
            raise AttributeError(
                f"{type(self).__name__} has no n_iter_: it is there after a fit that solves, until "
                "the next release"
            )
        return steps

    @property
    def n_passes_(self) -> float:
        """Passes over the training rows that the last fit made, until the next release.

        An epoch is one; so is, for a fit that solves, each time it goes through all rows for a
        value, a gradient, a Hessian product or factors.
        """
        counted = getattr(vars(self).get("method_state_"), "n_passes", None)
        if counted is None and vars(self).get("history_"):
            counted = len(self.history_)
        if counted is None and vars(self).get("method_state_") is not None:
            counted = getattr(self.method_, "passes_of_fit", None)
        if counted is None:
            raise AttributeError(
                f"{type(self).__name__} has no n_passes_: it is there after fit, until the next "
                "release"
            )
        return float(counted)

    @staticmethod
    def _first(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output


def with_common_parameters(init: Callable[..., None]) -> Callable[..., None]:
    """Show the parameters of :class:`CertifiedNeuralNet` in the signature of ``init``."""
    shown = dict(signature(CertifiedNeuralNet.__init__).parameters)
    catch_all = shown.pop("kwargs")
    own = [p for p in signature(init).parameters.values() if p.name not in (*shown, "kwargs")]
    init.__signature__ = signature(init).replace(parameters=[*shown.values(), *own, catch_all])
    return init
