"""What every test shares: one thread, hypothesis profiles, the folder of reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

torch.set_num_threads(1)
threadpool_limits(1)

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

DATA = os.environ.get("SK_UNLEARN_DATA")  # read before any test changes the environment


def reference_data(*names: str) -> Path:
    """Return the folder of reference data; without it fail in CI, and skip elsewhere."""
    home = Path(DATA).expanduser() if DATA else None
    absent = [name for name in names if home is None or not (home / name).is_file()]
    if home is not None and not absent:
        return home
    reason = f"needs {', '.join(absent)} in the folder SK_UNLEARN_DATA (which is {DATA!r})"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must run on the real data")
    pytest.skip(reason)


@pytest.fixture
def mnist_home() -> Path:
    """Folder that holds the 10,000 MNIST test images."""
    return reference_data("mnist10k.npz")


@pytest.fixture
def cifar10_home() -> Path:
    """Folder that holds both parts of the JPEG copy of CIFAR-10."""
    return reference_data("cifar10_train_jpeg.npz", "cifar10_test_jpeg.npz")


@pytest.fixture
def adult_home() -> Path:
    """Folder that holds the training part of Adult."""
    return reference_data("adult.csv.gz")
