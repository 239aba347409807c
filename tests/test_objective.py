"""The risk against dense oracles, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian

from sk_unlearn.exceptions import NotApplicableError
from sk_unlearn.objective import Objective, flatten, penalty, unflatten

N, D, K = 23, 5, 3
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, K))


def rows(n: int = N, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator), torch.randint(K, (n,), generator=generator)


def weights(module: nn.Module) -> torch.Tensor:
    return flatten([p.detach() for p in module.parameters() if p.requires_grad])


def risk_by_hand(module, loss, X, y, lam, reference):
    """Return F as a plain function of a flat float64 w: one row at a time, no shared code."""
    module = copy.deepcopy(module).double().eval()
    named = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}

    def risk(w):
        parts, first = {}, 0
        for name, p in named.items():
            parts[name] = w[first : first + p.numel()].reshape(p.shape)
            first += p.numel()
        losses = [
            loss(functional_call(module, parts, (X[i : i + 1].double(),)), y[i : i + 1])
            for i in range(len(X))
        ]
        return torch.stack(losses).sum() / len(X) + lam / 2 * ((w - reference) ** 2).sum()

    return risk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_reference", [False, True])
def test_value_gradient_and_hessian_are_those_of_the_risk(dtype, with_reference):
    module, (X, y), loss, lam = mlp(), rows(), nn.CrossEntropyLoss(), 0.3
    w = torch.randn(len(weights(module)), dtype=torch.float64)
    reference = torch.randn_like(w) if with_reference else torch.zeros_like(w)
    by_hand = risk_by_hand(module, loss, X, y, lam, reference)
    objective = Objective(
        module,
        loss,
        X,
        y,
        lam=lam,
        reference=reference if with_reference else None,
        dtype=dtype,
        chunk_rows=7,
    )
    tolerance = TOLERANCE[dtype]
    w = w.to(dtype)
    value, gradient = objective.value_and_gradient(w)
    assert value.dtype == gradient.dtype == dtype
    torch.testing.assert_close(value, objective.value(w), rtol=tolerance, atol=0)
    torch.testing.assert_close(value.double(), by_hand(w.double()), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient.double(), torch.func.grad(by_hand)(w.double()), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(objective.gradient(w), gradient, rtol=0, atol=0)
    dense = hessian(by_hand)(w.double())
    product = objective.hessian_at(w)
    v = torch.randn_like(w)
    torch.testing.assert_close(
        product(v).double(), dense @ v.double(), rtol=tolerance, atol=10 * tolerance
    )
    matrix = product(torch.eye(len(w), dtype=dtype))
    torch.testing.assert_close(matrix.double(), dense, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_the_regulariser_is_half_lam_times_the_squared_norm(lam):
    X, y = torch.zeros(2, 2), torch.zeros(2, 1)
    objective = Objective(nn.Linear(2, 1, bias=False), nn.MSELoss(), X, y, lam=lam)
    w = torch.tensor([3.0, 4.0])
    assert objective.value(w).item() == pytest.approx(lam / 2 * 25)
    assert objective.value(w).item() != pytest.approx(lam / 2 * 5)
    torch.testing.assert_close(objective.gradient(w), lam * w)
    torch.testing.assert_close(objective.hessian_at(w)(w), lam * w)
    assert penalty([w], None, lam).item() == pytest.approx(lam / 2 * 25)
    assert penalty([w[:1], w[1:]], [torch.ones(1), torch.ones(1)], lam).item() == pytest.approx(
        lam / 2 * (4 + 9)
    )


def test_the_penalty_is_twice_differentiable_also_at_its_centre():
    parameters = [torch.randn(2, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    centre = [torch.randn_like(p) for p in parameters]
    leaves = [p.clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(lambda *p: penalty(p, centre, 0.7), leaves)
    assert torch.autograd.gradgradcheck(lambda *p: penalty(p, centre, 0.7), leaves)
    assert torch.autograd.gradgradcheck(lambda *p: penalty(p, None, 0.7), leaves)
    leaves = [p.clone().requires_grad_() for p in centre]
    penalty(leaves, centre, 0.7).backward()
    assert all((p.grad == 0).all() for p in leaves)


def test_the_penalty_does_not_touch_its_arguments_and_is_zero_without_lam():
    parameters, centre = [torch.ones(2)], [torch.full((2,), 3.0)]
    assert penalty(parameters, centre, 1.0).item() == pytest.approx(4)
    assert parameters[0].tolist() == [1, 1] and centre[0].tolist() == [3, 3]
    assert penalty(parameters, centre, 0.0).item() == 0


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(1, 17))
def test_chunking_changes_nothing(chunk_rows, n):
    module, (X, y), loss = mlp(), rows(n), nn.CrossEntropyLoss()
    w = weights(module).double()
    v = torch.linspace(-1, 1, len(w), dtype=torch.float64)
    results = []
    for size in (None, chunk_rows):
        objective = Objective(module, loss, X, y, lam=0.1, dtype=torch.float64, chunk_rows=size)
        assert sum(len(objective.chunk(i)[1]) for i in range(objective.n_chunks)) == n
        value, gradient = objective.value_and_gradient(w)
        results.append(torch.cat([value[None], gradient, objective.hessian_at(w)(v)]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_what_does_not_fit_the_memory_budget_is_recomputed_with_the_same_result():
    module, (X, y), loss = mlp(), rows(40), nn.CrossEntropyLoss()
    w = weights(module)
    v = torch.randn_like(w)
    roomy = Objective(module, loss, X, y, lam=0.1, chunk_rows=8)
    tight = Objective(
        module, loss, X, y, lam=0.1, chunk_rows=8, memory_budget=17 * roomy.graph_row_bytes
    )
    tiny = Objective(module, loss, X, y, lam=0.1, memory_budget=1)
    assert (tiny.chunk_rows, tiny.n_chunks) == (1, 40)
    products, kept = [], []
    for objective in (roomy, tight, tiny):
        operator = objective.hessian_at(w)
        products += [operator(v), operator(v)]
        kept.append(len(operator._kept))
    assert kept == [5, 2, 0]
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], rtol=1e-5, atol=1e-6)


def test_the_measured_memory_grows_with_the_module_and_bounds_the_chunk():
    X, y = rows()
    small = Objective(nn.Linear(D, K), nn.CrossEntropyLoss(), X, y, lam=0.0)
    wide = nn.Sequential(nn.Linear(D, 1000), nn.Tanh(), nn.Linear(1000, K))
    large = Objective(wide, nn.CrossEntropyLoss(), X, y, lam=0.0, memory_budget=32 * 30_000)
    assert large.graph_row_bytes > small.graph_row_bytes + 4000
    assert large.chunk_rows * large.graph_row_bytes <= 30_000


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=30))
@settings(max_examples=20)
def test_a_subset_is_the_objective_of_its_rows(chosen):
    module, (X, y), loss = mlp(), rows(), nn.CrossEntropyLoss()
    w = weights(module)
    objective, index = Objective(module, loss, X, y, lam=0.1), torch.tensor(chosen)
    alone = Objective(module, loss, X[index], y[index], lam=0.1)
    subset = objective.on(index)
    assert (subset.n_rows, objective.n_rows) == (len(chosen), N)
    torch.testing.assert_close(subset.gradient(w), alone.gradient(w), rtol=0, atol=0)
    v = torch.ones_like(w)
    torch.testing.assert_close(objective.hessian_at(w, index)(v), alone.hessian_at(w)(v))


def test_the_mean_over_all_rows_is_the_weighted_mean_over_two_parts():
    module, (X, y) = mlp(), rows()
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.0, dtype=torch.float64)
    w, part = weights(module), torch.arange(N) < 9
    parts = 9 * objective.on(part).gradient(w) + (N - 9) * objective.on(~part).gradient(w)
    torch.testing.assert_close(parts / N, objective.gradient(w), rtol=1e-12, atol=1e-14)


def test_nothing_handed_in_is_modified():
    module, (X, y) = mlp().train(), rows()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = copy.deepcopy((module.state_dict(), X, y))
    reference = torch.zeros(len(weights(module)))
    objective = Objective(
        module, nn.CrossEntropyLoss(), X, y, lam=0.1, reference=reference, dtype=torch.float64
    )
    w = weights(module)
    w_before = w.clone()
    v = torch.ones_like(w)
    objective.value_and_gradient(w), objective.hessian_at(w)(v)
    assert module.training and (module[0].weight.grad == 1).all()
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[0][name])
    assert torch.equal(X, before[1]) and torch.equal(y, before[2])
    assert torch.equal(w, w_before) and not w.requires_grad
    assert (v == 1).all() and (reference == 0).all()


def test_an_operator_keeps_its_own_point():
    module, (X, y) = mlp(), rows()
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1)
    w = weights(module)
    v = torch.ones_like(w)
    expected, operator = objective.hessian_at(w.clone())(v), objective.hessian_at(w)
    w.zero_()
    assert torch.equal(operator(v), expected)


def test_dropout_is_off_and_frozen_parameters_are_constants():
    module, (X, y) = mlp(), rows()
    dropping = nn.Sequential(module, nn.Dropout(0.5))
    module[0].weight.requires_grad_(False)
    objective = Objective(dropping, nn.CrossEntropyLoss(), X, y, lam=0.1)
    assert objective.n_parameters == 4 + 4 * K + K
    w = weights(module)
    expected = nn.functional.cross_entropy(module(X), y) + 0.05 * (w**2).sum()
    torch.testing.assert_close(objective.value(w), expected)


def test_shared_parameters_count_once():
    first = nn.Linear(D, D)
    module, (X, y) = nn.Sequential(first, nn.Tanh(), first, nn.Linear(D, K)), rows()
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.0)
    assert objective.n_parameters == D * D + D + D * K + K
    loss = nn.functional.cross_entropy(module(X), y)
    expected = flatten(torch.autograd.grad(loss, list(module.parameters())))
    torch.testing.assert_close(objective.gradient(weights(module)), expected)


def test_whole_numbers_stay_whole_numbers():
    module = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, K))
    X, y = torch.randint(7, (N, 2)), rows()[1]
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1, dtype=torch.float64)
    assert objective.gradient(weights(module)).isfinite().all()


def test_float64_is_more_exact_than_float32():
    module, (X, y), loss = mlp(), rows(), nn.CrossEntropyLoss()
    single = Objective(module, loss, X, y, lam=0.1)
    double = single.to(torch.float64)
    w = weights(module)
    truth = torch.func.grad(risk_by_hand(module, loss, X, y, 0.1, torch.zeros(len(w))))(w.double())
    assert double.to(torch.float64) is double
    assert (double.gradient(w) - truth).norm() < 1e-14 < (single.gradient(w) - truth).norm()


def test_loss_linear_in_some_parameters_has_zero_curvature_there():
    X, y = torch.randn(6, 2), torch.zeros(6, 1)
    objective = Objective(nn.Linear(2, 1), lambda z, _: z.mean(), X, y, lam=0.25)
    v = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(objective.hessian_at(v)(v), 0.25 * v)


@given(st.integers(0, 2**16))
@settings(max_examples=20)
def test_flattening_and_back(seed):
    generator = np.random.default_rng(seed)
    shapes = [tuple(generator.integers(1, 4, size=generator.integers(0, 3))) for _ in range(3)]
    tensors = [torch.from_numpy(np.asarray(generator.standard_normal(s))) for s in shapes]
    vector = flatten(tensors)
    for part, tensor in zip(unflatten(vector, tensors), tensors, strict=True):
        assert torch.equal(part, tensor)
        assert part.data_ptr() - vector.data_ptr() < vector.nbytes  # a view
    many = unflatten(torch.stack([vector, 2 * vector]), tensors)
    assert all(torch.equal(m[1], 2 * t) for m, t in zip(many, tensors, strict=True))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, X):
        return self.layer(X) + torch.randn(len(X), K)


class Coupled(Random):
    def forward(self, X):
        return self.layer(X - X.mean(0))


@pytest.mark.parametrize(
    ("module", "loss", "words"),
    [
        (Random(), nn.CrossEntropyLoss(), "deterministic"),
        (Coupled(), nn.CrossEntropyLoss(), "do not see each other"),
        (mlp(), nn.CrossEntropyLoss(reduction="sum"), "mean over rows"),
        (mlp(), nn.CrossEntropyLoss(reduction="none"), "expected a scalar"),
        (mlp(), nn.CrossEntropyLoss(weight=torch.ones(K)), "weights"),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(D, K)), nn.CrossEntropyLoss(), "inplace"),
    ],
)
def test_what_is_no_mean_over_rows_is_refused(module, loss, words):
    X, y = rows()
    kept = X.clone()
    with pytest.raises(NotApplicableError, match=words):
        Objective(module, loss, X, y, lam=0.1)
    assert torch.equal(X, kept)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lam": -1.0}, ValueError, "-1.0"),
        ({"lam": float("nan")}, ValueError, "nan"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
        ({"y": torch.zeros(3)}, ValueError, "23 rows and y has 3"),
        ({"X": torch.zeros(0, D), "y": torch.zeros(0)}, ValueError, "not 0"),
        ({"X": np.zeros((N, D))}, TypeError, "ndarray"),
        ({"X": torch.full((N, D), float("nan"))}, ValueError, "nan"),
        ({"reference": torch.zeros(3)}, ValueError, r"reference has shape \(3,\)"),
        ({"module": mlp().requires_grad_(False)}, ValueError, "no trainable"),
        ({"module": nn.Sequential(mlp(), nn.Linear(K, K).double())}, ValueError, "one dtype"),
    ],
)
def test_bad_arguments_are_quoted(change, error, words):
    X, y = rows()
    good = {"module": mlp(), "loss": nn.CrossEntropyLoss(), "X": X, "y": y, "lam": 0.1}
    with pytest.raises(error, match=words):
        Objective(**(good | change))


def test_bad_points_and_rows_are_quoted():
    X, y = rows()
    objective = Objective(mlp(), nn.CrossEntropyLoss(), X, y, lam=0.1)
    with pytest.raises(ValueError, match=r"w has shape \(2,\), expected \(39,\)"):
        objective.value(torch.zeros(2))
    with pytest.raises(ValueError, match="39 entries and the tensors have 2"):
        unflatten(torch.zeros(39), [torch.zeros(2)])
    for missing in (torch.tensor([0, N]), torch.tensor([-1])):
        with pytest.raises(IndexError, match=f"rows 0 to {N - 1}"):
            objective.on(missing)
    with pytest.raises(ValueError, match="0 rows"):
        objective.on(torch.zeros(N, dtype=torch.bool))
    with pytest.raises(IndexError):
        objective.on(torch.ones(N + 1, dtype=torch.bool))
