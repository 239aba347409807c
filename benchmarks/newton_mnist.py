"""The Newton step on MNIST: what it recovers, what its bounds ask for, what noise destroys.

8,000 MNIST images, the 784-32-32-10 network of the ICML 2024 paper, 1,000 rows deleted.

    SK_UNLEARN_DATA=... python benchmarks/newton_mnist.py [--quick]
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
from sklearn.metrics import f1_score

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import gaussian_sigma
from sk_unlearn.bounds import ball_diameter, newton_distance
from sk_unlearn.curvature import CG, extreme_eigenvalues
from sk_unlearn.datasets import load_mnist
from sk_unlearn.methods import Newton, Retrain
from sk_unlearn.objective import Objective, flatten

EPSILON, DELTA, N_DELETED = 1.0, 1e-5, 1000
HAND_SET = 0.001


def weights(net: CertifiedNeuralClassifier) -> torch.Tensor:
    return flatten([p.detach() for p in net.module_.parameters()])


def measure(net, rows, retrained, seconds: float) -> dict[str, float]:
    scores = {k: f1_score(y, net.predict(X), average="micro") for k, (X, y) in rows.items()}
    distance = float(torch.linalg.vector_norm(weights(net) - weights(retrained)))
    return scores | {"distance": distance, "seconds": seconds}


def timed(action):
    start = process_time()
    return action(), process_time() - start


def one_seed(seed: int, epochs: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    X, y = load_mnist(subset="test", return_X_y=True)
    X = X.reshape(len(X), -1)
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:8000], order[8000:]
    forget, keep = train[:N_DELETED], train[N_DELETED:]
    rows = {"deleted": (X[forget], y[forget]), "retained": (X[keep], y[keep])}
    rows["test"] = (X[test], y[test])
    base = CertifiedNeuralClassifier(
        module__hidden=(32, 32), lam=1e-3, C=20.0, lr=1e-3, max_epochs=epochs, random_state=seed
    )
    trained = clone(base).set_params(method=Retrain()).fit(X[train], y[train])
    retrained, seconds = timed(lambda: clone(base).fit(X[keep], y[keep]))
    out = {
        "do nothing": measure(trained, rows, retrained, 0.0),
        "retrain (same init)": measure(retrained, rows, retrained, seconds),
    }
    other, seconds = timed(
        lambda: clone(base).set_params(random_state=seed + 100).fit(X[keep], y[keep])
    )
    out["retrain (other init)"] = measure(other, rows, retrained, seconds)
    for name, std in (
        (f"Newton, sigma = {HAND_SET} by hand", HAND_SET),
        ("Newton, sigma = 0.03 by hand", 0.03),
        ("Newton, sigma = 0.1 by hand", 0.1),
        ("Newton, certified sigma (ball)", None),
    ):
        net = clone(base).set_params(method=Newton(solver=CG(tol=1e-3), noise_std=std))
        net.fit(X[train], y[train])
        _, seconds = timed(lambda net=net: net.unlearn(indices=range(N_DELETED), epsilon=EPSILON))
        out[name] = measure(net, rows, retrained, seconds)
    return out, spectrum(trained, X[keep], y[keep])


def spectrum(net, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return the ends of the spectrum and what either bound would ask for."""
    objective = Objective(
        net.module_, net.criterion_, torch.as_tensor(X), torch.as_tensor(y), lam=net.lam_
    )
    w = weights(net)
    seen = extreme_eigenvalues(objective.hessian_at(w))
    gradient = float(torch.linalg.vector_norm(objective.gradient(w)))
    ball = ball_diameter(net.C_)
    newton = newton_distance(net.C_, 1.0, 1.0, seen.smallest, gradient)
    return {
        "lambda_min (estimate)": seen.smallest,
        "lambda_max (estimate)": seen.largest,
        "gradient norm": gradient,
        "||w||": float(torch.linalg.vector_norm(w)),
        "ball bound 2C": ball,
        "Newton bound, M = 1 assumed": newton,
        "sigma from the ball": gaussian_sigma(ball, EPSILON, DELTA),
        "sigma from Newton": gaussian_sigma(newton, EPSILON, DELTA),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/newton_mnist.json"))
    args = parser.parse_args()
    if args.quick:
        args.epochs = 10
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    runs = [one_seed(seed, args.epochs) for seed in range(args.seeds)]
    columns = ("deleted", "retained", "test", "distance", "seconds")
    print(f"micro-F1, mean over {args.seeds} seeds (standard deviation); CPU seconds")
    print(f"{'':34}" + "".join(f"{c:>18}" for c in columns))
    for name in runs[0][0]:
        cells = ""
        for column in columns:
            values = [run[0][name][column] for run in runs]
            scale, form = (100, ".2f") if column in columns[:3] else (1, ".3g")
            cells += f"{scale * np.mean(values):{form}} ({scale * np.std(values):{form}})".rjust(18)
        print(f"{name:34}" + cells)
    for name in runs[0][1]:
        print(f"{name:34}{np.mean([run[1][name] for run in runs]):.4g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"epochs": args.epochs, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
