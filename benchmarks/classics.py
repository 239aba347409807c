"""What the classics for convex heads cost in noise, and what a closed-form deletion costs in time.

Part 1: rows in the unit ball, 1% of them deleted, one-vs-rest heads; the noise that each method's
statement asks for at (1, 1e-5), and the accuracy that is left. ``CertifiedRemoval`` puts its noise
into the objective, and the column says what that makes of a weight. Part 2: ridge heads on
synthetic rows, 100 deleted, from 10,000 rows to 1,000,000.

    SK_UNLEARN_DATA=... python benchmarks/classics.py [--quick]

``--quick`` uses scikit-learn's digits and stops at 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import calibrate
from sk_unlearn.datasets import load_mnist
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    DescentToDelete,
    Residual,
    SekhariNewton,
)
from sk_unlearn.modules import LinearHead, RidgeHead
from sk_unlearn.preprocessing import ClipToBall

EPSILON, DELTA, DRAWS, N_DELETED = 1.0, 1e-5, 3, 100


def timed(action):
    start = process_time()
    return action(), process_time() - start


def noise_and_accuracy(quick: bool) -> list[dict[str, object]]:
    if quick:
        X, y = load_digits(return_X_y=True)
    else:
        X, y = load_mnist(subset="test", return_X_y=True)
    X = ClipToBall().fit_transform(np.asarray(X, dtype=np.float32).reshape(len(X), -1))
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    n_deleted = len(X) // 100
    bound = {"max_fraction": n_deleted / (len(X) - n_deleted)}
    methods = [
        Residual(),
        SekhariNewton(**bound),
        *(DescentToDelete(iterations=k, **bound) for k in (10, 100, 1000)),
        CertifiedRemoval(noise_std=1.0),
    ]
    print(f"1% of {len(X)} rows deleted".ljust(42) + "lam    noise   accuracy      gap  seconds")
    out = []
    for lam in (1e-4, 1e-3, 1e-2, 1e-1):
        base = CertifiedNeuralClassifier(LinearHead, lam=lam, C=1e6, method=Residual())
        for method in methods:
            scores, gaps, fitting, seconds = [], [], [], []
            for draw in range(DRAWS):
                gone = np.random.default_rng(draw).choice(len(X), n_deleted, replace=False)
                copy = clone(base).set_params(method=method)
                fitting.append(timed(lambda: copy.fit(X, y))[1])  # noqa: B023
                seconds.append(timed(lambda: copy.unlearn(indices=gone))[1])  # noqa: B023
                scores.append(100 * copy.score(X_test, y_test))
                retrained = clone(base).fit(np.delete(X, gone, 0), np.delete(y, gone))
                gaps.append(100 * retrained.score(X_test, y_test) - scores[-1])
            certificate, found = copy.certificate_, copy.certificate_.diagnostics
            noise = certificate.sigma
            if isinstance(method, CertifiedRemoval):
                noise = method.noise_std / (lam * (len(X) - n_deleted))
            out.append(
                {
                    "method": " ".join(repr(method).split()),
                    "lam": lam,
                    "formal": certificate.formal,
                    "noise_per_weight": noise,
                    "steps": found.get("n_steps"),
                    "trained_again": found.get("retrained"),
                    "accuracy": scores,
                    "gap_to_retraining": gaps,
                    "fit_seconds": fitting,
                    "unlearn_seconds": seconds,
                }
            )
            name = type(method).__name__
            if isinstance(method, DescentToDelete):
                name += f", {method.iterations} steps"
            elif isinstance(method, SekhariNewton):
                name += f", {found['n_steps']} steps"
            elif found.get("retrained"):
                name += ", trained again"
            name += "" if certificate.formal else " *"
            print(
                f"{name:<40}{lam:>6g}{noise:>9.3g}{np.mean(scores):>10.2f}%{np.mean(gaps):>+9.2f}"
                f"{np.mean(seconds):>9.3f}"
            )
    print("* not formal: see its page")
    return out


def cost_of_a_closed_form(sizes: list[int], d: int = 50) -> list[dict[str, float]]:
    print(f"\nAnalytic, {d} features, {N_DELETED} rows deleted; seconds")
    print("       n      fit   solve  unlearn  refresh  passes  gradient norm")
    out = []
    for n in sizes:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(n, d)).astype(np.float32) / d**0.5
        y = (X @ rng.normal(size=d) + 0.3 * rng.normal(size=n) > 0).astype(int)
        net = CertifiedNeuralClassifier(RidgeHead, lam=1e-3, C=1e6, method=Analytic())
        net, fitting = timed(lambda: net.fit(X, y))  # noqa: B023
        event = calibrate(net.method_.event(net._setting()), EPSILON, DELTA)
        retained, deleted = net._split(*net._find_rows(None, None, np.arange(N_DELETED), None))
        problem = net._problem(retained, deleted, None, None)
        runs = [timed(lambda: net.method_.center(problem, event)) for _ in range(20)]  # noqa: B023
        outcome = runs[0][0]
        _, whole = timed(lambda: net.unlearn(indices=np.arange(N_DELETED)))  # noqa: B023
        _, rebuilding = timed(net.refresh)
        out.append(
            {
                "n": n,
                "fit_seconds": fitting,
                "deletion_seconds": float(np.median([seconds for _, seconds in runs])),
                "unlearn_seconds": whole,
                "refresh_seconds": rebuilding,
                "passes": outcome.diagnostics["passes"],
                "gradient_norm_bound": outcome.diagnostics["gradient_norm_bound"],
                "sigma": event.sigma,
            }
        )
        row = out[-1]
        print(
            f"{n:>8}{fitting:>9.3f}{row['deletion_seconds']:>8.4f}{whole:>9.3f}{rebuilding:>9.3f}"
            f"{row['passes']:>8}{row['gradient_norm_bound']:>15.2g}"
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/classics.json"))
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the solution lies")
    sizes = [10**4, 10**5] if quick else [10**4, 10**5, 10**6]
    found = {
        "epsilon": EPSILON,
        "delta": DELTA,
        "quick": quick,
        "heads": noise_and_accuracy(quick),
        "ridge": cost_of_a_closed_form(sizes),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
