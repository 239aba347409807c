"""The linearised network: the model it says it is, certified deletion from it, its limits."""

from __future__ import annotations

import pickle

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.func import functional_call, jacrev

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor
from sk_unlearn.convex import minimise
from sk_unlearn.curvature.jacobian import Jacobian
from sk_unlearn.exceptions import DeletionRequestError, NotApplicableError
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.linearized_risk import LinearizedRisk, _logits
from sk_unlearn.methods import DescentToDelete, Residual
from sk_unlearn.modules import MLP, Linearized, OneVsRestLoss


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


NETWORKS = {
    "mlp": (lambda: MLP(5, 3, hidden=(7, 6)), (5,)),
    "cnn": (convolutional, (1, 8, 8)),
    "attention": (lambda: Attentive(), (4, 6)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), (5,)),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


class Attentive(nn.Module):
    """Rows of tokens, LayerNorm and a softmax: nothing here is piecewise linear."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, X):
        Z = self.norm(X)
        weights = torch.softmax(self.mix(Z) @ Z.transpose(1, 2), dim=-1)
        return self.out(nn.functional.gelu(weights @ Z).mean(dim=1))


def build(name, n=23, seed=0):
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    return make(), torch.randn(n, *shape), torch.randint(0, 3, (n,))


def dense_jacobian(module, names, X):
    """(n, K, p), one row at a time, by reverse mode."""
    fixed = {n: p.detach() for n, p in module.named_parameters()}

    def outputs(moved, row):
        return functional_call(module, fixed | moved, (row[None],))[0]

    rows = []
    for row in X:
        jacobian = jacrev(outputs)({name: fixed[name] for name in names}, row)
        rows.append(torch.cat([jacobian[name].flatten(1) for name in names], dim=1))
    return torch.stack(rows)


def digits(n=600):
    X, y = load_digits(return_X_y=True)
    return (X[:n] / 16).astype(np.float32), y[:n]


def estimator(module=MLP, **keywords):
    options = {"lam": 1e-2, "C": 1e4, "random_state": 0, "module__module": module} | keywords
    return CertifiedNeuralClassifier(Linearized, **options)


# ----------------------------------------------------------------------- the model


@EACH
@pytest.mark.parametrize("layers", [None, 1])
def test_it_is_the_taylor_expansion(name, layers):
    module, X, _ = build(name)
    module, X = module.double(), X.double()
    model = Linearized(module, layers=layers)
    for offset in model.offsets:
        nn.init.uniform_(offset, -1, 1)
    v = torch.cat([o.detach().flatten() for o in model.offsets])
    expected = module(X) + dense_jacobian(module, model.names, X) @ v
    assert torch.allclose(model(X), expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(model(X), expected, rtol=1e-10, atol=1e-12)


def test_it_touches_the_network_to_second_order():
    module, X, _ = build("attention")
    module, X = module.double(), X.double()
    model, errors = Linearized(module), []
    direction = [torch.rand_like(o) for o in model.offsets]
    for step in (1e-2, 1e-3):
        moved = {
            name: module.get_parameter(name).detach() + step * d
            for name, d in zip(model.names, direction, strict=True)
        }
        with torch.no_grad():
            for offset, d in zip(model.offsets, direction, strict=True):
                offset.copy_(step * d)
        errors.append(float((functional_call(module, moved, (X,)) - model(X)).detach().abs().max()))
    assert errors[1] < 2e-2 * errors[0]


def test_a_linear_module_is_its_own_expansion():
    module, X, _ = build("linear")
    model = Linearized(module.double())
    moved = {}
    with torch.no_grad():
        for name, offset in zip(model.names, model.offsets, strict=True):
            offset.uniform_(-1, 1)
            moved[name] = module.get_parameter(name) + offset
    assert torch.allclose(model(X.double()), functional_call(module, moved, (X.double(),)))


def test_the_last_layers_are_chosen_in_the_order_of_their_definition():
    module = MLP(5, 3, hidden=(7, 6))
    assert Linearized(module, layers=1).names == ("layers.4.weight", "layers.4.bias")
    assert len(Linearized(module, layers=2).names) == 4
    assert Linearized(module, layers=3).names == Linearized(module).names
    for bad in (0, 4):
        with pytest.raises(ValueError, match=f"layers={bad}.*from 1 to 3"):
            Linearized(module, layers=bad)


def test_only_the_offsets_are_trainable_and_the_weights_given_are_left_alone():
    module, X, y = build("mlp")
    before = [p.clone() for p in module.parameters()]
    model = Linearized(module).train()
    assert not model.network.training
    model.criterion()(model(X), y).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"offsets.{i}" for i in range(6)
    ]
    assert all(o.grad is not None and o.grad.any() for o in model.offsets)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_new_backbone_is_a_new_centre():
    module, X, _ = build("mlp")
    model = Linearized(module)
    with torch.no_grad():
        model.offsets[0].fill_(1.0)
    other = build("mlp", seed=5)[0]
    model.set_backbone(other)
    assert torch.equal(model(X), other(X))
    assert not any(p.requires_grad for p in model.network.parameters())
    assert all(p.requires_grad for p in model.backbone.parameters())
    with pytest.raises(ValueError, match="new backbone has the parameters"):
        model.set_backbone(MLP(5, 3, hidden=(7,)))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(nn.BatchNorm1d(7), "GroupNorm"), (nn.InstanceNorm1d(7, track_running_stats=True), "Group")],
    ids=["batch norm", "running statistics"],
)
def test_layers_with_statistics_are_refused_by_name(layer, reason):
    module = nn.Sequential(nn.Linear(5, 7), layer, nn.Linear(7, 3))
    with pytest.raises(
        NotApplicableError, match=rf"layer '1' \({type(layer).__name__}\).*{reason}"
    ):
        Linearized(module)


def test_random_layers_are_refused_by_name():
    noisy = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3))
    plain = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    for refused in (lambda: Linearized(noisy), lambda: Linearized(plain).set_backbone(noisy)):
        with pytest.raises(NotApplicableError, match=r"layer '1' \(Dropout\) is random"):
            refused()


def test_options_belong_to_a_class_and_losses_are_two():
    with pytest.raises(ValueError, match="hidden: options are for a module class"):
        Linearized(MLP(5, 3), hidden=(4,))
    with pytest.raises(ValueError, match="multi_class='hinge'"):
        Linearized(MLP(5, 3), multi_class="hinge")
    assert isinstance(Linearized(MLP(5, 3)).criterion(), OneVsRestLoss)
    assert isinstance(Linearized(MLP(5, 3), "multinomial").criterion(), nn.CrossEntropyLoss)


# ----------------------------------------------------------------- its Jacobian, its risk


@EACH
@pytest.mark.parametrize("chunk_rows", [None, 5])
@pytest.mark.parametrize("budget", [2**30, 0])
def test_jacobian_products_are_those_of_the_dense_one(name, chunk_rows, budget):
    module, X, _ = build(name)
    module, X = module.double(), X.double()
    names = [n for n, _ in module.named_parameters()][1:]
    J = Jacobian(module, names, X, budget, chunk_rows)
    dense = dense_jacobian(module, names, X)
    v, r = torch.randn(dense.shape[2]).double(), torch.randn(dense.shape[:2]).double()
    assert torch.allclose(J.outputs, module(X))
    assert torch.allclose(J.times(v), dense @ v, rtol=1e-10, atol=1e-12)
    assert torch.allclose(J.transposed(r), torch.einsum("nk,nkp->p", r, dense), rtol=1e-10)


def test_rows_that_see_each_other_have_no_jacobian():
    class Centred(nn.Linear):
        def forward(self, X):
            return super().forward(X - X.mean(dim=0))

    with pytest.raises(NotApplicableError, match="must not see each other"):
        Jacobian(Centred(2, 2), ["weight"], torch.randn(5, 2))


@pytest.mark.parametrize("multi_class", ["ovr", "multinomial"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_value_gradient_and_hessian_are_autograds(name, multi_class):
    module, X, y = build(name)
    model = Linearized(module, multi_class)
    reference = np.random.default_rng(0).normal(size=sum(o.numel() for o in model.offsets))
    risk = LinearizedRisk(X.numpy(), y.numpy(), model, 0.1, reference)
    J = dense_jacobian(module.double(), model.names, X.double())
    base, centre, loss = module(X.double()).detach(), torch.from_numpy(reference), model.criterion()

    def objective(v):
        return loss(base + J @ v, y) + 0.05 * (v - centre).square().sum()

    v = torch.from_numpy(0.3 * np.random.default_rng(1).normal(size=reference.shape))
    gradient = torch.func.grad(objective)(v).numpy()
    hessian = torch.func.hessian(objective)(v).numpy()
    u = np.random.default_rng(2).normal(size=reference.shape)
    for accuracy, atol in ((1e-5, 1e-6), (1e-12, 1e-13)):
        assert risk.value(v.numpy()) == pytest.approx(float(objective(v)), rel=accuracy)
        assert np.allclose(risk.gradient(v.numpy()), gradient, rtol=100 * accuracy, atol=atol)
        assert np.allclose(risk.hessian_product(v.numpy())(u), hessian @ u, rtol=1e-4, atol=1e-4)
        assert risk.sharpen() == (accuracy == 1e-5)
    assert torch.equal(risk._exact.outputs, base), "logits must not be added to the outputs"


def two_layers(weights, v, x, target, multi_class):
    """Return J(x)^T r of ``W2 relu(W1 x + b1) + b2`` by the book, in mpmath numbers."""
    (W1, b1, W2, b2), (V1, c1, V2, c2) = weights, v
    inner = W1 @ x + b1
    active = np.array([int(a > 0) for a in inner])
    hidden = active * inner
    z = W2 @ hidden + b2 + V2 @ hidden + W2 @ (active * (V1 @ x + c1)) + c2
    if multi_class == "squared":
        r = z - target
    elif multi_class == "ovr":
        r = np.array([1 / (1 + mp.exp(-a)) - (k == target) for k, a in enumerate(z)])
    else:
        e = [mp.exp(a) for a in z]
        r = np.array([a / sum(e) - (k == target) for k, a in enumerate(e)])
    below = active * (W2.T @ r)
    return [np.outer(below, x), below, np.outer(r, hidden), r]


def as_mp(array):
    return np.vectorize(mp.mpf, otypes=[object])(np.asarray(array, dtype=np.float64))


@pytest.mark.parametrize("multi_class", ["ovr", "multinomial", "squared"])
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_true_gradient_is_within_the_proved_rounding(multi_class, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = MLP(3, 3, hidden=(4,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 10.0 ** rng.uniform(-2, 2)
    model = Linearized(net, multi_class)
    X = (rng.standard_normal((6, 3)) * 10.0 ** rng.uniform(-3, 3)).astype(np.float32)
    y = rng.integers(0, 3, 6)
    if multi_class == "squared":
        y = rng.standard_normal((6, 3)).astype(np.float32)
    lam = 10.0 ** rng.uniform(-6, 1)
    shapes = [o.shape for o in model.offsets]
    p = sum(o.numel() for o in model.offsets)
    reference, v = (rng.standard_normal(p) * 10.0 ** rng.uniform(-4, 4) for _ in range(2))
    risk = LinearizedRisk(X, y, model, lam, reference)
    bound, rounding, gradient = risk.gradient_norm_bound(v)
    assert risk.doubt is None
    with mp.workdps(60):
        ends = np.cumsum([s.numel() for s in shapes])[:-1]
        parts = [q.reshape(tuple(s)) for q, s in zip(np.split(as_mp(v), ends), shapes, strict=True)]
        weights = [as_mp(w.detach().numpy()) for w in net.parameters()]
        targets = as_mp(y) if multi_class == "squared" else y
        rows = [
            np.concatenate([g.ravel() for g in two_layers(weights, parts, x, t, multi_class)])
            for x, t in zip(as_mp(X), targets, strict=True)
        ]
        true = sum(rows) / 6 + mp.mpf(lam) * (as_mp(v) - as_mp(reference))
        away = mp.sqrt(sum(e**2 for e in as_mp(gradient) - true))
        assert away <= rounding
        assert mp.sqrt(sum(e**2 for e in true)) <= bound


def test_a_rounding_that_is_not_proved_is_measured_far_to_the_safe_side():
    """At least 1e4 times the error of float64, at most that of float32."""
    module, X, y = build("attention", n=60)
    model = Linearized(module)
    v = 0.3 * np.random.default_rng(0).normal(size=sum(o.numel() for o in model.offsets))
    risk = LinearizedRisk(X.numpy(), y.numpy(), model, 0.1, np.zeros_like(v))
    assert "Attentive" in risk.doubt
    bound, rounding, gradient = risk.gradient_norm_bound(v)
    assert np.array_equal(gradient, risk._gradient(risk._exact, _logits(risk._exact, v), v))
    J = dense_jacobian(module.double(), model.names, X.double()).numpy()
    logits = module(X.double()).detach().numpy() + J @ v
    residuals = 1 / (1 + np.exp(-logits)) - np.eye(3)[y.numpy()]
    dense = np.einsum("nk,nkp->p", residuals, J) / 60 + 0.1 * v
    assert 1e4 * np.linalg.norm(gradient - dense) < rounding < 1e-5
    assert bound >= np.linalg.norm(gradient) + rounding


def test_the_solver_finds_the_optimum_of_a_dense_model():
    module, X, y = build("mlp", n=60)
    model = Linearized(module)
    p = sum(o.numel() for o in model.offsets)
    risk = LinearizedRisk(X.numpy(), y.numpy(), model, 1e-2, np.zeros(p))
    found = minimise(risk, np.random.default_rng(0).normal(size=p), tol=1e-10)
    J = dense_jacobian(module.double(), model.names, X.double()).numpy()
    logits = module(X.double()).detach().numpy() + J @ found.weights
    one_hot = np.eye(3)[y.numpy()]
    residuals = 1 / (1 + np.exp(-logits)) - one_hot
    gradient = np.einsum("nk,nkp->p", residuals, J) / 60 + 1e-2 * found.weights
    assert np.linalg.norm(gradient) <= found.bound <= 1e-10


# -------------------------------------------------------------------- deletion


def test_deletion_lands_where_retraining_lands():
    X, y = digits()
    net = estimator(method=Residual(tol=1e-8), module__hidden=(16,)).fit(X, y)
    gone = np.arange(0, 60, 2)
    retrained = clone(net).fit(np.delete(X, gone, 0), np.delete(y, gone, 0))
    method = net.method_
    retained, deleted = net.rows_.without(gone), net.rows_.take(gone)
    problem = net._problem(retained, deleted, lambda: None, None)
    event = method.event(problem.setting)
    center = method.center(problem, event)
    other = retrained._problem(retrained.rows_, retrained.rows_.take(gone[:0]), None, None)
    again = method.center(other, event)
    assert np.linalg.norm(center.parameters - again.parameters) <= event.sensitivity
    assert np.linalg.norm(center.parameters) > 1e4 * event.sensitivity


def test_a_regressor_is_ridge_on_the_jacobian():
    X, y = load_diabetes(return_X_y=True)
    X, y = (10 * X).astype(np.float32), (np.column_stack([y, -y]) / 300).astype(np.float32)
    net = CertifiedNeuralRegressor(
        Linearized, module__module=MLP, module__multi_class="squared", module__hidden=(6,),
        lam=1e-3, C=1e4, random_state=0,
    )  # fmt: skip
    net.fit(X, y)
    before = net.score(X, y)
    net.unlearn(indices=np.arange(30))
    assert net.certificate_.formal
    model = net.module_
    network, kept = model.network.double(), torch.as_tensor(X[30:]).double()
    J = dense_jacobian(network, model.names, kept).numpy().reshape(2 * len(kept), -1)
    target = (y[30:] - network(kept).numpy()).ravel()
    n, p = len(kept), J.shape[1]
    best = np.linalg.solve(J.T @ J / n + 1e-3 * np.eye(p), J.T @ target / n)
    released = np.concatenate([o.detach().numpy().ravel() for o in model.offsets])
    event = net.certificate_.event
    assert np.abs(released - best).max() < event.sensitivity + 7 * event.sigma
    assert np.abs(best).max() > 20 * event.sigma
    assert before > 0.3


def test_the_loss_belongs_to_the_kind_of_labels():
    X, y = digits(60)
    numbers = CertifiedNeuralRegressor(Linearized, module__module=MLP)
    with pytest.raises(ValueError, match="'ovr' is for classes.*multi_class='squared'"):
        numbers.fit(X, y.astype(float))
    with pytest.raises(ValueError, match="'squared' is for numbers.*another multi_class"):
        estimator(module__multi_class="squared").fit(X, y)


def test_the_penalty_is_centred_at_the_initial_weights_whatever_the_anchor():
    X, y = digits(200)
    weights = [
        torch.cat([o.detach().flatten() for o in estimator(anchor=a).fit(X, y).module_.offsets])
        for a in ("zero", "init")
    ]
    assert torch.equal(*weights)
    strong = estimator(lam=1e6).fit(X, y).module_
    assert all(o.abs().max() < 1e-5 for o in strong.offsets)


def test_sequences_refresh_and_secret_state():
    X, y = digits(300)
    net = estimator(module__hidden=(8,), classes=np.arange(10)).fit(X, y)
    net.unlearn(indices=[0, 1])
    assert net.method_state_ is None
    net.refresh()
    net.unlearn(indices=[5])
    secret = estimator(method=Residual(state="secret", horizon=3), module__hidden=(8,)).fit(X, y)
    secret.unlearn(indices=[0]).unlearn(indices=[3])
    assert secret.method_state_.factors is not None
    assert secret.certificate_.diagnostics["passes"] < 80


def test_search_clone_and_pickle():
    X, y = digits(200)
    net = estimator(module__hidden=(8,))
    search = GridSearchCV(net, {"lam": [1e-2, 1.0], "module__layers": [None, 1]}, cv=2).fit(X, y)
    best = search.best_estimator_
    assert best.lam == 1e-2
    again = pickle.loads(pickle.dumps(best))
    assert np.array_equal(again.predict_proba(X), best.predict_proba(X))
    again.unlearn(indices=[0])
    assert clone(again).get_params()["module__module"] is MLP


def test_the_last_layer_alone_is_a_linear_head_on_frozen_features():
    X, y = digits(300)
    net = estimator(module__hidden=(12,), module__layers=1).fit(X, y)
    backbone = net.module_.network.double()
    features = backbone.layers[:2](torch.as_tensor(X).double()).numpy()
    last = backbone.layers[2]
    start = np.column_stack([last.weight.numpy(), last.bias.numpy()])
    head = minimise(HeadRisk(features, y, 10, 1e-2, start, "ovr"), start)
    weight, bias = (o.detach().numpy() for o in net.module_.offsets)
    assert np.allclose(head.weights - start, np.column_stack([weight, bias]), atol=2e-4)
    assert np.abs(head.weights - start).max() > 0.1


def test_permanent_rows_move_the_point_at_which_it_is_linearised():
    X, y = digits(400)
    permanent = np.arange(400) < 200
    net = estimator(module__hidden=(16,), max_epochs=100, batch_size=32)
    plain, moved = clone(net).fit(X, y), net.fit(X, y, permanent=permanent)
    own = torch.as_tensor(X[:200])
    predicted = moved.module_.network(own).argmax(1).numpy()
    assert np.mean(predicted == y[:200]) > 0.9
    assert np.mean(plain.module_.network(own).argmax(1).numpy() == y[:200]) < 0.5
    moved.unlearn(indices=[300, 399])
    assert moved.certificate_.formal
    with pytest.raises(DeletionRequestError, match="permanent"):
        moved.unlearn(indices=[0])


def test_methods_for_linear_heads_refuse_it():
    X, y = digits(100)
    with pytest.raises(NotApplicableError, match="not known to be affine"):
        estimator(method=DescentToDelete(row_norm=30.0, tol=1e-7)).fit(X, y)


def test_a_network_outside_the_proof_gets_no_formal_certificate():
    X = np.random.default_rng(0).normal(size=(60, 4, 6)).astype(np.float32)
    y = np.arange(60) % 3
    net = estimator(Attentive).fit(X, y).unlearn(indices=[0, 1])
    certificate = net.certificate_
    assert not certificate.formal
    (weak,) = [a for a in certificate.assumptions if not a.status.formal]
    assert weak.name == "residual" and "not proved" in weak.statement
