"""What is promised today for each deletion, against the accounting by hand; and what is left."""

from __future__ import annotations

import pickle
from math import inf, sqrt

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._budget import how_many
from sk_unlearn._guarantees import Promise, composed
from sk_unlearn.accounting import compose, gaussian_delta, gaussian_epsilon, gaussian_mu
from sk_unlearn.curvature import Exact
from sk_unlearn.exceptions import BudgetExceededError, CalibrationError, UnlearningWarning
from sk_unlearn.methods import (
    DescentToDelete,
    ModelClipping,
    Newton,
    Residual,
    Retrain,
    SekhariNewton,
)
from sk_unlearn.modules import LinearHead

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def fitted(method=None, **parameters):
    method = Residual() if method is None else method
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, method=method, **parameters)
    return net.fit(X, y, sample_ids=np.arange(150) // 2)


def secret(horizon=10, **parameters):
    return fitted(Residual(state="secret", horizon=horizon), **parameters)


def delta_of(mu, epsilon):
    """(T1) in 50 digits."""
    with mpmath.workdps(50):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(-epsilon / mu + mu / 2) - mpmath.exp(epsilon) * mpmath.ncdf(
            -epsilon / mu - mu / 2
        )


def test_released_state_promises_what_the_certificate_says_for_good():
    net = fitted()
    net.request_deletion(sample_ids=[3], request_id="a")
    net.request_deletion(indices=[0], request_id="b")
    net.process_deletions(epsilon=0.5, delta=1e-6)
    mu = net.certificate_.mu
    for _ in range(3):
        net.unlearn(indices=[0], epsilon=2.0, delta=1e-5)
    first, second, *others = net.guarantees()
    for g, name, n_rows in ((first, "a", 2), (second, "b", 1)):
        assert (g.request_id, g.n_rows, g.epsilon, g.delta, g.mu) == (name, n_rows, 0.5, 1e-6, mu)
        assert g.formal and g.release == 1 and g.n_composed == 1
    assert [(g.epsilon, g.release, g.n_composed) for g in others] == [
        (2.0, k, 1) for k in (2, 3, 4)
    ]


def test_secret_state_composes_from_each_deletion_to_now():
    net = secret()
    asked = [(1.0, 1e-5), (0.5, 1e-6), (0.25, 1e-5)]
    for epsilon, delta in asked:
        net.unlearn(indices=[0], epsilon=epsilon, delta=delta)
    mus = net.release_mus_
    promised = net.guarantees()
    for j, g in enumerate(promised):
        exact = mpmath.sqrt(mpmath.fsum(mpmath.mpf(mu) ** 2 for mu in mus[j:]))
        assert exact <= g.mu <= exact * (1 + 1e-15)
        assert g.delta == asked[j][1] and g.n_composed == 3 - j and not g.formal
        assert delta_of(g.mu, g.epsilon) <= g.delta
        assert delta_of(g.mu, g.epsilon * (1 - 1e-6)) > g.delta
    assert promised[0].mu == net.certificate_.composed_mu
    assert promised[0].epsilon < 1.0


def test_exact_and_uncertified_releases():
    net = fitted(Retrain()).unlearn(indices=[0])
    (g,) = net.guarantees()
    assert (g.epsilon, g.delta, g.mu, g.formal) == (0.0, 0.0, 0.0, True)
    assert composed([]) == (0.0, 0.0, 0.0)


def test_frame_and_the_empty_one():
    net = fitted()
    assert net.guarantees() == () and len(net.guarantees().to_frame()) == 0
    frame = net.unlearn(indices=[0, 1]).guarantees().to_frame()
    assert list(frame.columns) == list(net.guarantees().to_frame().columns)
    assert frame.loc[0, "n_rows"] == 2 and frame.loc[0, "epsilon"] == 1.0


def test_another_model_in_the_same_ledger_does_not_count(tmp_path):
    one, other = (fitted(ledger=tmp_path / "ledger.db") for _ in range(2))
    one.unlearn(indices=[0])
    other.unlearn(indices=[0], epsilon=0.5)
    assert [g.epsilon for g in one.guarantees()] == [1.0]
    assert [g.epsilon for g in other.guarantees()] == [0.5]
    assert one.fit(X, y).guarantees() == ()


def test_a_net_that_was_stored_before_composes_both_releases(tmp_path):
    net = fitted(ledger=tmp_path / "ledger.db")
    stored = pickle.dumps(net)
    net.request_deletion(indices=[0], request_id="a")
    net.process_deletions(epsilon=1.0)
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning, match="were released after this net was stored"):
        old.unlearn(indices=[100], epsilon=0.5)
    assert old.certificate_.n_deleted == 2 and old.n_releases_ == 2
    again, fresh = old.guarantees()
    mu = compose([gaussian_mu(1.0, 1e-5), gaussian_mu(0.5, 1e-5)])
    assert again.request_id == "a" and again.n_composed == 2
    assert again.mu == pytest.approx(mu, rel=1e-9)
    assert again.epsilon == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-8)
    assert (fresh.epsilon, fresh.release) == (0.5, 2)


SMALL = X / np.linalg.norm(X, axis=1).max()


@pytest.mark.parametrize("method", [SekhariNewton(), DescentToDelete(), Residual()])
@pytest.mark.parametrize("budget", [None, (4.0, 1e-4)])
def test_distances_to_the_retrained_model_are_not_composed_into_a_formal_promise(
    tmp_path, method, budget
):
    net = CertifiedNeuralClassifier(
        LinearHead, lam=1.0, method=method, ledger=tmp_path / "ledger.db", budget=budget
    ).fit(SMALL, y)
    stored = pickle.dumps(net)
    assert net.unlearn(indices=[0]).guarantees()[0].formal
    old, composes = pickle.loads(stored), isinstance(method, Residual)
    with pytest.warns(UnlearningWarning, match="were released after"):
        if budget and not composes:
            with pytest.raises(BudgetExceededError):
                old.unlearn(indices=[100])
            return
        old.unlearn(indices=[100])
    again, fresh = old.guarantees()
    assert again.n_composed == 2 and again.formal is composes
    assert fresh.n_composed == 1 and fresh.formal


@pytest.mark.filterwarnings("ignore::sk_unlearn.exceptions.UnlearningWarning")
def test_a_refuted_release_promises_nothing_alone_nor_with_another(tmp_path):
    constants = {"hessian_lipschitz": 1e-9, "lambda_min": 10.0, "gradient_bound": 10.0}
    method = Newton(solver=Exact(), bound="newton", residual_tol=1.0, **constants)
    net = fitted(method, max_epochs=1, ledger=tmp_path / "ledger.db")
    stored = pickle.dumps(net)
    assert net.unlearn(indices=[0]).certificate_.epsilon == inf
    assert net.guarantees()[0].epsilon == inf
    old = pickle.loads(stored).unlearn(indices=[100])
    assert [g.epsilon for g in old.guarantees()] == [inf, inf]
    assert old.guarantees()[0].n_composed == 2


numbers = st.floats(0.0, 5.0)


@given(st.lists(st.tuples(numbers, st.floats(1e-9, 1e-3), st.none() | numbers), min_size=2))
def test_composition_is_basic_without_a_mu_and_never_below_the_parts(parts):
    promises = [Promise(e, d, mu, True, True, True, ()) for e, d, mu in parts]
    epsilon, delta, mu = composed(promises)
    if any(part[2] is None for part in parts):
        assert mu is None
        assert mpmath.fsum(part[0] for part in parts) <= epsilon <= 1e-9 + sum(p[0] for p in parts)
        assert min(1, mpmath.fsum(part[1] for part in parts)) <= delta
    else:
        assert mu >= max(part[2] for part in parts)
        assert mu == 0 or delta_of(mu, epsilon) <= delta * (1 + 1e-30)


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize("budget", [1.0, "1", (1.0,), (1.0, 1e-5, 2), (0.0, 1e-5), (1.0, 2.0)])
def test_a_budget_that_is_none_is_refused_by_fit(budget):
    with pytest.raises(ValueError, match=r"budget=|epsilon=|delta="):
        fitted(budget=budget)


@pytest.mark.parametrize("file", [True, False])
def test_secret_releases_are_refused_when_the_budget_is_spent(tmp_path, file):
    path = tmp_path / "ledger.db" if file else None
    net = secret(horizon=50, budget=(0.5, 1e-5), ledger=path)
    share = gaussian_mu(1.0, 1e-5) / sqrt(50)
    expected = int(gaussian_mu(0.5, 1e-5) ** 2 / share**2)
    for k in range(expected):
        assert net.releases_left(1.0, 1e-5) == expected - k
        net.unlearn(indices=[0], epsilon=1.0, delta=1e-5)
    assert net.guarantees()[0].epsilon <= 0.5
    assert net.releases_left(1.0, 1e-5) == 0 < net.releases_left(0.1, 1e-5)
    net.request_deletion(indices=[0])
    before, head = dict(vars(net)), net.ledger_.head
    for attempt in (net.process_deletions, lambda: net.unlearn(indices=[1])):
        with pytest.raises(BudgetExceededError, match=rf"after {expected} releases .* 0 more"):
            attempt()
    assert vars(net) == before
    assert net.ledger_.head == head
    net.process_deletions(epsilon=0.1)
    assert net.certificate_.n_deleted == 1
    assert gaussian_delta(net.guarantees()[0].mu, 0.5) <= 1e-5


def test_the_horizon_counts_too():
    net = secret(horizon=3, budget=(8.0, 1e-5))
    assert net.releases_left() == 3
    net.unlearn(indices=[0]).unlearn(indices=[0])
    assert net.releases_left() == 1
    assert net.unlearn(indices=[0]).releases_left() == 0


def test_released_state_is_refused_only_above_the_budget():
    net = fitted(budget=(1.0, 1e-5))
    assert net.releases_left(1.0, 1e-5) == net.releases_left(0.5, 1e-6) == inf
    assert net.releases_left(1.5, 1e-5) == net.releases_left(1.0, 1e-4) == 0
    for epsilon, delta in ((1.5, 1e-5), (1.0, 1e-4)):
        with pytest.raises(BudgetExceededError, match=r"budget=\(1.0, 1e-05\)"):
            net.unlearn(indices=[0], epsilon=epsilon, delta=delta)
    assert len(net.ledger_) == 0
    for _ in range(5):
        net.unlearn(indices=[0], epsilon=1.0, delta=1e-5)


def test_a_deletion_that_must_be_repeated_counts_against_the_budget(tmp_path):
    net = fitted(ledger=tmp_path / "ledger.db", budget=(1.0, 1e-5))
    stored = pickle.dumps(net)
    net.unlearn(indices=[0], epsilon=0.9)
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning), pytest.raises(BudgetExceededError):
        old.unlearn(indices=[100], epsilon=0.9)
    assert old.n_rows_ == 150
    old.unlearn(indices=[100], epsilon=0.1)
    assert old.n_rows_ == 148
    assert gaussian_delta(old.guarantees()[0].mu, 1.0) <= 1e-5


def test_without_a_budget_there_is_no_limit():
    assert fitted().releases_left() == inf
    assert fitted(Retrain(), budget=(0.1, 1e-9)).releases_left(5.0) == inf
    net = CertifiedNeuralClassifier(
        method=ModelClipping(noise_std=1e-5), max_epochs=1, budget=(1.0, 1e-5)
    )
    with pytest.raises(CalibrationError):
        net.fit(X, y).releases_left()
    with pytest.raises(NotFittedError):
        CertifiedNeuralClassifier().releases_left()
    with pytest.raises(NotFittedError):
        CertifiedNeuralClassifier().guarantees()


def test_an_event_without_a_mu_is_held_to_the_budget_by_its_own_delta():
    method = ModelClipping(radius=0.1, steps=2)
    net = CertifiedNeuralClassifier(method=method, max_epochs=1, budget=(1.0, 1e-5)).fit(X, y)
    assert net.releases_left(1.0, 1e-5) == inf and net.releases_left(3.0, 1e-5) == 0


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.0, 0.5), max_size=5),
    st.floats(1e-3, 1.0),
    st.floats(0.05, 3.0),
    st.sampled_from([1e-8, 1e-5, 1e-3]),
)
def test_how_many_is_the_largest_number_that_fits(earlier, mu, epsilon, delta):
    count = how_many(earlier, mu, (epsilon, delta))

    def together(k):
        total = mpmath.sqrt(mpmath.fsum(mpmath.mpf(m) ** 2 for m in [*earlier, *[mu] * k]))
        return delta_of(total, epsilon)

    if count:
        assert together(count) <= delta
    assert together(count + 1) > delta * (1 - 1e-9)
