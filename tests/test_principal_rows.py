"""Narrow rows: what they keep of the Hessian, and which networks have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sk_unlearn.convex import _conjugate_gradients
from sk_unlearn.curvature.jacobian import Jacobian
from sk_unlearn.curvature.nystrom import NystromFactors
from sk_unlearn.linearized_risk import LinearizedRisk
from sk_unlearn.modules import MLP, Linearized
from sk_unlearn.principal_rows import N_DIRECTIONS, NarrowFactors, first_dense, narrowed

LAM = 1e-3


def images(n=200, side=20, seed=0):
    """Rows whose spectrum decays, as that of images does."""
    rng = np.random.default_rng(seed)
    decay = 1.0 / (1.0 + np.arange(side * side))
    turn = np.linalg.qr(rng.standard_normal((side * side,) * 2))[0]
    X = 3 * rng.standard_normal((n, side * side)) * decay @ turn
    return X.reshape(n, 1, side, side).astype(np.float32), rng.integers(0, 3, n)


def risk_of(network, X, y, **options):
    torch.manual_seed(0)
    model = Linearized(network, **options)
    size = sum(offset.numel() for offset in model.offsets)
    return LinearizedRisk(X, y, model, LAM, np.zeros(size))


def mlp():
    torch.manual_seed(0)
    return MLP(400, 3, hidden=(6,))


def test_narrow_and_widen_are_adjoint_and_narrowing_undoes_widening():
    X, _ = images()
    _, rows, directions = narrowed(Linearized(mlp()), "layers.0.", torch.as_tensor(X))
    basis = directions.basis.double()
    assert torch.allclose(basis.T @ basis, torch.eye(N_DIRECTIONS).double(), atol=1e-5)
    assert torch.allclose(rows, torch.as_tensor(X).flatten(1) @ directions.basis)
    wide, small = torch.randn(6 * 400 + 6 + 21), torch.randn(6 * N_DIRECTIONS + 6 + 21)
    assert directions.narrow(wide).shape == small.shape
    assert torch.allclose(directions.narrow(directions.widen(small)), small, atol=1e-5)
    ours, theirs = directions.narrow(wide) @ small, wide @ directions.widen(small)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_directions_are_the_leading_ones():
    X, _ = images()
    _, rows, _ = narrowed(Linearized(mlp()), "layers.0.", torch.as_tensor(X))
    exact = np.linalg.svd(X.reshape(len(X), -1).astype(float), compute_uv=False)
    kept, most = float(rows.double().square().sum()), float(np.sum(exact[:N_DIRECTIONS] ** 2))
    assert 0.99 * most <= kept <= (1 + 1e-5) * most


def test_products_of_the_narrow_network_are_those_of_the_whole_one_in_their_span():
    X, y = images()
    risk = risk_of(mlp(), X, y)
    v = np.random.default_rng(1).standard_normal(risk.shape)
    network, rows, directions = narrowed(risk.model, "layers.0.", risk.X)
    small = Jacobian(network, risk.model.names, rows)
    u = torch.randn(small.n_parameters)
    narrow = risk._product(small, risk.logits(v), 1.0)(u).numpy()
    whole = risk.hessian_product(v)(directions.widen(u).double().numpy())
    whole = whole - LAM * directions.widen(u).double().numpy()
    projected = directions.narrow(torch.from_numpy(whole).float()).numpy()
    assert np.linalg.norm(narrow - projected) <= 0.1 * np.linalg.norm(projected)


def test_they_precondition_the_whole_hessian():
    X, y = images()
    risk = risk_of(mlp(), X, y)
    v = 0.1 * np.random.default_rng(1).standard_normal(risk.shape)
    factors = risk.factors(v)
    assert isinstance(factors, NarrowFactors)
    product, gradient = risk.hessian_product(v), risk.gradient(v)
    goal = 1e-4 * np.linalg.norm(gradient)
    step, ours = _conjugate_gradients(product, gradient, factors.solve, goal)
    _, plain = _conjugate_gradients(product, gradient, lambda g: g, goal)
    assert 3 * ours < plain
    assert np.linalg.norm(product(step) + gradient) <= 1.1 * goal
    a, b = np.random.default_rng(2).standard_normal((2, *risk.shape))
    assert a @ factors.solve(b) == pytest.approx(b @ factors.solve(a), rel=1e-3)
    assert a @ factors.solve(a) > 0


def test_products_count_by_what_they_read():
    X, y = images()
    risk = risk_of(mlp(), X, y)
    v = np.ones(risk.shape)
    risk.logits(v)
    before = risk.n_passes
    factors = risk.factors(v)
    assert risk.n_passes - before == pytest.approx(
        factors.sketch.basis.shape[1] * N_DIRECTIONS / 400, rel=0.01
    )


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(400, 3)

    def forward(self, X):
        return 2 * self.dense(X.flatten(1))


@pytest.mark.parametrize(
    ("network", "options", "name"),
    [
        (mlp, {}, "layers.0."),
        (lambda: nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(400, 3)), {}, "2."),
        (mlp, {"layers": 1}, None),  # the first layer is frozen
        (lambda: MLP(255, 3), {}, None),  # too few inputs to gain anything
        (lambda: nn.Sequential(nn.Linear(300, 3), nn.Flatten()), {}, None),  # sees parts of a row
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(648, 3)), {}, None),
        (Twice, {}, None),  # what happens between the layers is unknown
    ],
)
def test_which_networks_have_narrow_rows(network, options, name):
    module = network()
    n_features = 255 if type(module) is MLP and module.layers[0].in_features == 255 else 400
    assert first_dense(Linearized(module, **options), n_features) == name


@pytest.mark.parametrize("rank", [1, 7, 12])
def test_a_sketch_is_exact_on_what_its_products_span(rank):
    rng = np.random.default_rng(rank)
    basis = np.linalg.qr(rng.standard_normal((40, 6)))[0]
    values = np.array([50.0, 20.0, 5.0, 2.0, 1.0, 0.5])
    matrix = torch.from_numpy((basis * values) @ basis.T)
    calls = []

    def product(V):
        calls.append(V.shape[1])
        return matrix @ V.double()

    factors = NystromFactors.of(product, 40, rank, lam=0.1)
    assert sum(calls) == rank
    g = rng.standard_normal(40)
    if rank < 6:
        assert np.linalg.norm(factors.solve(g)) <= 1.001 * np.linalg.norm(g)
        return
    found = factors.solve(g)
    exact = np.linalg.solve(matrix.numpy() + 0.1 * np.eye(40), g)
    scale = found @ exact / (exact @ exact)
    assert np.linalg.norm(found - scale * exact) <= 1e-3 * np.linalg.norm(found)
