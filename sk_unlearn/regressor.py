"""CertifiedNeuralRegressor: a skorch net for numbers that can forget, and prove it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse
from skorch import NeuralNet, NeuralNetRegressor
from skorch.utils import is_dataset
from torch import nn

from ._neural_net import CertifiedNeuralNet


class CertifiedNeuralRegressor(CertifiedNeuralNet, NeuralNetRegressor):
    """Neural regressor whose training rows can be deleted, with a certificate.

    Like :class:`sk_unlearn.CertifiedNeuralClassifier`, with numbers for labels: the same
    objective, ball, deletions and certificates.

    Targets are taken as they are. Large ones need large weights, so a large `C`, and noise that
    is small beside them; bring them to about 1 with a *public* constant (thousands of euros, a
    range known beforehand). Scaling them by their own mean or standard deviation carries the
    deleted rows into the model, and no certificate covers that.

    Parameters
    ----------
    module : torch module class or instance, optional
        Returns (n, n_outputs), one number for each target. A class is given
        ``n_features_in``, ``n_outputs`` (or ``n_classes``, which means the same here) and
        ``input_shape`` where its signature names them; an instance is copied. Default:
        :class:`sk_unlearn.modules.MLP`. With :class:`sk_unlearn.modules.LinearRegressor` a
        deletion has a closed form; with ``multi_class="squared"``,
        :class:`sk_unlearn.modules.FeatureHead` puts one on a frozen network, and
        :class:`sk_unlearn.modules.Linearized` takes a whole network to first order.
    criterion : torch criterion, optional
        Mean over rows. Default: the module's own, else the mean squared error.
    method : UnlearningMethod or str
        How rows are removed; an instance from :mod:`sk_unlearn.methods`, or "auto":
        ``Analytic`` or ``Residual`` where they apply, otherwise ``Retrain``. Methods whose
        statement needs a bounded gradient of the loss refuse the squared loss.
    lam, C, anchor, store_data, ledger, budget, noise_seed, random_state, optimizer, lr, \
max_epochs, batch_size, \
iterator_train, iterator_valid, dataset, train_split, callbacks, predict_nonlinearity, \
warm_start, verbose, device, compile, use_caching, torch_load_kwargs, **kwargs
        As in :class:`sk_unlearn.CertifiedNeuralClassifier`.

    Attributes
    ----------
    coef_, intercept_ : ndarray of shape (n_outputs, n_features), (n_outputs,)
        Of :class:`sk_unlearn.modules.LinearRegressor`, as in scikit-learn's linear models:
        (n_features,) and a number for targets (n,).
    n_iter_ : int
        Newton steps of fit, with ``Residual``; a release drops it.
    certificate_ : Certificate
        What is promised about the last release; set by :meth:`unlearn`.
    method_ : UnlearningMethod
        The method in use.
    module_ : torch module
        The trained, or released, network.
    n_outputs_ : int
        Targets of a row.
    n_releases_ : int
        Releases since fit.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sk_unlearn import CertifiedNeuralRegressor
    >>> from sk_unlearn.modules import LinearRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = CertifiedNeuralRegressor(LinearRegressor, lam=1e-4).fit(X, y / 350)
    >>> reg.unlearn(indices=[0, 1], epsilon=1.0, delta=1e-5).certificate_.formal
    True
    >>> reg.score(X, y / 350) > 0.4
    True
    """

    _default_criterion = nn.MSELoss
    _outputs_are = "targets"
    _inferred_ = (*CertifiedNeuralNet._inferred_, "target_shape_")

    @property
    def n_outputs_(self) -> int:
        """Targets of a row; set by fit."""
        return self._n_outputs()

    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        if issparse(y):
            raise ValueError("y is a sparse matrix; pass a dense array")
        given = np.asarray(y)
        if given.ndim not in (1, 2) or 0 in given.shape:
            raise ValueError(
                f"y has the shape {given.shape}; give one number (n,) or k numbers (n, k) for "
                "each row"
            )
        try:
            with np.errstate(over="ignore"):
                targets = given.astype(np.float32)
        except ValueError as error:
            raise ValueError(
                f"y contains {given.ravel()[0]!r}, and a regressor learns numbers; use "
                "CertifiedNeuralClassifier for labels"
            ) from error
        if not np.isfinite(targets).all():
            worst = given[~np.isfinite(targets)].ravel()[0]
            raise ValueError(f"y contains {worst!r}, which is not finite as float32; scale y")
        if reset:
            self.target_shape_ = given.shape[1:]
        elif given.shape[1:] != self.target_shape_:
            raise ValueError(
                f"targets of a row have the shape {given.shape[1:]}; this net was fitted on "
                f"{self.target_shape_}"
            )
        return targets.reshape(len(targets), -1)

    def _linear(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = super()._linear()
        return (weight, bias) if self.target_shape_ else (weight[0], bias[0])

    def _sizes(self) -> dict[str, Any]:
        sizes = super()._sizes()
        if hasattr(self, "target_shape_"):
            sizes |= dict.fromkeys(("n_outputs", "n_classes"), self._n_outputs())
        return sizes

    def _n_outputs(self) -> int:
        return int(np.prod(self.target_shape_))

    def _label_names(self) -> None:
        return None

    @property
    def predict_proba(self) -> Any:
        """Not there: a regressor has no probabilities, whatever skorch calls its predictions."""
        raise AttributeError(f"{type(self).__name__} has no predict_proba; use predict")

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions of the shape of the targets: float32 (n,), or float64 (n, k).

        The module computes in float32; scikit-learn asks for float64 where there are several
        targets. For a torch Dataset always float32 (n, k), as skorch's scorers expect.
        """
        outputs = NeuralNet.predict_proba(self, self._validate_X(X))
        if is_dataset(X):
            return outputs
        return outputs.astype(np.float64) if self.target_shape_ else outputs[:, 0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
