"""Accuracy against certified epsilon for every method, on one problem: the picture of the README.

scikit-learn's digits, 1% deleted, delta = 1e-5; test accuracy, mean over draws of split, deleted
rows and noise. Linear heads see the pixels; the deep methods train the default network, and where
`permanent` stands, 300 rows that will never be deleted have trained its features.

    python benchmarks/utility.py
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import sampled_gaussian_noise
from sk_unlearn.exceptions import SkUnlearnError
from sk_unlearn.methods import (
    Analytic,
    DescentToDelete,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    PrivateTraining,
    Residual,
    Retrain,
    SekhariNewton,
)
from sk_unlearn.modules import MLP, FeatureHead, LinearHead, Linearized, RidgeHead
from sk_unlearn.preprocessing import ClipToBall

DELTA = 1e-5
EPSILONS = (0.1, 0.3, 1.0, 3.0, 10.0)
N_PERMANENT = 300
EPOCHS = 10
RADIUS = 4.0
REACH = 4.2  # with the constant feature


def net(module: object, method: object, **parameters: object) -> CertifiedNeuralClassifier:
    defaults = {"lam": 1e-3, "C": 100.0, "random_state": 0}
    return CertifiedNeuralClassifier(module, method=method, **(defaults | parameters))


def private(epsilon: float, n: int, n_deleted: int) -> PrivateTraining:
    rate, steps = 128 / n, 300
    noise = sampled_gaussian_noise(rate, steps, epsilon, DELTA, group=n_deleted)
    return PrivateTraining(
        noise, steps=steps, sample_rate=rate, batch_size=128, max_deletions=n_deleted
    )


def methods(n: int, n_deleted: int) -> dict[str, Callable[[float], CertifiedNeuralClassifier]]:
    """Return for each line of the picture how to make its net for an epsilon."""
    deep = {"anchor": "init"}
    head = {"lam": 0.1}
    return {
        "Residual (linear head)": lambda e: net(LinearHead, Residual()),
        "Analytic (ridge head)": lambda e: net(RidgeHead, Analytic()),
        "Residual (features of permanent rows)": lambda e: net(
            FeatureHead, Residual(), module__backbone=MLP, max_epochs=60
        ),
        "Residual (linearised at permanent rows)": lambda e: net(
            Linearized, Residual(), module__module=MLP, max_epochs=60, **deep
        ),
        "Retrain (network)": lambda e: net(None, Retrain()),
        "GradientClipping (network)": lambda e: net(
            None, GradientClipping(finetune_epochs=EPOCHS), **deep
        ),
        "ModelClipping (network)": lambda e: net(
            None, ModelClipping(finetune_epochs=EPOCHS), **deep
        ),
        "PrivateTraining (network)": lambda e: net(None, private(e, n, n_deleted)),
        "SekhariNewton (linear head)": lambda e: net(
            LinearHead, SekhariNewton(row_norm=REACH), **head
        ),
        "DescentToDelete (linear head)": lambda e: net(
            LinearHead, DescentToDelete(row_norm=REACH), **head
        ),
        "OutputPerturbation (network)": lambda e: net(None, OutputPerturbation(), C=20.0, **deep),
        "Newton, ball (network)": lambda e: net(None, Newton(), C=20.0, **deep),
    }


def one_draw(draw: int, epsilons: tuple[float, ...]) -> list[dict]:
    X, y = load_digits(return_X_y=True)
    X = ClipToBall(RADIUS).fit_transform(X / 16)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=draw)
    forget = np.random.default_rng(draw).choice(
        np.arange(N_PERMANENT, len(y)), len(y) // 100, replace=False
    )
    rows = []
    for name, make in methods(len(y), len(forget)).items():
        extra = {"permanent": np.arange(len(y)) < N_PERMANENT} if "permanent" in name else {}
        for epsilon in epsilons:
            row = {"method": name, "draw": draw, "epsilon": epsilon}
            try:
                model = make(epsilon).fit(X, y, **extra)
                model.unlearn(indices=forget, epsilon=epsilon, delta=DELTA)
            except SkUnlearnError as error:
                rows.append(row | {"refused": str(error).partition(":")[0]})
                continue
            certificate = model.certificate_.verify()
            rows.append(
                row
                | {"certified": certificate.epsilon, "formal": certificate.formal}
                | {"accuracy": 100 * model.score(X_test, y_test)}
            )
    return rows


def table(rows: list[dict], epsilons: tuple[float, ...]) -> str:
    lines = [f"{'':42}" + "".join(f"{f'eps {e:g}':>9}" for e in epsilons) + "   certificate"]
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        cells = []
        for epsilon in epsilons:
            values = [r["accuracy"] for r in here if r["epsilon"] == epsilon and "accuracy" in r]
            cells.append(f"{mean(values):9.2f}" if values else f"{'refused':>9}")
        told = [row for row in here if "formal" in row]
        kind = "formal" if told and all(row["formal"] for row in told) else "not formal"
        kind += ", exact" if told and all(row["certified"] == 0 for row in told) else ""
        lines.append(f"{method:42}" + "".join(cells) + f"   {kind}")
    return "\n".join(lines)


def plot(rows: list[dict], epsilons: tuple[float, ...], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.6, 4.4))
    markers = "osD^v<>Xph*P"
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        points = []
        for epsilon in epsilons:
            here = [r for r in rows if (r["method"], r["epsilon"]) == (method, epsilon)]
            values = [row["accuracy"] for row in here if "accuracy" in row]
            if values:
                points.append((epsilon, mean(values)))
        if not points:
            continue
        exact = method.startswith("Retrain")
        label = f"{method}: exact" if exact else method
        style = {"linestyle": ":" if exact else "-", "linewidth": 1.3, "markersize": 5}
        colour = plt.get_cmap("tab20" if number > 9 else "tab10")(number % 10)
        axis.plot(*zip(*points, strict=True), marker=markers[number], color=colour, **style)
        axis.lines[-1].set_label(label)
    axis.set(
        xscale="log", xlabel="certified ε (δ = 1e-5)", ylabel="test accuracy, %", ylim=(0, 102)
    )
    axis.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/utility.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.quick:
        args.draws = 2
    rows = [row for draw in range(args.draws) for row in one_draw(draw, EPSILONS)]
    print(f"digits, 1% deleted, {args.draws} draws: test accuracy in %")
    print(table(rows, EPSILONS))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    plot(rows, EPSILONS, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
