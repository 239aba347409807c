"""Exact deletion by shards and slices (SISA) around any scikit-learn classifier."""

from __future__ import annotations

from copy import copy, deepcopy
from math import isnan, nan
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from ._rows import TrainingRows, as_ids
from ._sharded_certificate import certify
from ._sharded_rows import find_rows, hashed_buckets, refuse_unservable
from ._tables import numbers_wanted
from ._validation import check_additions
from .assumptions import Assumption


class ShardedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Exact deletion for any classifier: one model for each shard of the rows (SISA).

    A deletion retrains the shards, and in them the slices, that saw the rows, and nothing else:
    epsilon = delta = 0, without noise. Probabilities are averaged over the shards.

    A row's shard and slice are a salted hash of its features, so they depend on no other row:
    with the same salt, the models after a deletion are, to the last bit, those of a fit on the
    retained rows (where the estimator's own training is deterministic), and of the same law with
    fresh salts. Shards of equal size, or with equal shares of the classes, would not be. Sizes
    therefore vary as in throws of dice; an empty shard takes no part, and one with a single
    class predicts that class.

    Deleting many rows touches every shard: of S shards, ``1 - (1 - 1/S)^n_u`` are expected to be
    retrained.

    Parameters
    ----------
    estimator : classifier
        Has ``predict_proba``, and ``partial_fit`` if there are slices. Cloned for each shard.
    n_shards : int
        Shards.
    n_slices : int
        Slices of a shard. Slice k trains on from the checkpoint of slice k - 1, by
        ``partial_fit`` on the slices up to k; checkpoints are kept.
    classes : array-like, optional
        All labels that may occur. Declared, the last row of a class may be deleted.
    random_state : int, RandomState or None
        Salt of the hash and, unless it is None, seed of the estimators.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels.
    checkpoints_ : list of list
        For each shard the model after each slice; None before its first row.
    certificate_ : Certificate
        Of the last deletion; set by :meth:`unlearn`.
    n_features_in_ : int

    Notes
    -----
    Bourtoule et al. 2021. Differs from the paper: rows are hashed to shards, and probabilities
    are averaged rather than votes counted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sk_unlearn.sharded import ShardedClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = ShardedClassifier(LogisticRegression(max_iter=200), random_state=0).fit(X, y)
    >>> clf.unlearn(X[:1], y[:1]).certificate_.epsilon
    0.0
    >>> clf.certificate_.diagnostics["shards_retrained"]
    1
    """

    def __init__(
        self,
        estimator: Any,
        n_shards: int = 5,
        n_slices: int = 1,
        *,
        classes: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_shards = n_shards
        self.n_slices = n_slices
        self.classes = classes
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_ids: Any = None) -> ShardedClassifier:
        """Assign the rows to shards and train a model for each.

        Parameters
        ----------
        X : array-like of shape (n, ...)
        y : array-like of shape (n,)
        sample_ids : array-like of shape (n,), optional
            Whose row it is; ids may repeat.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If data or parameters are not usable; the message quotes the value.
        """
        before = dict(vars(self))
        try:
            return self._fit(X, y, sample_ids)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _fit(self, X: Any, y: Any, sample_ids: Any) -> ShardedClassifier:
        self._check_parameters()
        X, y = self._validated(X, y, reset=True)
        self.classes_declared_ = self.classes is not None
        self.classes_ = np.unique(self.classes if self.classes_declared_ else y)
        unseen = np.setdiff1d(y, self.classes_)
        if len(unseen):
            raise ValueError(f"y contains labels that classes= does not declare: {unseen.tolist()}")
        ids = None if sample_ids is None else as_ids(sample_ids)
        if ids is not None and len(ids) != len(y):
            raise ValueError(f"{len(ids)} sample_ids for {len(y)} rows; give one for each")
        self.estimator_, self.n_slices_ = clone(self.estimator), int(self.n_slices)
        self.seeded_, self.salt_ = self.random_state is not None, self._new_salt()
        rows = TrainingRows(X, np.searchsorted(self.classes_, y), ids)
        buckets = hashed_buckets(X, self.n_shards * self.n_slices, self.salt_)
        trained = [self._trained(rows, buckets, shard, 0, []) for shard in range(self.n_shards)]
        self.checkpoints_ = [checkpoints for checkpoints, _ in trained]
        self.n_passes_ = sum(read for _, read in trained) / len(rows)
        self.rows_, self.buckets_ = rows, buckets
        self.__dict__.pop("certificate_", None)
        return self

    def unlearn(
        self,
        X_u: Any = None,
        y_u: Any = None,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
    ) -> ShardedClassifier:
        """Delete rows, named in exactly one way, and retrain what has seen them.

        Parameters
        ----------
        X_u : array-like of shape (n_u, ...), optional
            Rows to delete, by content.
        y_u : array-like of shape (n_u,), optional
            Their labels.
        epsilon, delta : float
            Ignored, so that the call is that of the other classifiers: the deletion is exact.
        indices : array-like of int, optional
            Positions among the rows that are left.
        sample_ids : array-like, optional
            Delete every row of these ids.
        assumptions, scope : tuple, optional
            What else the certificate should carry, from whoever prepared the rows (a
            pipeline).

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If the request is malformed or cannot be served; nothing is changed.
        UnknownRowError
            If a row was not trained on, or is not there any more.
        """
        check_is_fitted(self, "rows_")
        check_additions(assumptions, scope)
        rows = self.rows_
        positions = find_rows(self, X_u, y_u, indices, sample_ids)
        retained, buckets = rows.without(positions), np.delete(self.buckets_, positions)
        refuse_unservable(self, retained, rows.take(positions))
        checkpoints, rows_retrained, rows_read = list(self.checkpoints_), 0, 0.0
        touched = np.unique(self.buckets_[positions] // self.n_slices_)
        for shard in touched.tolist():
            gone = self.buckets_[positions] - shard * self.n_slices_
            first = int(gone[(gone >= 0) & (gone < self.n_slices_)].min())
            kept = self.checkpoints_[shard][:first]
            checkpoints[shard], read = self._trained(retained, buckets, shard, first, kept)
            rows_read += read
            rows_retrained += int(np.sum(buckets // self.n_slices_ == shard))
        seen = {
            "shards_retrained": len(touched),
            "rows_in_retrained_shards": rows_retrained,
            "passes": None if isnan(rows_read) else rows_read / len(retained),
        }
        certificate = certify(self, len(positions), len(retained), seen, assumptions, scope)
        self.checkpoints_, self.rows_, self.buckets_ = checkpoints, retained, buckets
        self.certificate_ = certificate
        self.__dict__.pop("n_passes_", None)
        return self

    def _trial_copy(self) -> ShardedClassifier:
        """Return a net with the same rows and models, for deletions that do not count."""
        return copy(self)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the mean of the shards' probabilities, shape (n, n_classes)."""
        check_is_fitted(self, "rows_")
        X = self._validated(X, None, reset=False)
        models = [shard[-1] for shard in self.checkpoints_ if shard[-1] is not None]
        total = np.zeros((len(X), len(self.classes_)))
        for model in models:
            total[:, np.searchsorted(self.classes_, model.classes_)] += model.predict_proba(X)
        return total / len(models)

    def predict(self, X: Any) -> np.ndarray:
        """Return labels, shape (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _trained(
        self, rows: TrainingRows, buckets: np.ndarray, shard: int, first: int, kept: list[Any]
    ) -> tuple[list[Any], float]:
        """Return the checkpoints of a shard, those before slice `first` as they are.

        Returns also how many rows were gone through, each as often as it was; NaN where a
        classifier does not say.
        """
        checkpoints, rows_read = list(kept), 0.0
        for number in range(first, self.n_slices_):
            low = shard * self.n_slices_
            model = checkpoints[-1] if checkpoints else None
            if np.any(buckets == low + number):
                seen = np.flatnonzero((buckets >= low) & (buckets <= low + number))
                X, y = rows.X[seen], self.classes_[rows.y[seen]]
                before = 0.0 if model is None else getattr(model, "n_passes_", nan)
                if self.n_slices_ > 1:
                    model = self._new_model(shard) if model is None else deepcopy(model)
                    model.partial_fit(X, y, classes=self.classes_)
                elif len(np.unique(y)) > 1:
                    model = self._new_model(shard).fit(X, y)
                else:
                    model = DummyClassifier().fit(X, y)
                now = 1 if isinstance(model, DummyClassifier) else getattr(model, "n_passes_", nan)
                rows_read += len(seen) * (now - before)
            checkpoints.append(model)
        return checkpoints, rows_read

    def _check_parameters(self) -> None:
        for name in ("n_shards", "n_slices"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r}; give a whole number >= 1")
        wanted = ["predict_proba"] + ["partial_fit"] * (self.n_slices > 1)
        for name in wanted:
            if not hasattr(self.estimator, name):
                raise TypeError(
                    f"estimator={self.estimator!r} has no {name}, which ShardedClassifier needs"
                    + (" for slices; use n_slices=1" if name == "partial_fit" else "")
                )

    def _validated(self, X: Any, y: Any, reset: bool) -> Any:
        kind = {"dtype": [np.float64, np.float32], "order": "C", "allow_nd": True}
        if y is None and not reset:
            with numbers_wanted(X):
                return validate_data(self, X, reset=False, **kind)
        with numbers_wanted(X):
            X, y = validate_data(self, X, y, reset=reset, multi_output=False, **kind)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return X, y

    def _new_model(self, shard: int) -> Any:
        model = clone(self.estimator_)
        if not self.seeded_:
            return model
        seed = np.random.SeedSequence(self.salt_, spawn_key=(shard,)).generate_state(1)[0] >> 1
        names = [n for n in model.get_params() if n.rpartition("__")[2] == "random_state"]
        return model.set_params(**dict.fromkeys(names, int(seed)))

    def _new_salt(self) -> int:
        if self.random_state is None:
            return int(np.random.SeedSequence().entropy)
        return int(check_random_state(self.random_state).randint(2**31 - 1))
