"""Sentences about the claims of Zhang et al. 2024, worked out from the figures."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import numpy as np
from _zhang_nets import DELTA, EPSILON, HAND_SET

CLAIMED_SPEEDUP = 470
FALLEN = 1.0  # points of test F1


def claims(name: str, record: dict[str, Any]) -> Iterator[str]:
    """Return a sentence for each claim that the record of a net speaks to."""
    net = name.split(",")[0]
    runs, bounds = record["runs"], record["bounds"]
    hand_set = next(a for a in runs[0] if a.startswith("Newton, CG") and f"{HAND_SET}" in a)
    yield f"{net}: {_certificate(runs, bounds, hand_set)}"
    yield f"{net}: {_forgetting(runs, hand_set)}"
    yield f"{net}: {_noise(runs, bounds, hand_set)}"
    yield f"{net}: {_two_bounds(bounds)}"
    if "convergence" in record:
        yield f"{net}: {_constants(record['convergence'])}"
    if "exact" in record:
        yield f"{net}: {_speedup(record['exact'])}"


def _certificate(runs: list, bounds: list, hand_set: str) -> str:
    epsilon, known = runs[0][hand_set]["epsilon"], bounds[0]
    sigma = known["sigma from the ball"]
    verdict = "is one" if isfinite(epsilon) else "does not reproduce"
    wanted = f"{sigma:.4g} at ({EPSILON:g}, {DELTA:g}), {sigma / HAND_SET:,.0f} times as much"
    return (
        f"a certificate at sigma = {HAND_SET} {verdict}: epsilon = {epsilon:g}. The ball bound "
        f"asks for sigma = {wanted}; at {HAND_SET} it proves epsilon = "
        f"{known['epsilon at the hand-set sigma']:.2g}."
    )


def _forgetting(runs: list, hand_set: str) -> str:
    def moved(answer: str, column: str) -> np.ndarray:
        return np.array(
            [run["original = do nothing"][column] - run[answer][column] for run in runs]
        )

    step, retraining = moved(hand_set, "deleted"), moved("retrain, same init", "deleted")
    other = np.mean([run["retrain, other init"]["distance"] for run in runs])
    before = np.mean([run["original = do nothing"]["distance"] for run in runs])
    after = before - np.mean(moved(hand_set, "distance"))
    gap, error = np.mean(retraining - step), _error(retraining - step)
    verdict = "cannot be told from forgetting nothing or everything with these seeds"
    if gap > 2 * error and abs(np.mean(step)) < np.mean(retraining) / 2:
        verdict = "the step does not forget what retraining forgets"
    elif abs(gap) <= 2 * error and np.mean(retraining) > 2 * _error(retraining):
        verdict = "the step cannot be told from retraining"
    return (
        f"on deleted rows the step lowers F1 by {np.mean(step):.2f} ± {_error(step):.2f} points, "
        f"retraining by {np.mean(retraining):.2f} ± {_error(retraining):.2f}: {verdict}. Distance "
        f"to retraining {before:.3g} before, {after:.3g} after the step; two retrainings are "
        f"{other:.3g} apart."
    )


def _noise(runs: list, bounds: list, hand_set: str) -> str:
    def test(answer: str) -> float:
        return float(np.mean([run[answer]["test"] for run in runs]))

    swept = [a for a, row in runs[0].items() if "sigma" in row and a.startswith("Newton, CG")]
    fallen = [runs[0][a]["sigma"] for a in swept if test(hand_set) - test(a) > FALLEN]
    start = f"from sigma = {fallen[0]:g} on" if fallen else "nowhere"
    chance = np.mean([known["largest class"] for known in bounds])
    return (
        f"test F1 falls by more than {FALLEN:g} point {start} (of those tried); at the certified "
        f"sigma it is {test('Newton, CG, certified'):.1f}, where the largest class alone gives "
        f"{chance:.1f}."
    )


def _two_bounds(bounds: list) -> str:
    ratios = [known["newton bound"] / known["ball bound"] for known in bounds]
    better = "below" if max(ratios) < 1 else "not below"
    smallest = np.mean([known["smallest eigenvalue"] for known in bounds])
    return (
        f"the Newton bound, with M = 1 assumed and lambda_min = {smallest:.3g} measured, is "
        f"{min(ratios):.3g} to {max(ratios):.3g} times the diameter of the ball: {better} it."
    )


def _constants(rows: list) -> str:
    certified = [row for row in rows if "refused" not in row]
    refuted = [row for row in certified if row["refuted"]]
    return (
        f"of {len(rows)} trainings under a declared gradient bound G, {len(rows) - len(certified)} "
        f"end above it and are refused; in {len(refuted)} of the others the run contradicts M = 1 "
        "or lambda_min = 0, and the certificate says epsilon = inf."
    )


def _speedup(rows: list) -> str:
    solved = [row for row in rows if row["status"] == "CONVERGED"]
    if not solved:
        return "LiSSA converged nowhere beside the exact Hessian."
    ratios = {row["exact seconds"] / row["LiSSA seconds"]: row for row in solved}
    most = max(ratios)
    verdict = "is reached" if most >= CLAIMED_SPEEDUP else "is not reached at these sizes"
    row = ratios[most]
    return (
        f"LiSSA {CLAIMED_SPEEDUP} times faster than the exact Hessian {verdict}: {min(ratios):.3g} "
        f"to {most:.3g} times where it converged (most at p = {row['weights']}, n = "
        f"{row['rows']}, s = {row['steps']}); CG is "
        f"{row['LiSSA seconds'] / row['CG seconds']:.3g} times faster than LiSSA there."
    )


def _error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
