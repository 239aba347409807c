"""Data-independent features: images per second, peak memory, batch-invariance, accuracy.

MNIST's 10,000 test images, from the folder that SK_UNLEARN_DATA names; one thread, medians over
rounds; each setting of Scattering2D runs in a process of its own, so that its peak memory is its
own too.

    python benchmarks/features.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from torch import nn

from sk_unlearn.datasets import load_mnist
from sk_unlearn.features import Scattering2D, TorchFeatures

MNIST = {"groups": 27, "pool": 3, "constant": True}
CIFAR = {"groups": 27, "pool": 2, "constant": True}
SETTINGS: list[tuple[str, str, int]] = [
    ("mnist", "float32", 1),
    ("mnist", "float32", 16),
    ("mnist", "float32", 256),
    ("mnist", "float64", 1),
    ("mnist", "float64", 16),
    ("noise 3x32x32", "float32", 16),
]


def peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clock(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall seconds and CPU seconds of one call."""
    wall, cpu = perf_counter(), process_time()
    call()
    return perf_counter() - wall, process_time() - cpu


def scattering_speed(images: str, dtype: str, batch_size: int, n: int, rounds: int) -> Any:
    """Measure one setting of Scattering2D."""
    torch.set_num_threads(1)
    if images == "mnist":
        X, parameters = load_mnist(subset="test", return_X_y=True)[0][:n], MNIST
    else:
        n = n // 5
        X, parameters = np.random.default_rng(0).random((n, 3, 32, 32), dtype=np.float32), CIFAR
    X = X.astype(dtype)
    transformer = Scattering2D(**parameters, batch_size=batch_size)
    first, _ = clock(lambda: transformer.transform(X[:1]))
    one = median(clock(lambda: transformer.transform(X[:1]))[1] for _ in range(20))
    before = peak_mib()
    features = transformer.transform(X)
    peak = peak_mib() - before
    seconds = [clock(lambda: transformer.transform(X)) for _ in range(rounds)]
    return {
        "images": images,
        "dtype": dtype,
        "batch_size": batch_size,
        "n_images": n,
        "n_features": features.shape[1],
        "images_per_cpu_second": n / median(cpu for _, cpu in seconds),
        "images_per_wall_second": n / median(wall for wall, _ in seconds),
        "wall_seconds": [wall for wall, _ in seconds],
        "cpu_seconds": [cpu for _, cpu in seconds],
        "first_image_ms": 1e3 * first,
        "one_image_ms": 1e3 * one,
        "peak_growth_mib": peak,
        "features_mib": features.nbytes / 2**20,
    }


def network_speed(X: NDArray[np.float32], rounds: int) -> dict[str, Any]:
    """Compare TorchFeatures with plain batches, and plain batches with one another."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 128)),
    )

    @torch.inference_mode()
    def plain(batch_size: int) -> NDArray[np.float32]:
        return torch.cat([net(batch) for batch in torch.from_numpy(X).split(batch_size)]).numpy()

    transformer = TorchFeatures(net)
    features = transformer.transform(X)
    order = np.random.default_rng(0).permutation(len(X))[: len(X) // 3]
    plain_cpu = median(clock(lambda: plain(64))[1] for _ in range(rounds))
    own_cpu = median(clock(lambda: transformer.transform(X))[1] for _ in range(rounds))
    return {
        "plain_images_per_cpu_second": len(X) / plain_cpu,
        "torch_features_images_per_cpu_second": len(X) / own_cpu,
        "plain_difference_between_batch_sizes": float(
            max(np.abs(plain(size) - features).max() for size in (1, 7, 100, 1000))
        ),
        "torch_features_bits_that_differ_in_a_shuffled_third": int(
            (transformer.transform(X[order]) != features[order]).sum()
        ),
    }


def accuracies() -> dict[str, Any]:
    """Test a ridge classifier on the 730 features, 8,000 images against 2,000."""
    X, y = load_mnist(subset="test", return_X_y=True)
    features = Scattering2D(**MNIST).transform(X)
    orders = {"in order": np.arange(len(X))}
    orders |= {f"split {s}": np.random.default_rng(s).permutation(len(X)) for s in range(5)}
    return {
        name: RidgeClassifier(alpha=10)
        .fit(features[order[:8000]], y[order[:8000]])
        .score(features[order[8000:]], y[order[8000:]])
        for name, order in orders.items()
    }


def main() -> None:
    """Measure, print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/features.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    args = parser.parse_args()
    n, rounds = (1000, 3) if args.quick else (10_000, args.rounds)
    torch.set_num_threads(1)
    rows = []
    spawn = multiprocessing.get_context("spawn")
    print("images         dtype    chunk  per CPU s  per wall s  one image   peak  features (MiB)")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for setting in SETTINGS:
            row = pool.submit(scattering_speed, *setting, n, rounds).result()
            rows.append(row)
            print(
                f"{row['images']:<14} {row['dtype']} {row['batch_size']:6d} "
                f"{row['images_per_cpu_second']:10.0f} {row['images_per_wall_second']:11.0f} "
                f"{row['one_image_ms']:7.1f} ms {row['peak_growth_mib']:6.0f} "
                f"{row['features_mib']:9.1f}"
            )
    network = network_speed(load_mnist(subset="test", return_X_y=True)[0][:n], rounds)
    for name, value in network.items():
        print(f"{name}: {value:.4g}")
    accuracy = accuracies()
    print("ridge, 8,000 against 2,000 MNIST images:")
    print("  " + ", ".join(f"{name} {100 * value:.2f}%" for name, value in accuracy.items()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            {
                "torch": torch.__version__,
                "scattering": rows,
                "network": network,
                "ridge_accuracy": accuracy,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
