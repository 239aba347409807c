"""Hessian products against dense Hessians, for modules of many kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature.quadratics import dense_hessian, quadratic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian

from sk_unlearn.curvature import DampedOperator, dense
from sk_unlearn.curvature.products import EagerProduct, SplitProduct, try_split
from sk_unlearn.exceptions import UnlearningWarning
from sk_unlearn.objective import Objective, flatten

N_CLASSES = 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, N_CLASSES)

    def forward(self, X):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(X.flatten(1))))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)
        self.head = nn.Linear(2, N_CLASSES)

    def forward(self, X):
        return self.head((X + torch.relu(self.norm(self.convolution(X)))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.head = nn.Linear(4, N_CLASSES)

    def forward(self, X):
        return self.head(self.layer(X.flatten(1, 2)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, N_CLASSES)

    def forward(self, X):
        return self.head(self.layer(X.flatten(1, 2))[0][:, -1])


class Branching(nn.Module):
    """Row-wise for the eye, but Python decides by the data: it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, N_CLASSES)

    def forward(self, X):
        scale = 2.0 if float(X.sum()) > -1e9 else 3.0
        return torch.tanh(scale * self.head(X.flatten(1)))


MODULES = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, N_CLASSES)
    ),
    "inplace and dropout": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 4),
        nn.SiLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4, N_CLASSES),
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, N_CLASSES),
    ),
    "frozen batch norm": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2),
        nn.BatchNorm2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, N_CLASSES),
    ),
    "tied": Tied,
    "residual": Residual,
    "attention": Attention,
    "recurrent": Recurrent,
    "branching": Branching,
}
TRACED = [name for name in MODULES if name not in ("recurrent", "branching")]


def case(name, n=11, **options):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    X, y = torch.randn(n, 1, 4, 4, dtype=torch.float64), torch.randint(N_CLASSES, (n,))
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1, **options)
    return objective, flatten([p.detach() for p in module.parameters()])


def by_torch(objective, w, rows=slice(None)):
    """Return the dense Hessian that torch.func computes forward over reverse, lam included."""
    named = {n: p for n, p in objective.module.named_parameters() if p.requires_grad}

    def risk(w):
        parts = w.split([p.numel() for p in named.values()])
        parameters = {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
        output = functional_call(objective.module, parameters, (objective.X[rows],))
        return nn.functional.cross_entropy(output, objective.y[rows]) + 0.05 * (w @ w)

    return hessian(risk)(w)


@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("attention", "recurrent")])
@pytest.mark.filterwarnings("ignore:Hessian products of")
def test_the_operator_is_the_dense_hessian(name):
    objective, w = case(name, chunk_rows=4)
    operator, expected = objective.hessian_at(w), by_torch(objective, w)
    torch.testing.assert_close(dense(operator), expected, rtol=1e-10, atol=1e-11)
    for v in (torch.randn_like(w), torch.zeros_like(w)):
        torch.testing.assert_close(operator(v), expected @ v, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["attention", "recurrent"])
@pytest.mark.filterwarnings("ignore:Hessian products of")
def test_the_operator_is_the_difference_of_gradients_where_torch_has_no_dense_hessian(name):
    objective, w = case(name)
    v, h = torch.randn_like(w), 1e-5
    differences = (objective.gradient(w + h * v) - objective.gradient(w - h * v)) / (2 * h)
    torch.testing.assert_close(objective.hessian_at(w)(v), differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TRACED)
def test_many_batches_at_once_are_many_hessians(name):
    objective, w = case(name)
    parameters, batches = objective.split(w), torch.randint(objective.n_rows, (4, 3, 5))
    X, y = objective.X[batches], objective.y[batches]
    split = SplitProduct(objective.batch_loss, parameters, X[0], y[0], n_batches=3)
    vectors = objective.split(torch.randn(3, len(w), dtype=w.dtype))
    eager = EagerProduct(objective.batch_loss)
    for k, state in enumerate(split.at_many(parameters, X, y)):
        one = split.product(split.at(parameters, X[k], y[k]), vectors)
        many = split.product(state, vectors)
        for i in range(3):
            kept = eager.at(parameters, X[k, i], y[k, i])
            expected = eager.product(kept, [v[i] for v in vectors])
            for a, b, c in zip(one, many, expected, strict=True):
                torch.testing.assert_close(a[i], c, rtol=1e-9, atol=1e-10)
                torch.testing.assert_close(b[i], c, rtol=1e-9, atol=1e-10)


def test_a_traced_product_follows_the_point_and_the_rows():
    objective, w = case("convolution")
    objective.hessian_at(w)(w)
    elsewhere, rows = w + 0.3 * torch.randn_like(w), torch.randperm(objective.n_rows)
    (traced,) = objective._split_products.values()
    moved = objective.on(rows)
    product = moved.hessian_at(elsewhere)(w)
    assert moved._split_products[next(iter(moved._split_products))] is traced  # not traced again
    expected = by_torch(objective, elsewhere, rows) @ w
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-11)


def test_a_traced_product_that_is_wrong_is_found():
    objective, w = case("mlp")
    calls = iter(range(100))

    def another_each_time(parameters, X, y):
        return (1 + next(calls)) * objective.batch_loss(parameters, X, y)

    with pytest.raises(RuntimeError, match="traced Hessian product off by"):
        SplitProduct(another_each_time, objective.split(w), objective.X, objective.y)


@pytest.mark.parametrize(
    ("name", "words"), [("recurrent", "recurrent layers"), ("branching", "cannot be traced")]
)
def test_what_cannot_be_traced_says_so(name, words):
    objective, w = case(name)
    args = objective.batch_loss, objective.split(w), objective.X, objective.y
    with pytest.warns(UnlearningWarning, match=words):
        assert try_split(objective.module, *args) is None


@given(st.integers(0, 2**16), st.floats(0, 2))
@settings(max_examples=25)
def test_linear_symmetric_and_shifted_by_lam(seed, lam):
    torch.manual_seed(seed)
    X, c = torch.randn(6, 4), torch.randn(6)
    H = quadratic(X, c, lam).hessian_at(torch.randn(4))
    u, v = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(H(2 * u - v), 2 * H(u) - H(v), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(u @ H(v), v @ H(u), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(H(u), quadratic(X, c).hessian_at(torch.zeros(4))(u) + lam * u)
    expected = torch.from_numpy(dense_hessian(X, c, lam) + 0.3 * np.eye(4))
    torch.testing.assert_close(DampedOperator(H, 0.3)(u), expected @ u, rtol=1e-9, atol=1e-10)


def test_products_carry_no_graph_and_change_no_vector():
    objective, w = case("convolution")
    operator, v = objective.hessian_at(w), torch.ones_like(w, requires_grad=True)
    product = operator(v)
    assert not product.requires_grad and (v == 1).all()
    product.zero_()
    assert (operator(v) != 0).any() and product.is_inference() is False


@pytest.mark.parametrize("name", ["mlp", "convolution"])
def test_an_operator_for_one_product_keeps_and_traces_nothing(name):
    objective, w = case(name, chunk_rows=4)
    operator, v = objective.hessian_at(w, once=True), torch.ones_like(w)
    product = operator(v)
    assert not operator._kept and not objective._split_products
    torch.testing.assert_close(product, objective.hessian_at(w)(v), rtol=1e-12, atol=1e-13)


def test_vectors_at_once_fits_the_budget():
    objective, w = case("mlp")
    assert objective.hessian_at(w).vectors_at_once > 1000
    tight, _ = case("mlp", memory_budget=8)
    assert tight.hessian_at(w).vectors_at_once == 1
    torch.testing.assert_close(dense(tight.hessian_at(w)), dense(objective.hessian_at(w)))
