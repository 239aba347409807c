"""The passes that fits and releases report, against counters on the module and on the rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit import compare
from sk_unlearn.curvature.hvp import HessianOperator
from sk_unlearn.curvature.jacobian import Jacobian
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.linearized_risk import LinearizedRisk
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    DescentToDelete,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    PrivateTraining,
    Residual,
    Retrain,
    SekhariNewton,
)
from sk_unlearn.modules import MLP, LinearHead, Linearized, RidgeHead
from sk_unlearn.objective import Objective
from sk_unlearn.preprocessing import ClipToBall
from sk_unlearn.sharded import ShardedClassifier

X, y = load_iris(return_X_y=True)
X = ClipToBall().fit_transform(X / 10).astype(np.float32)
GONE, N_RETAINED = [1, 60, 120], 147


class Counting(MLP):
    """Counts the rows that it is trained on."""

    seen = 0

    def forward(self, X):
        if self.training and torch.is_grad_enabled():
            Counting.seen += len(X)
        return super().forward(X)


def counted(action):
    """Return how many passes over the retained rows the module saw in training."""
    Counting.seen = 0
    action()
    return Counting.seen / N_RETAINED


def net(method, module=Counting, **parameters):
    settings = {"max_epochs": 3, "random_state": 0, "lam": 1e-2} | parameters
    return CertifiedNeuralClassifier(module, method=method, **settings)


@pytest.mark.parametrize(
    "method",
    [
        OutputPerturbation(finetune_epochs=2),
        GradientClipping(steps=7, batch_size=20, finetune_epochs=1),
        GradientClipping(steps=4, batch_size=500, finetune_epochs=0),
        GradientClipping(radius=0.01, steps=5, batch_size=30, blocks="layer"),
        ModelClipping(steps=6, batch_size=50, finetune_epochs=2),
        Retrain(),
    ],
    ids=repr,
)
def test_epochs_and_noisy_steps_are_what_a_module_sees(method):
    clf = net(method, batch_size=32)
    assert counted(lambda: clf.fit(X, y)) * N_RETAINED / 150 == clf.n_passes_ == 3
    seen = counted(lambda: clf.unlearn(indices=GONE))
    assert seen > 0
    assert clf.certificate_.diagnostics["passes"] == pytest.approx(seen)
    with pytest.raises(AttributeError, match="n_passes_"):
        _ = clf.n_passes_


def test_retraining_that_stops_early_counts_the_epochs_that_ran():
    class Stops(CertifiedNeuralClassifier):
        def on_epoch_end(self, *args, **kwargs):
            super().on_epoch_end(*args, **kwargs)
            if len(self.history_) == 2:
                raise KeyboardInterrupt

    clf = Stops(Counting, method=Retrain(), max_epochs=9, random_state=0).fit(X, y)
    assert clf.n_passes_ == 2
    seen = counted(lambda: clf.unlearn(indices=GONE))
    assert clf.certificate_.diagnostics["passes"] == seen == 2


@pytest.mark.parametrize("gradient", ["retained", "deleted"])
@pytest.mark.parametrize("bound", ["ball", "newton"])
def test_a_newton_step_counts_its_gradient_and_every_product(monkeypatch, gradient, bound):
    calls = []

    def count(owner, name, passes):
        original = getattr(owner, name)

        def counting(self, *args):
            calls.append(passes(self, *args))
            return original(self, *args)

        monkeypatch.setattr(owner, name, counting)

    count(HessianOperator, "__call__", lambda H, v: len(v) if v.ndim == 2 else 1)
    count(Objective, "gradient", lambda F, w: F.n_rows == N_RETAINED)
    constants = {"hessian_lipschitz": 1.0, "lambda_min": -1.0, "gradient_bound": 10.0}
    declared = constants | {"residual_tol": 1.0} if bound == "newton" else {}
    method = Newton(gradient=gradient, bound=bound, damping=2.0, **declared)
    clf = net(method).fit(X, y)
    calls.clear()
    clf.unlearn(indices=GONE)
    assert clf.certificate_.diagnostics["passes"] == sum(calls) > 1


@pytest.fixture
def sweeps(monkeypatch):
    """Return how many rows' features were read for heads, by number of rows."""

    class Features:
        """Stands for an array; what is taken from it is counted."""

        def __init__(self, X):
            self.X, self.shape = X, X.shape

        def __getitem__(self, rows):
            counts[len(self.X)] += len(self.X[rows])
            return self.X[rows]

        def __array__(self, dtype=None, copy=None):
            counts[len(self.X)] += len(self.X)
            return np.asarray(self.X, dtype)

    counts = Counter()
    init = HeadRisk.__init__

    def with_counter(self, *args):
        init(self, *args)
        self._features = Features(self._features)

    monkeypatch.setattr(HeadRisk, "__init__", with_counter)
    return counts


@pytest.mark.parametrize("kind", ["ovr", "multinomial"])
@pytest.mark.parametrize("method", [Residual, SekhariNewton, DescentToDelete, CertifiedRemoval])
def test_methods_that_solve_count_every_sweep_over_the_rows(sweeps, method, kind):
    few = {} if method in (Residual, CertifiedRemoval) else {"max_fraction": 3 / 147}
    own = {} if method is Residual else {"multi_class": kind}
    noise = {"noise_std": 10.0} if method is CertifiedRemoval else {}
    lam = 1.0 if method is SekhariNewton else 1e-2  # for a step to be worth it
    method = method(**few, **own, **noise)
    clf = net(method, LinearHead, lam=lam, C=100.0, module__multi_class=kind).fit(X, y)
    assert clf.n_passes_ == pytest.approx(sweeps[150] / 150) and clf.n_passes_ > 3
    sweeps.clear()
    clf.unlearn(indices=GONE)
    passes = clf.certificate_.diagnostics["passes"]
    assert passes == pytest.approx(sweeps[N_RETAINED] / N_RETAINED) and passes > 0
    sweeps.clear()
    clf.unlearn(indices=[7])  # from the released weights: solved or trained again, or removed
    again = sweeps[146] / 146 + sweeps[147] / 147
    passes = clf.certificate_.diagnostics["passes"]
    assert passes == pytest.approx(again) and passes > 0


def test_removals_beyond_the_budget_count_the_training_too(sweeps):
    clf = net(CertifiedRemoval(noise_std=1e-3), LinearHead).fit(X, y)
    sweeps.clear()
    clf.unlearn(indices=GONE)
    diagnostics, seen = clf.certificate_.diagnostics, sweeps[N_RETAINED] / N_RETAINED
    assert diagnostics["retrained"] and diagnostics["passes"] == pytest.approx(seen) and seen > 5


def test_a_linearised_network_counts_products_with_the_jacobian(monkeypatch):
    rows = []

    def count(owner, name, n):
        original = getattr(owner, name)

        def counting(self, *args):
            rows.append(n(self))
            return original(self, *args)

        monkeypatch.setattr(owner, name, counting)

    for half in ("_verify", "times", "transposed"):  # the first once, when it is built
        count(Jacobian, half, lambda jacobian: 0.5 * len(jacobian._X))
    count(LinearizedRisk, "_proved_gradient", lambda risk: 1.5 * len(risk.y))
    clf = net(Residual(), Linearized, C=1e4, module__module=MLP, module__hidden=(4,)).fit(X, y)
    assert clf.n_passes_ == pytest.approx(sum(rows) / 150) and clf.n_passes_ > 10
    rows.clear()
    clf.unlearn(indices=GONE)
    assert clf.certificate_.diagnostics["passes"] == pytest.approx(sum(rows) / N_RETAINED)


def test_shards_count_the_rows_of_those_that_were_retrained():
    for n_slices in (1, 2):
        clf = ShardedClassifier(net(Retrain()), n_shards=3, n_slices=n_slices, random_state=0)
        fitting = counted(lambda clf=clf: clf.fit(X, y)) * N_RETAINED / 150
        assert clf.n_passes_ == pytest.approx(fitting)
        seen = counted(lambda clf=clf: clf.unlearn(indices=[0]))
        got = clf.certificate_.diagnostics["passes"] * 149 / N_RETAINED
        assert got == pytest.approx(seen) and 0 < got < 3


def test_every_method_fills_the_column_of_the_comparison():
    pytest.importorskip("opacus")
    few = {"max_fraction": 3 / 72}
    private = PrivateTraining(60.0, steps=10, sample_rate=0.3, batch_size=20, max_deletions=3)
    methods = {
        LinearHead: (
            Residual(),
            CertifiedRemoval(),
            SekhariNewton(**few),
            DescentToDelete(3, **few, tol=1e-7),
        ),
        RidgeHead: (Analytic(),),
        MLP: (private, Newton(), Retrain(), OutputPerturbation(), ModelClipping(steps=2)),
    }
    for module, kinds in methods.items():
        for method in kinds:
            clf = net(method, module)
            table = compare(clf, X[::2], y[::2], [0, 1, 2], X[1::2], y[1::2])
            passes = [row["passes"] for row in table.rows]
            assert np.isfinite(passes).all() and passes[0] == 0 < passes[1], method
    assert net(private, MLP).fit(X, y).n_passes_ == pytest.approx(3)
