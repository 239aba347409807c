"""What a noisy step costs over one of ordinary training, and its noise over published constants.

MNIST and Adult from the folder that SK_UNLEARN_DATA names; one thread, medians of ratios from one
run.

    python benchmarks/noisy_step.py
"""

from __future__ import annotations

import argparse
import json
from math import log, sqrt
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch
from koloskova2025 import CLIPPING, DELTA, EPSILON, HIDDEN, SETTING, load, net

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import calibrate
from sk_unlearn.events import NoisyIterations
from sk_unlearn.methods import GradientClipping, ModelClipping, OutputPerturbation, Retrain


def noise_ratios() -> dict[str, float]:
    """Return calibrated noise over published noise, for the configuration of this run."""
    C0, C1, gamma = (CLIPPING[k] for k in ("radius", "clip_norm", "learning_rate"))
    steps = CLIPPING["steps"]
    event = calibrate(NoisyIterations(C0, C1, gamma, 0.0, steps, None), EPSILON, DELTA)
    theorem = sqrt(9 * log(1 / DELTA) / (EPSILON**2 * steps)) * (C0 + C1 * gamma * steps)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noisy_step.json"))
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.rounds, args.steps = 3, 60
    costs = []
    for name in HIDDEN:
        data = load(name, args.quick)
        for hidden in (HIDDEN[name], (128,)):
            costs.append(step_cost(name, data, hidden, args.rounds, args.steps))
            print(json.dumps(costs[-1]), flush=True)
    ratios = noise_ratios()
    for what, ratio in ratios.items():
        print(f"sigma, {what}: {ratio:.4f} = 1/{1 / ratio:.4f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"noise ratios": ratios, "step cost": costs}, indent=1))


if __name__ == "__main__":
    main()
