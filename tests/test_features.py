from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from sk_unlearn.datasets import load_mnist
from sk_unlearn.exceptions import NotApplicableError
from sk_unlearn.features import Scattering2D, TorchFeatures, scattering
from sk_unlearn.features.torch_features import probe_rows

MNIST = {"groups": 27, "pool": 3, "constant": True}


def some_images(n, *shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).random((n, *shape)).astype(dtype)


def formula_image(h, w):
    r, c = np.mgrid[:h, :w]
    return (np.sin(0.9 * r + 0.3 * c) + np.cos(0.05 * r * c))[None]


# ------------------------------------------------------------------ what Scattering2D computes

# kymatio 0.3.0 (torch 2.13.0, scipy 1.16.3, float32): Scattering2D(J, (h, w), L=L) of
# formula_image(h, w), place (1, 1) of every `every`-th channel
KYMATIO = [
    (
        (2, 8, 8, 12, 8),
        "0.3177676 0.03015234 0.06485024 0.001616887 0.003861497 0.00376588 0.007375492 "
        "0.003287618 0.003427906 0.002733998 0.002011561",
    ),
    (
        (3, 4, 16, 24, 7),
        "-0.1955516 0.07135922 0.02302914 0.01329469 0.009811827 0.008011174 0.01685583 "
        "0.02616869 0.01237584",
    ),
]


@pytest.mark.parametrize(("case", "pinned"), KYMATIO)
def test_agrees_with_kymatio(case, pinned):
    J, L, h, w, every = case
    n_channels = 1 + J * L + J * (J - 1) // 2 * L**2
    ours = Scattering2D(J, L).transform(formula_image(h, w))
    ours = ours.reshape(n_channels, h >> J, w >> J)[::every, 1, 1]
    order = np.repeat([0, 1, 2], [1, J * L, n_channels - 1 - J * L])[::every]
    # kymatio divides each of the order + 1 filters of a channel by 3.1415 where pi belongs
    pinned = np.array(pinned.split(), dtype=float)
    reference = pinned * (3.1415 / np.pi) ** (order + 1)
    np.testing.assert_allclose(ours, reference, atol=1e-6 * np.abs(pinned).max(), rtol=3e-6)


def morlet_in_space(h, w, j, angle, L):
    """The wavelet by its definition: sampled, wrapped around the torus, its mean removed."""
    width, slant, frequency = 0.8 * 2**j, 4 / L, 0.75 * np.pi / 2**j
    r, c = np.mgrid[-6 * h : 7 * h, -6 * w : 7 * w]
    along = np.cos(angle) * r + np.sin(angle) * c
    across = np.cos(angle) * c - np.sin(angle) * r
    envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2))
    envelope *= slant / (2 * np.pi * width**2)
    wave = envelope * np.exp(1j * frequency * along)
    wave = wave - wave.sum() / envelope.sum() * envelope
    return wave.reshape(13, h, 13, w).sum(axis=(0, 2))


def circular_convolution(x, kernel):
    shifted = (kernel[r, c] * np.roll(x, (r, c), axis=(0, 1)) for r, c in np.ndindex(*kernel.shape))
    return sum(shifted)


@pytest.mark.parametrize("J", [1, 2])
def test_agrees_with_convolutions_in_space(J):
    """Order 0 and, of order 1, the finest scale: filters of the full grid only."""
    L, step = 4, 2**J
    x = formula_image(6, 9)[0]
    missing = [-n % step for n in x.shape]
    padded = np.pad(x, [(step + m // 2, step + m - m // 2) for m in missing], "reflect")
    h, w = padded.shape
    r, c = np.mgrid[-3 * h : 4 * h, -3 * w : 4 * w]
    width = 0.8 * 2 ** (J - 1)
    window = np.exp(-(r**2 + c**2) / (2 * width**2)) / (2 * np.pi * width**2)
    window = window.reshape(7, h, 7, w).sum(axis=(0, 2))
    angles = (1 - np.arange(L)) * np.pi / L
    fields = [padded] + [
        np.abs(circular_convolution(padded, morlet_in_space(h, w, 0, angle, L))) for angle in angles
    ]
    expected = [circular_convolution(u, window)[::step, ::step][1:-1, 1:-1] for u in fields]
    ours = Scattering2D(J, L).transform(x[None]).reshape(-1, *expected[0].shape)
    np.testing.assert_allclose(ours[: 1 + L], expected, atol=1e-13)


def test_transposed_image_turns_the_orientations():
    x = some_images(1, 12, 12, dtype=np.float64)
    turned = (2 - np.arange(8)) % 8  # pi/2 - (3 - l) pi/8, up to half a turn
    upright = Scattering2D().transform(x).reshape(81, 3, 3)
    lying = Scattering2D().transform(x.transpose(0, 2, 1)).reshape(81, 3, 3).transpose(0, 2, 1)
    for own, other in ((upright[1:9], lying[1:9]), (upright[9:17], lying[9:17])):
        np.testing.assert_allclose(own, other[turned], atol=1e-14)
    second, other = (s[17:].reshape(8, 8, 3, 3) for s in (upright, lying))
    np.testing.assert_allclose(second, other[turned][:, turned], atol=1e-14)


@given(
    J=st.integers(1, 3),
    L=st.integers(1, 5),
    c=st.integers(1, 3),
    h=st.integers(8, 19),
    w=st.integers(8, 19),
    factor=st.floats(1e-3, 1e3),
)
@settings(max_examples=15)
def test_shape_homogeneity_and_constant_images(J, L, c, h, w, factor):
    x = some_images(2, c, h, w, dtype=np.float64)
    x[1] = 0.7
    features = Scattering2D(J, L).transform(x)
    n_places = -(-h // 2**J) * -(-w // 2**J)
    assert features.shape == (2, c * (1 + J * L + J * (J - 1) // 2 * L**2) * n_places)
    scaled = Scattering2D(J, L).transform(factor * x)
    np.testing.assert_allclose(scaled, factor * features, atol=1e-13 * factor, rtol=1e-10)
    flat = features[1].reshape(c, -1, n_places)
    samples = np.exp(-0.5 * (np.arange(-40, 41) / (0.8 * 2 ** (J - 1))) ** 2)
    mass = (samples.sum() / (np.sqrt(2 * np.pi) * 0.8 * 2 ** (J - 1))) ** 2  # of the window
    np.testing.assert_allclose(flat[:, 0], 0.7 * mass, rtol=1e-12)
    np.testing.assert_allclose(flat[:, 1:], 0, atol=1e-12)


def test_groups_pool_and_constant_column():
    x = some_images(3, 2, 16, 16, dtype=np.float64)
    raw = Scattering2D(J=2, L=4).transform(x).reshape(3, 2 * 25, 4, 4)
    grouped = raw.reshape(3, 10, -1)
    grouped = grouped - grouped.mean(axis=2, keepdims=True)
    grouped = grouped / np.sqrt((grouped**2).mean(axis=2, keepdims=True) + 1e-5)
    pooled = grouped.reshape(3, 50, 2, 2, 2, 2).mean(axis=(3, 5)).reshape(3, -1)
    ours = Scattering2D(J=2, L=4, groups=10, pool=2, constant=True).transform(x)
    np.testing.assert_allclose(ours, np.hstack([pooled, np.ones((3, 1))]), atol=1e-10)


def test_precision_follows_the_images():
    x = (255 * some_images(4, 12, 12)).astype(np.uint8)
    exact = Scattering2D(**MNIST).transform(x.astype(np.float64))
    for dtype, tolerance in ((np.float32, 1e-3), (np.uint8, 1e-3), (np.float64, 0)):
        features = Scattering2D(**MNIST).transform(x.astype(dtype))
        assert features.dtype == (np.float64 if dtype is np.float64 else np.float32)
        np.testing.assert_allclose(features, exact, atol=tolerance)


# ------------------------------------------------------------------------------ (T12), bit by bit

NETWORK = nn.Sequential(
    nn.Conv2d(1, 5, 3), nn.GroupNorm(5, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7)
)
ROWWISE = [
    Scattering2D(),
    Scattering2D(**MNIST | {"pool": 2}),
    Scattering2D(J=1, L=3, groups=2, batch_size=5),
    TorchFeatures(NETWORK, batch_size=8),
    TorchFeatures(NETWORK, layer="1", batch_size=1),
]


@pytest.mark.parametrize("transformer", ROWWISE, ids=range(len(ROWWISE)))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@settings(max_examples=12)
def test_rows_are_the_same_bits_in_every_batch(transformer, dtype, data):
    x = some_images(37, 1, 8, 8, dtype=dtype)
    all_rows = transformer.transform(x)
    chosen = data.draw(st.lists(st.integers(0, 36), min_size=1, max_size=40))
    assert transformer.transform(x[chosen]).tobytes() == all_rows[chosen].tobytes()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("shape", [(28, 28), (3, 20, 36)])
def test_scattering_rows_do_not_depend_on_batch_memory_layout_or_order(shape, n_threads):
    torch.set_num_threads(n_threads)
    try:
        x = some_images(37, *shape)
        transformer = Scattering2D(groups=27, pool=3)
        rows = transformer.transform(x)
        order = np.random.default_rng(1).permutation(37)
        assert transformer.transform(x[order]).tobytes() == rows[order].tobytes()
        assert np.array_equal(transformer.transform(x[::-3]), rows[::-3])
        assert np.array_equal(transformer.transform(np.asfortranarray(x)), rows)
        for i in order[:5]:
            assert transformer.transform(x[[i]]).tobytes() == rows[i].tobytes()
        x.setflags(write=False)
        assert np.array_equal(transformer.transform(x[1:]), rows[1:])
    finally:
        torch.set_num_threads(1)


class MixesRows(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class KnowsItsPlace(nn.Module):
    def forward(self, x):
        return x + 1e-6 * torch.arange(len(x), dtype=x.dtype)[:, None]


class Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class OtherAxis(nn.Module):
    def forward(self, x):
        return x.T


class Counts(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.where = where
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.number = 0

    def forward(self, x):
        if self.where == "number":
            self.number += 1
        elif self.where == "new":
            self.cache = x.sum()
        else:
            getattr(self, self.where).data.add_(1)
        return x


@pytest.mark.parametrize(
    "module",
    [MixesRows(), KnowsItsPlace(), Random(), nn.BatchNorm1d(4, track_running_stats=False)],
    ids=lambda module: type(module).__name__,
)
def test_modules_whose_rows_depend_on_the_batch_are_refused(module):
    with pytest.raises(NotApplicableError, match="depend on its batch"):
        TorchFeatures(module).transform(some_images(3, 4))


def test_a_row_alone_is_always_batch_invariant():
    x = some_images(6, 4)
    transformer = TorchFeatures(KnowsItsPlace(), batch_size=1)
    assert np.array_equal(transformer.transform(x), x)


@pytest.mark.parametrize("where", ["weight", "seen", "number", "new"])
def test_modules_that_change_when_they_run_are_refused(where):
    module = Counts(where)
    name = "cache" if where == "new" else where
    with pytest.raises(NotApplicableError, match=f"changed {name}"):
        TorchFeatures(module).transform(some_images(3, 4))
    assert module.weight == 0 and module.seen == 0 and module.number == 0


def test_scattering_refuses_kernels_that_depend_on_the_place(monkeypatch):
    pool = scattering.functional.adaptive_avg_pool2d

    def uneven(x, size):
        pooled = pool(x, size)
        pooled[-1] *= 1 + 2**-20
        return pooled

    monkeypatch.setattr(scattering.functional, "adaptive_avg_pool2d", uneven)
    with pytest.raises(NotApplicableError, match="batch_size=1"):
        Scattering2D(J=1, L=3, pool=1).transform(some_images(2, 10, 10))


def test_probe_accepts_what_is_rowwise_and_returns_the_number_of_features():
    assert probe_rows(lambda x: x[:, None] * torch.nan, torch.ones(3), 4) == 3
    assert probe_rows(lambda x: x.sum(1), torch.rand(3), 5) == 1


# --------------------------------------------------------------------------------- TorchFeatures


def test_torch_features_are_the_network_in_eval_mode_and_leave_it_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(5, 3)
    )
    net(torch.randn(50, 6))  # running statistics that differ from the initial ones
    net.train()
    before = pickle.dumps(net)
    x = some_images(11, 6)
    whole = TorchFeatures(net, batch_size=4).transform(x)
    hidden = TorchFeatures(net, layer="1", batch_size=4).transform(x)
    assert pickle.dumps(net) == before and net.training
    net.eval()
    with torch.no_grad():
        # the hook sees the batch norm's output after the in-place ReLU
        np.testing.assert_allclose(hidden, net[:3](torch.tensor(x)), atol=1e-6)
        np.testing.assert_allclose(whole, net(torch.tensor(x)), atol=1e-6)


def test_in_place_modules_do_not_modify_X():
    x = some_images(5, 4) - 0.5
    before = x.copy()
    features = TorchFeatures(nn.ReLU(inplace=True), batch_size=2).transform(x)
    assert np.array_equal(x, before)
    assert np.array_equal(features, np.maximum(x, 0))


def test_tokens_and_outputs_of_many_axes():
    embedding = nn.Embedding(10, 3)
    tokens = np.arange(8).reshape(4, 2)
    features = TorchFeatures(embedding, dtype="int64", batch_size=3).transform(tokens)
    assert np.array_equal(features, embedding.weight.detach()[tokens].reshape(4, 6))


def test_float64_networks():
    layer = nn.Linear(3, 2).double()
    features = TorchFeatures(layer, dtype="float64").transform(some_images(4, 3))
    assert features.dtype == np.float64


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": "resnet"}, TypeError, "'resnet'"),
        ({"module": NETWORK, "layer": "9"}, ValueError, "'9'.*'0', '1'"),
        ({"module": Twice(), "layer": "layer"}, ValueError, "ran 2 times"),
        ({"module": nn.LSTM(4, 2)}, TypeError, "tuple"),
        ({"module": OtherAxis()}, NotApplicableError, r"shape \(4, 64\)"),
        ({"module": nn.LazyLinear(3)}, NotApplicableError, "lazy"),
        ({"module": nn.Identity(), "batch_size": 0}, ValueError, "batch_size.*0"),
    ],
)
def test_torch_features_refuse(arguments, error, message):
    with pytest.raises(error, match=message):
        TorchFeatures(**arguments).transform(some_images(3, 4))


def test_features_that_are_not_finite_name_the_row():
    class Reciprocal(nn.Module):
        def forward(self, x):
            return 1 / x

    with pytest.raises(ValueError, match="row 2 "):
        TorchFeatures(Reciprocal(), batch_size=2).transform([[1.0], [2.0], [0.0]])


# ------------------------------------------------------------------------------- as transformers


@parametrize_with_checks([TorchFeatures(nn.Tanh(), batch_size=4), Scattering2D()])
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"J": 0}, (8, 8), "J must be.*0"),
        ({"L": 2.0}, (8, 8), "L must be.*2.0"),
        ({"J": 4}, (8, 20), "8 x 20.*J = 4"),
        ({"groups": 7}, (8, 8), "groups=7.*81"),
        ({"groups": True}, (8, 8), "groups must.*True"),
        ({"pool": 3}, (8, 8), "pool=3.*2"),
        ({"batch_size": -1}, (8, 8), "batch_size must.*-1"),
        ({}, (64,), r"\(2, 64\)"),
        ({}, (1, 1, 8, 8), r"\(2, 1, 1, 8, 8\)"),
    ],
)
def test_scattering_refuses(arguments, shape, message):
    for use in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(Scattering2D(**arguments), use)(some_images(2, *shape))


def test_scattering_refuses_other_images_than_it_was_fitted_on():
    transformer = Scattering2D().fit(some_images(2, 8, 8))
    with pytest.raises(ValueError, match=r"\(8, 12\).*\(8, 8\)"):
        transformer.transform(some_images(2, 8, 12))
    with pytest.raises(ValueError, match="NaN"):
        transformer.transform(np.full((2, 8, 8), np.nan))


@pytest.mark.parametrize("transformer", [Scattering2D(J=1, L=3), TorchFeatures(NETWORK)])
def test_fit_learns_nothing(transformer):
    x = some_images(5, 1, 8, 8)
    assert not get_tags(transformer).requires_fit
    unfitted = transformer.transform(x)
    fitted = clone(transformer).fit(some_images(3, 1, 8, 8, seed=9))
    assert np.array_equal(fitted.transform(x), unfitted)
    for value in fitted.__dict__.keys() - transformer.get_params().keys():
        assert value in ("_n_features_out", "image_shape_", "n_features_in_")
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(x), unfitted)
    names = fitted.get_feature_names_out()
    assert len(names) == unfitted.shape[1]
    frame = fitted.set_output(transform="pandas").transform(x)
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == list(names)


def test_in_a_grid_search_over_a_pipeline():
    x, y = load_digits(return_X_y=True)
    pipe = make_pipeline(Scattering2D(groups=1), RidgeClassifier(alpha=0.1))
    search = GridSearchCV(pipe, {"scattering2d__J": [1, 2]}, cv=3)
    search.fit(x.reshape(-1, 8, 8) / 16, y)
    pixels = cross_val_score(RidgeClassifier(alpha=0.1), x / 16, y, cv=3).mean()
    assert search.best_score_ > pixels + 0.04


def test_mnist_features_of_the_measurements(mnist_home):
    """729 features and a constant: a ridge on the first 8,000 rows, tested on the last 2,000."""
    x, y = load_mnist(subset="test", data_home=mnist_home, return_X_y=True)
    features = Scattering2D(**MNIST).transform(x)
    assert features.shape == (10_000, 730)
    accuracy = (
        RidgeClassifier(alpha=10).fit(features[:8000], y[:8000]).score(features[8000:], y[8000:])
    )
    assert accuracy > 0.985
