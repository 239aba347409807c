"""Numbers are read exactly, as rationals, and written as floats that are rounded outward."""

from __future__ import annotations

from fractions import Fraction
from math import exp, inf, isfinite, isqrt, log, log1p, nextafter
from numbers import Integral, Real

UNIT_ROUNDOFF = Fraction(1, 2**53)


def exact(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Fraction:
    """Return the finite number `value` as a rational; complain, quoting it, if out of range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; pass a number")
    wanted = " and ".join(
        f"{sign} {limit:g}"
        for sign, limit in ((">", above), (">=", at_least), ("<=", at_most))
        if limit is not None
    )
    if (
        not isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(f"{name}={value!r} must be finite{wanted and ' and '}{wanted}")
    return Fraction(int(value)) if isinstance(value, Integral) else Fraction(float(value))


def count(name: str, value: float, *, at_least: int = 1) -> int:
    """Return the whole number `value` (3 or 3.0); complain, quoting it, if it is none."""
    whole = exact(name, value, at_least=at_least)
    if whole.denominator != 1:
        raise ValueError(f"{name}={value!r} must be a whole number")
    return int(whole)


def round_up(x: Fraction) -> float:
    """Return the smallest float that is at least `x`."""
    try:
        nearest = x.numerator / x.denominator
    except OverflowError:
        return inf if x > 0 else nextafter(-inf, 0.0)
    return nearest if isfinite(nearest) and nearest >= x else nextafter(nearest, inf)


def round_down(x: Fraction) -> float:
    """Return the largest float that is at most `x`."""
    return -round_up(-x)


def sqrt_up(x: Fraction) -> Fraction:
    """Return an upper bound on the square root of `x`, exact for squares, else within 2**-60."""
    if x == 0:
        return Fraction(0)
    half_bits = (130 + x.denominator.bit_length() - x.numerator.bit_length()) // 2
    scale = Fraction(2) ** half_bits
    scaled = x * scale * scale
    root = isqrt(-(-scaled.numerator // scaled.denominator) - 1) + 1
    return root / scale


def log_of(x: Fraction) -> float:
    """Return the natural logarithm of a positive `x`, within 4 roundings also next to 1."""
    if abs(x - 1) <= Fraction(1, 2):
        return log1p(float(x - 1))
    if Fraction(1, 2**1000) < x < 2**1000:
        return log(float(x))
    return log(x.numerator) - log(x.denominator)


def power_up(base: Fraction, exponent: int) -> float:
    """Return an upper bound on ``base**exponent`` (both non-negative), tight to a few roundings."""
    if base == 0 or exponent == 0:
        return float(exponent == 0)
    power = exponent * log_of(base)
    if power > 700:
        return inf
    slack = 1 + (8 * Fraction(abs(power)) + 8) * UNIT_ROUNDOFF
    return round_up(Fraction(max(exp(power), 5e-324)) * slack)
