"""Noisy fine-tuning beside retraining, shards and its no-model control, at equal budgets.

MNIST (784-20-10) and Adult (85-64-2) from the folder that SK_UNLEARN_DATA names. The certified
methods take a few noisy steps around the initialisation and then train for the budget; the control
does the same from the initialisation itself (T20). In one run also: the noise over what published
constants ask for, and the cost of a noisy step over one of ordinary training.

    python benchmarks/noisy.py
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from math import log, sqrt
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import calibrate
from sk_unlearn.datasets import load_adult, load_mnist
from sk_unlearn.events import NoisyIterations
from sk_unlearn.methods import GradientClipping, ModelClipping, OutputPerturbation, Retrain
from sk_unlearn.sharded import ShardedClassifier

EPSILON, DELTA = 1.0, 1e-5
HIDDEN = {"MNIST": (20,), "Adult": (64,)}
SETTING = {"lam": 1e-5, "C": 20.0, "anchor": "init", "batch_size": 128}
STEPS = 10
EPOCHS_BEFORE = 10
CLIPPING = {"radius": 1e-3, "clip_norm": 0.01, "learning_rate": 0.01, "steps": STEPS}


def methods(budget: int) -> dict[str, object]:
    """Return the certified methods that train for `budget` epochs after their noise."""
    return {
        "output perturbation": OutputPerturbation(budget),
        "gradient clipping": GradientClipping(**CLIPPING, finetune_epochs=budget),
        "model clipping": ModelClipping(0.02, 0.01, STEPS, finetune_epochs=budget),
        "blocks": GradientClipping(**CLIPPING, finetune_epochs=budget, blocks="layer"),
    }


def load(name: str, quick: bool) -> tuple[np.ndarray, ...]:
    """Return X_train, X_test, y_train, y_test; always the same split."""
    if name == "MNIST":
        X, y = load_mnist(subset="test", return_X_y=True)
        X, n_train = X.reshape(len(X), -1), 8000
    else:
        X, y = load_adult(return_X_y=True)
        n_train = 26_000
    if quick:
        n_train = 2000
    return (
        train_test_split(X, y, train_size=n_train, test_size=2000, random_state=0, stratify=y)
        if name == "MNIST"
        else train_test_split(X, y, train_size=n_train, random_state=0, stratify=y)
    )


def net(
    name: str, method: object, epochs: int, seed: int, hidden: tuple[int, ...] | None = None
) -> CertifiedNeuralClassifier:
    return CertifiedNeuralClassifier(
        method=method,
        max_epochs=epochs,
        random_state=seed,
        module__hidden=hidden or HIDDEN[name],
        **SETTING,
    )


def one_seed(name: str, data: tuple, share: float, budget: int, seed: int) -> list[dict]:
    """Return test accuracies of everything at one budget, with one draw of deleted rows."""
    X, X_test, y, y_test = data
    gone = np.random.default_rng(seed).choice(len(y), int(share * len(y)), replace=False)
    kept = np.delete(np.arange(len(y)), gone)
    out = []

    def note(what: str, model: object, passes: float, seconds: float) -> None:
        accuracy = 100 * model.score(X_test, y_test)
        out.append({"method": what, "accuracy": accuracy, "passes": passes, "seconds": seconds})

    started = perf_counter()
    retrained = net(name, Retrain(), budget, seed).fit(X[kept], y[kept])
    note("retrain", retrained, budget, perf_counter() - started)
    sharded = ShardedClassifier(net(name, Retrain(), budget, seed), 5, random_state=seed)
    sharded.fit(X, y)
    started = perf_counter()
    sharded.unlearn(indices=gone)
    share_trained = sharded.certificate_.diagnostics["rows_in_retrained_shards"] / len(kept)
    note("sharded (5)", sharded, budget * share_trained, perf_counter() - started)
    for what, method in methods(budget).items():
        model = net(name, method, EPOCHS_BEFORE, seed).fit(X, y)
        request = {"indices": gone, "epsilon": EPSILON, "delta": DELTA}
        control, passes = model.control(**request), model.plan(EPSILON, DELTA).passes
        started = perf_counter()
        model.unlearn(**request)
        seconds = perf_counter() - started
        assert model.certificate_.verify().formal
        note(what, model, passes, seconds)
        note(f"{what}, control", control, passes, seconds)
    common = {"data": name, "share": share, "budget": budget, "seed": seed}
    return [common | row for row in out]


def noise_ratios() -> dict[str, float]:
    """Return calibrated noise over published noise, for the configuration of this run."""
    C0, C1, gamma = CLIPPING["radius"], CLIPPING["clip_norm"], CLIPPING["learning_rate"]
    event = calibrate(NoisyIterations(C0, C1, gamma, 0.0, STEPS, None), EPSILON, DELTA)
    theorem = sqrt(9 * log(1 / DELTA) / (EPSILON**2 * STEPS)) * (C0 + C1 * gamma * STEPS)
    ball = calibrate(OutputPerturbation().event(_setting()), EPSILON, DELTA)
    classical = ball.sensitivity / EPSILON * sqrt(2 * log(1.25 / DELTA))
    return {
        "gradient clipping (lam = 0) over Koloskova et al. 2025, Thm 4.1": event.sigma / theorem,
        "output perturbation over the classical formula": ball.sigma / classical,
    }


def _setting() -> object:
    X, y = np.eye(4, dtype=np.float32), [0, 1, 0, 1]
    return CertifiedNeuralClassifier(max_epochs=0, C=SETTING["C"]).fit(X, y)._setting()


def step_cost(
    name: str, data: tuple, hidden: tuple[int, ...], rounds: int, steps: int
) -> dict[str, object]:
    """Return milliseconds of a step of ordinary training and of each kind of noisy step."""
    X, _, y, _ = data
    per_epoch = -(-len(y) // SETTING["batch_size"])
    epochs = max(1, steps // per_epoch)
    steps = epochs * per_epoch
    loud = {"finetune_epochs": 0, "noise_std": 1.0}  # calibration is no part of a step
    kinds = {
        "gradient clipping": GradientClipping(**(CLIPPING | {"steps": steps}), **loud),
        "model clipping": ModelClipping(0.02, 0.01, steps, **loud),
    }
    seen: dict[str, list[tuple[float, float]]] = {"ordinary": []} | {kind: [] for kind in kinds}
    for _ in range(rounds):
        model = net(name, Retrain(), epochs, 0, hidden)
        seen["ordinary"].append(_clock(lambda model=model: model.fit(X, y), steps))
        for kind, method in kinds.items():
            model = net(name, method, 1, 0, hidden).fit(X, y)
            seen[kind].append(_clock(lambda model=model: model.unlearn(indices=[0]), steps))
    ratios = {
        kind: {
            clock: median(
                own[c] / base[c] for own, base in zip(seen[kind], seen["ordinary"], strict=True)
            )
            for c, clock in enumerate(("wall", "cpu"))
        }
        for kind in kinds
    }
    least = {kind: min(wall for wall, _ in times) for kind, times in seen.items()}
    weights = model.plan().n_parameters
    return {"data": name, "weights": weights, "least wall ms": least, "median ratio": ratios}


def _clock(call: object, steps: int) -> tuple[float, float]:
    wall, cpu = perf_counter(), process_time()
    call()
    return 1e3 * (perf_counter() - wall) / steps, 1e3 * (process_time() - cpu) / steps


def table(rows: list[dict]) -> str:
    """Return mean accuracies, and for a method its difference from its control."""
    lines = []
    budgets = sorted({row["budget"] for row in rows})
    for data, share in sorted({(row["data"], row["share"]) for row in rows}):
        lines.append(f"\n{data}, {share:.0%} deleted: test accuracy % at {budgets} epochs")
        here = [row for row in rows if (row["data"], row["share"]) == (data, share)]
        for method in dict.fromkeys(row["method"] for row in here):
            by_budget = [_of(here, method, budget) for budget in budgets]
            shown = "  ".join(f"{mean(a):6.2f} ±{np.std(a):5.2f}" for a in by_budget)
            line = f"  {method:<30}{shown}"
            if f"{method}, control" in {row["method"] for row in here}:
                controls = [_of(here, f"{method}, control", budget) for budget in budgets]
                gains = [mean(a) - mean(c) for a, c in zip(by_budget, controls, strict=True)]
                line += "   over control " + " ".join(f"{gain:+.2f}" for gain in gains)
            lines.append(line)
    return "\n".join(lines)


def _of(rows: list[dict], method: str, budget: int) -> list[float]:
    return [r["accuracy"] for r in rows if (r["method"], r["budget"]) == (method, budget)]


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(row["data"], row["share"]) for row in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, (data, share) in zip(axes[0], panels, strict=True):
        here = [row for row in rows if (row["data"], row["share"]) == (data, share)]
        budgets = sorted({row["budget"] for row in here})
        colours: dict[str, str] = {}
        for method in dict.fromkeys(row["method"] for row in here):
            base, _, control = method.partition(", ")
            colour = colours.setdefault(base, f"C{len(colours)}")
            accuracy = [mean(_of(here, method, budget)) for budget in budgets]
            style = {"linestyle": ":" if control else "-", "marker": "x" if control else "o"}
            axis.plot(budgets, accuracy, color=colour, label=method, markersize=4, **style)
        axis.set(title=f"{data}, {share:.0%} deleted", xlabel="epochs", xticks=budgets)
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[0, -1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="of the step-cost measurement")
    parser.add_argument("--steps", type=int, default=1000, help="of the step-cost measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noisy.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shares, budgets = (0.01, 0.1), (1, 2, 4, 8)
    if args.quick:
        args.seeds, args.rounds, args.steps, shares, budgets = 1, 2, 60, (0.01,), (1, 2)
    rows, costs = [], []
    for name in HIDDEN:
        data = load(name, args.quick)
        for hidden in (HIDDEN[name], (128,)):
            costs.append(step_cost(name, data, hidden, args.rounds, args.steps))
            print(json.dumps(costs[-1]), flush=True)
        for share in shares:
            for budget in budgets:
                for seed in range(args.seeds):
                    rows += one_seed(name, data, share, budget, seed)
    print(table(rows))
    ratios = noise_ratios()
    for what, ratio in ratios.items():
        print(f"sigma, {what}: {ratio:.4f} = 1/{1 / ratio:.4f}")
    gains = [
        row["accuracy"] - control["accuracy"]
        for row, control in pairwise(rows)
        if control["method"] == f"{row['method']}, control"
    ]
    print(
        f"method minus control, {len(gains)} pairs: {mean(gains):+.2f} ± {np.std(gains):.2f} points"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    summary = {"mean": mean(gains), "std": float(np.std(gains)), "pairs": len(gains)}
    record = {
        "setting": SETTING | CLIPPING,
        "noise ratios": ratios,
        "step cost": costs,
        "over control": summary,
        "runs": rows,
    }
    args.out.write_text(json.dumps(record, indent=1))
    plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
