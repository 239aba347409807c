from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t
from sklearn.datasets import make_classification
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_unlearn.audit._roc import auc_with_interval
from sk_unlearn.audit.membership import (
    MembershipResult,
    Rows,
    confidence_attack,
    likelihood_ratio,
    likelihood_ratio_attack,
    logit_confidence,
    loss_attack,
)


class Table:
    """A classifier whose probabilities are the rows themselves."""

    def __init__(self, classes):
        self.classes_ = np.asarray(classes)

    def predict_proba(self, X):
        return np.asarray(X)


def halves(X, y, member):
    return [Rows(X[i::2], y[i::2], member[i::2]) for i in (0, 1)]


def labelled_noise(n, n_classes, seed):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 6)), rng.integers(n_classes, size=n)
    y[:n_classes] = np.arange(n_classes)
    return X, y, np.arange(n) < n // 2


def column(values):
    return np.asarray(values, dtype=float)[:, None]


@pytest.mark.parametrize("attack", [loss_attack, confidence_attack])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_independent_of_the_rows_is_not_attacked(attack, seed):
    X, y, member = labelled_noise(600, 3, seed)
    other = labelled_noise(300, 3, seed + 100)
    for model in (GaussianNB().fit(*other[:2]), DummyClassifier().fit(X, y)):
        result = attack(model, *halves(X, y, member))
        low, high = result.auc_interval
        assert low < 0.5 < high
        assert abs(result.advantage) < 0.2


@pytest.mark.parametrize("as_frame", [False, True])
def test_a_model_that_memorises_is_attacked(as_frame):
    X, y, member = labelled_noise(1200, 100, 0)
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(1)).fit(X[member], y[member])
    if as_frame:
        X, y = pd.DataFrame(X), pd.Series(y)
        X.columns = [f"x{i}" for i in range(6)]
        model = model.fit(X[member], y[member])
    result = loss_attack(model, *halves(X, y, member))
    assert result.auc > 0.99
    assert result.auc_interval[0] > 0.97
    assert result.advantage > 0.97
    assert result.tpr_at_fpr(0.02) == 1.0
    # Every prediction of a nearest neighbour is certain, so confidence alone shows nothing.
    assert confidence_attack(model, *halves(X, y, member)).auc == 0.5


def test_loss_scores_are_minus_the_log_loss_in_the_order_of_members_and_others():
    X, y = make_classification(200, n_informative=4, n_classes=3, random_state=0)
    y = np.array(["zebra", "ant", "mole"])[y]
    model = LogisticRegression().fit(X[:100], y[:100])
    member = np.arange(200) < 100
    result = loss_attack(model, *halves(X, y, member))
    rows, labels = X[1::2], y[1::2]
    slow = [
        -log_loss([label], model.predict_proba([row]), labels=model.classes_)
        for row, label in zip(rows, labels, strict=True)
    ]
    assert result.scores == pytest.approx(np.array(slow))  # members come first already
    assert result.member.tolist() == [True] * 50 + [False] * 50
    assert result.auc == pytest.approx(roc_auc_score(result.member, slow))


def test_loss_attack_on_a_gaussian_shift_has_the_analytic_curve():
    rng = np.random.default_rng(0)
    n, d = 20_000, 1.3
    member = np.arange(2 * n) < n
    p = 1 / (1 + np.exp(-rng.normal(d * member - d, 1)))
    X = np.column_stack([p, 1 - p])
    order = rng.permutation(2 * n)
    known, judged = np.split(order, 2)
    rows = [Rows(X[i], np.full(n, "a"), member[i]) for i in (known, judged)]
    result = loss_attack(Table(["a", "b"]), *rows)
    assert result.auc == pytest.approx(norm.cdf(d / np.sqrt(2)), abs=0.015)
    low, high = result.auc_interval
    assert low < norm.cdf(d / np.sqrt(2)) < high
    for fpr in (0.01, 0.1):
        assert result.tpr_at_fpr(fpr) == pytest.approx(norm.cdf(norm.ppf(fpr) + d), abs=0.03)
    assert result.advantage == pytest.approx(2 * norm.cdf(d / 2) - 1, abs=0.03)
    # The threshold is that of the known rows, not the best one in hindsight.
    assert result.advantage <= (result.tpr - result.fpr).max()
    assert result.threshold in np.log(X[known, 0])


def test_confidence_attack_does_not_look_at_labels():
    rng = np.random.default_rng(1)
    X, member = rng.dirichlet(np.ones(3), 200), np.arange(200) < 100
    X[member] = np.sort(X[member]) ** 2
    X /= X.sum(axis=1, keepdims=True)
    results = [
        confidence_attack(Table([0, 1, 2]), *halves(X, y, member))
        for y in (np.zeros(200, int), rng.integers(3, size=200))
    ]
    assert np.array_equal(results[0].scores, results[1].scores)
    assert np.array_equal(np.sort(results[0].scores), np.sort(X[1::2].max(axis=1)))


def test_shared_rows_are_refused():
    X, y, member = labelled_noise(60, 3, 0)
    attack, evaluation = halves(X, y, member)
    model = DummyClassifier().fit(X, y)
    X[7], y[7] = X[4], y[4]
    for same in (evaluation, Rows(X[1::2].astype(np.float32), y[1::2], member[1::2])):
        with pytest.raises(ValueError, match=r"1 evaluation rows are among .* first is row 3"):
            loss_attack(model, attack, same)
    y[7] = (y[4] + 1) % 3  # another label: another row
    loss_attack(model, attack, evaluation)
    with pytest.raises(ValueError, match="30 evaluation rows"):
        confidence_attack(model, attack, attack)


def test_a_row_that_is_member_and_not_member_is_refused():
    X, y, member = labelled_noise(60, 3, 0)
    X[41], y[41] = X[1], y[1]
    with pytest.raises(ValueError, match="1 members have an equal row that is given as no member"):
        loss_attack(DummyClassifier().fit(X, y), *halves(X, y, member))


def test_rows_are_told_apart_whatever_their_type():
    member = np.arange(20) % 4 < 2
    names = pd.DataFrame({"name": [f"n{i}" for i in range(20)], "age": range(20)})
    images = np.arange(20 * 12.0).reshape(20, 1, 3, 4)
    for X in (names, images, images.astype(bool), images.tolist()):
        y = np.arange(20)
        model = DummyClassifier().fit(np.zeros((20, 1)), y)
        model.predict_proba = lambda X: np.full((len(X), 20), 0.05)
        loss_attack(model, *halves(X, y, member))
        shared = Rows(X[:12], y[:12], member[:12]), Rows(X[11:], y[11:], member[11:])
        with pytest.raises(ValueError, match="1 evaluation rows are among"):
            loss_attack(model, *shared)
    zeros = np.zeros((20, 1))
    zeros[1::2] = -0.0
    with pytest.raises(ValueError, match="evaluation rows are among"):
        loss_attack(DummyClassifier().fit(zeros, y), *halves(zeros, np.zeros(20, int), member))


def test_rows_that_make_no_sense_are_refused():
    X, y, member = labelled_noise(10, 2, 0)
    with pytest.raises(ValueError, match=r"lengths \[\(10,\), \(9,\), \(10,\)\]"):
        Rows(X, y[:9], member)
    with pytest.raises(ValueError, match="dtype int64"):
        Rows(X, y, member.astype(int))
    with pytest.raises(ValueError, match="1 members and 9 others"):
        Rows(X, y, np.arange(10) == 3)


def test_a_model_that_gives_no_probabilities_is_quoted():
    X, y, member = labelled_noise(40, 2, 0)
    rows = halves(X, y, member)
    model = Table([0, 1])
    with pytest.raises(ValueError, match=r"shape \(20, 6\) for 20 rows and 2 classes_"):
        loss_attack(model, *rows)
    model.predict_proba = lambda X: np.column_stack([np.full(len(X), 1.5), np.full(len(X), -0.5)])
    with pytest.raises(ValueError, match=r"returned 1\.5, which is no probability"):
        loss_attack(model, *rows)
    model.predict_proba = lambda X: np.full((len(X), 2), np.nan)
    with pytest.raises(ValueError, match="returned nan"):
        confidence_attack(model, *rows)
    for label in (-1, 0.5, 7):
        with pytest.raises(ValueError, match=f"label .*{label}.* is not among the model's 2 class"):
            logit_confidence(DummyClassifier().fit(X, y), X[:1], [label])
    with pytest.raises(ValueError, match="confidence=95"):
        loss_attack(DummyClassifier().fit(X, y), *rows, confidence=95)


def test_logit_confidence_is_exact_and_finite():
    p = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1 - 1e-12, 1e-12, 0]])
    values = logit_confidence(Table([2, 5, 9]), p, [5, 2, 2, 2])
    assert values[0] == pytest.approx(np.log(0.3 / 0.7))
    assert values[1] == -values[2] > 80
    assert values[3] == pytest.approx(-np.log(1e-12), rel=1e-4)  # 1 - p_y would lose four digits
    shuffled = logit_confidence(Table([9, 2, 5]), p[:, [2, 0, 1]], [5, 2, 2, 2])
    assert shuffled == pytest.approx(values, rel=1e-12)


def test_likelihood_ratio_is_that_of_two_normal_laws():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, 7)
    for n in (32, 31):
        a, b, runs = (rng.normal(m, scale, (k, 7)) for m, k in ((1, n), (0, n + 9), (0.5, 4)))
        value = likelihood_ratio(a, b, runs)
        slow = np.zeros((4, 7))
        for r in range(7):
            for world, sign in ((a, 1), (b, -1)):
                var = np.var(world[:, r], ddof=1)
                if len(world) < 32:
                    var = np.mean([np.var(world[:, q], ddof=1) for q in range(7)])
                z = (runs[:, r] - np.mean(world[:, r])) ** 2 / var
                slow[:, r] += sign * (-0.5 * np.log(2 * np.pi * var) - 0.5 * z)
        assert value == pytest.approx(slow)


@pytest.mark.parametrize("d", [0.5, 2.0])
def test_likelihood_ratio_attack_on_a_gaussian_shift_has_the_analytic_auc(d):
    rng = np.random.default_rng(2)
    mean, scale = rng.normal(0, 10, 40), rng.uniform(0.1, 9, 40)
    absent = mean + scale * rng.normal(size=(400, 40))
    present = mean + scale * (d + rng.normal(size=(300, 40)))
    result = likelihood_ratio_attack(present, absent)
    assert result.auc == pytest.approx(norm.cdf(d / np.sqrt(2)), abs=0.02)
    assert result.advantage == pytest.approx(2 * norm.cdf(d / 2) - 1, abs=0.03)
    assert result.tpr_at_fpr(0.01) == pytest.approx(norm.cdf(norm.ppf(0.01) + d), abs=0.04)
    assert result.threshold == 0.0
    assert result.scores.shape == (150 * 40 + 200 * 40,)
    assert result.member.sum() == 150 * 40
    # The same confidences without a law for each row say far less.
    assert roc_auc_score(result.member, np.r_[present[150:].ravel(), absent[200:].ravel()]) < (
        result.auc - 0.05
    )


def test_likelihood_ratio_attack_sees_what_a_memorising_model_keeps():
    X, y, _ = labelled_noise(120, 4, 3)
    targets, rest = np.arange(4, 24), np.r_[0:4, 24:120]
    rng = np.random.default_rng(4)
    worlds = {True: [], False: []}
    for present, runs in worlds.items():
        for _ in range(12):
            kept = np.r_[np.arange(4), rng.choice(rest[4:], 60, replace=False)]
            rows = np.r_[kept, targets] if present else kept
            model = KNeighborsClassifier(5, weights="distance").fit(X[rows], y[rows])
            runs.append(logit_confidence(model, X[targets], y[targets]))
    result = likelihood_ratio_attack(worlds[True], worlds[False])
    assert result.auc == 1.0
    low, high = result.auc_interval
    assert low == pytest.approx(0.025 ** (1 / 6)) and high == 1.0
    honest = likelihood_ratio_attack(worlds[False][:6], worlds[False][6:])
    assert honest.auc_interval[0] < 0.5 < honest.auc_interval[1]


def test_no_evaluation_run_takes_part_in_the_attack():
    rng = np.random.default_rng(5)
    present, absent = rng.normal(1, 1, (8, 3)), rng.normal(0, 1, (10, 3))
    base = likelihood_ratio_attack(present, absent)
    moved = 0
    for world in (present, absent):
        for i in range(len(world)):
            old = world[i].copy()
            world[i] += 100.0
            other = likelihood_ratio_attack(present, absent)
            world[i] = old
            changed = (base.scores != other.scores).reshape(-1, 3).any(axis=1)
            # An evaluation run changes its own scores only, an attack run those of all others.
            assert changed.sum() in (1, len(changed))
            moved += changed.sum() == 1
    assert moved == 4 + 5


def test_runs_without_noise_are_separated_and_not_divided_by_zero():
    present, absent = np.full((6, 2), 3.0), np.full((6, 2), 3.1)
    assert likelihood_ratio_attack(present, absent).auc == 1.0
    same = likelihood_ratio_attack(present, present)
    assert same.auc == 0.5 and same.auc_interval[0] < 0.5 < same.auc_interval[1]


def test_runs_that_do_not_fit_are_quoted():
    good = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(ValueError, match=r"present has shape \(3, 3\).*at least 4 runs"):
        likelihood_ratio_attack(good[:3], good)
    with pytest.raises(ValueError, match=r"absent has shape \(6,\)"):
        likelihood_ratio_attack(good, good[:, 0])
    with pytest.raises(ValueError, match=r"target rows: {'present': 3, 'absent': 2}"):
        likelihood_ratio_attack(good, good[:, :2])
    with pytest.raises(ValueError, match="'runs': 1"):
        likelihood_ratio(good, good, good[:, :1])
    bad = good.copy()
    bad[2, 1] = np.inf
    with pytest.raises(ValueError, match="absent holds inf"):
        likelihood_ratio_attack(good, bad)
    with pytest.raises(ValueError, match="confidence=0"):
        likelihood_ratio_attack(good, good, confidence=0)


def slow_auc(present, absent, confidence):
    """The area and its variance from all pairs of units."""
    wins = np.array(
        [[np.mean([(s > r) + (s == r) / 2 for s in p for r in a]) for a in absent] for p in present]
    )
    variance = sum(np.var(wins.mean(axis=k), ddof=1) / wins.shape[1 - k] for k in (0, 1))
    auc = wins.mean()
    freedom = variance**2 / sum(
        (np.var(wins.mean(axis=k), ddof=1) / wins.shape[1 - k]) ** 2 / (wins.shape[1 - k] - 1)
        for k in (0, 1)
    )
    reach = t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance) / (auc * (1 - auc))
    return auc, [1 / (1 + (1 - auc) / auc * np.exp(-s * reach)) for s in (-1, 1)]


@given(
    st.integers(0, 10**6),
    st.integers(5, 12),
    st.integers(5, 12),
    st.integers(1, 3),
    st.integers(0, 3),
    st.floats(0.5, 0.99),
)
def test_interval_is_delongs_from_all_pairs(seed, m, n, per_unit, digits, confidence):
    rng = np.random.default_rng(seed)
    present = np.round(rng.normal(0.5, 1, (m, per_unit)), digits)
    absent = np.round(rng.normal(0, 1, (n, per_unit)), digits)
    auc, interval = auc_with_interval(present, absent, confidence)
    pairs = np.concatenate([present.ravel(), absent.ravel()])
    if 0 < auc < 1 and len(np.unique(pairs)) > 1:
        wanted, expected = slow_auc(present, absent, confidence)
        assert auc == pytest.approx(wanted)
        assert interval == pytest.approx(expected)
    swapped, (low, high) = auc_with_interval(absent, present, confidence)
    assert swapped == pytest.approx(1 - auc)
    assert (1 - high, 1 - low) == pytest.approx(interval)


def test_interval_is_close_to_the_bootstrap():
    rng = np.random.default_rng(0)
    present, absent = rng.normal(1, 1, 300), rng.normal(0, 2, 200)
    _, interval = auc_with_interval(column(present), column(absent), 0.9)

    truth = np.repeat([1, 0], [300, 200])
    draws = [
        roc_auc_score(truth, np.r_[rng.choice(present, 300), rng.choice(absent, 200)])
        for _ in range(1000)
    ]
    slow = np.quantile(draws, [0.05, 0.95])
    assert interval == pytest.approx(tuple(slow), abs=0.01)


@pytest.mark.parametrize("auc", [0.0, 0.5, 1.0])
def test_interval_without_variance_is_not_a_point(auc):
    present, absent = column([auc] * 9), column([0.5] * 12)
    value, (low, high) = auc_with_interval(present, absent, 0.95)
    same = 0.025 ** (1 / 9)
    assert value == auc
    assert (low, high) == pytest.approx((auc * same, 1 - (1 - auc) * same))


def test_tpr_at_fpr_does_not_interpolate():
    absent = column(np.arange(1000.0))
    present = column(np.repeat([2000.0, 998.5, 500.0], [100, 200, 700]))
    result = MembershipResult.from_scores(present, absent, 600.0)
    assert result.tpr_at_fpr(0) == pytest.approx(0.1)
    assert result.tpr_at_fpr(0.0009) == pytest.approx(0.1)
    assert result.tpr_at_fpr(0.001) == pytest.approx(0.3)
    assert result.tpr_at_fpr(1) == 1.0
    assert result.advantage == pytest.approx(0.3 - 0.4)
    with pytest.raises(ValueError, match=r"fpr=1\.5"):
        result.tpr_at_fpr(1.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "n", "d", "shared", "at_most"),
    [
        (60, 40, 0.0, 0.0, 0.06),
        (60, 40, 1.5, 0.0, 0.06),
        (30, 30, 0.5, 0.9, 0.06),
        (200, 20, 3.0, 0.0, 0.10),
    ],
)
def test_coverage_of_the_interval(m, n, d, shared, at_most):
    """Also for units of five scores with a common part, where scores alone would be too sure."""
    rng = np.random.default_rng(6)
    truth = norm.cdf(d / np.sqrt(2))
    k, missed, naive = (5 if shared else 1), 0, 0
    for _ in range(1500):
        present, absent = (
            mean + shared * rng.normal(size=(size, 1)) + np.sqrt(1 - shared**2) * noise
            for mean, size in ((d, m), (0, n))
            for noise in [rng.normal(size=(size, k))]
        )
        low, high = auc_with_interval(present, absent, 0.95)[1]
        missed += not low <= truth <= high
        low, high = auc_with_interval(column(present.ravel()), column(absent.ravel()), 0.95)[1]
        naive += not low <= truth <= high
    assert binomtest(missed, 1500, at_most, alternative="greater").pvalue > 1e-3, missed
    if shared:
        assert naive > 0.2 * 1500


@pytest.mark.slow
def test_interval_of_separated_scores_covers():
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(4000):  # AUC 0.983: 8 against 8 are often perfectly separated
        low, high = auc_with_interval(rng.normal(3, 1, (8, 1)), rng.normal(0, 1, (8, 1)), 0.9)[1]
        missed += not low <= norm.cdf(3 / np.sqrt(2)) <= high
    assert missed / 4000 < 0.12
