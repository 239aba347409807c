"""CertifiedNeuralClassifier: a skorch net that can forget, and prove it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from skorch import NeuralNetClassifier
from skorch.utils import is_dataset
from torch import nn

from ._neural_net import CertifiedNeuralNet, with_common_parameters
from ._rows import TrainingRows
from ._validation import check_fit_keywords, without_class_weight
from .exceptions import DeletionRequestError


class CertifiedNeuralClassifier(CertifiedNeuralNet, NeuralNetClassifier):
    """Neural classifier whose training rows can be deleted, with a certificate.

    ``fit`` minimises ``F(w) = mean over rows of the loss + lam/2 ||w - w_ref||^2`` and
    projects every iterate onto the ball ``||w - w_ref|| <= C`` (Euclidean norm over all
    trainable parameters together; Zhang et al. 2024). :meth:`unlearn` removes rows and
    writes :attr:`certificate_`.

    Parameters
    ----------
    module : torch module class or instance, optional
        Returns logits of shape (n, n_classes). A class is given ``n_features_in``,
        ``n_classes`` and ``input_shape`` where its signature names them; an instance is
        copied. Default: :class:`sk_unlearn.modules.MLP`. Images of shape (n, c, h, w) are
        passed on as they are.
    lam : float
        Coefficient of the L2 penalty in ``F``.
    C : float
        Radius of the ball.
    anchor : {"zero", "init"}
        Centre ``w_ref`` of the ball and of the penalty: the origin, or the (public)
        initialisation.
    method : UnlearningMethod or str
        How rows are removed; an instance from :mod:`sk_unlearn.methods`, or "auto":
        ``Residual`` where it applies, otherwise ``Retrain``.
    store_data : bool
        Keep the training rows, so that they can be found and trained on again. Without
        them ``unlearn`` needs ``X_r, y_r``.
    ledger : str, path-like or None
        File of the :class:`~sk_unlearn.ledger.DeletionLedger` that records every deletion; made
        by the first one. None keeps it in memory, and pickles it with the net.
    budget : (float, float) or None
        (epsilon, delta) that every deletion satisfies, also after later releases: one that would
        break it is refused (:meth:`releases_left`).
    noise_seed : int or None
        None draws noise from the operating system. A seed makes it reproducible, and the
        certificate conditional on its secrecy.
    random_state : int, RandomState or None
        Seeds initialisation and batches; never the noise.
    criterion : torch criterion, optional
        Mean over rows. Default: the module's own, else cross-entropy.
    classes : array-like, optional
        All labels that may occur. Declared, they do not depend on the data, and the last
        row of a class may be deleted.
    optimizer, lr, max_epochs, batch_size, iterator_train, iterator_valid, dataset, \
train_split, callbacks, predict_nonlinearity, warm_start, verbose, device, compile, \
use_caching, torch_load_kwargs, **kwargs
        As in :class:`skorch.NeuralNetClassifier`, with other defaults: Adam, no
        validation split, batches gathered once per epoch, silent.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels.
    coef_, intercept_ : ndarray of shape (n_classes, n_features), (n_classes,)
        Of a linear head, as in scikit-learn's linear models: what ``decision_function`` adds
        up, so (1, n_features) and (1,) for two classes. Images count their pixels.
    n_iter_ : int
        Newton steps of fit, with a method that solves; a release drops it.
    certificate_ : Certificate
        What is promised about the last release; set by :meth:`unlearn`.
    ledger_ : DeletionLedger
        Every request, what became of it, and every certificate.
    method_ : UnlearningMethod
        The method in use.
    module_ : torch module
        The trained, or released, network.
    n_releases_ : int
        Releases since fit.
    release_mus_ : tuple of float
        Gaussian-DP parameter of each of them (T1); infinite where nothing is proved by one.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2).fit(X, y)
    >>> clf.unlearn(X[:2], y[:2], epsilon=1.0, delta=1e-5).certificate_.formal
    True
    >>> clf.predict(X[:1])
    array([0])
    """

    _default_criterion = nn.CrossEntropyLoss
    _outputs_are = "classes"
    _inferred_ = (*CertifiedNeuralNet._inferred_, "classes_inferred_", "classes_declared_")

    @with_common_parameters
    def __init__(self, module: Any = None, *, classes: Any = None, **kwargs: Any) -> None:
        super().__init__(module, classes=classes, **without_class_weight(kwargs))

    def set_params(self, **params: Any) -> CertifiedNeuralClassifier:
        """Set parameters; they take effect at the next fit.

        Only the optimizer's own (``lr``, ``optimizer__…``) act on a fitted net at once.
        ``class_weight`` may be None and nothing else.
        """
        return super().set_params(**without_class_weight(params))

    def _linear(self) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = super()._linear()
        return (weight[1:] - weight[:1], bias[1:] - bias[:1]) if len(bias) == 2 else (weight, bias)

    @property
    def classes_(self) -> np.ndarray:
        """Labels, sorted; set by fit."""
        try:
            return self.classes_inferred_
        except AttributeError:
            raise AttributeError(f"{type(self).__name__} has no classes_ before fit") from None

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_ids: Any = None, **fit_params: Any
    ) -> CertifiedNeuralClassifier:
        """Train on, for ``max_epochs``, on these rows.

        The rows join the training rows; rows that are there already are not counted twice.
        Methods that solve (``Residual``) solve for all rows together.

        Parameters
        ----------
        X, y, sample_ids
            As in :meth:`fit`.
        classes : array-like, optional
            All labels that may occur; on the first call.
        **fit_params
            As in :meth:`fit`.

        Returns
        -------
        self
        """
        check_fit_keywords(fit_params)
        cold = not hasattr(self, "n_rows_")
        build = not self.initialized_
        return self._train_on(X, y, sample_ids, cold, build, classes=classes)

    def _encode_targets(self, y: Any, *, reset: bool, classes: Any = None) -> np.ndarray:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if reset:
            self._set_classes(classes if classes is not None else self.classes, y)
        unseen = np.setdiff1d(y, self.classes_)
        if len(unseen):
            raise ValueError(
                f"y contains labels not seen before: {unseen[:5].tolist()}; they are "
                f"{self.classes_[:10].tolist()}{' ...' * (len(self.classes_) > 10)}, and others "
                "must be declared at the first fit: classes="
            )
        return np.searchsorted(self.classes_, y).astype(np.int64)

    def _set_classes(self, declared: Any, y: np.ndarray) -> None:
        found = np.unique(y if declared is None else np.asarray(declared))
        if len(found) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes; the data contain one class: "
                f"{found.tolist()}; declare classes= if the rows of others come later"
            )
        self.classes_inferred_ = found
        self.classes_declared_ = declared is not None

    def _sizes(self) -> dict[str, Any]:
        sizes = super()._sizes()
        if hasattr(self, "classes_inferred_"):
            sizes["n_classes"] = len(self.classes_)
        return sizes

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _label_names(self) -> np.ndarray:
        return self.classes_

    def _check_remaining(self, retained: TrainingRows, deleted: TrainingRows) -> None:
        super()._check_remaining(retained, deleted)
        before, after = (
            np.bincount(rows.y, minlength=len(self.classes_)) for rows in (deleted, retained)
        )
        gone = np.flatnonzero((before > 0) & (after == 0))
        if len(gone) and not self.classes_declared_:
            labels = ", ".join(repr(label) for label in self.classes_[gone].tolist())
            raise DeletionRequestError(
                f"the last row of class {labels} would be deleted, and a retrained model would "
                "have fewer outputs; declare classes= at construction to allow it"
            )

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits (n, K), or for two classes their difference (n,)."""
        logits = self._first(self.forward(self._validate_X(X)))
        if isinstance(self.criterion_, nn.NLLLoss):
            logits = logits.log()
        scores = logits.numpy()
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities (n, K), float32."""
        return super().predict_proba(self._validate_X(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return labels (n,); class indices for a torch Dataset, as skorch's scorers expect."""
        best = self.predict_proba(X).argmax(axis=1)
        return best if is_dataset(X) else self.classes_[best]

    def _get_predict_nonlinearity(self) -> Any:
        own = getattr(self.criterion_, "probabilities", None)
        if self.predict_nonlinearity == "auto" and own is not None:
            return own
        return super()._get_predict_nonlinearity()
