"""Tables of ``koloskova2025.py``, and what the methods gain over their no-model controls."""

from __future__ import annotations

from statistics import mean

import numpy as np
from scipy.stats import norm

from sk_unlearn.accounting import gaussian_mu


def shown(rows: list[dict], keys: tuple[str, ...]) -> str:
    """Return the mean over seeds of accuracy and control, a line for each value of `keys`."""
    lines = []
    for group in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        here = [row for row in rows if tuple(row[k] for k in keys) == group]
        label = "  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in group)
        line = f"{label:<62}" + _mean_and_error([r["accuracy"] for r in here if "accuracy" in r])
        if "control" in here[0]:
            line += "   control" + _mean_and_error([row["control"] for row in here])
        lines.append(line)
    return "\n".join(lines)


def _mean_and_error(values: list[float]) -> str:
    if not values:
        return "   no noise suffices"
    return f"{mean(values):7.2f}" + (f" ±{_error(values):5.2f}" if len(values) > 1 else "")


def _error(values: list[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def over_control(rows: list[dict]) -> list[dict]:
    """Return what each method gains over its control, in points.

    Runs of one seed share the deleted rows and the initialisation, so the standard error is that
    of the means over seeds.
    """
    out = []
    for data in (*dict.fromkeys(row["data"] for row in rows), "all"):
        on = [row for row in rows if "control" in row and data in (row["data"], "all")]
        for method in (*dict.fromkeys(row["method"] for row in on), "all"):
            here = [row for row in on if method in (row["method"], "all")]
            seeds = sorted({row["seed"] for row in here})
            means = [
                mean(row["accuracy"] - row["control"] for row in here if row["seed"] == seed)
                for seed in seeds
            ]
            error = _error(means) if len(means) > 1 else None
            cell = {"data": data, "method": method, "pairs": len(here), "gain": mean(means)}
            out.append(cell | {"standard error": error})
    return out


def show_gains(gains: list[dict], epsilon: float, delta: float) -> None:
    """Print the gains, and whether any can be told from zero or exceeds what T20 allows."""
    ceiling = 100 * (2 * norm.cdf(gaussian_mu(epsilon, delta) / 2) - 1)
    print(f"\nmethod minus control, points (T20 allows {ceiling:.1f} at ({epsilon:g}, {delta:g}))")
    for cell in gains:
        error = cell["standard error"]
        print(
            f"{cell['data']:8}{cell['method']:22}{cell['pairs']:4d} pairs{cell['gain']:+8.2f}"
            + (f" ±{error:5.2f}" if error else "")
        )
    told = [c for c in gains if c["standard error"] and abs(c["gain"]) > 3 * c["standard error"]]
    names = ", ".join(f"{c['data']} {c['method']}" for c in told) or "none"
    print(f"further than 3 standard errors from zero: {names}")
