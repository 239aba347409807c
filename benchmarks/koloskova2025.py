"""The experiments of Koloskova et al. 2025, each beside its no-model control.

MNIST (784-5-10, the paper's TinyNet) and Adult (85-64-2) from the folder that SK_UNLEARN_DATA
names. Three parts:

- *budgets*: accuracy over the number of training epochs after the noise, for noisy fine-tuning,
  output perturbation, shards and retraining;
- *epsilons*: the noise that the published code adds for a nominal epsilon, and the noise that
  epsilon needs. The published noise is certified for the larger epsilon that it really buys
  (``sk_unlearn.accounting.published``), and so it stands in a column of its own;
- *private training* (DP-SGD) for groups of rows, at the cost of its training.

The certified methods take a few noisy steps around the initialisation and then train for the
budget; the control does the same from the initialisation itself (T20).

    python benchmarks/koloskova2025.py
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import torch
from _koloskova_tables import over_control, show_gains, shown
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import sampled_gaussian_noise
from sk_unlearn.accounting.published import bought_epsilon, reported_epsilon
from sk_unlearn.datasets import load_adult, load_mnist
from sk_unlearn.methods import (
    GradientClipping,
    ModelClipping,
    OutputPerturbation,
    PrivateTraining,
    Retrain,
)
from sk_unlearn.sharded import ShardedClassifier

EPSILON, DELTA = 1.0, 1e-5
HIDDEN = {"MNIST": (5,), "Adult": (64,)}
SETTING = {"lam": 1e-5, "C": 20.0, "anchor": "init", "batch_size": 128}
STEPS = 10
EPOCHS_BEFORE = 10
CLIPPING = {"radius": 1e-3, "clip_norm": 0.01, "learning_rate": 0.01, "steps": STEPS}
RENYI_TARGETS = (0.1, 1.0, 10.0)
GROUPS = (1, 10, 80)


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
        X, n_train, n_test = X.reshape(len(X), -1), 8000, 2000
    else:
        X, y = load_adult(return_X_y=True)
        n_train, n_test = 26_000, 6561
    return train_test_split(
        X, y, train_size=8000 if quick else n_train, test_size=n_test, random_state=0, stratify=y
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


def forget_set(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(y), int(share * len(y)), replace=False)


def with_control(model: CertifiedNeuralClassifier, request: dict, test: tuple) -> dict[str, float]:
    """Delete, and answer the same request from the initialisation; return both accuracies."""
    control = model.control(**request)
    started = perf_counter()
    model.unlearn(**request)
    seconds = perf_counter() - started
    assert model.certificate_.verify().formal
    scores = {"accuracy": 100 * model.score(*test), "control": 100 * control.score(*test)}
    return scores | {"seconds": seconds}


def budget_curves(name: str, data: tuple, share: float, budget: int, seed: int) -> list[dict]:
    """Return test accuracies of everything at one budget, with one draw of deleted rows."""
    X, X_test, y, y_test = data
    gone = forget_set(y, share, seed)
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
        passes = model.plan(EPSILON, DELTA).passes
        figures = with_control(model, request, (X_test, y_test))
        out.append({"method": what, "passes": passes} | figures)
    common = {"data": name, "share": share, "budget": budget, "seed": seed}
    return [common | row for row in out]


def epsilons(name: str, data: tuple, share: float, budget: int, seed: int) -> list[dict]:
    """Return accuracies at each nominal epsilon: with the noise it needs, with the published."""
    X, X_test, y, y_test = data
    gone, rows = forget_set(y, share, seed), []
    fitted = {
        what: net(name, method, EPOCHS_BEFORE, seed).fit(X, y)
        for what, method in methods(budget).items()
        if what in ("output perturbation", "gradient clipping", "model clipping")
    }
    for target in RENYI_TARGETS:
        nominal = reported_epsilon(target, DELTA)
        bought = bought_epsilon(target, DELTA)
        for what, model in fitted.items():
            asked = {"noise that epsilon needs": nominal}
            if what == "gradient clipping":
                asked["published noise"] = bought
            for noise, epsilon in asked.items():
                request = {"indices": gone, "epsilon": epsilon, "delta": DELTA}
                figures = with_control(deepcopy(model), request, (X_test, y_test))
                rows.append(
                    {"data": name, "share": share, "seed": seed, "method": what, "noise": noise}
                    | {"nominal": nominal, "certified": epsilon}
                    | figures
                )
    return rows


def private_training(name: str, data: tuple, budget: int, seed: int) -> list[dict]:
    """Return the accuracy of DP-SGD whose certificate covers a group of rows, at (1, 1e-5)."""
    X, X_test, y, y_test = data
    rate = SETTING["batch_size"] / len(y)
    steps, rows = round(budget / rate), []
    for group in GROUPS:
        noise = sampled_gaussian_noise(rate, steps, EPSILON, DELTA, group=group)
        row = {"data": name, "group": group, "noise_multiplier": noise, "seed": seed}
        if np.isfinite(noise):
            method = PrivateTraining(
                noise, steps=steps, sample_rate=rate, batch_size=128, max_deletions=group
            )
            model = net(name, method, budget, seed).fit(X, y)
            model.unlearn(indices=np.arange(group), epsilon=EPSILON, delta=DELTA)
            assert model.certificate_.verify().formal
            row["accuracy"] = 100 * model.score(X_test, y_test)
        rows.append(row)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(row["data"], row["share"]) for row in rows})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 1.8, 3.6), squeeze=False
    )
    for axis, (data, share) in zip(axes[0], panels, strict=True):
        here = [row for row in rows if (row["data"], row["share"]) == (data, share)]
        budgets = sorted({row["budget"] for row in here})
        for number, method in enumerate(dict.fromkeys(row["method"] for row in here)):
            for key, style in (("accuracy", "o-"), ("control", "x:")):
                means = [_mean_at(here, method, budget, key) for budget in budgets]
                if None not in means:
                    label = method if key == "accuracy" else f"{method}, control"
                    axis.plot(budgets, means, style, color=f"C{number}", label=label, markersize=4)
        axis.set(title=f"{data}, {share:.0%} deleted", xlabel="epochs", xticks=budgets)
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _mean_at(rows: list[dict], method: str, budget: int, key: str) -> float | None:
    values = [r.get(key) for r in rows if (r["method"], r["budget"]) == (method, budget)]
    return None if None in values else mean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/koloskova2025.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shares, budgets, budget = (0.01, 0.1), (1, 2, 4, 8, 16), 8
    if args.quick:
        args.seeds, shares, budgets, budget = 5, (0.1,), (1, 4), 4
    curves, sweep, private = [], [], []
    for name in HIDDEN:
        data = load(name, args.quick)
        for seed in range(args.seeds):
            for share in shares:
                for epochs in budgets:
                    curves += budget_curves(name, data, share, epochs, seed)
            sweep += epsilons(name, data, shares[-1], budget, seed)
            if seed == 0 or not args.quick:
                private += private_training(name, data, 5 * budget, seed)
    print(f"test accuracy in percent, mean ± standard error over {args.seeds} seeds")
    print("\nbudgets (epochs)\n" + shown(curves, ("data", "share", "budget", "method")))
    keys = ("data", "method", "noise", "nominal", "certified")
    print("\nepsilons (nominal, certified)\n" + shown(sweep, keys))
    print("\nDP-SGD at (1, 1e-5) for a group of rows\n" + shown(private, ("data", "group")))
    gains = over_control(curves + sweep)
    show_gains(gains, EPSILON, DELTA)
    record = {
        "setting": SETTING | CLIPPING,
        "over control": gains,
        "budgets": curves,
        "epsilons": sweep,
        "private training": private,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1))
    plot(curves, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
