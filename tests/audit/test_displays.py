from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from scipy.stats import norm

from sk_unlearn import audit
from sk_unlearn.accounting import gaussian_delta, gaussian_mu
from sk_unlearn.audit import (
    DeletionTimelineDisplay,
    PrivacyProfileDisplay,
    TradeoffDisplay,
    UnlearningComparisonDisplay,
    UtilityDisplay,
)
from sk_unlearn.audit._drawing import style
from sk_unlearn.audit.lower_bounds import held_out_error_rates

MU = float(gaussian_mu(1.0, 1e-5))
GAUSSIAN = SimpleNamespace(mu=MU, epsilon=1.0, delta=1e-5)
BARE = SimpleNamespace(mu=None, epsilon=1.0, delta=1e-3)
EXACT = SimpleNamespace(mu=0.0, epsilon=0.0, delta=0.0)
NOTHING = SimpleNamespace(mu=None, epsilon=math.inf, delta=1e-5)

COMPARISON = pd.DataFrame(
    {
        "method": ["retrain", "residual", "retrain", "residual"],
        "accuracy_retained": [0.99, 0.98, 0.97, 0.98],
        "accuracy_deleted": [0.95, 0.94, 0.95, 0.96],
        "accuracy_test": [0.96, 0.95, 0.96, 0.95],
        "log_loss_test": [0.1, 0.2, 0.1, 0.2],
    }
)
UTILITY = [
    {"method": "noisy", "epsilon": 2.0, "accuracy": 0.8},
    {"method": "noisy", "epsilon": 1.0, "accuracy": 0.6},
    {"method": "noisy", "epsilon": 1.0, "accuracy": 0.7},
    {"method": "control", "epsilon": None, "accuracy": 0.7},
    {"method": "control", "epsilon": float("nan"), "accuracy": 0.8},
    {"method": "analytic", "epsilon": 1.0, "accuracy": 0.9},
]
START = datetime(2026, 3, 1, tzinfo=UTC)
ENTRIES = [
    (START + timedelta(days=2), 5, "requested"),
    (START, 3, "requested"),
    (START + timedelta(days=1), 3, "released"),
    (START + timedelta(days=4), 5, "refused"),
]

EVERY = [
    lambda ax: PrivacyProfileDisplay.from_certificate(
        GAUSSIAN, epsilon_lower=0.4, mu_lower=0.2, ax=ax
    ),
    lambda ax: TradeoffDisplay.from_certificate(BARE, np.arange(50.0), -np.arange(50.0), ax=ax),
    lambda ax: UtilityDisplay.from_table(UTILITY, ax=ax),
    lambda ax: UnlearningComparisonDisplay.from_table(COMPARISON, ax=ax),
    lambda ax: DeletionTimelineDisplay.from_ledger(ENTRIES, ax=ax),
]


@pytest.fixture(autouse=True)
def closed_figures():
    with matplotlib.rc_context({"backend": "Agg"}):
        yield
    pyplot.close("all")


def lines(display):
    return {line.get_label(): line for line in display.ax_.lines}


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


@pytest.mark.parametrize("make", EVERY)
def test_displays_follow_the_convention(make, tmp_path):
    display = make(None)
    assert display.figure_ is display.ax_.figure
    display.figure_.savefig(tmp_path / "picture.png")
    assert display.ax_.get_xlabel() and len(legend(display)) >= 2
    _, ax = pyplot.subplots()
    assert display.plot(ax) is display and display.ax_ is ax
    before = len(pyplot.get_fignums())
    assert make(ax).ax_ is ax
    assert len(pyplot.get_fignums()) == before


@pytest.mark.parametrize("make", EVERY)
def test_without_matplotlib_the_remedy_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'sk-unlearn\[plots\]'"):
        make(None)


def test_matplotlib_is_not_needed_to_import():
    code = "import sys; sys.modules['matplotlib'] = None; import sk_unlearn.audit"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_two_series_look_alike_in_grey():
    looks = [style(i) for i in range(8)]
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks}) == 8
    assert len({look["marker"] for look in looks}) == 8


def test_profile_of_a_gaussian_certificate():
    display = PrivacyProfileDisplay.from_certificate(GAUSSIAN, epsilon_lower=0.4, mu_lower=0.2)
    x, y = display.line_.get_data()
    slow = norm.cdf(MU / 2 - x / MU) - np.exp(x) * norm.cdf(-x / MU - MU / 2)
    assert y == pytest.approx(slow, abs=1e-12)
    assert x[0] == 0 and x[-1] == 2 and 1.0 in x
    assert y[x == 1.0] <= 1e-5
    drawn = lines(display)
    assert drawn["ε = 1, δ = 1e-05"].get_xydata().tolist() == [[1.0, 1e-5]]
    assert drawn["audit: ε at least 0.4 at this δ"].get_xydata().tolist() == [
        [0, 1e-5],
        [0.4, 1e-5],
    ]
    lower = drawn["audit, if Gaussian DP: δ at least"].get_ydata()
    assert lower == pytest.approx(gaussian_delta(0.2, x))
    assert display.ax_.get_yscale() == "log"


def test_profile_without_mu_is_what_randomized_response_attains():
    display = PrivacyProfileDisplay.from_certificate(BARE)
    x, y = display.line_.get_data()
    for epsilon, delta in list(zip(x, y, strict=True))[::20]:
        # Both worlds say at once who they are with probability delta, else respond at random.
        p = np.array([1e-3, 0, *(0.999 * np.array([math.e, 1]) / (1 + math.e))])
        q = np.array([0, 1e-3, *(0.999 * np.array([1, math.e]) / (1 + math.e))])
        assert delta == pytest.approx(np.maximum(p - math.exp(epsilon) * q, 0).sum())
    assert (y[x >= 1] == 1e-3).all()


def test_profile_reaches_as_far_as_what_is_drawn():
    display = PrivacyProfileDisplay.from_certificate(GAUSSIAN, epsilon_lower=7.0)
    assert display.ax_.get_xlim() == (0, 14)
    display = PrivacyProfileDisplay.from_certificate(EXACT)
    assert not display.delta.any()
    assert lines(display)["ε = 0, δ = 0"].get_xdata() == [0.0]


def test_a_certificate_that_proves_nothing_is_not_drawn():
    for display in (PrivacyProfileDisplay, TradeoffDisplay):
        with pytest.raises(ValueError, match="epsilon=inf: it proves nothing"):
            display.from_certificate(NOTHING)


def test_tradeoff_of_a_gaussian_certificate():
    display = TradeoffDisplay.from_certificate(GAUSSIAN)
    x, y = display.line_.get_data()
    assert y == pytest.approx(norm.sf(norm.ppf(x) + MU))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 1, 1, 0)
    assert display.rates is None and display.attack_fpr is None
    exact = TradeoffDisplay.from_certificate(EXACT)
    assert exact.certified_fnr == pytest.approx(1 - exact.fpr)


def test_tradeoff_without_mu_is_the_conjugate_of_its_profile():
    # f(a) is the largest of 1 - delta(e) - e^e a over the profile, and its mirror image.
    x, y = TradeoffDisplay.from_certificate(BARE).line_.get_data()
    profile = PrivacyProfileDisplay.from_certificate(BARE)
    slow = np.max(
        [
            (1 - d - math.exp(e) * x, np.exp(-e) * (1 - d - x))
            for e, d in zip(profile.epsilon, profile.delta, strict=True)
        ],
        axis=(0, 1),
    )
    assert y == pytest.approx(np.maximum(slow, 0), abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_tradeoff_of_an_attack(sign):
    rng = np.random.default_rng(0)
    present, absent = sign * rng.normal(1, 1, 3000), sign * rng.normal(0, 1, 2000)
    display = TradeoffDisplay.from_certificate(GAUSSIAN, present, absent, confidence=0.9)
    assert display.rates == held_out_error_rates(present, absent, 0.9)
    x, y = lines(display)["attack, as counted"].get_data()
    assert len(x) <= 1001
    assert y == pytest.approx(norm.cdf(norm.isf(np.clip(x, 1e-9, 1)) - 1), abs=0.05)
    assert (x[0], y[0], x[-1], y[-1]) == (1, 0, 0, 1)
    point = lines(display)["attack, at most (90% confidence)"].get_xydata()
    assert point.tolist() == [[display.rates.fpr_upper, display.rates.fnr_upper]]
    # mu = 1 against a certified 0.27: the point is below the curve, and so refutes.
    assert display.rates.fnr_upper < np.interp(point[0, 0], display.fpr, display.certified_fnr)


def test_tradeoff_takes_scores_of_both_worlds_or_none():
    with pytest.raises(ValueError, match="scores_absent"):
        TradeoffDisplay.from_certificate(GAUSSIAN, np.arange(50.0))
    with pytest.raises(ValueError, match="too few"):
        TradeoffDisplay.from_certificate(GAUSSIAN, np.arange(3.0), np.arange(3.0))


@pytest.mark.parametrize(
    "table", [UTILITY, pd.DataFrame(UTILITY), pd.DataFrame(UTILITY).to_dict("list")]
)
def test_utility_sums_up_the_draws(table):
    display = UtilityDisplay.from_table(table)
    assert list(display.curves) == ["noisy", "analytic"]
    assert display.curves["noisy"] == pytest.approx(
        np.array([[1, 2], [0.65, 0.8], [0.6, 0.8], [0.7, 0.8]])
    )
    assert display.references == {"control": pytest.approx(0.75)}
    assert display.ax_.get_xscale() == "log"
    assert sorted(legend(display)) == ["analytic", "control", "noisy"]
    drawn, *_ = display.ax_.containers[0]
    assert drawn.get_xydata() == pytest.approx(np.array([[1, 0.65], [2, 0.8]]))
    assert lines(display)["control"].get_ydata() == pytest.approx([0.75, 0.75])


def test_utility_at_epsilon_zero_and_without_curves():
    table = {"method": ["a", "a"], "epsilon": [0.0, 1.0], "score": [0.5, 0.6]}
    display = UtilityDisplay.from_table(table, accuracy="score")
    assert display.ax_.get_xscale() == "linear" and display.ax_.get_ylabel() == "score"
    only = UtilityDisplay.from_table(UTILITY[3:5])
    assert not only.curves and only.references


@pytest.mark.parametrize("epsilon", [-1.0, math.inf])
def test_utility_quotes_an_epsilon_without_a_place(epsilon):
    with pytest.raises(ValueError, match=f"epsilon={epsilon}"):
        UtilityDisplay.from_table({"method": ["a"], "epsilon": [epsilon], "accuracy": [0.5]})


def test_comparison_sums_up_the_draws():
    display = UnlearningComparisonDisplay.from_table(COMPARISON)
    assert display.methods == ["retrain", "residual"]
    assert display.values.shape == (2, 3, 3)
    assert display.values[0, 0] == pytest.approx([0.98, 0.97, 0.99])
    assert display.values[1, 1] == pytest.approx([0.95, 0.94, 0.96])
    assert display.ax_.get_xlabel() == "accuracy"
    assert legend(display) == ["retained", "deleted", "test"]
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["retrain", "residual"]
    top, bottom = (display.ax_.transData.transform((0, i))[1] for i in (0, 1))
    assert top > bottom
    drawn, *_ = display.ax_.containers[1]
    assert drawn.get_xdata() == pytest.approx([0.95, 0.95])


def test_comparison_of_one_column_and_of_several_units():
    one = UnlearningComparisonDisplay.from_table(COMPARISON, ["log_loss_test"])
    assert one.ax_.get_xlabel() == "log loss" and legend(one) == ["test"]
    two = UnlearningComparisonDisplay.from_table(COMPARISON, ["log_loss_test", "accuracy_test"])
    assert two.ax_.get_xlabel() == ""
    assert legend(two) == ["log loss test", "accuracy test"]


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (UtilityDisplay.from_table, COMPARISON),
        (UnlearningComparisonDisplay.from_table, UTILITY),
        (UnlearningComparisonDisplay.from_table, []),
        (DeletionTimelineDisplay.from_ledger, COMPARISON),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(make, table):
    with pytest.raises(ValueError, match=r"the table has no column '\w+'; it has \["):
        make(table)


class Ledger:
    def to_frame(self):
        return pd.DataFrame(ENTRIES, columns=["time", "n_rows", "state"])


@pytest.mark.parametrize("ledger", [ENTRIES, Ledger(), Ledger().to_frame()])
def test_timeline_adds_up_rows_by_state(ledger):
    display = DeletionTimelineDisplay.from_ledger(ledger)
    assert list(display.steps) == ["requested", "released", "refused"]
    times, total = display.steps["requested"]
    assert total.tolist() == [3, 8]
    assert [pd.Timestamp(t) for t in times] == [
        pd.Timestamp(START),
        pd.Timestamp(START) + pd.Timedelta(days=2),
    ]
    assert legend(display) == ["requested: 8 rows", "released: 3 rows", "refused: 5 rows"]
    line = lines(display)["released: 3 rows"]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_ydata().tolist() == [3, 3]  # to the end of what is drawn
    assert pd.Timestamp(line.get_xdata(orig=True)[-1]) == pd.Timestamp(ENTRIES[-1][0])


def test_timeline_of_nothing():
    for empty in ([], Ledger().to_frame().iloc[:0]):
        display = DeletionTimelineDisplay.from_ledger(empty)
        assert display.steps == {} and not display.ax_.lines


def test_every_public_name_is_importable():
    for name in audit.__all__:
        assert getattr(audit, name) is not None
