"""Scalers and encoders whose constants are public: no row, deleted or not, has a say in them.

A scaler fitted on the training rows carries the rows that are deleted later, past every
certificate of the model behind it. These take their constants as parameters instead. All of
them work without `fit`, which checks its input and learns nothing but the number and names of
the columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_feature_names_in, check_array, validate_data


class _PublicTransformer(TransformerMixin, BaseEstimator, ABC):
    """Base of the transformers that learn nothing from rows."""

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check the parameters and X; learn nothing but the number and names of the columns.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        self._constants(self._rows(X, reset=True).shape[1])
        return self

    def _rows(self, X: ArrayLike, reset: bool = False) -> NDArray[Any]:
        """Return X as floats, its columns checked against those seen in fit."""
        if reset or hasattr(self, "n_features_in_"):
            return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        return check_array(X, dtype=[np.float64, np.float32], estimator=self, input_name="X")

    @abstractmethod
    def _constants(self, n_features: int) -> Any:
        """Return the checked public constants for rows of `n_features` columns."""

    def __sklearn_tags__(self) -> Tags:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


class _FloatTransformer(OneToOneFeatureMixin, _PublicTransformer):
    def __sklearn_tags__(self) -> Tags:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class ClipToBall(_FloatTransformer):
    """Scale the rows that lie outside a ball around 0 down onto it.

    Data-independent. Gives the bound on the rows' norms that constants such as those of (T13)
    need. Rows inside are not changed by a bit. Rounding is on the safe side: the exact Euclidean
    norm of every returned row is at most `radius`, and a second pass changes nothing.

    Parameters
    ----------
    radius : float, default=1.0
        Euclidean norm that no row exceeds, at least 1e-30. Choose it without looking at rows
        that may be asked to be deleted: their largest norm would be a function of them.

    Raises
    ------
    ValueError
        If `radius` is not a finite number of at least 1e-30.

    Examples
    --------
    >>> from sk_unlearn.preprocessing import ClipToBall
    >>> ClipToBall(radius=1.0).transform([[3.0, 4.0], [0.3, 0.4]]).round(6)
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = radius

    def _constants(self, n_features: int) -> float:
        radius = self.radius
        if isinstance(radius, bool) or not isinstance(radius, Real) or not 1e-30 <= radius < np.inf:
            raise ValueError(f"radius must be a finite number >= 1e-30; got {radius!r}")
        return float(radius)

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Clip the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            A new array, float32 if X is, else float64.
        """
        X = self._rows(X).copy()
        radius = self._constants(X.shape[1])
        # arrays in C order, whatever the order of X: the sum over a row depends on no other row
        largest = np.abs(X).max(axis=1, keepdims=True).astype(np.float64)
        unit = np.divide(X, largest, out=np.zeros(X.shape), where=largest > 0)
        # a sum of d squares, its root and two products: relative error below (d + 8) 2^-53
        slack = (X.shape[1] + 8) * 2.0**-53
        with np.errstate(over="ignore"):  # a norm of infinity is outside
            norm = np.sqrt((unit**2).sum(axis=1, keepdims=True))
            outside = (largest * norm * (1 + slack) > radius).ravel()
        shrunk = radius * (1 - 4 * slack - float(np.finfo(X.dtype).eps))
        X[outside] = unit[outside] * (shrunk / norm[outside])
        return X


class PublicScaler(_FloatTransformer):
    """Subtract a public centre from each column and divide by a public scale.

    Data-independent: StandardScaler with constants that are declared instead of computed from
    the rows, for example from published summary tables or from the units of the columns.

    Parameters
    ----------
    center : float or array-like of shape (n_features,), default=0.0
        Subtracted from the columns.
    scale : float or array-like of shape (n_features,), default=1.0
        Divides the columns; positive.

    Raises
    ------
    ValueError
        If a constant is not finite, a scale is not positive, or their number is not 1 and not
        that of the columns.

    Examples
    --------
    >>> from sk_unlearn.preprocessing import PublicScaler
    >>> scaler = PublicScaler(center=[40.0, 0.0], scale=[20.0, 100.0])
    >>> scaler.transform([[60.0, 50.0], [30.0, 100.0]])
    array([[ 1. ,  0.5],
           [-0.5,  1. ]])
    """

    def __init__(self, center: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        self.center = center
        self.scale = scale

    def _constants(self, n_features: int) -> list[NDArray[np.float64]]:
        constants = []
        for name in ("center", "scale"):
            given = getattr(self, name)
            try:
                value = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be numbers; got {given!r}") from None
            if value.shape not in ((), (n_features,)):
                raise ValueError(
                    f"{name} has shape {value.shape}, but X has {n_features} columns: pass one "
                    "number, or one for each column"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite; got {given!r}")
            constants.append(value)
        if not (constants[1] > 0).all():
            raise ValueError(
                f"scale must be positive; got {self.scale!r}: use 1 for a column that needs none"
            )
        return constants

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return ``(X - center) / scale``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            A new array, float32 if X is, else float64.
        """
        X = self._rows(X)
        center, scale = self._constants(X.shape[1])
        return ((X - center) / scale).astype(X.dtype, copy=False)


class PublicOneHotEncoder(_PublicTransformer):
    """One column of zeros and ones for each public category of each column.

    Data-independent: the categories are declared, never collected from rows, where a rare one
    would tell who is among them.

    Parameters
    ----------
    categories : sequence of sequences
        For each column of X its categories: strings, numbers, None or NaN. A cell takes the
        category that it equals; NaN, None and NA cells take a None or NaN among them.
    handle_unknown : {"error", "ignore"}, default="error"
        What to do with a cell that has no category: raise, or encode it as zeros.

    Raises
    ------
    ValueError
        If `categories` is missing, has not one non-empty entry without repetitions for each
        column, or a cell is unknown and `handle_unknown` is ``"error"``.

    Examples
    --------
    >>> from sk_unlearn.preprocessing import PublicOneHotEncoder
    >>> encoder = PublicOneHotEncoder([["private", "public"], [1, 2, 3]])
    >>> encoder.transform([["public", 1], ["private", 3]])
    array([[0., 1., 1., 0., 0.],
           [1., 0., 0., 0., 1.]])
    >>> encoder.get_feature_names_out(["sector", "level"]).tolist()
    ['sector_private', 'sector_public', 'level_1', 'level_2', 'level_3']
    """

    def __init__(
        self, categories: Sequence[Sequence[Any]] | None = None, handle_unknown: str = "error"
    ) -> None:
        self.categories = categories
        self.handle_unknown = handle_unknown

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Encode the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Cells to encode.

        Returns
        -------
        ndarray of shape (n_samples, n_categories)
            Zeros and ones, column by column of X.
        """
        X = self._rows(X)
        return np.hstack(
            [self._encoded(X[:, i], own, i) for i, own in enumerate(self._constants(X.shape[1]))]
        )

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Return the names ``column_category`` of the encoded columns.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of X; those seen in fit, or x0, x1, ..., if None.

        Returns
        -------
        ndarray of str
        """
        if hasattr(self, "n_features_in_"):
            input_features = _check_feature_names_in(self, input_features)
        elif input_features is None:
            input_features = [f"x{i}" for i in range(len(self.categories or ()))]
        names = [str(name) for name in np.asarray(input_features)]
        return np.array(
            [
                f"{name}_{category}"
                for name, own in zip(names, self._constants(len(names)), strict=True)
                for category in own
            ],
            dtype=object,
        )

    def _rows(self, X: ArrayLike, reset: bool = False) -> NDArray[np.object_]:
        if reset or hasattr(self, "n_features_in_"):
            validate_data(self, X, reset=reset, skip_check_array=True)
        if hasattr(X, "isna"):  # a frame, whose NA cannot be compared
            missing, X = X.isna().to_numpy(), X.to_numpy(dtype=object, copy=True)
            X[missing] = np.nan
        return check_array(X, dtype=object, ensure_all_finite=False, estimator=self, input_name="X")

    def _constants(self, n_features: int) -> list[list[Any]]:
        if self.handle_unknown not in ("error", "ignore"):
            raise ValueError(
                f"handle_unknown must be 'error' or 'ignore'; got {self.handle_unknown!r}"
            )
        if self.categories is None or isinstance(self.categories, str):
            raise ValueError(
                "categories must list the public categories of each column; got "
                f"{self.categories!r}: collected from the rows they would carry the deleted ones"
            )
        if len(self.categories) != n_features:
            raise ValueError(
                f"categories has {len(self.categories)} entries, but X has {n_features} columns"
            )
        lists = [list(own) for own in self.categories]
        for i, own in enumerate(lists):
            if isinstance(self.categories[i], str):
                raise ValueError(f"categories of column {i} must be a list; got {''.join(own)!r}")
            distinct = {None if _is_missing(category) else category for category in own}
            if not own or len(distinct) != len(own):
                raise ValueError(
                    f"categories of column {i} must be distinct and at least one; got {own!r}"
                )
        return lists

    def _encoded(self, cells: NDArray[Any], own: list[Any], column: int) -> NDArray[np.float64]:
        encoded = np.stack([_equal(cells, category) for category in own], axis=1)
        unknown = ~encoded.any(axis=1)
        if self.handle_unknown == "error" and unknown.any():
            values = list(dict.fromkeys(map(str, cells[unknown])))[:5]
            raise ValueError(
                f"column {column} holds {values}, not among its public categories {own}; declare "
                "them, or pass handle_unknown='ignore'"
            )
        return encoded.astype(np.float64)

    def __sklearn_tags__(self) -> Tags:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        return tags


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _equal(cells: NDArray[Any], category: Any) -> NDArray[np.bool_]:
    if _is_missing(category):
        return (cells != cells) | np.equal(cells, None)
    return np.equal(cells, category).astype(bool)
