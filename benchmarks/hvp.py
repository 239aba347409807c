"""Cost of a Hessian-vector product over that of a gradient, at a fixed point and batch.

The gradient is plain autograd's or the objective's (in chunks), whichever is faster; the product
is ``Objective.hessian_at(w)``'s with what products share kept. Alternated in one run, one thread,
CPU seconds; medians of the ratios. Counted in multiplications a product costs up to 2 gradients:
a layer in the middle makes two forward passes, two to its input and two to its weights, against
one each; the first layer makes one forward and one to its weights, as in a gradient.

    python benchmarks/hvp.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import nn

from sk_unlearn.modules import MLP
from sk_unlearn.objective import Objective, flatten

MODULES = {
    "MLP 784-32-32-10": lambda: MLP(784, 10, hidden=(32, 32)),
    "CNN 16-32, 3x3, max-pooling": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 10),
    ),
    "CNN 8-16, strided": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 25, 10),
    ),
}


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of one call."""
    start = process_time()
    for _ in range(repeats):
        function()
    return (process_time() - start) / repeats


def measure(module: nn.Module, batch: int, rounds: int) -> dict[str, float]:
    """Alternate gradients and products at one point and batch."""
    X, y = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    loss, parameters = nn.CrossEntropyLoss(), list(module.parameters())
    w = flatten([p.detach() for p in parameters])
    objective = Objective(module, loss, X, y, lam=1e-3)
    hessian, v = objective.hessian_at(w), torch.randn_like(w)

    def gradient() -> None:
        flatten(torch.autograd.grad(loss(module(X), y), parameters))

    def product() -> None:
        hessian(v)

    start = process_time()
    product()
    first = process_time() - start
    gradient()
    repeats = max(1, int(0.05 / max(seconds(gradient, 2), 1e-6)))
    gradients, products = [], []
    for _ in range(rounds):
        chunked = seconds(lambda: objective.gradient(w), repeats)
        gradients.append(min(seconds(gradient, repeats), chunked))
        products.append(seconds(product, repeats))
    return {
        "gradient_ms": 1e3 * median(gradients),
        "product_ms": 1e3 * median(products),
        "first_product_ms": 1e3 * first,
        "ratio": median(p / g for p, g in zip(products, gradients, strict=True)),
    }


def main() -> None:
    """Print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hvp.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    if args.quick:
        args.batches, args.rounds = [128, 512], 5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for name, make in MODULES.items():
        for batch in args.batches:
            row = {"module": name, "batch": batch, **measure(make(), batch, args.rounds)}
            results.append(row)
            print(
                f"{name:28s} batch {batch:5d}: gradient {row['gradient_ms']:8.2f} ms, product "
                f"{row['product_ms']:8.2f} ms, ratio {row['ratio']:.2f}",
                flush=True,
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
