"""LiSSA over a straightforward loop; products and time to an accuracy for CG, LiSSA and Exact.

MNIST (8,000 rows, with --quick 3,000 for the convolutional nets; the first 1,000 are deleted), MLP
784-32-32-10, trained to the end (SGD, 30 epochs, falling step) or not (Adam, 15 epochs). The right
side is the gradient of the retained rows; the solution that errors are measured against is computed
by CG, in float64 to a residual of 1e-7; against the loop in float32 to 1e-4. One thread, CPU
seconds, the two sides of a ratio alternate. mnist10k.npz is looked for in SK_UNLEARN_DATA.

Against the loop, LiSSA's tracing and its residual on all rows are counted, which few steps do not
make up for; the cause of a residual is not looked for. Counted in multiplications, the max-pooled
net takes 177 MFLOP a step and chain in the loop and 133 in LiSSA, in 3x3 convolutions that both
run nearly as fast as matrix products: a third faster is what was measured, three times is out of
reach. Chains whose convolutions stay large are advanced one by one, and by autograd where channels
are normalised too: as fast as the loop, and the residual on top.

    python benchmarks/solvers.py [--quick]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median, stdev
from time import process_time

import torch
from torch import Tensor, nn

from sk_unlearn.curvature import CG, Exact, LiSSA, extreme_eigenvalues
from sk_unlearn.datasets import load_mnist
from sk_unlearn.modules import MLP
from sk_unlearn.objective import Objective, flatten, penalty

LAM = 1e-3
N_ROWS, N_DELETED = 8000, 1000
ACCURACIES = (0.1, 0.01, 0.001)
TOL = 1.0


def problem(
    module: nn.Module, X: Tensor, y: Tensor, epochs: int, adam: bool = False
) -> tuple[Objective, Tensor]:
    """Train on all rows; return the objective on the retained rows and the weights."""
    loss, parameters = nn.CrossEntropyLoss(), list(module.parameters())
    if adam:
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    else:
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            (loss(module(X[batch]), y[batch]) + penalty(parameters, None, LAM)).backward()
            optimizer.step()
        schedule.step()
    objective = Objective(module, loss, X[N_DELETED:], y[N_DELETED:], lam=LAM)
    return objective, flatten([p.detach() for p in parameters])


def lissa_loop(
    module: nn.Module, X: Tensor, y: Tensor, g: Tensor, damping: float, scale: float, settings: dict
) -> Tensor:
    """Run LiSSA as the papers' codes do: one repetition after the other, autograd twice."""
    loss, parameters = nn.CrossEntropyLoss(), list(module.parameters())
    estimate = torch.zeros_like(g)
    for _ in range(settings["repetitions"]):
        h = g.clone()
        for _ in range(settings["steps"]):
            rows = torch.randint(len(X), (settings["batch_size"],))
            value = loss(module(X[rows]), y[rows])
            gradients = torch.autograd.grad(value, parameters, create_graph=True)
            parts = [
                part.view_as(p)
                for part, p in zip(
                    h.split([p.numel() for p in parameters]), parameters, strict=True
                )
            ]
            product = flatten(torch.autograd.grad(gradients, parameters, parts))
            h = g + h - (product + (LAM + damping) * h) / scale
        estimate += h / scale
    return estimate / settings["repetitions"]


def relative(x: Tensor, truth: Tensor) -> float:
    """Return the relative Euclidean error."""
    return float((x.double() - truth).norm() / truth.norm())


def solution(objective: Objective, w: Tensor, g: Tensor, damping: float) -> Tensor | None:
    """Return the solution in float64, or None where the damped Hessian is indefinite."""
    found = CG(tol=1e-7, max_iter=2000).solve(objective.to(torch.float64), w, g, damping)
    return found.value if found.converged else None


def compare_lissa(
    name: str, module: nn.Module, objective: Objective, w: Tensor, rounds: int, settings: dict
) -> dict:
    """Alternate LiSSA (tracing the module and checking the residual included) and the loop."""
    g, damping = objective.gradient(w), 1.0
    scale = 1.1 * (damping + largest_batch_norm(objective, w, settings["batch_size"]))
    truth = CG(tol=1e-4, max_iter=2000).solve(objective, w, g, damping).value.double()
    settings, ratios, ours, errors, loop_errors = settings | {"tol": TOL}, [], [], [], []
    LiSSA(repetitions=2, steps=2, scale=scale).solve(objective, w, g, damping)  # imports, once
    for seed in range(rounds):
        start = process_time()
        fresh = Objective(module, objective.loss, objective.X, objective.y, lam=LAM)
        found = LiSSA(**settings, scale=scale, random_state=seed).solve(fresh, w, g, damping)
        ours.append(process_time() - start)
        start = process_time()
        x = lissa_loop(module, objective.X, objective.y, g, damping, scale, settings)
        ratios.append((process_time() - start) / ours[-1])
        errors.append(relative(found.value, truth))
        loop_errors.append(relative(x, truth))
    row = {
        "module": name,
        "parameters": objective.n_parameters,
        "scale": scale,
        **settings,
        "speedup": median(ratios),
        "speedups": ratios,
        "seconds": median(ours),
        "error": mean(errors),
        "loop_error": mean(loop_errors),
        "error_se": stdev(errors) / len(errors) ** 0.5 if rounds > 1 else None,
        "loop_error_se": stdev(loop_errors) / len(errors) ** 0.5 if rounds > 1 else None,
    }

    def spread(which: str) -> str:
        return "" if row[which] is None else f" +- {row[which]:.4f}"

    print(
        f"{name}, {settings['steps']} steps: LiSSA {row['seconds']:.2f} s, {row['speedup']:.2f} "
        f"times faster than the loop ({min(ratios):.2f} to {max(ratios):.2f}); mean relative error "
        f"{row['error']:.4f}{spread('error_se')}, of the loop {row['loop_error']:.4f}"
        f"{spread('loop_error_se')}",
        flush=True,
    )
    return row


def largest_batch_norm(objective: Objective, w: Tensor, batch_size: int) -> float:
    """Return the largest Hessian norm of 16 batches."""
    norms = []
    for _ in range(16):
        rows = torch.randint(objective.n_rows, (batch_size,))
        ends = extreme_eigenvalues(objective.hessian_at(w, rows), max_products=8)
        norms.append(max(abs(ends.smallest), abs(ends.largest)))
    return max(norms)


def solvers_to(
    objective: Objective, w: Tensor, damping: float, name: str, scales: tuple, exact: bool = False
) -> list:
    """Return products and seconds of each solver to each relative error."""
    g = objective.gradient(w)
    truth = solution(objective, w, g, damping)
    if truth is None:
        failed = CG(max_iter=500).solve(objective, w, g, damping)
        print(f"  damping {damping:g}: {failed.message}")
        return [{"problem": name, "damping": damping, "status": failed.status.name}]
    pace = 5 / damping  # steps per unit of scale: exp(-5) is the bias
    attempts = {
        "CG": [CG(tol=2.0**-k, max_iter=500) for k in range(1, 15)],
        "LiSSA": [LiSSA(steps=int(pace * S), scale=S, random_state=0) for S in scales],
    }
    if exact:
        attempts["Exact"] = [Exact()]
    rows = []
    for solver, tried in attempts.items():
        outcomes = [outcome(each, objective, w, g, damping, truth) for each in tried]
        for accuracy in ACCURACIES:
            good = [o for o in outcomes if o["error"] <= accuracy]
            best = good[0] if good else min(outcomes, key=lambda o: o["error"])
            rows.append(
                {"problem": name, "damping": damping, "solver": solver, "accuracy": accuracy}
                | {"reached": bool(good)}
                | best
            )
            print(
                f"  damping {damping:g}, {solver:5s} to {accuracy:5g}: "
                f"{'reached' if good else 'MISSED '} {best['error']:.5f} with "
                f"{best['products']:8.1f} products in {best['seconds']:6.2f} s",
                flush=True,
            )
    return rows


def outcome(
    solver: object, objective: Objective, w: Tensor, g: Tensor, damping: float, truth: Tensor
) -> dict:
    """Run one solver once."""
    start = process_time()
    found = solver.solve(objective, w, g, damping)
    return {
        "seconds": process_time() - start,
        "products": found.n_products,
        "error": relative(found.value, truth),
        "status": found.status.name,
    }


def main() -> None:
    """Print tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/solvers.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.rounds, args.steps, args.epochs = 1, 3, 200, 5
    torch.set_num_threads(1)
    images, labels = load_mnist(subset="test", return_X_y=True)
    X, y = torch.from_numpy(images[:N_ROWS]), torch.from_numpy(labels[:N_ROWS])
    pooled = nn.functional.avg_pool2d(X, 2)
    results: dict[str, list] = {"lissa_over_loop": [], "to_accuracy": []}
    settings = {"repetitions": 10, "steps": args.steps, "batch_size": 10}
    compared, scales = results["lissa_over_loop"], (50.0,) if args.quick else (50.0, 200.0, 800.0)
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        module = MLP(784, 10, hidden=(32, 32))
        objective, w = problem(module, X, y, args.epochs)
        if seed == 0:
            for steps in (args.steps, 5 * args.steps):
                longer = settings | {"steps": steps}
                compared.append(
                    compare_lissa("MLP 784-32-32-10", module, objective, w, args.rounds, longer)
                )
        hasty = problem(MLP(784, 10, hidden=(32, 32)), X, y, -(-args.epochs // 2), adam=True)
        for recipe, (on, at) in {"SGD": (objective, w), "Adam": hasty}.items():
            name = f"MLP 784-32-32-10, {recipe}, seed {seed}"
            ends = extreme_eigenvalues(on.hessian_at(at))
            print(f"{name}: Hessian from {ends.smallest:.3f} to {ends.largest:.2f} (estimates)")
            for damping in (1.0, 0.1):
                results["to_accuracy"] += solvers_to(
                    on, at, damping, name, scales[: 3 - (seed > 0)]
                )
    torch.manual_seed(0)
    name = "MLP 196-32-32-10"
    objective, w = problem(MLP(196, 10, hidden=(32, 32)), pooled, y, args.epochs)
    print(f"{name} on 14x14 images, where a dense Hessian is affordable")
    for damping in (1.0, 0.1):
        results["to_accuracy"] += solvers_to(objective, w, damping, name, scales, not args.quick)
    torch.manual_seed(0)
    some = slice(3000 if args.quick else None)
    for name, module in small_cnns().items():
        objective, w = problem(module, X[some], y[some], max(1, args.epochs // 10))
        short = settings | {"steps": max(20, args.steps // 2)}
        compared.append(compare_lissa(name, module, objective, w, args.rounds, short))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))


def small_cnns() -> dict[str, nn.Module]:
    """Return a net whose products are mostly overhead, and one whose products are mostly work."""
    return {
        "CNN 8-16, strided": nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 25, 10),
        ),
        "CNN 16-32, 3x3, max-pooling": nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, 10),
        ),
    }


if __name__ == "__main__":
    main()
