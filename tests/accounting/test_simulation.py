"""Two worlds, simulated: what can be told apart stays below what is certified."""

from __future__ import annotations

from math import cos, exp, sin

import numpy as np
import pytest
from scipy.stats import beta

from sk_unlearn.accounting import (
    gaussian_delta,
    model_clipping_delta,
    model_clipping_sigma,
    noisy_iterations_mu,
    noisy_iterations_sigma,
)

pytestmark = pytest.mark.slow

RUNS = 400_000
ERROR = 1e-6  # probability that a lower confidence bound is wrong


def turned(x, angle):
    """Return every row, scaled to length 1 and turned."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    if x.shape[1] == 1:
        return unit
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    return unit @ turn.T


def clipped_gradient_worlds(rng, dimension, angle, C0, C1, gamma, lam, sigma, steps):
    """Yield the final iterates from the two ends of the ball, with repelling, turning gradients."""
    for start in (C0, -C0):
        x = np.zeros((RUNS, dimension))
        x[:, 0] = start
        for _ in range(steps):
            x = x + gamma * (C1 * turned(x, angle) - lam * x)
            x += sigma * rng.standard_normal(x.shape)
        yield x


def clipped_model_worlds(rng, dimension, angle, C2, sigma, steps):
    """Yield the final iterates when every step leads to the sphere, away from the centre."""
    for start in (C2, -C2):
        x = np.zeros((RUNS, dimension))
        x[:, 0] = start
        for _ in range(steps):
            x = C2 * turned(x, angle) + sigma * rng.standard_normal(x.shape)
        yield x


def proved_delta(here, there, epsilon):
    """Return a lower confidence bound on the delta at `epsilon` that the samples prove.

    Direction and threshold are chosen on one half of the runs, and tested on the other.
    """
    direction = here[::2].mean(axis=0) - there[::2].mean(axis=0)
    p, q = (np.sort(world[::2] @ direction) for world in (here, there))
    rank = np.arange(len(p))
    gain = (len(p) - rank) - exp(epsilon) * (len(q) - np.searchsorted(q, p))
    threshold = p[np.argmax(gain)]
    hits, n = int((here[1::2] @ direction >= threshold).sum()), len(here[1::2])
    misses = int((there[1::2] @ direction >= threshold).sum())
    at_least = beta.ppf(ERROR / 2, hits, n - hits + 1) if hits else 0.0
    at_most = beta.ppf(1 - ERROR / 2, misses + 1, n - misses) if misses < n else 1.0
    return at_least - exp(epsilon) * at_most


def check(here, there, epsilon, certified):
    assert proved_delta(here, there, epsilon) <= certified


SETTINGS = [  # dimension, angle of the push, steps, lam
    (1, 0.0, 1, 0.0),
    (1, 0.0, 5, 0.5),
    (1, 0.0, 20, 0.0),
    (2, 0.0, 1, 0.5),
    (2, 0.3, 5, 0.0),
    (2, 1.2, 20, 0.5),
]


@pytest.mark.parametrize(("dimension", "angle", "steps", "lam"), SETTINGS)
def test_gradient_clipping(dimension, angle, steps, lam):
    C0, C1, gamma, epsilon, delta = 1.0, 0.5, 0.1, 0.5, 0.1
    sigma = noisy_iterations_sigma(C0, C1, gamma, lam, epsilon, delta, steps)
    certified = gaussian_delta(noisy_iterations_mu(C0, C1, gamma, lam, sigma, steps), epsilon)
    rng = np.random.default_rng([dimension, steps])
    setting = dimension, angle, C0, C1, gamma, lam
    here, there = clipped_gradient_worlds(rng, *setting, sigma, steps)
    check(here, there, epsilon, certified)
    if steps == 1 and angle == 0:
        assert proved_delta(here, there, epsilon) > 0.8 * certified
    weak_here, weak_there = clipped_gradient_worlds(rng, *setting, sigma / 3, steps)
    with pytest.raises(AssertionError):
        check(weak_here, weak_there, epsilon, certified)


@pytest.mark.parametrize(("dimension", "angle", "steps"), [s[:3] for s in SETTINGS])
def test_model_clipping(dimension, angle, steps):
    C2, epsilon, delta = 1.0, 0.5, 0.1
    sigma = model_clipping_sigma(C2, epsilon, delta, steps)
    certified = model_clipping_delta(C2, sigma, steps, epsilon)
    rng = np.random.default_rng([dimension, steps])
    here, there = clipped_model_worlds(rng, dimension, angle, C2, sigma, steps)
    check(here, there, epsilon, certified)
    if steps == 1 and angle == 0:
        assert proved_delta(here, there, epsilon) > 0.8 * certified
    weak_here, weak_there = clipped_model_worlds(rng, dimension, angle, C2, sigma / 3, steps)
    with pytest.raises(AssertionError):
        check(weak_here, weak_there, epsilon, certified)


def test_the_confidence_bound_finds_what_is_there():
    rng = np.random.default_rng(0)
    here = 1 + rng.standard_normal((RUNS, 1))
    there = rng.standard_normal((RUNS, 1))
    truth = gaussian_delta(1.0, 0.5)
    assert 0.9 * truth < proved_delta(here, there, 0.5) < truth
    assert proved_delta(there, there[::-1], 0.5) < 0.0
