"""The rounding error of a frozen network, against the same network in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sk_unlearn._bounded import FUNCTION_ERROR, UNIT, Bounded, _smallest
from sk_unlearn._layers import Average, Kink, Saturating
from sk_unlearn._network_layers import build
from sk_unlearn._places import pixel_labels, window_labels
from sk_unlearn.exceptions import NotApplicableError
from sk_unlearn.modules import MLP, AllCNN
from sk_unlearn.network_rounding import (
    _forward,
    features_with_error,
    head_residuals,
    linearised_gradient,
    obstacle,
)

few = settings(max_examples=20, deadline=None)


class Dual:
    """An exact number with its derivatives in every parameter."""

    def __init__(self, value, slopes=None):
        self.value, self.slopes = value, slopes

    def __add__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, _sum(self.slopes, other.slopes))

    __radd__ = __add__

    def __mul__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        parts = _times(other.value, self.slopes), _times(self.value, other.slopes)
        return Dual(self.value * other.value, _sum(*parts))

    __rmul__ = __mul__

    def scaled(self, value, slope):
        return Dual(value, _times(slope, self.slopes))

    def relu(self, below):
        slope = 1 if self.value > 0 else below
        return self.scaled(slope * self.value, slope)

    def tanh(self):
        y = mp.tanh(self.value)
        return self.scaled(y, 1 - y * y)

    def sigmoid(self):
        y = 1 / (1 + mp.exp(-self.value))
        return self.scaled(y, y * (1 - y))


def _sum(a, b):
    return b if a is None else a if b is None else a + b


def _times(factor, slopes):
    return None if slopes is None else factor * slopes


def exact(layer, x, weights, name=""):
    """Run one row through a module in exact arithmetic, layer by layer, by the book."""
    each = np.frompyfunc
    match layer:
        case nn.Sequential():
            for key, part in layer.named_children():
                x = exact(part, x, weights, f"{name}{key}.")
            return x
        case MLP():
            return exact(layer.layers, x.ravel(), weights, "layers.")
        case nn.Linear():
            bias = weights.get(f"{name}bias", 0)
            return weights[f"{name}weight"] @ x + bias
        case nn.Conv2d():
            return exact_convolution(layer, x, weights, name)
        case nn.ReLU():
            return each(lambda v: v.relu(0), 1, 1)(x)
        case nn.LeakyReLU():
            slope = type(x.ravel()[0].value)(layer.negative_slope)
            return each(lambda v: v.relu(slope), 1, 1)(x)
        case nn.Tanh():
            return each(Dual.tanh, 1, 1)(x)
        case nn.Sigmoid():
            return each(Dual.sigmoid, 1, 1)(x)
        case nn.Flatten():
            return x.ravel()
        case nn.Dropout():
            return x
        case nn.AdaptiveAvgPool2d():
            return windows(x, x.shape[1:], x.shape[1:], mean)
        case nn.AvgPool2d():
            return windows(x, pair(layer.kernel_size), pair(layer.stride), mean)
        case nn.MaxPool2d():
            largest = lambda w: max(w, key=lambda v: v.value)  # noqa: E731
            return windows(x, pair(layer.kernel_size), pair(layer.stride), largest)


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def mean(window):
    one = type(window[0].value)(1)
    return sum(window) * (one / len(window))


def windows(x, kernel, stride, function):
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    out = np.empty((len(x), *size), dtype=object)
    for c, i, j in product(*map(range, out.shape)):
        part = x[c, i * stride[0] :, j * stride[1] :][: kernel[0], : kernel[1]]
        out[c, i, j] = function(list(part.ravel()))
    return out


def exact_convolution(layer, x, weights, name):
    kernel, bias = weights[f"{name}weight"], weights.get(f"{name}bias")
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    zero = Dual(x.ravel()[0].value * 0)
    ph, pw = layer.padding
    padded = np.full((len(x), x.shape[1] + 2 * ph, x.shape[2] + 2 * pw), zero, dtype=object)
    padded[:, ph : ph + x.shape[1], pw : pw + x.shape[2]] = x
    high = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    wide = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
    out = np.empty((len(kernel), high, wide), dtype=object)
    group_in, group_out = len(x) // layer.groups, len(kernel) // layer.groups
    for o, i, j in product(*map(range, out.shape)):
        channels = padded[o // group_out * group_in :][:group_in]
        patch = channels[:, i * sh :, j * sw :][
            :, : dh * (kh - 1) + 1 : dh, : dw * (kw - 1) + 1 : dw
        ]
        total = sum((patch * kernel[o]).ravel())
        out[o, i, j] = total if bias is None else total + bias[o]
    return out


def duals(module, number, directions=()):
    """Return the parameters as exact numbers whose slopes run over the given names."""
    size = sum(p.numel() for name, p in module.named_parameters() if name in directions)
    weights, start = {}, 0
    for name, parameter in module.named_parameters():
        flat = [Dual(number(v)) for v in parameter.detach().double().ravel().tolist()]
        if name in directions:
            for dual in flat:
                dual.slopes = np.array([number(0)] * size, dtype=object)
                dual.slopes[start] = number(1)
                start += 1
        weights[name] = np.array(flat, dtype=object).reshape(parameter.shape)
    return weights


def exact_row(x, number):
    flat = [Dual(number(v)) for v in x.double().ravel().tolist()]
    return np.array(flat, dtype=object).reshape(x.shape)


def norm(vector):
    return mp.sqrt(sum(mpf(v) ** 2 for v in vector))


def mpf(v):
    return mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else mp.mpf(v)


def distance(row, true):
    return norm(mpf(t.value) - mp.mpf(v) for v, t in zip(row.tolist(), true, strict=True))


NETS = {
    "dense": lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)),
    "deep": lambda: MLP(5, 3, hidden=(4, 4, 4)),
    "leaky": lambda: nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3, bias=False)),
    "smooth": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "strides": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2, dilation=2, padding=(1, 0)), nn.ReLU(), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3),
    ),
    "overlap": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 1, bias=False), nn.MaxPool2d(3, stride=1), nn.AvgPool2d(2, stride=1),
        nn.Flatten(), nn.Linear(2, 3),
    ),
}  # fmt: skip
SMOOTH = {"smooth"}


def problem(kind, seed, dtype):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = NETS[kind]().to(dtype)
    shape = (2, 4, 4) if "Conv" in repr(net) else (5,)
    X = torch.tensor(rng.standard_normal((3, *shape)) * 10.0 ** rng.uniform(-8, 8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= (
                10.0 ** rng.uniform(-2, 2) if kind in SMOOTH else 10.0 ** rng.uniform(-6, 6)
            )
            if rng.random() < 0.3:
                parameter[...] = torch.round(parameter)
    if kind in SMOOTH:
        X /= 1e-9 + X.abs().max()
    if rng.random() < 0.3:  # rows whose products cancel
        X = torch.cat([X[:, :1], -X[:, :1], X[:, 2:]], dim=1)
    if rng.random() < 0.3:
        X *= torch.tensor(rng.random(X.shape) < 0.5)
    return net, X.to(dtype)


def true_rows(net, X, number, directions=()):
    weights = duals(net, number, directions)
    return [exact(net, exact_row(x, number), weights).ravel() for x in X]


@pytest.mark.parametrize("kind", NETS)
@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_features_are_within_their_error(kind, seed, dtype):
    net, X = problem(kind, seed, dtype)
    features, error = features_with_error(net, X, chunk=2)
    with mp.workdps(60):
        truth = true_rows(net, X, mp.mpf if kind in SMOOTH else Fraction)
        for row, bound, true in zip(features, error, truth, strict=True):
            assert distance(row, true) <= bound


def true_gradient(net, X, v, y, multi_class, number):
    """Return the exact mean over rows of J^T r."""
    rows = true_rows(net, X, number, v)
    flat = [number(t) for part in v.values() for t in part.ravel().tolist()]
    total = 0
    for outputs, label in zip(rows, y.tolist(), strict=True):
        J = [o.slopes if o.slopes is not None else np.zeros(len(flat), object) for o in outputs]
        z = [
            o.value + sum(s * t for s, t in zip(j, flat, strict=True))
            for o, j in zip(outputs, J, strict=True)
        ]
        total = total + sum(
            j * r for j, r in zip(J, true_residual(z, label, multi_class), strict=True)
        )
    return [t / len(rows) for t in total]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


TARGETS = [[Fraction(3 * k - j, 4) for j in range(3)] for k in range(3)]


def residuals_of(y, multi_class):
    if multi_class == "squared":
        y = np.array(TARGETS, dtype=np.float32)[y]
    return head_residuals(y, multi_class)


def true_residual(z, label, multi_class):
    hot = [int(k == label) for k in range(len(z))]
    if multi_class == "squared":
        return [
            a - type(a)(t.numerator) / t.denominator for a, t in zip(z, TARGETS[label], strict=True)
        ]
    if multi_class == "ovr":
        return [1 / (1 + mp.exp(-mpf(a))) - h for a, h in zip(z, hot, strict=True)]
    top = max(mpf(a) for a in z)
    weights = [mp.exp(mpf(a) - top) for a in z]
    return [w / sum(weights) - h for w, h in zip(weights, hot, strict=True)]


def gradient_distance(result, v, truth):
    flat = [t for name in v for t in result.gradients[name].ravel().tolist()]
    return norm(mp.mpf(a) - mpf(t) for a, t in zip(flat, truth, strict=True))


@pytest.mark.parametrize("multi_class", ["squared", "ovr", "multinomial"])
@pytest.mark.parametrize("kind", NETS)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_linearised_gradients_are_within_their_error(kind, multi_class, seed, last_only):
    net, X = problem(kind, seed, torch.float32)
    rng = np.random.default_rng(seed)
    names = [name for name, _ in net.named_parameters()][-2 if last_only else 0 :]
    scale = 10.0 ** rng.uniform(-4, 4)
    v = {
        name: torch.tensor(rng.standard_normal(p.shape) * scale)
        for name, p in net.named_parameters()
        if name in names
    }
    y = torch.tensor(rng.integers(0, 3, len(X)))
    result = linearised_gradient(net, X, v, residuals_of(y, multi_class), chunk=2)
    with mp.workdps(60):
        number = Fraction if kind not in SMOOTH and multi_class == "squared" else mp.mpf
        truth = true_gradient(net, X, v, y, multi_class, number)
        if result.ambiguous == 0:
            assert gradient_distance(result, v, truth) <= result.error


@pytest.mark.parametrize("multi_class", ["squared", "ovr", "multinomial"])
@pytest.mark.parametrize("kind", NETS)
def test_ordinary_networks_are_unambiguous_and_bounds_are_not_loose(kind, multi_class):
    torch.manual_seed(0)
    net = NETS[kind]()
    X = torch.rand(6, *((2, 4, 4) if "Conv" in repr(net) else (5,)))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    v = {name: torch.randn(p.shape).double() for name, p in net.named_parameters()}
    result = linearised_gradient(net, X, v, residuals_of(y, multi_class), chunk=4)
    assert result.ambiguous == 0
    with mp.workdps(60):
        away = gradient_distance(result, v, true_gradient(net, X, v, y, multi_class, mp.mpf))
    assert 0 < away <= result.error < 1e4 * away
    features, error = features_with_error(net, X)
    assert 0 < error.max() < 1e-13 * np.abs(features).max()


@pytest.mark.parametrize("kind", NETS)
def test_the_bound_covers_every_order_of_summation(kind):
    """Float64 autograd, one row at a time and all at once, agrees within the bound."""
    torch.manual_seed(1)
    net = NETS[kind]().eval()
    X = torch.rand(20, *((2, 4, 4) if "Conv" in repr(net) else (5,)))
    y = torch.arange(20) % 3
    v = {name: torch.randn(p.shape).double() for name, p in net.named_parameters()}
    results = [linearised_gradient(net, X, v, head_residuals(y, "ovr"), c) for c in (1, 7, 20)]
    net, X = net.double(), X.double()
    double = {name: p.detach() for name, p in net.named_parameters()}

    def logits(weights):
        return torch.func.functional_call(net, weights, (X,))

    z, dz = torch.func.jvp(logits, (double,), (v,))
    r = torch.sigmoid(z + dz) - nn.functional.one_hot(y)
    (plain,) = torch.func.vjp(logits, double)[1](r / 20)
    for result in results:
        gaps = [(plain[name] - g).norm() for name, g in result.gradients.items()]
        assert torch.stack(gaps).norm() <= 2 * result.error


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-30, 1e30, 1e100])
def test_extreme_magnitudes(scale):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        net[0].weight *= scale
        net[0].bias.zero_()
    X = torch.rand(3, 4).double() * min(scale, 1.0)
    features, error = features_with_error(net, X)
    with mp.workdps(700):
        for row, bound, true in zip(features, error, true_rows(net, X, Fraction), strict=True):
            assert (
                norm(mpf(t.value) - mp.mpf(v) for v, t in zip(row.tolist(), true, strict=True))
                <= bound
            )


def test_averages_that_underflow_have_an_error_and_zeros_have_none():
    X = torch.zeros(2, 1, 2, 2).double()
    X[1, 0, 0, 0] = 5e-324
    pooled = Average(2).forward(Bounded.exact(X))
    assert not pooled.value.any()
    assert pooled.error[0] == 0 < pooled.error[1]


@pytest.mark.parametrize("size", [1e100, 1e200])
def test_overflow_is_an_error(size):
    """Of the numbers, or of the norm of their errors alone."""
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        net.weight.fill_(1e200)
    with pytest.raises(ValueError, match="not finite"):
        features_with_error(net, np.full((1, 2), size))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, allow_nan=False) | st.just(5e-324), max_size=9), st.booleans())
def test_the_least_number_above_zero(numbers, turned):
    x = torch.tensor(numbers, dtype=torch.float64).repeat(3, 1)
    least = min((number for number in numbers if number > 0), default=1.0)
    assert min(_smallest(x.T if turned else x), 1.0) == min(least, 1.0)


def test_zero_rows_are_exact():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    )
    v = {name: torch.ones(p.shape).double() for name, p in net.named_parameters()}
    result = linearised_gradient(net, torch.zeros(2, 1, 4, 4), v, head_residuals([0, 1], "ovr"))
    assert result.ambiguous == 0
    assert features_with_error(net[:4], torch.zeros(2, 1, 4, 4))[1].max() < 1e-130


def test_units_that_rounding_leaves_open_are_counted():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[0] = torch.tensor([1.0, 1e-20, -1.0])
        net[0].weight[1] = torch.tensor([1.0, 1.0, 1.0])
    v = {"2.bias": torch.ones(2).double()}
    result = linearised_gradient(net, torch.ones(4, 3), v, head_residuals([0, 1, 0, 1], "ovr"))
    assert result.ambiguous == 4
    ties = nn.Sequential(nn.Conv2d(2, 1, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        ties[0].weight.fill_(1.0)
    v = {"3.bias": torch.ones(2).double()}
    pixels = torch.tensor([[[[0.7, 0.1], [0.0, 0.0]], [[0.1, 0.7], [0.0, 0.0]]]])
    assert linearised_gradient(ties, pixels, v, head_residuals([0], "ovr")).ambiguous == 1
    pixels[:, :, 0] = 0.7
    assert linearised_gradient(ties, pixels, v, head_residuals([0], "ovr")).ambiguous == 0


def test_ties_of_places_that_see_the_same_need_no_decision():
    """An image with a flat background, and rounding that differs from place to place."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 2, dilation=2), nn.MaxPool2d(2, stride=1), nn.AvgPool2d(1),
        nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    X = torch.full((2, 1, 9, 9), 0.3)
    X[0, 0, 0, 0], X[1, 0, 3, 4] = 0.9, 0.1
    v = {name: torch.randn(p.shape).double() for name, p in net.named_parameters()}
    y = torch.tensor([0, 2])
    result = linearised_gradient(net, X, v, head_residuals(y, "ovr"))
    layers = build(net)
    _forward(layers, Bounded.exact(X))
    assert sum(layer.ambiguous(None) for layer in layers) > 0
    assert result.ambiguous == 0
    with mp.workdps(40):
        away = gradient_distance(result, v, true_gradient(net, X, v, y, "ovr", mp.mpf))
    assert 0 < away <= result.error < 1e4 * away


def test_the_label_of_zeros_is_for_zeros():
    labels = torch.tensor([[[[0, 5]]]])
    assert Saturating("tanh").places(labels).tolist() == [[[[0, 5]]]]
    assert Saturating("sigmoid").places(labels).tolist() == [[[[-1, 5]]]]
    relu = Kink()
    relu.forward(Bounded.exact(torch.tensor([[[[-1.0, 1.0]]]])))
    assert relu.places(torch.tensor([[[[7, 7]]]])).tolist() == [[[[0, 7]]]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_equal_labels_mean_equal_windows(seed, kernel, stride, padding):
    rng = np.random.default_rng(seed)
    X = torch.tensor(rng.integers(0, 2, (2, 2, 6, 5)) * 1.0)
    labels = window_labels(pixel_labels(X), (kernel, 2), (stride, 1), (padding, 0), (1, 2))
    padded = nn.functional.pad(X, (0, 0, padding, padding))
    seen = {}
    for i, j in product(*map(range, labels.shape[1:])):
        for row, content in enumerate(padded[:, :, stride * i :][:, :, :kernel, j : j + 3 : 2]):
            assert seen.setdefault(int(labels[row, i, j]), content).equal(content)
    contents = {tuple(c.ravel().tolist()) for c in seen.values()}
    assert len(contents) == len(seen)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (AllCNN((3, 8, 8), 10, width=8), r"AllCNN\) has no proved"),
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), r"'1' \(GELU\) has no proved"),
        (nn.Sequential(nn.Sequential(nn.Softmax(1))), r"'0\.0' \(Softmax\)"),
        (nn.Linear(2, 2).half(), "neither float32 nor float64"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "pads with circular"),
        (nn.Conv2d(1, 1, 2, padding="same"), "pads with zeros, 'same'"),
        (nn.MaxPool2d(2, padding=1), "without padding"),
        (nn.AvgPool2d(2, ceil_mode=True), "without padding"),
        (nn.AdaptiveAvgPool2d(2), "output_size=2"),
        (nn.Flatten(0), "start_dim=1"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "ParametrizedLinear"),
    ],
)
def test_what_is_not_covered_is_named(net, reason):
    with pytest.raises(NotApplicableError, match=reason):
        features_with_error(net, np.zeros((1, 2)))


def test_hooks_own_forwards_and_shared_weights_are_not_covered():
    hooked, patched, inner = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    patched.forward = lambda x: x
    assert "hooks" in obstacle(nn.Sequential(hooked))
    assert "forward of its own" in obstacle(patched)
    assert "shares its weights" in obstacle(nn.Sequential(inner, nn.ReLU(), inner))
    wrapped = nn.Sequential(nn.Linear(2, 2))
    wrapped.register_forward_pre_hook(lambda module, inputs: None)
    assert "hooks" in obstacle(nn.Sequential(wrapped))


def test_a_layer_that_runs_twice_runs_twice():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    X = torch.rand(5, 2)
    assert np.allclose(features_with_error(net, X)[0], net(X).detach().numpy(), atol=1e-6)


def test_tangents_of_unknown_parameters_are_refused():
    net = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"tangents for \['bias'\]"):
        linearised_gradient(
            net, torch.ones(1, 2), {"bias": torch.ones(2)}, head_residuals([0], "ovr")
        )


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp"])
def test_the_platforms_functions_are_as_close_as_assumed(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, s, 1500) for s in (1e-8, 1e-3, 0.5, 4.0, 15.0)])
    value = getattr(torch, name)(torch.from_numpy(x)).numpy()
    true = {"tanh": mp.tanh, "exp": mp.exp, "sigmoid": lambda t: 1 / (1 + mp.exp(-t))}[name]
    with mp.workdps(40):
        exact = [true(mp.mpf(float(t))) for t in x]
        error = max(abs((mp.mpf(float(v)) - t) / t) for v, t in zip(value, exact, strict=True))
    assert error <= FUNCTION_ERROR * UNIT
