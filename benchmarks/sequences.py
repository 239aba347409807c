"""Twenty deletions of 0.5% in a row, everything counted, against warm-started L-BFGS.

MNIST 8k, scattering features, one-vs-rest heads, (1, 1e-5), sigma = 0.01; the same rows go in every
line. "released" computes each release from the one before and the rows that remain (T18); what a
deletion needs is rebuilt by the deletion itself, or beforehand in idle time by `refresh`. "secret"
keeps the optimum and its factors for a declared horizon of twenty releases (T19), at a tolerance
smaller by its root. L-BFGS starts each time from its last optimum, un-noised, and stops at the
tolerance of "released". Each line runs in a forked process of its own, one thread: CPU seconds, and
how far the peak of resident memory rises above what the rows and imports take, per training row.

The factors of "secret" grow old: its passes rise with what was deleted, until new factors would
cost less; the releases after that keep those.

What "released" rebuilds from: factors of each class's Hessian at the released weights, at once. A
weight-free Gram matrix X'X/4 + lam I, which might be downdated instead, saves the 0.1 s of its
product and costs more: as the preconditioner it takes 187 passes, and factors on the way, 2.1 s in
all, alone 1,514 passes and 13.6 s; one factor shared by all classes 277 passes and 2.5 s; the
factors at once 41 passes and 0.8 s with conjugate gradients, 15 passes and 0.6 s with the mixing
that is used (a deletion of 0.5% from released weights, same machine).

    SK_UNLEARN_DATA=... python benchmarks/sequences.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
from residual import _accuracy, in_blocks, lbfgs, mnist
from speed import _peak, in_a_process

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import gaussian_mu
from sk_unlearn.bounds import residual_tolerance
from sk_unlearn.convex import minimise
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead

EPSILON, DELTA, SIGMA, LAM, SHARE = 1.0, 1e-5, 0.01, 1e-5, 0.005


def certified(data, count: int, refresh: bool = False, **state) -> tuple[float, dict]:
    X, y, X_test, y_test = data
    rng, begun = np.random.default_rng(0), _peak()
    method = Residual(noise_std=SIGMA, **state)
    net = CertifiedNeuralClassifier(LinearHead, lam=LAM, C=1e4, method=method)
    net.fit(X, y)
    if state.get("state") != "secret" and not refresh:
        net.unlearn(indices=[], epsilon=EPSILON, delta=DELTA)  # drops what fit kept
    draws = []
    for _ in range(count):
        gone = rng.choice(net.n_rows_, int(SHARE * len(y)), replace=False)
        response = _seconds(lambda gone=gone: net.unlearn(indices=gone, epsilon=EPSILON))
        found = net.certificate_.diagnostics
        rebuild = _seconds(net.refresh) if refresh else 0.0
        draws.append(
            {
                "response": response,
                "rebuild": rebuild,
                "passes": found["passes"],
                "accuracy": net.score(X_test, y_test),
                "formal": net.certificate_.formal,
            }
        )
    seconds = sum(draw["response"] + draw["rebuild"] for draw in draws)
    return seconds, {"draws": draws, "KiB per row": 1024 * (_peak() - begun) / len(y)}


def again(data, count: int) -> tuple[float, dict]:
    X, y, X_test, y_test = data
    rng, begun = np.random.default_rng(0), _peak()
    tol = residual_tolerance(gaussian_mu(EPSILON, DELTA) * SIGMA, LAM)
    shape = (10, X.shape[1] + 1)
    risk = HeadRisk(X, y, 10, LAM, np.zeros(shape), "ovr")
    W = minimise(risk, risk.reference).weights
    kept, draws = np.arange(len(y)), []
    for _ in range(count):
        kept = np.delete(kept, rng.choice(len(kept), int(SHARE * len(y)), replace=False))
        risk = HeadRisk(X[kept], y[kept], 10, LAM, np.zeros(shape), "ovr")
        W, seconds, passes = lbfgs(in_blocks(risk), W, lambda W, g: np.linalg.norm(g) <= tol)
        accuracy = _accuracy(W, X_test, y_test)
        draws.append({"response": seconds, "rebuild": 0.0, "passes": passes, "accuracy": accuracy})
    seconds = sum(draw["response"] for draw in draws)
    return seconds, {"draws": draws, "KiB per row": 1024 * (_peak() - begun) / len(y)}


def _seconds(call) -> float:
    begun = process_time()
    call()
    return process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="three deletions: what make bench runs"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sequences.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    count, data = 3 if args.quick else 20, mnist()
    secret = {"state": "secret", "horizon": count}
    cases = {
        "L-BFGS, warm": partial(again, data, count),
        "released": partial(certified, data, count),
        "released, refreshed": partial(certified, data, count, refresh=True),
        f"secret, horizon={count}": partial(certified, data, count, **secret),
    }
    print(
        f"{count} in a row{'seconds':>17}{'L-BFGS':>9}{'response':>10}{'rebuild':>9}"
        f"{'passes':>15}{'accuracy':>17}{'KiB/row':>9}"
    )
    results, first = {}, None
    for name, case in cases.items():
        seconds, facts = in_a_process(case)
        first = first or seconds
        draws = facts["draws"]
        mean = {key: np.mean([draw[key] for draw in draws]) for key in ("response", "rebuild")}
        passes = [draw["passes"] for draw in draws]
        accuracies = [100 * draw["accuracy"] for draw in draws]
        print(
            f"{name:20}{seconds:8.2f}{first / seconds:8.1f}x{mean['response']:10.2f}"
            f"{mean['rebuild']:9.2f}{passes[0]:7.0f} ...{passes[-1]:4.0f}"
            f"{accuracies[0]:8.2f} ...{accuracies[-1]:5.2f}{facts['KiB per row']:9.1f}",
            flush=True,
        )
        results[name] = {"seconds": seconds} | facts
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
