"""Sensitivity theorems as pure functions of numbers.

Every function reads its arguments exactly, computes in rationals where it can, and returns a
float that is rounded up (tolerances and budgets: down), so that what it claims is never less
than what was proved. Floats in, float out: a certificate that records the name of a function and
its arguments can be recomputed by anyone. Numbers such as (T9) are those of the theory notes.
"""

from .deletion import (
    descent_distance,
    descent_sequence_distance,
    newton_steps_distance,
    one_newton_step,
    optimum_shift,
)
from .distances import ball_diameter, residual_distance, residual_tolerance
from .features import feature_gradient_error
from .heads import HeadConstants, head_constants
from .newton import (
    inexact_solve_error,
    lissa_bias,
    lissa_steps,
    newton_distance,
    newton_error,
    newton_influence_error,
)
from .removal import certified_removal_budget, certified_removal_residual
from .rounding import computed_norm_bound, gradient_rounding_error

DISTANCES = frozenset(
    {
        "ball_diameter",
        "descent_distance",
        "descent_sequence_distance",
        "newton_distance",
        "newton_error",
        "newton_steps_distance",
        "residual_distance",
    }
)
"""The functions whose value is a distance between the two worlds' outputs: only these may stand
behind the sensitivity of a release."""

TO_RETRAINED = frozenset(
    {"descent_distance", "newton_distance", "newton_error", "newton_steps_distance"}
)
"""Those of them that end at the retrained model. Where both worlds step, as in a sequence with
un-noised state or a repeated deletion, the two can be further apart (T19)."""

__all__ = [
    "DISTANCES",
    "TO_RETRAINED",
    "HeadConstants",
    "ball_diameter",
    "certified_removal_budget",
    "certified_removal_residual",
    "computed_norm_bound",
    "descent_distance",
    "descent_sequence_distance",
    "feature_gradient_error",
    "gradient_rounding_error",
    "head_constants",
    "inexact_solve_error",
    "lissa_bias",
    "lissa_steps",
    "newton_distance",
    "newton_error",
    "newton_influence_error",
    "newton_steps_distance",
    "one_newton_step",
    "optimum_shift",
    "residual_distance",
    "residual_tolerance",
]
