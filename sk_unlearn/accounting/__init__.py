"""Numbers in, (epsilon, delta) out; always rounded to the safe side."""

from . import composition_iterations as composition_iterations
from . import published
from .composition import (
    calibrate,
    calibrate_share,
    event_delta,
    event_epsilon,
    event_mu,
    require,
)
from .gaussian import (
    compose,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_sigma,
    group_delta,
    sensitivity_mu,
)
from .iterations import blocks_mu, noisy_block_mu, noisy_iterations_mu, noisy_iterations_sigma
from .model_clipping import model_clipping_delta, model_clipping_sigma
from .sampled_gaussian import (
    sampled_gaussian_delta,
    sampled_gaussian_epsilon,
    sampled_gaussian_noise,
)

__all__ = [
    "blocks_mu",
    "calibrate",
    "calibrate_share",
    "compose",
    "event_delta",
    "event_epsilon",
    "event_mu",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "gaussian_sigma",
    "group_delta",
    "model_clipping_delta",
    "model_clipping_sigma",
    "noisy_block_mu",
    "noisy_iterations_mu",
    "noisy_iterations_sigma",
    "published",
    "require",
    "sampled_gaussian_delta",
    "sampled_gaussian_epsilon",
    "sampled_gaussian_noise",
    "sensitivity_mu",
]
