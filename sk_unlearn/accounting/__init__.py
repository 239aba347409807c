"""Numbers in, (epsilon, delta) out; always rounded to the safe side."""

from .composition import calibrate, event_delta, event_epsilon, event_mu, require
from .gaussian import (
    compose,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_sigma,
    group_delta,
    sensitivity_mu,
)

__all__ = [
    "calibrate",
    "compose",
    "event_delta",
    "event_epsilon",
    "event_mu",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "gaussian_sigma",
    "group_delta",
    "require",
    "sensitivity_mu",
]
