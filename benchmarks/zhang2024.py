"""The experiments of Zhang et al. 2024: what a Newton step recovers, what its bounds ask for.

MNIST with the MLP 784-32-32-10 (8,000 rows, 1,000 deleted), CIFAR-10 with AllCNN, SVHN with
ResNet18, GroupNorm for BatchNorm. With --quick the two convolutional nets have 8 channels and see
1,000 images of half the side; the real ones want --device cuda. SK_UNLEARN_DATA names the folder
of the data; what is not there is left out, and the output says so.

    python benchmarks/zhang2024.py [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _zhang_claims import claims
from _zhang_experiments import answers, convergence, lissa_over_exact, sequence, sweep
from _zhang_nets import DELTA, EPSILON, Case, cases, load, split

from sk_unlearn.curvature import Exact

COLUMNS = {  # width, format
    "deleted": (12, ".2f"),
    "retained": (13, ".2f"),
    "test": (12, ".2f"),
    "auc": (13, ".3f"),
    "distance": (15, ".3g"),
    "seconds": (13, ".2g"),
}


def every_seed(case: Case, rows: tuple, seeds: int, device: str) -> dict[str, Any]:
    """Return the main table and the bounds of one net, for each seed."""
    runs, bounds = [], []
    for seed in range(seeds):
        run, known, _ = answers(case, split(case, *rows, seed), seed, device)
        runs.append(run)
        bounds.append(known)
    return {"n": case.n_train, "n deleted": case.n_deleted, "runs": runs, "bounds": bounds}


def mean_and_error(values: list[float], form: str) -> str:
    """Return the mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:{form}}"
    return f"{np.mean(values):{form}} ±{np.std(values, ddof=1) / len(values) ** 0.5:{form}}"


def show_answers(name: str, record: dict[str, Any]) -> None:
    runs, bounds = record["runs"], record["bounds"]
    print(f"\n{name}: {record['n']} rows, {record['n deleted']} deleted, {len(runs)} seeds")
    titles = "".join(f"{column:>{width}}" for column, (width, _) in COLUMNS.items())
    print(f"{'':27}{titles}  residual")
    for answer in runs[0]:
        line = f"{answer:27}"
        for column, (width, form) in COLUMNS.items():
            line += mean_and_error([run[answer][column] for run in runs], form).rjust(width)
        if "residual" in runs[0][answer]:
            states = sorted({run[answer]["status"].lower() for run in runs} - {"converged"})
            residual = np.mean([run[answer]["residual"] for run in runs])
            line += f"  {residual:.2g} {', '.join(states)}".rstrip()
        print(line)
    limit = Exact().max_parameters
    if bounds[0]["weights"] > limit:
        print(
            f"  no exact step: {bounds[0]['weights']:,} weights, a dense Hessian at most {limit:,}"
        )
    for key in bounds[0]:
        print(f"  {key:34}{np.mean([known[key] for known in bounds]):.5g}")


def show_sweep(cells: list[dict[str, Any]]) -> None:
    print("\nC and lambda, hand-set sigma: F1 on deleted rows (before, after, retrained), distance")
    print("to retraining (before, after), the bounds 2C and Newton's, and the sigma of each")
    for c in cells:
        print(
            f"C {c['C']:5g}  lambda {c['lambda']:5g}  {c['deleted before']:6.2f} "
            f"{c['deleted']:6.2f} {c['deleted retrained']:6.2f}  "
            f"{c['distance before']:7.3f} {c['distance']:7.3f}  {c['ball bound']:6.4g} "
            f"{c['newton bound']:8.4g}  {c['sigma from the ball']:6.4g} "
            f"{c['sigma from newton']:8.4g}  {c['status'].lower()}"
        )


def show_convergence(rows: list[dict[str, Any]]) -> None:
    print("\nConvergence, M = 1 and lambda_min = 0 declared: gradient norm at the end of training,")
    print("declared G, distance to retraining (before, after), F1 on deleted rows (before, after,")
    print("retrained); then the bound, its sigma, the certificate's epsilon, what the run refutes")
    for r in rows:
        line = (
            f"epochs {r['epochs']:3d}  norm {r['gradient norm']:.3f}  G {r['G']:5g}  "
            f"{r['distance before']:6.3f} {r['distance']:6.3f}  {r['deleted before']:6.2f} "
            f"{r['deleted']:6.2f} {r['deleted retrained']:6.2f}  "
        )
        if "refused" in r:
            print(line + "refused: above G")
            continue
        refuted = ", ".join(name.split()[0] for name in r["refuted"]) or "nothing"
        print(line + f"{r['bound']:7.4g} {r['sigma']:7.4g}  eps {r['epsilon']:g}  {refuted}")


def show_sequence(rows: list[dict[str, Any]]) -> None:
    print("\nTen requests of a tenth of the rows each, one after the other: F1 on the rows deleted")
    print("so far (and of retraining), on test rows, distance to retraining, epsilon of them all")
    for r in rows:
        epsilon = f"  eps {r['epsilon']:g}" if "epsilon" in r else ""
        print(
            f"{r['answer']:32}{r['requests']:3d}  {r['deleted']:6.2f} {r['deleted retrained']:6.2f}"
            f"  {r['test']:6.2f}  {r['distance']:10.4g}{epsilon}"
        )


def show_exact(rows: list[dict[str, Any]]) -> None:
    print("\nLiSSA over the exact Hessian (MLP with 5 hidden units, images pooled); CPU seconds")
    for r in rows:
        print(
            f"p {r['weights']:5d}  n {r['rows']}  s {r['steps']:5d}  exact "
            f"{r['exact seconds']:7.2f}  LiSSA {r['LiSSA seconds']:6.2f}  CG "
            f"{r['CG seconds']:6.3f}  ratio {r['exact seconds'] / r['LiSSA seconds']:6.1f}  "
            f"error of LiSSA {r['error']:.3f}, {r['status'].lower()}"
        )


def plot(records: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(records), figsize=(5 * len(records), 3.6), squeeze=False)
    for axis, (name, record) in zip(axes[0], records.items(), strict=True):
        runs = record["runs"]
        noisy = [a for a, row in runs[0].items() if "sigma" in row and "LiSSA" not in a]
        sigmas = [runs[0][answer]["sigma"] for answer in noisy]
        for part, color in (("deleted", "C3"), ("test", "C0")):
            means = [np.mean([run[answer][part] for run in runs]) for answer in noisy]
            axis.semilogx(sigmas, means, "o-", color=color, label=f"Newton, {part} rows")
            level = np.mean([run["retrain, same init"][part] for run in runs])
            axis.axhline(level, color=color, linestyle=":", label=f"retrained, {part} rows")
        axis.axvline(sigmas[-1], color="0.4", linewidth=1)
        axis.annotate(
            f"certified at ε = {EPSILON:g}, δ = {DELTA:g}",
            (sigmas[-1], axis.get_ylim()[1]),
            rotation=90,
            va="top",
            ha="right",
            fontsize=7,
        )
        axis.set(title=name, xlabel="standard deviation of the noise per weight")
    axes[0, 0].set_ylabel("micro-F1, %")
    axes[0, 0].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="nets whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zhang2024.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 2
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    print("F1 and accuracies in percent, mean ± standard error over seeds; AUC of a threshold on")
    print("the loss, deleted rows against test rows; distance of the weights to retraining from")
    print("the same initialisation; CPU seconds of one thread; residual of the linear system over")
    print("the norm of the gradient, and why the solver stopped, unless it converged")
    records, missing = {}, []
    for case in cases(args.quick):
        if args.only not in case.name:
            continue
        try:
            rows = load(case)
        except FileNotFoundError:
            missing.append(case.name)
            print(f"\n{case.name}: left out, its data was not found (sk_unlearn.datasets)")
            continue
        records[case.name] = every_seed(case, rows, args.seeds, args.device)
        show_answers(case.name, records[case.name])
        if case.name.startswith("MNIST"):
            records[case.name] |= on_digits(case, split(case, *rows, 0), args)
    print("\nWhat of the paper's claims these figures bear out")
    for sentence in (each for name, record in records.items() for each in claims(name, record)):
        print(textwrap.fill(sentence, 100, initial_indent="- ", subsequent_indent="  "))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"quick": args.quick, "device": args.device, "missing": missing, "nets": records}
    args.out.write_text(json.dumps(record, indent=1))
    if records:
        plot(records, args.out.with_suffix(".png"))


def on_digits(case: Case, data: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Run the studies that take many trainings, on the small net."""
    radii, dampings, pools = (5, 20, 100), (0.1, 1, 10, 100), (4, 2, 1)
    steps, shown = (100, 1000, 10_000), (1, 2, 4, 6, 8, 10)
    if args.quick:
        radii, dampings, pools = (5, 20), (0.1, 1, 10), (4, 2)
        steps, shown = (100, 1000), (1, 10)
    epochs = (max(1, case.epochs // 5), case.epochs, 4 * case.epochs)
    record = {
        "sweep": sweep(case, data, 0, args.device, radii, dampings),
        "convergence": convergence(case, data, 0, args.device, epochs, (0.3, 1.0)),
        "sequence": sequence(case, data, 0, args.device, shown),
        "exact": lissa_over_exact(case, data, 0, pools, steps),
    }
    show_sweep(record["sweep"])
    show_convergence(record["convergence"])
    show_sequence(record["sequence"])
    show_exact(record["exact"])
    return record


if __name__ == "__main__":
    main()
