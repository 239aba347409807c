"""Features from a frozen public network, the same numbers for a row whatever its batch (T12)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, validate_data
from torch import nn

from ..exceptions import NotApplicableError

RowFunction = Callable[[torch.Tensor], torch.Tensor]


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse anything but a whole number >= 1 (or None, where that is allowed).

    Raises
    ------
    ValueError
        Quoting the value.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"{name} must be a whole number >= 1{' or None' if optional else ''}; got {value!r}"
        )


def public_row(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return one pseudo-random row in [0, 1), always the same."""
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def probe_rows(function: RowFunction, row: torch.Tensor, batch_size: int) -> int:
    """Check that a row's features depend on no other row and not on its place in the batch.

    A batch of copies of `row` must give one and the same result at every place, bit for bit,
    and the same again when every other copy is replaced by zeros.

    Returns
    -------
    int
        The number of features.

    Raises
    ------
    NotApplicableError
        If a bit differs, or if the result is not one row of features for each row.
    """
    batch = row.expand(batch_size, *row.shape).clone()
    alternating = batch.clone()
    alternating[1::2] = 0
    result, mixed = function(batch), function(alternating)
    if result.shape[:1] != (batch_size,):
        raise NotApplicableError(
            f"{batch_size} rows gave a result of shape {tuple(result.shape)}; the first axis of "
            "the output must run over the rows: choose another layer"
        )
    first = result[:1].clone()
    for rows in (result, mixed[::2]):
        if not torch.equal(rows.nan_to_num(), first.expand_as(rows).nan_to_num()):
            raise NotApplicableError(
                "the features of a row depend on its batch, so the two worlds of a certificate "
                "would not see the same numbers (T12): a layer mixes rows (BatchNorm with "
                "track_running_stats=False?), draws at random (dropout that eval() does not "
                "reach?), or its kernels treat the places of a batch differently; replace that "
                f"layer, or pass batch_size=1 (it is {batch_size})"
            )
    return result[0].numel()


def torch_dtype(X: NDArray[Any]) -> torch.dtype:
    """Return the torch type of the elements of X."""
    return torch.from_numpy(np.empty(0, X.dtype)).dtype


def map_rows(
    function: RowFunction, X: NDArray[Any], batch_size: int, device: str | torch.device
) -> NDArray[Any]:
    """Apply `function` to the rows of X in chunks of exactly `batch_size` rows.

    The last chunk is filled up with zeros, and every chunk lies in the same buffer (aligned by
    torch, unlike numpy's memory), so that the same kernels run on the same shapes and
    alignments whatever the number of rows.

    Returns
    -------
    ndarray of shape (len(X), n_features)
    """
    buffer = torch.empty((batch_size, *X.shape[1:]), dtype=torch_dtype(X))
    filled = buffer.numpy()
    result = None
    for start in range(0, len(X), batch_size):
        rows = X[start : start + batch_size]
        filled[: len(rows)] = rows
        filled[len(rows) :] = 0
        features = function(buffer.to(device)).reshape(batch_size, -1).cpu().numpy()
        if result is None:
            result = np.empty((len(X), features.shape[1]), dtype=features.dtype)
        result[start : start + len(rows)] = features[: len(rows)]
    if not np.isfinite(result).all():
        row = int(np.flatnonzero(~np.isfinite(result).all(axis=1))[0])
        raise ValueError(f"row {row} gave a feature that is not finite; clip or leave out the row")
    return result


class TorchFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Output of a frozen public torch network, or of one of its layers.

    Data-independent: nothing is learned, and `transform` works without `fit`. The module must
    be public, that is, not trained on rows that may be asked to be deleted.

    A row's features are the same bits whatever the other rows, their order and their number
    (T12): a copy of the module runs in eval mode on chunks of exactly `batch_size` rows, the
    last one filled up with zeros, and each call first checks on identical rows that no place in
    a chunk and no neighbour changes a bit (this costs two chunks). It holds for one module, one
    `batch_size`, one build of torch, one device and one number of threads: keep them for as long
    as certificates are to hold, and leave ``torch.backends.cudnn.benchmark`` off. With
    ``batch_size=1`` it holds for any deterministic module.

    Parameters
    ----------
    module : torch.nn.Module
        It takes a tensor whose first axis runs over the rows. Never modified: each call works
        on a deep copy in eval mode, without gradients.
    layer : str, default=None
        Name of the submodule whose output is used, as in ``module.named_modules()``. None for
        the output of the whole module.
    batch_size : int, default=64
        Rows in each chunk.
    device : str or torch.device, default="cpu"
        Where the copy runs.
    dtype : str or numpy dtype, default="float32"
        What X is converted to: the type of the module's weights, or ``"int64"`` for tokens.

    Raises
    ------
    NotApplicableError
        If a row's features depend on its batch, or if running the module changes its state
        (a parameter, a buffer, or a tensor or number among its attributes).
    TypeError
        If `module` is not a torch module, or its output is not a tensor.
    ValueError
        If `layer` does not exist or does not run exactly once, or a feature is not finite.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sk_unlearn.features import TorchFeatures
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> X = np.random.default_rng(0).normal(size=(100, 4))
    >>> features = TorchFeatures(net, layer="1").transform(X)
    >>> features.shape
    (100, 8)
    >>> np.array_equal(features[[7]], TorchFeatures(net, layer="1").transform(X[[7]]))
    True
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | None = None,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: Any = "float32",
    ) -> None:
        self.module = module
        self.layer = layer
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype

    def fit(self, X: ArrayLike, y: Any = None) -> TorchFeatures:
        """Check the module and the shape of X; learn nothing.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Inputs of the module.
        y : None
            Ignored.

        Returns
        -------
        TorchFeatures
        """
        X = validate_data(self, X, dtype=self.dtype, order="C", allow_nd=True)
        self._n_features_out = _Frozen(self.module, self.layer, self.device).probe(
            X, self.batch_size
        )
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Run the frozen network.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Inputs of the module.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The output, flattened from its second axis on.
        """
        if hasattr(self, "n_features_in_"):
            X = validate_data(self, X, dtype=self.dtype, order="C", allow_nd=True, reset=False)
        else:
            X = check_array(
                X, dtype=self.dtype, order="C", allow_nd=True, estimator=self, input_name="X"
            )
        frozen = _Frozen(self.module, self.layer, self.device)
        frozen.probe(X, self.batch_size)
        features = map_rows(frozen, X, self.batch_size, self.device)
        frozen.check_unchanged()
        return features

    def __sklearn_tags__(self) -> Tags:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = [str(np.dtype(self.dtype))]
        return tags


class _Frozen:
    """A copy of a module in eval mode; calling it gives the output of one layer."""

    def __init__(self, module: nn.Module, layer: str | None, device: str | torch.device) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an instance of torch.nn.Module; got {module!r}")
        names = [name for name, _ in module.named_modules() if name]
        if layer is not None and layer not in names:
            raise ValueError(f"the module has no layer {layer!r}; choose one of {names} or None")
        if any(map(nn.parameter.is_lazy, [*module.parameters(), *module.buffers()])):
            raise NotApplicableError(
                "running the module would initialise its lazy layers; run it once beforehand"
            )
        self.module = copy.deepcopy(module).to(device).eval()
        self.layer = layer
        self.device = device
        self.before = _state(self.module)
        self.outputs: list[Any] = []
        self.module.get_submodule(layer or "").register_forward_hook(
            lambda module, inputs, output: self.outputs.append(output)
        )

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.outputs.clear()
        with torch.inference_mode():
            self.module(batch)
        if len(self.outputs) != 1:
            raise ValueError(
                f"layer {self.layer!r} ran {len(self.outputs)} times in one pass; choose a layer "
                "that runs once"
            )
        if not isinstance(self.outputs[0], torch.Tensor):
            raise TypeError(
                f"the output is a {type(self.outputs[0]).__name__}, not a tensor; choose another "
                "layer, or wrap the module in one that returns a tensor"
            )
        return self.outputs[0]

    def probe(self, X: NDArray[Any], batch_size: int) -> int:
        check_count("batch_size", batch_size)
        if np.issubdtype(X.dtype, np.floating):
            row = public_row(X.shape[1:], torch_dtype(X))
        else:
            row = torch.tensor(X[0])  # not every integer is a token
        n_features = probe_rows(self, row.to(self.device), batch_size)
        self.check_unchanged()
        return n_features

    def check_unchanged(self) -> None:
        after = _state(self.module)
        changed = [
            name
            for name in self.before.keys() | after.keys()
            if not _same(self.before.get(name), after.get(name))
        ]
        if changed:
            raise NotApplicableError(
                f"running the module in eval mode changed {', '.join(sorted(changed))}: its "
                "features would depend on the rows that ran before; freeze that state"
            )


def _state(module: nn.Module) -> dict[str, Any]:
    kept = {}
    for prefix, part in module.named_modules():
        own = {**vars(part), **part._parameters, **part._buffers}
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                kept[f"{prefix}.{name}".lstrip(".")] = value.detach().clone()
            elif isinstance(value, bool | int | float | str):
                kept[f"{prefix}.{name}".lstrip(".")] = value
    return kept


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return old.shape == new.shape and bool(((old == new) | ((old != old) & (new != new))).all())
    return type(old) is type(new) and old == new
