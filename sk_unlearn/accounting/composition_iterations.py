"""Accounting rules for the events that take many noisy steps."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from ..events import (
    Event,
    ModelClippingIterations,
    NoisyBlocks,
    NoisyIterations,
    PoissonSampledTraining,
)
from ..exceptions import CalibrationError
from ._inverse import smallest
from .composition import _TARGET, calibrate, event_delta, event_epsilon, event_mu, require
from .gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from .iterations import blocks_mu, noisy_block_mu, noisy_iterations_mu
from .model_clipping import model_clipping_delta, model_clipping_sigma
from .sampled_gaussian import (
    sampled_gaussian_delta,
    sampled_gaussian_epsilon,
    sampled_gaussian_noise,
)

GaussianSteps = NoisyIterations | NoisyBlocks


@event_mu.register(NoisyIterations)
@event_mu.register(NoisyBlocks)
def _mu(event: GaussianSteps) -> float:
    step = event.clip_norm, event.learning_rate, event.lam, _sigma(event), event.steps
    if isinstance(event, NoisyIterations):
        return float(noisy_iterations_mu(event.radius, *step))
    return blocks_mu([noisy_block_mu(radius, *step) for radius in event.radii])


@event_delta.register(NoisyIterations)
@event_delta.register(NoisyBlocks)
def _(event: GaussianSteps, epsilon: float) -> float:
    return float(gaussian_delta(_mu(event), epsilon))


@event_epsilon.register(NoisyIterations)
@event_epsilon.register(NoisyBlocks)
def _(event: GaussianSteps, delta: float) -> float:
    return float(gaussian_epsilon(_mu(event), delta))


@calibrate.register(NoisyIterations)
@calibrate.register(NoisyBlocks)
def _(event: GaussianSteps, epsilon: float, delta: float) -> Event:
    if event.sigma is None:
        unit = _mu(replace(event, sigma=1.0))
        event = replace(event, sigma=unit / float(gaussian_mu(epsilon, delta * _TARGET)))
    require(event, epsilon, delta)
    return event


def _sigma(event: GaussianSteps) -> float | NDArray[np.float64]:
    """Return the noise: one number, or one for each step."""
    if event.sigma is None:
        raise CalibrationError(f"{event!r} is incomplete: calibrate it first")
    return event.sigma * np.array(event.schedule) if event.schedule else event.sigma


@event_mu.register
def _(event: ModelClippingIterations) -> float | None:
    return None


@event_delta.register
def _(event: ModelClippingIterations, epsilon: float) -> float:
    if event.sigma is None:
        raise CalibrationError(f"{event!r} is incomplete: calibrate it first")
    if epsilon == inf:
        return 0.0
    return float(model_clipping_delta(event.radius, event.sigma, event.steps, epsilon))


@event_epsilon.register
def _(event: ModelClippingIterations, delta: float) -> float:
    return smallest(lambda epsilon: event_delta(event, epsilon), delta)


@calibrate.register
def _(event: ModelClippingIterations, epsilon: float, delta: float) -> Event:
    if event.sigma is None:
        sigma = model_clipping_sigma(event.radius, epsilon, delta * _TARGET, event.steps)
        event = replace(event, sigma=float(sigma))
    require(event, epsilon, delta)
    return event


@event_mu.register
def _(event: PoissonSampledTraining) -> float | None:
    return None


@event_delta.register
def _(event: PoissonSampledTraining, epsilon: float) -> float:
    mechanism = _noise_multiplier(event), event.sample_rate, event.steps
    return sampled_gaussian_delta(*mechanism, epsilon, event.max_deletions)


@event_epsilon.register
def _(event: PoissonSampledTraining, delta: float) -> float:
    mechanism = _noise_multiplier(event), event.sample_rate, event.steps
    return sampled_gaussian_epsilon(*mechanism, delta, event.max_deletions)


@calibrate.register
def _(event: PoissonSampledTraining, epsilon: float, delta: float) -> Event:
    if event.noise_multiplier is None:
        noise = sampled_gaussian_noise(
            event.sample_rate, event.steps, epsilon, delta * _TARGET, event.max_deletions
        )
        if noise == inf:
            raise CalibrationError(
                f"no noise covers {event.max_deletions} rows at epsilon = {epsilon:g}, delta = "
                f"{delta:g}; cover fewer rows"
            )
        event = replace(event, noise_multiplier=noise)
    require(event, epsilon, delta)
    return event


def _noise_multiplier(event: PoissonSampledTraining) -> float:
    if event.noise_multiplier is None:
        raise CalibrationError(f"{event!r} is incomplete: calibrate it first")
    return event.noise_multiplier
