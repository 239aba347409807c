"""The trap of (T4): a Renyi bound that is good for order 1 only."""

from __future__ import annotations

from math import inf, log, sqrt

import numpy as np
import pytest

from sk_unlearn.accounting import gaussian_delta, gaussian_epsilon, noisy_iterations_mu
from sk_unlearn.accounting.published import bought_epsilon, reported_epsilon


@pytest.mark.parametrize(
    ("target", "reported", "bought"),
    [(0.1, "0.1036", 1.760), (1, "1.0036", 6.573), (10, "10.004", 28.37), (100, "100.004", 159.4)],
)
def test_published_settings(target, reported, bought):
    digits = len(reported.split(".")[1])
    assert f"{reported_epsilon(target, 1e-5):.{digits}f}" == reported
    assert bought_epsilon(target, 1e-5) == pytest.approx(bought, rel=5e-4)


def test_without_a_penalty():
    assert bought_epsilon(1, 1e-5, lam_is_zero=True) == pytest.approx(9.997, rel=5e-5)
    for target in (0.1, 1, 10):
        double = bought_epsilon(2 * target, 1e-5)
        assert bought_epsilon(target, 1e-5, lam_is_zero=True) == pytest.approx(double, rel=1e-12)


def test_what_is_reported_is_no_guarantee():
    for target in (0.1, 1.0, 10.0, 100.0):
        # One step with no gradient is the Gaussian mechanism, where (T1) is exact.
        sigma = 2 / sqrt(2 * target)
        mu = noisy_iterations_mu(1.0, 0.0, 0.1, 0.0, sigma, 1)
        assert mu**2 / 2 == pytest.approx(target, rel=1e-12)
        assert gaussian_delta(mu, reported_epsilon(target, 1e-5)) > 1000 * 1e-5
        assert gaussian_epsilon(mu, 1e-5) == pytest.approx(bought_epsilon(target, 1e-5), rel=1e-9)


@pytest.mark.parametrize("target", [0.1, 1.0, 10.0, 100.0])
def test_the_divergence_of_every_order_gives_no_less_than_the_truth(target):
    """With alpha mu^2 / 2 in place of mu^2 / 2, the same conversion is a valid upper bound."""
    orders = 1 + np.geomspace(1e-3, 1e4, 20_000)
    surcharge = np.log1p(-1 / orders) - (log(1e-5) + np.log(orders)) / (orders - 1)
    converted = orders * target + surcharge
    truth = bought_epsilon(target, 1e-5)
    assert truth <= converted.min() <= 1.1 * truth + 0.5


def test_arrays_and_ends():
    table = reported_epsilon(np.array([0.1, 1.0]), np.array([[1e-5], [1e-9]]))
    assert table.shape == (2, 2)
    assert table[1, 0] == reported_epsilon(0.1, 1e-9)
    assert reported_epsilon(2.0, 1.0) == 2.0
    assert bought_epsilon(0.0, 0.0) == 0.0
    assert bought_epsilon([1.0, 2.0], 1e-5).shape == (2,)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: reported_epsilon(-1.0, 1e-5), "renyi_target=-1.0"),
        (lambda: reported_epsilon(1.0, 0.0), "delta=0.0"),
        (lambda: bought_epsilon(inf, 1e-5), "renyi_target=inf"),
        (lambda: bought_epsilon(1.0, 1.5), "delta=1.5"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()
