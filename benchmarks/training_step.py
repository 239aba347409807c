"""Cost of a training step of the estimator over a bare torch loop that projects too.

Digits, one run, the default module and optimizer, lam = 0; prints the ratio.

    python benchmarks/training_step.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.constraint import Ball
from sk_unlearn.modules import MLP

BATCH = 128


def bare_epochs(X: torch.Tensor, y: torch.Tensor, epochs: int) -> float:
    """Return the seconds of a hand-written loop over tensor batches."""
    torch.manual_seed(0)
    module, loss = MLP(X.shape[1], 10), nn.CrossEntropyLoss()
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    ball = Ball(parameters, None, 20.0)
    start = perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(X))
        X_epoch, y_epoch = X[order], y[order]
        for first in range(0, len(X), BATCH):
            optimizer.zero_grad()
            value = loss(module(X_epoch[first : first + BATCH]), y_epoch[first : first + BATCH])
            value.backward()
            optimizer.step()
            ball.project_()
            value.item()
    return perf_counter() - start


def estimator_epochs(X: np.ndarray, y: np.ndarray, epochs: int) -> float:
    """Return the seconds of the estimator's own training loop."""
    net = CertifiedNeuralClassifier(lam=0.0, max_epochs=0, random_state=0).fit(X, y)
    start = perf_counter()
    net.fit_loop(X, y, epochs=epochs)
    return perf_counter() - start


def main() -> None:
    """Alternate the two loops and print the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_step.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.rounds = 10, 5
    torch.set_num_threads(1)
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    bare_epochs(torch.as_tensor(X), torch.as_tensor(y), 2)
    estimator_epochs(X, y, 2)
    ratios, bare = [], []
    for _ in range(args.rounds):
        bare.append(bare_epochs(torch.as_tensor(X), torch.as_tensor(y), args.epochs))
        ratios.append(estimator_epochs(X, y, args.epochs) / bare[-1])
    steps = args.epochs * -(-len(X) // BATCH)
    print(f"bare loop: {1e3 * median(bare) / steps:.3f} ms per step")
    print(
        f"estimator over bare loop: {median(ratios):.2f} (range {min(ratios):.2f} to "
        f"{max(ratios):.2f}, {args.rounds} rounds)"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"ratio": median(ratios), "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
