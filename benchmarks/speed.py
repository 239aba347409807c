"""What a deletion costs, by method, against training again: over n, over p, over rows deleted.

Synthetic rows of two classes; (1, 1e-5). Each case runs in a forked process of its own, one
thread: CPU seconds of the deletion (or of the retraining that would replace it), and how far the
peak of resident memory rises above what the process held before. scikit-learn's estimators are
trained again on the rows that stay, from scratch and, where they can, from the old solution.

    python benchmarks/speed.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from threadpoolctl import threadpool_limits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.curvature import CG
from sk_unlearn.methods import (
    Analytic,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    Residual,
    Retrain,
)
from sk_unlearn.modules import LinearHead, RidgeHead

EPSILON, DELTA, LAM = 1.0, 1e-5, 1e-3
DEEP_ROWS = 100_000
DEEP = {
    "OutputPerturbation, 1 epoch after": OutputPerturbation(1),
    "GradientClipping, 1 epoch after": GradientClipping(finetune_epochs=1),
    "ModelClipping, 1 epoch after": ModelClipping(finetune_epochs=1),
    "Newton (CG, ball)": Newton(solver=CG(tol=1e-3)),
    "Retrain (30 epochs)": Retrain(),
}


def data(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32) / np.float32(d**0.5)
    logits = X @ (3 * rng.standard_normal(d, dtype=np.float32))
    return X, (logits + rng.logistic(size=n) > 0).astype(np.int64)


def deletions(n: int, d: int, n_deleted: int) -> dict[str, Callable[[], tuple[float, dict]]]:
    """Return one case per line of the table; each returns the seconds of the deletion."""
    X, y = data(n, d)
    kept = slice(n_deleted, None)

    def certified(method: object, module: object = None) -> tuple[float, dict]:
        net = CertifiedNeuralClassifier(module, lam=LAM, C=1e3, method=method, random_state=0)
        net.fit(X, y)
        resident = _peak()
        spent = _seconds(lambda: net.unlearn(indices=np.arange(n_deleted)))
        rise = _peak() - resident
        rebuild = _seconds(net.refresh)
        assert net.certificate_.verify().formal
        return spent, {"rebuild": rebuild, "MiB": rise}

    def again(model: object, warm: bool = False) -> tuple[float, dict]:
        if warm:
            model.set_params(warm_start=True).fit(X, y)
        resident = _peak()
        spent = _seconds(lambda: model.fit(X[kept], y[kept]))
        return spent, {"MiB": _peak() - resident}

    def logistic() -> LogisticRegression:
        return LogisticRegression(C=1 / (LAM * n), max_iter=1000)

    def sgd() -> SGDClassifier:
        return SGDClassifier(loss="log_loss", alpha=LAM, random_state=0)

    cases = {
        "Residual (LinearHead)": lambda: certified(Residual(), LinearHead),
        "Analytic (RidgeHead)": lambda: certified(Analytic(), RidgeHead),
        "LogisticRegression, from scratch": lambda: again(logistic()),
        "LogisticRegression, warm": lambda: again(logistic(), warm=True),
        "SGDClassifier, from scratch": lambda: again(sgd()),
        "SGDClassifier, warm": lambda: again(sgd(), warm=True),
        "RidgeClassifier, from scratch": lambda: again(RidgeClassifier(alpha=LAM * n)),
    }
    if n <= DEEP_ROWS:
        cases |= {
            f"MLP, {name}": lambda method=method: certified(method) for name, method in DEEP.items()
        }
    return cases


def _seconds(call: Callable[[], object]) -> float:
    began = process_time()
    call()
    return process_time() - began


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(case: Callable[[], tuple[float, dict]]) -> tuple[float, dict]:
    """Run one case in a forked process; what it allocated is gone afterwards."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        warnings.simplefilter("ignore")
        with threadpool_limits(1):
            theirs.send(case())

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def measure(n: int, d: int, n_deleted: int, repeats: int, deep: bool) -> list[dict]:
    rows = []
    for name, case in deletions(n, d, n_deleted).items():
        if name.startswith("MLP") and not deep:
            continue
        runs = [in_a_process(case) for _ in range(repeats)]
        seconds = median(spent for spent, _ in runs)
        more = {key: median(facts[key] for _, facts in runs) for key in runs[0][1]}
        rows.append({"what": name, "n": n, "d": d, "deleted": n_deleted, "seconds": seconds} | more)
        rebuild = f"{more['rebuild']:10.4f} s rebuild" if "rebuild" in more else " " * 20
        print(
            f"n {n:8d}  d {d:4d}  deleted {n_deleted:5d}  {name:38}{seconds:10.4f} s"
            f"{rebuild} {more['MiB']:8.0f} MiB",
            flush=True,
        )
    return rows


def plot(rows: list[dict], sizes: tuple[int, ...], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    here = [row for row in rows if row["sweep"] == "n"]
    for number, what in enumerate(dict.fromkeys(row["what"] for row in here)):
        line = [row for row in here if row["what"] == what]
        ours = what.startswith(("Residual", "Analytic"))
        style = "o-" if ours else ("s--" if what.startswith("MLP") else "x:")
        axis.loglog(
            [row["n"] for row in line],
            [row["seconds"] for row in line],
            style,
            color=f"C{number % 10}",
            label=what,
            markersize=4,
            linewidth=2 if ours else 1,
        )
    axis.set(xlabel="training rows", ylabel="CPU seconds to delete 10 rows", xticks=sizes)
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    widths, counts = (10, 50, 200, 500), (1, 10, 100, 1000)
    if args.quick:
        args.repeats, sizes, widths, counts = 1, (1_000, 10_000), (200,), (1000,)
    for case in deletions(200, 5, 2).values():
        case()  # the first call of anything pays for imports
    rows = []
    for sweep, cases in {
        "n": [(n, 50, 10) for n in sizes],
        "d": [(10_000, d, 10) for d in widths],
        "deleted": [(10_000, 50, count) for count in counts],
    }.items():
        for case in cases:
            rows += [{"sweep": sweep} | row for row in measure(*case, args.repeats, sweep == "n")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    plot(rows, sizes, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
