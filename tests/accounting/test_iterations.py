"""Noisy clipped iterations: the formula, its minimum, its derivation, and blocks."""

from __future__ import annotations

from math import inf, sqrt

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import ndtr

from sk_unlearn.accounting import (
    blocks_mu,
    gaussian_delta,
    gaussian_sigma,
    noisy_block_mu,
    noisy_iterations_mu,
    noisy_iterations_sigma,
    sensitivity_mu,
)

many = settings(max_examples=150, deadline=None)
some = settings(max_examples=60, deadline=None)


def powers_of_ten(low, high):
    return st.floats(low, high).map(lambda x: 10.0**x)


lengths = powers_of_ten(-4, 3)
rates = powers_of_ten(-4, 1)
contractions = powers_of_ten(-6, 0) | st.sampled_from([0.0, 1.0])  # gamma lam
short = st.integers(1, 30)


def formula(C0, C1, gamma, lam, sigmas):
    """Return (T4) after each step, by summation in 50 digits."""
    with mp.workdps(50):
        C0, C1, gamma = mp.mpf(C0), mp.mpf(C1), mp.mpf(gamma)
        rho = 1 - gamma * mp.mpf(lam)
        mus, distance, variance = [], 2 * C0, mp.mpf(0)
        for sigma in sigmas:
            distance = rho * distance + 2 * gamma * C1
            variance = rho**2 * variance + mp.mpf(sigma) ** 2
            mus.append(distance / mp.sqrt(variance) if variance else mp.inf)
        return mus


def penalty(rate, contraction):
    lam = contraction / rate
    assume(rate * lam <= 1)
    return lam


@many
@given(lengths, lengths | st.just(0.0), rates, contractions, lengths, short)
def test_constant_noise_against_the_sum(C0, C1, gamma, contraction, sigma, steps):
    lam = penalty(gamma, contraction)
    mus = formula(C0, C1, gamma, lam, [sigma] * steps)
    lost = 1e-15 * C0 / sigma  # gamma lam is enclosed between floats: rho = 0 is not seen as such
    best = noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps)
    assert min(mus) <= best <= min(mus) * (1 + 1e-11) + lost
    full = noisy_block_mu(C0, C1, gamma, lam, sigma, steps)
    assert mus[-1] <= full <= mus[-1] * (1 + 1e-11) + lost


@many
@given(lengths, lengths | st.just(0.0), rates, contractions, st.data())
def test_schedules_against_the_sum(C0, C1, gamma, contraction, data):
    lam = penalty(gamma, contraction)
    sigmas = data.draw(st.lists(lengths, min_size=1, max_size=12))
    mus = formula(C0, C1, gamma, lam, sigmas)
    lost = 1e-15 * C0 / min(sigmas)
    best = noisy_iterations_mu(C0, C1, gamma, lam, sigmas, len(sigmas))
    assert min(mus) <= best <= min(mus) * (1 + 1e-11) + lost
    full = noisy_block_mu(C0, C1, gamma, lam, sorted(sigmas), len(sigmas))
    truth = formula(C0, C1, gamma, lam, sorted(sigmas))[-1]
    assert truth <= full <= truth * (1 + 1e-11) + lost


@pytest.mark.parametrize("lam", [0.0, 1e-9, 1e-3, 0.1])
def test_a_million_steps(lam):
    steps, constant = 10**6, (1.0, 1e-3, 0.01, lam)
    schedule = np.full(steps, 0.5)
    best = noisy_iterations_mu(*constant, 0.5, steps)
    assert noisy_iterations_mu(*constant, schedule, steps) == pytest.approx(best, rel=1e-8)
    every = [noisy_iterations_mu(*constant, 0.5, t) for t in (10, 1000, 10**5, steps)]
    assert np.all(np.diff(every) <= 1e-11 * np.array(every[1:]))
    t = np.arange(1.0, steps + 1)
    rho = 1 - 0.01 * lam
    sums = t if lam == 0 else -np.expm1(t * np.log(rho)) / (1 - rho)
    squares = t if lam == 0 else -np.expm1(2 * t * np.log(rho)) / (1 - rho**2)
    mus = (2 * rho**t + 2e-5 * sums) / (0.5 * np.sqrt(squares))
    assert best == pytest.approx(mus.min(), rel=1e-6)


def cheapest_shifts(C0, C1, gamma, lam, sigmas):
    """Minimise the cost of feasible shifts numerically: the derivation, not the formula."""
    rho, push, T = 1 - gamma * lam, 2 * gamma * C1, len(sigmas)
    costs = np.asarray(sigmas) ** -2.0

    def remaining(shifts):
        z, out = 2 * C0, []
        for shift in shifts:
            z = rho * z + push - shift
            out.append(z)
        return np.array(out)

    start, z = [], 2 * C0
    for t in range(T):
        z = rho * z + push
        start.append(z / (T - t))
        z -= start[-1]
    found = minimize(
        lambda a: a**2 @ costs,
        start,
        jac=lambda a: 2 * a * costs,
        method="SLSQP",
        bounds=[(0, None)] * T,
        constraints=[
            {"type": "ineq", "fun": lambda a: remaining(a)[:-1]},
            {"type": "eq", "fun": lambda a: remaining(a)[-1]},
        ],
        options={"maxiter": 500, "ftol": 1e-15},
    )
    return sqrt(found.fun)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.1, 2),
    st.floats(0, 2),
    st.floats(0, 0.9),
    st.lists(st.floats(0.3, 3), min_size=1, max_size=4),
)
def test_the_minimum_is_what_feasible_shifts_cost(C0, C1, lam, sigmas):
    setting = C0, C1, 1.0, lam
    best = noisy_iterations_mu(*setting, sigmas, len(sigmas))
    costs = [cheapest_shifts(*setting, sigmas[:t]) for t in range(1, len(sigmas) + 1)]
    assert best == pytest.approx(min(costs), rel=1e-4)
    rising = sorted(sigmas)
    assert noisy_block_mu(*setting, rising, len(rising)) == pytest.approx(
        cheapest_shifts(*setting, rising), rel=1e-4
    )


def test_falling_noise_beside_blocks_that_differ_is_refused():
    formula_alone = float(formula(1, 1, 1, 0, [100, 0.1])[-1])
    assert formula_alone == pytest.approx(0.06, abs=1e-3)
    assert cheapest_shifts(1, 1, 1, 0, [100, 0.1]) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match=r"sigma falls from 100.0 to 0.1 at step 1"):
        noisy_block_mu(1, 1, 1, 0, [100, 0.1], 2)


@some
@given(lengths, lengths, rates, contractions, lengths, short)
def test_noise_after_the_best_step_is_free(C0, C1, gamma, contraction, sigma, steps):
    lam = penalty(gamma, contraction)
    base = noisy_iterations_mu(C0, C1, gamma, lam, [sigma] * steps, steps)
    longer = [sigma] * steps + [0.0] * 5
    assert noisy_iterations_mu(C0, C1, gamma, lam, longer, steps + 5) <= base * (1 + 1e-12)


def test_the_formula_alone_rises_past_its_turning_point():
    constant = (1.0, 0.1, 0.1, 0.0, 1.0)  # turns at T = C0 / (gamma C1) = 100
    rising = [noisy_block_mu(*constant, T) for T in (100, 200, 1000)]
    assert rising == sorted(rising)
    assert rising[0] < rising[1] < rising[2]
    assert {noisy_iterations_mu(*constant, T) for T in (100, 200, 1000)} == {rising[0]}


@some
@given(
    lengths,
    lengths,
    rates,
    powers_of_ten(-6, -0.05) | st.just(0.0),
    lengths,
    powers_of_ten(-4, 2),
    powers_of_ten(-30, -1),
)
def test_one_step_is_the_gaussian_mechanism(C0, C1, gamma, contraction, sigma, epsilon, delta):
    lam = penalty(gamma, contraction)
    with mp.workdps(40):
        distance = 2 * ((1 - mp.mpf(gamma) * mp.mpf(lam)) * C0 + mp.mpf(gamma) * mp.mpf(C1))
    mu = noisy_iterations_mu(C0, C1, gamma, lam, sigma, 1)
    assert mu == pytest.approx(float(distance / sigma), rel=1e-13)
    assert noisy_iterations_sigma(C0, C1, gamma, lam, epsilon, delta, 1) == pytest.approx(
        gaussian_sigma(float(distance), epsilon, delta), rel=1e-13
    )
    assert mu == pytest.approx(sensitivity_mu(float(distance), sigma), rel=1e-13)


@some
@given(lengths, lengths, rates, contractions, powers_of_ten(-4, 2), powers_of_ten(-30, -1), short)
def test_calibration_is_safe_tight_and_agrees_with_the_accountant(
    C0, C1, gamma, contraction, epsilon, delta, steps
):
    lam = penalty(gamma, contraction)
    sigma = noisy_iterations_sigma(C0, C1, gamma, lam, epsilon, delta, steps)
    mu = noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps)
    assert gaussian_delta(mu, epsilon) <= delta
    less = noisy_iterations_mu(C0, C1, gamma, lam, sigma * (1 - 1e-9), steps)
    assert gaussian_delta(less, epsilon) > delta


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_less_noise_than_the_published_theorem_asks_for(steps):
    C0, C1, gamma = 1.0, 0.1, 0.1  # the formula turns at T = 100
    published = 3 * sqrt(np.log(1e5) / steps) * (C0 + C1 * gamma * steps)
    sigma = noisy_iterations_sigma(C0, C1, gamma, 0.0, 1.0, 1e-5, steps)
    assert published / sigma == pytest.approx(1.364, abs=5e-4)


def test_stable_at_the_ends():
    epsilons, deltas = np.array([1e-4, 1e-2, 1.0, 100.0]), np.array([[1e-30], [1e-5], [0.5]])
    for steps in (1, 1000, 10**6):
        sigma = noisy_iterations_sigma(1.0, 1.0, 0.01, 0.1, epsilons, deltas, steps)
        assert sigma.shape == (3, 4)
        assert np.all(np.isfinite(sigma) & (sigma > 0))
        assert np.all(np.diff(sigma, axis=0) < 0)
        assert np.all(np.diff(sigma, axis=1) < 0)
        mu = noisy_iterations_mu(1.0, 1.0, 0.01, 0.1, 1.0, steps)
        assert np.all(gaussian_delta(mu / sigma * (1 + 1e-12), epsilons) >= deltas * (1 - 1e-9))


@some
@given(lengths, lengths, rates, contractions, lengths, short, st.integers(-20, 20))
def test_lengths_scale_together(C0, C1, gamma, contraction, sigma, steps, k):
    lam, unit = penalty(gamma, contraction), 2.0**k
    mu = noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps)
    scaled = noisy_iterations_mu(C0 * unit, C1 * unit, gamma, lam, sigma * unit, steps)
    assert scaled == pytest.approx(mu, rel=1e-14)


@some
@given(lengths, lengths, rates, contractions, lengths, short, powers_of_ten(-6, 1))
def test_monotone(C0, C1, gamma, contraction, sigma, steps, more):
    lam, slack = penalty(gamma, contraction), 1 + 1e-12
    mu = noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps)
    assert noisy_iterations_mu(C0 * (1 + more), C1, gamma, lam, sigma, steps) * slack >= mu
    assert noisy_iterations_mu(C0, C1 * (1 + more), gamma, lam, sigma, steps) * slack >= mu
    assert noisy_iterations_mu(C0, C1, gamma, lam, sigma * (1 + more), steps) <= mu * slack
    assert noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps + 1) <= mu * slack


def test_limits():
    assert noisy_iterations_mu(1, 0, 0.1, 0, 1, 4) == pytest.approx(1)  # averaging
    assert noisy_iterations_mu(1, 0, 0.5, 1, 1, 2) == pytest.approx(2 / 4 / sqrt(1.25))
    assert noisy_iterations_mu(0, 1, 0.5, 0, 1, 9) == pytest.approx(1)  # the first step is best
    assert noisy_iterations_mu(0, 0, 0.5, 0.1, 1, 9) == 0.0
    assert noisy_iterations_mu(1, 1, 0, 0.1, 1, 4) == pytest.approx(1)
    assert noisy_iterations_mu(1, 1, 0.5, 2, 1, 7) == pytest.approx(1)  # rho = 0 forgets
    near = noisy_iterations_mu(1, 0.1, 0.1, 1e-12, 1, 50)
    assert near == pytest.approx(noisy_iterations_mu(1, 0.1, 0.1, 0, 1, 50), rel=1e-9)
    assert noisy_iterations_mu(1, 1, 0.1, 0, 0, 5) == inf
    assert noisy_iterations_mu(0, 0, 0.1, 0, 0, 5) == 0.0
    assert noisy_iterations_mu(1, 1, 0.1, 0, [0.0, 0.0], 2) == inf
    assert noisy_iterations_mu(1, 0, 0.5, 1, 1, 10**6) > 0  # below the smallest float
    assert noisy_iterations_sigma(0, 0, 0.1, 0, 1, 1e-5, 5) == 0.0


def test_arrays_give_what_scalars_give():
    radii, rates = np.array([0.5, 1.0, 2.0]), np.array([[0.01], [0.1]])
    table = noisy_iterations_mu(radii, 0.3, rates, 0.2, 1.5, 40)
    sigmas = noisy_iterations_sigma(radii, 0.3, rates, 0.2, 1.0, 1e-5, 40)
    for (i, j), mu in np.ndenumerate(table):
        setting = radii[j], 0.3, rates[i, 0], 0.2
        assert mu == noisy_iterations_mu(*setting, 1.5, 40)
        alone = noisy_iterations_sigma(*setting, 1.0, 1e-5, 40)
        assert sigmas[i, j] == pytest.approx(alone, rel=1e-12)
    assert isinstance(noisy_iterations_mu(1, 1, 0.1, 0.1, 1, 3), float)
    assert isinstance(noisy_iterations_mu(1, 1, 0.1, 0.1, [1, 1, 1], 3), float)
    assert isinstance(noisy_iterations_sigma(1, 1, 0.1, 0.1, 1, 0.1, 3), float)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: noisy_iterations_mu(1, 1, 0.5, 4.0, 1, 3), r"rho = .* = -1.0"),
        (lambda: noisy_iterations_sigma(1, 1, 0.5, 4.0, 1, 0.1, 3), r"rho = .* = -1.0"),
        (lambda: noisy_iterations_mu(-2.0, 1, 0.5, 0, 1, 3), "radius=-2.0"),
        (lambda: noisy_iterations_mu(1, inf, 0.5, 0, 1, 3), "clip_norm=inf"),
        (lambda: noisy_iterations_mu(1, 1, -0.5, 0, 1, 3), "learning_rate=-0.5"),
        (lambda: noisy_iterations_mu(1, 1, 0.5, -1.0, 1, 3), "lam=-1.0"),
        (lambda: noisy_iterations_mu(1, 1, 0.5, 0, -1.0, 3), "sigma=-1.0"),
        (lambda: noisy_iterations_mu(1, 1, 0.5, 0, 1, 0), "steps=0"),
        (lambda: noisy_iterations_mu(1, 1, 0.5, 0, 1, 2.5), "steps=2.5"),
        (lambda: noisy_iterations_mu(1, 1, 0.5, 0, [1.0, 2.0], 3), r"\(2,\).*steps=3"),
        (lambda: noisy_iterations_mu([1, 2], 1, 0.5, 0, [1.0, 2.0], 2), r"scalars for everything"),
        (lambda: noisy_iterations_sigma(1, 1, 0.5, 0, 1, 0.0, 3), "delta=0.0"),
        (lambda: blocks_mu([]), "at least one block"),
        (lambda: blocks_mu([1.0, -1.0]), "-1.0"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()


@some
@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.randoms())
def test_the_order_of_blocks_does_not_matter(mus, random):
    shuffled = list(mus)
    random.shuffle(shuffled)
    assert blocks_mu(mus) == blocks_mu(shuffled)
    assert blocks_mu(mus) >= max(mus)


def hockey_stick(p, q, epsilon, width):
    return np.maximum(p - np.exp(epsilon) * q, 0).sum() * width


def chain_laws(C0, push, rho, sigma, steps):
    """Return the two worlds' laws of a repelling chain on a grid, by quadrature."""
    x, width = np.linspace(-14, 14, 2801, retstep=True)
    target = rho * x + push * np.sign(x)
    kernel = np.exp(-0.5 * ((x[:, None] - target) / sigma) ** 2) * width / sigma / sqrt(2 * np.pi)
    laws = []
    for start in (C0, -C0):
        law = np.exp(-0.5 * ((x - rho * start - push * np.sign(start)) / sigma) ** 2)
        law /= sigma * sqrt(2 * np.pi)
        for _ in range(steps - 1):
            law = kernel @ law
        laws.append(law)
    return *laws, width


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_a_repelling_chain_stays_within_the_bound(steps, lam):
    C0, C1, gamma, sigma = 1.0, 1.0, 0.3, 1.0
    mu = noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps)
    p, q, width = chain_laws(C0, gamma * C1, 1 - gamma * lam, sigma, steps)
    for epsilon in (0.0, 0.5, 1.0, 2.0):
        truth, certified = hockey_stick(p, q, epsilon, width), gaussian_delta(mu, epsilon)
        assert truth <= certified * (1 + 1e-3)
        if steps == 1:
            assert truth == pytest.approx(certified, rel=1e-3)
    weak, weak_q, width = chain_laws(C0, gamma * C1, 1 - gamma * lam, sigma / 3, steps)
    assert hockey_stick(weak, weak_q, 1.0, width) > gaussian_delta(mu, 1.0)


def test_the_grid_is_fine_enough():
    p, q, width = chain_laws(1.0, 0.0, 1.0, 1.0, 4)
    assert p.sum() * width == pytest.approx(1, rel=1e-9)
    assert hockey_stick(p, q, 0.0, width) == pytest.approx(2 * ndtr(0.5) - 1, rel=1e-5)
