"""What a frozen network computes, in float64, with a proved bound on the rounding error.

A certificate about a head on deep features, or about a network linearised at frozen weights,
is about real numbers: the features of a row are those of the network with its stored weights,
evaluated without rounding, the same in both worlds whatever the batches (T12). Here they are
evaluated with an error that is proved, so that it can be paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ._bounded import SLACK, UNIT, Bounded, upper_norms
from ._layers import Layer
from ._layers_affine import Affine
from ._network_layers import build, obstacle
from ._places import pixel_labels

__all__ = [
    "LinearisedGradient",
    "features_with_error",
    "head_residuals",
    "linearised_gradient",
    "obstacle",
]

_CHUNK_NUMBERS, _MIN_CHUNK, _MAX_CHUNK = 2**18, 8, 256
Residuals = Callable[[slice, Bounded], Bounded]
_OVERFLOW = "a feature or its rounding error is not finite; scale the rows down"


@dataclass(frozen=True)
class LinearisedGradient:
    """Gradient of a linearised network's mean loss, and how far it is from the true one.

    Parameters
    ----------
    gradients : dict of str to Tensor
        For each parameter named in the tangent, float64: the mean over rows of ``J^T r``.
    error : float
        Bound on the Euclidean distance of all of them together to the true mean.
    ambiguous : int
        Units whose derivative rounding leaves open. With any, `error` is not proved.
    """

    gradients: dict[str, Tensor]
    error: float
    ambiguous: int


def features_with_error(
    module: nn.Module, X: np.ndarray | Tensor, chunk: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a frozen network, flattened, and a bound on each row's error.

    Parameters
    ----------
    module : nn.Module
        One that :func:`obstacle` has nothing against; its weights are used as they are.
    X : array of shape (n, ...), float32 or float64
        Rows, finite.
    chunk : int or None
        Rows worked on at once; None: as many as keep the widest layer in the cache.

    Returns
    -------
    features : ndarray of shape (n, q), float64
    error : ndarray of shape (n,)
        Bound on the Euclidean distance of a row's features from those of the same weights
        and the same row in real arithmetic, whatever the batch.

    Raises
    ------
    NotApplicableError
        If a layer is not covered.
    ValueError
        If a feature or its error is not finite.

    Notes
    -----
    Running error analysis, layer by layer: ``|W| (e + gamma |x^|) + gamma |b|`` for an affine
    layer (Higham 2002, sec. 3.1 and 3.3); the piecewise linear layers are 1-Lipschitz, so errors
    pass through them whatever their kinks do.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> features, error = features_with_error(net, torch.ones(2, 4))
    >>> features.shape, bool(0 < error.max() < 1e-14)
    ((2, 8), True)
    """
    layers = build(module)
    features, errors = [], []
    with torch.no_grad():
        for rows in _slices(layers, X, chunk):
            output = _forward(layers, _read(X, rows))
            features.append(output.value.flatten(1).numpy())
            errors.append(output.row_norms()[1].numpy())
    error = np.concatenate(errors)
    if not np.isfinite(error).all():
        raise ValueError(_OVERFLOW)
    return np.concatenate(features), error


def linearised_gradient(
    module: nn.Module,
    X: np.ndarray | Tensor,
    tangent: Mapping[str, Tensor],
    residuals: Residuals,
    chunk: int | None = None,
) -> LinearisedGradient:
    r"""Return the gradient of a linearised network's mean loss with a bound on its error.

    The model is :math:`z(x) = f(x; w_0) + J(x) v` for the module's weights :math:`w_0`, and the
    gradient the mean over rows of :math:`J(x_i)^T r_i` with residuals :math:`r_i = r(z(x_i))`.
    The penalty is the caller's.

    Parameters
    ----------
    module : nn.Module
        One that :func:`obstacle` has nothing against.
    X : array of shape (n, ...), float32 or float64
        Rows, finite.
    tangent : mapping of str to Tensor
        ``v`` in float64, by the names of the parameters that move; the others are frozen.
    residuals : callable
        ``residuals(rows, logits)`` with a slice of row numbers and their bounded logits
        (m, K) returns bounded residuals: :func:`head_residuals`.
    chunk : int or None
        Rows worked on at once; None: as many as keep the widest layer in the cache.

    Returns
    -------
    LinearisedGradient

    Raises
    ------
    NotApplicableError
        If a layer is not covered.
    ValueError
        If a tangent belongs to no parameter, or a number is not finite.

    Notes
    -----
    Forward, tangent and backward passes each carry their errors (three further products for
    each pass). At a kink the derivative is torch's: 0 (or the slope) at exactly zero, the first
    of equal numbers in a maximum. The mask of a unit is the true one when its value exceeds its
    error; the units where it does not are counted. Ties of a maximum between units that see
    the same numbers do not count: their derivatives are equal.
    """
    layers, names, n = build(module), set(tangent), len(X)
    known = {name for layer in layers for name in layer.parameter_names}
    if not names <= known:
        raise ValueError(f"tangents for {sorted(names - known)}; there are {sorted(known)}")
    directions = {name: v.detach().to("cpu", torch.float64) for name, v in tangent.items()}
    total = {name: torch.zeros_like(v) for name, v in directions.items()}
    error, ambiguous, slices = 0.0, 0, _slices(layers, X, chunk)
    with torch.no_grad():
        for rows in slices:
            x = _forward(layers, _read(X, rows))
            ambiguous += _ambiguous(layers, X[rows])
            c = residuals(rows, x.plus(_tangent(layers, directions, x)))
            gradients, spread = _backward(layers, c, names, len(slices) + 2)
            for name, gradient in gradients.items():
                total[name] += gradient / n
            error += SLACK * spread / n
    if not np.isfinite(error):
        raise ValueError("the gradient or its rounding error is not finite; scale the rows down")
    return LinearisedGradient(total, SLACK * error, ambiguous)


def head_residuals(y: np.ndarray | Tensor, multi_class: str) -> Residuals:
    """Return the residuals of a head's loss, with errors, for :func:`linearised_gradient`.

    Parameters
    ----------
    y : array of shape (n,), or (n, K)
        Class indices; for "squared" targets (n, K).
    multi_class : {"ovr", "multinomial", "squared"}
        ``sigmoid(z) - y``, ``softmax(z) - y``, or ``z - y``.

    Returns
    -------
    callable
        ``(rows, logits) -> residuals``. A sigmoid is 1/4-Lipschitz and a softmax 1/2-Lipschitz
        (Euclidean norm); evaluating them adds the error of
        :func:`sk_unlearn.bounds.gradient_rounding_error`.
    """
    labels = torch.as_tensor(y)

    def evaluate(rows: slice, z: Bounded) -> Bounded:
        if multi_class == "squared":
            return z.plus(Bounded.exact(-labels[rows]))
        K = z.value.shape[1]
        one_hot = nn.functional.one_hot(labels[rows].long(), K).double()
        if multi_class == "ovr":
            value = torch.sigmoid(z.value) - one_hot
            return Bounded(value, SLACK * (0.25 * z.error + 9.0 * UNIT))
        value = torch.softmax(z.value, dim=1) - one_hot
        evaluation = (K + 12.0 * np.log(K) + 20.0) * UNIT
        norm = 0.5 * upper_norms(z.error) + evaluation
        return Bounded(value, SLACK * norm[:, None].expand_as(value))

    return evaluate


def _slices(layers: list[Layer], X: np.ndarray | Tensor, chunk: int | None) -> list[slice]:
    n = len(X)
    if chunk is None:
        with torch.no_grad():
            _forward(layers, _read(X, slice(0, 1)))
        read = [layer.lift(layer.x.value) for layer in layers if isinstance(layer, Affine)]
        widest = max((lifted[:1].numel() for lifted in read), default=1)
        chunk = min(_MAX_CHUNK, max(_MIN_CHUNK, _CHUNK_NUMBERS // max(1, widest)))
    return [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def _read(X: np.ndarray | Tensor, rows: slice) -> Bounded:
    return Bounded.exact(torch.tensor(np.asarray(X[rows])))


def _forward(layers: list[Layer], x: Bounded) -> Bounded:
    for layer in layers:
        x = layer.forward(x)
    if not bool(torch.isfinite(x.value).all() and torch.isfinite(x.error).all()):
        raise ValueError(_OVERFLOW)
    return x


def _ambiguous(layers: list[Layer], X: np.ndarray | Tensor) -> int:
    """Count the open derivatives of the last forward pass; look at places only if there are any."""
    total = sum(layer.ambiguous(None) for layer in layers)
    if not total or X.ndim != 4:
        return total
    labels: Tensor | None = pixel_labels(torch.tensor(np.asarray(X)))
    total = 0
    for layer in layers:
        total += layer.ambiguous(labels)
        labels = None if labels is None else layer.places(labels)
    return total


def _tangent(layers: list[Layer], directions: dict[str, Tensor], like: Bounded) -> Bounded:
    dx: Bounded | None = None
    for layer in layers:
        dx = layer.tangent(dx, directions)
    return Bounded.exact(torch.zeros_like(like.value)) if dx is None else dx


def _backward(
    layers: list[Layer], c: Bounded, names: set[str], more_terms: int
) -> tuple[dict[str, Tensor], float]:
    """Return the gradients summed over rows, and their error; stop at the first that is wanted."""
    gradients, error = {}, 0.0
    wanted = set(names)
    for layer in reversed(layers):
        if isinstance(layer, Affine):
            own, spread = layer.parameter_gradient(c, names, more_terms)
            gradients |= own
            error += spread
            wanted -= set(own)
        if not wanted:
            break
        c = layer.backward(c)
    return gradients, error
