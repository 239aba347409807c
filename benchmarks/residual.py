"""Certified deletion from convex heads against solving again: gap, time, passes.

MNIST (scattering features), Adult and, with --full, CIFAR-10 (scattering); one-vs-rest heads,
(1, 1e-5), sigma = 0.01. One thread, CPU seconds, the ratios from one run.

    SK_UNLEARN_DATA=... python benchmarks/residual.py [--quick | --full]
"""

from __future__ import annotations

import argparse
import json
import resource
import warnings
from pathlib import Path
from time import process_time

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.datasets import load_adult, load_cifar10, load_mnist
from sk_unlearn.features import Scattering2D
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.modules import LinearHead

EPSILON, DELTA = 1.0, 1e-5


def mnist():
    X, y = load_mnist(subset="test", return_X_y=True)
    features = Scattering2D(J=2, L=8, groups=27, pool=3).transform(X)
    return features[:8000], y[:8000], features[8000:], y[8000:]


def adult():
    X, y = load_adult(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:26_000], order[26_000:]
    return X[train], y[train], X[test], y[test]


def cifar10(n: int = 15_000):
    X, y = load_cifar10(subset="train", return_X_y=True)
    X_test, y_test = load_cifar10(subset="test", return_X_y=True)
    scatter = Scattering2D(J=2, L=8, groups=27, pool=2)
    return scatter.transform(X[:n]), y[:n], scatter.transform(X_test), y_test


def lbfgs(risk: HeadRisk, tol: float, stop=None) -> tuple[np.ndarray, float, int]:
    """Solve from zero by L-BFGS until the gradient norm is `tol`, or `stop(W)` says enough.

    The time of `stop` itself does not count.
    """
    passes, paused = 0, 0.0

    class Enough(Exception):
        pass

    def value_and_gradient(w):
        nonlocal passes, paused
        W = w.reshape(risk.shape)
        gradient = risk.gradient(W)
        passes += 1
        if stop is not None:
            begun = process_time()
            enough = passes % 5 == 0 and stop(W)
            paused += process_time() - begun
            if enough:
                raise Enough
        elif np.linalg.norm(gradient) <= tol:
            raise Enough
        value_and_gradient.last = W
        return risk.value(W), gradient.ravel()

    begun = process_time()
    try:
        options = {"maxiter": 20_000, "maxfun": 40_000, "gtol": 0.0, "ftol": 0.0, "maxcor": 20}
        start = np.zeros(risk.shape).ravel()
        minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    except Enough:
        pass
    return value_and_gradient.last, process_time() - begun - paused, passes


def one(name: str, data, lam: float, share: float, draws: int) -> dict[str, float]:
    X, y, X_test, y_test = data
    n_forget = int(share * len(y))
    rows = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        forget = rng.choice(len(y), n_forget, replace=False)
        keep = np.setdiff1d(np.arange(len(y)), forget)
        net = CertifiedNeuralClassifier(LinearHead, lam=lam, C=1e4)
        begun = process_time()
        net.fit(X, y)
        fit = process_time() - begun
        before = net.score(X_test, y_test)
        begun = process_time()
        net.unlearn(indices=forget, epsilon=EPSILON, delta=DELTA)
        seconds = process_time() - begun
        certificate = net.certificate_
        begun = process_time()
        net.refresh()
        rebuild = process_time() - begun
        tol = dict(certificate.event.constants)["tol"]
        risk = HeadRisk(X[keep], y[keep], *_kind(net), multi_class="ovr")
        W, cold, cold_passes = lbfgs(risk, tol)
        retrained = _accuracy(W, X_test, y_test)
        _, oracle, _ = lbfgs(
            risk, 0.0, lambda W, goal=retrained - 1e-3: _accuracy(W, X_test, y_test) >= goal
        )
        rows.append(
            {
                "formal": certificate.formal,
                "accuracy before": before,
                "retrained": retrained,
                "certified": net.score(X_test, y_test),
                "seconds": seconds,
                "fit seconds": fit,
                "rebuild seconds": rebuild,
                "passes": certificate.diagnostics["updated_in_passes"],
                "cold L-BFGS seconds": cold,
                "cold L-BFGS passes": cold_passes,
                "oracle-stopped seconds": oracle,
            }
        )
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    gaps = [100 * (row["certified"] - row["retrained"]) for row in rows]
    print(
        f"{name:20}{share:5.0%} {100 * mean['retrained']:8.2f} {np.mean(gaps):+8.3f} "
        f"{mean['seconds']:9.3f} {mean['cold L-BFGS seconds'] / mean['seconds']:8.0f}x "
        f"{mean['oracle-stopped seconds'] / mean['seconds']:8.1f}x {mean['passes']:7.1f} "
        f"{mean['rebuild seconds']:9.2f} {mean['fit seconds']:8.2f}  "
        f"{'formal' if all(row['formal'] for row in rows) else 'NOT FORMAL'}"
    )
    return {"name": name, "share": share, "lam": lam, "draws": rows}


def _kind(net) -> tuple[int, float, np.ndarray]:
    shape = (len(net.classes_), net.n_features_in_ + 1)
    return shape[0], net.lam_, np.zeros(shape)


def _accuracy(W: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((X @ W[:, :-1].T + W[:, -1]).argmax(axis=1) == y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    parser.add_argument("--full", action="store_true", help="CIFAR-10 too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/residual.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    draws = 1 if args.quick else 3
    print(
        f"{'':20}{'gone':>5}{'retrained':>10}{'gap':>8}{'seconds':>10}{'cold':>9}{'oracle':>10}"
        f"{'passes':>8}{'rebuild':>10}{'fit':>9}"
    )
    results = []
    with threadpool_limits(1):
        data = mnist()
        results += [one("MNIST 8k scattering", data, 1e-5, share, draws) for share in (0.01, 0.1)]
        results.append(one("Adult 26k", adult(), 1e-4, 0.01, draws))
        if args.full:
            results.append(one("CIFAR-10 15k", cifar10(), 1e-5, 0.01, draws))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB; cold and oracle: L-BFGS CPU seconds over ours")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"results": results, "peak MiB": peak}, indent=1))


if __name__ == "__main__":
    main()
