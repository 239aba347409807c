"""Permanent rows: a small CNN trained on 2,000 rows that stay, a convex head on all 8,000.

MNIST, 2,000 test images (epochs tried: 5, 15, 25); one-vs-rest head on the penultimate features,
(1, 1e-5), sigma = 0.001; 1% of the other 6,000 rows deleted, against L-BFGS from cold to the
same gradient norm and against training the CNN itself again; then twenty deletions of 0.5% in a
row. One thread, CPU seconds, the ratios from one run. Where mixing is slow it factors the Hessian
once more on the way: that draw takes up to twice the passes of the others.

    SK_UNLEARN_DATA=... python benchmarks/permanent.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import torch
from residual import lbfgs
from threadpoolctl import threadpool_limits
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.datasets import load_mnist
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import Residual
from sk_unlearn.modules import FeatureHead

GUARANTEE = {"epsilon": 1.0, "delta": 1e-5}
N_TRAIN, N_PERMANENT = 8000, 2000


def cnn(n_classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.4), nn.Linear(32 * 49, 128), nn.ReLU()),
        *(nn.Dropout(0.4), nn.Linear(128, n_classes)),
    )


def settings(epochs: int) -> dict:
    training = {"max_epochs": epochs, "lr": 2e-3, "batch_size": 64, "random_state": 0}
    return {"lam": 1e-4, "C": 1e4, **training}


def certified(epochs: int) -> CertifiedNeuralClassifier:
    method = Residual(noise_std=1e-3)
    return CertifiedNeuralClassifier(
        FeatureHead, module__backbone=cnn, method=method, **settings(epochs)
    )


def timed(function, *args, **keywords):
    begun = process_time()
    value = function(*args, **keywords)
    return value, process_time() - begun


def one_draw(fitted, draw: int, n_forget: int, X_test, y_test) -> dict:
    net = pickle.loads(fitted)
    rng = np.random.default_rng(draw)
    others = np.flatnonzero(~net.rows_.permanent)
    forget = rng.choice(others, n_forget, replace=False)
    _, seconds = timed(net.unlearn, indices=forget, **GUARANTEE)
    certificate = net.certificate_
    _, rebuild = timed(net.refresh)
    rows = net.rows_
    X, error = rows.features.values, rows.features.error
    reference = np.zeros((10, X.shape[1] + 1))
    risk = HeadRisk(X, rows.y, 10, net.lam_, reference, "ovr", error)
    tol = dict(certificate.event.constants)["tol"]
    W, cold, passes = lbfgs(
        lambda W: (risk.value(W), risk.gradient(W)),
        reference,
        lambda W, gradient: np.linalg.norm(gradient) <= tol,
    )
    with torch.no_grad():
        features = net.module_.features(torch.as_tensor(X_test)).flatten(1).double().numpy()
    chosen = net.classes_[(features @ W[:, :-1].T + W[:, -1]).argmax(axis=1)]
    return {
        "formal": certificate.formal,
        "retrained": float(np.mean(chosen == y_test)),
        "certified": net.score(X_test, y_test),
        "seconds": seconds,
        "rebuild seconds": rebuild,
        "passes": certificate.diagnostics["passes"],
        "gradient norm bound": certificate.diagnostics["gradient_norm_bound"],
        "of it rounding": certificate.diagnostics["rounding"],
        "cold L-BFGS seconds": cold,
        "cold L-BFGS passes": passes,
    }


def sequence(fitted, n_deletions: int, n_forget: int, X_test, y_test) -> dict:
    """Delete again and again; everything counted, the rebuilding too."""
    net, rng = pickle.loads(fitted), np.random.default_rng(99)
    seconds, passes, scores, formal = 0.0, [], [], True
    for _ in range(n_deletions):
        others = np.flatnonzero(~net.rows_.permanent)
        forget = rng.choice(others, n_forget, replace=False)
        seconds += timed(net.unlearn, indices=forget, **GUARANTEE)[1]
        formal &= net.certificate_.formal
        passes.append(net.certificate_.diagnostics["passes"])
        scores.append(net.score(X_test, y_test))
        seconds += timed(net.refresh)[1]
    return {"seconds": seconds, "passes": passes, "accuracy": scores, "formal": formal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer epochs, one forget set")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = "permanent_quick.json" if args.quick else "permanent.json"
    out = args.out or Path("benchmarks/results") / name
    epochs, draws, n_deletions = (15, 1, 5) if args.quick else (25, 3, 20)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    X, y = load_mnist(subset="test", return_X_y=True)
    X = X.reshape(-1, 1, 28, 28).astype(np.float32)
    X_test, y_test = X[N_TRAIN:], y[N_TRAIN:]
    X, y = X[:N_TRAIN], y[:N_TRAIN]
    permanent = np.arange(N_TRAIN) < N_PERMANENT
    with threadpool_limits(1):
        net = certified(epochs)
        _, fit = timed(net.fit, X, y, permanent=permanent)
        alone = net.module_.backbone.eval()(torch.as_tensor(X_test)).argmax(1).numpy()
        accuracy = {
            "CNN on the permanent rows alone": float((net.classes_[alone] == y_test).mean()),
            "head on all rows": net.score(X_test, y_test),
        }
        fitted = pickle.dumps(net)
        n_forget = (N_TRAIN - N_PERMANENT) // 100
        rows = [one_draw(fitted, draw, n_forget, X_test, y_test) for draw in range(draws)]
        many = sequence(fitted, n_deletions, n_forget // 2, X_test, y_test)
        whole = CertifiedNeuralClassifier(cnn(10), method="retrain", **settings(epochs))
        keep = np.arange(N_TRAIN) < N_TRAIN - n_forget
        _, again = timed(whole.fit, X[keep], y[keep])
        accuracy["CNN on all rows"] = whole.score(X_test, y_test)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    gaps = [100 * (row["certified"] - row["retrained"]) for row in rows]
    print(f"fit {fit:.1f} s; accuracy: {accuracy}")
    print(
        f"delete {n_forget} of {N_TRAIN - N_PERMANENT}: gap {np.mean(gaps):+.3f} points, "
        f"{mean['seconds']:.4f} s in {mean['passes']:.1f} passes, rebuild "
        f"{mean['rebuild seconds']:.3f} s, {'formal' if mean['formal'] == 1 else 'NOT FORMAL'}"
    )
    print(
        f"against L-BFGS from cold {mean['cold L-BFGS seconds']:.2f} s: "
        f"{mean['cold L-BFGS seconds'] / mean['seconds']:.0f}x; against training the CNN again "
        f"{again:.1f} s: {again / mean['seconds']:.0f}x"
    )
    print(
        f"{n_deletions} deletions of {n_forget // 2} in a row, rebuilding counted: "
        f"{many['seconds']:.2f} s, passes {[round(p) for p in many['passes']]}, "
        f"accuracy {many['accuracy'][0]:.4f} to "
        f"{many['accuracy'][-1]:.4f}, {'formal' if many['formal'] else 'NOT FORMAL'}"
    )
    print(f"peak memory {peak:.0f} MiB")
    results = {
        "accuracy": accuracy,
        "fit seconds": fit,
        "CNN again seconds": again,
        "epochs": epochs,
        "draws": rows,
        "sequence": many,
        "peak MiB": peak,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
