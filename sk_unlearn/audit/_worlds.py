"""What every way to run both worlds needs: which rows are meant, noise of its own, no record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone


def unrecorded(estimator: Any) -> Any:
    """Return a clone whose trial deletions stand in no ledger file and count in no budget."""
    base = clone(estimator, safe=False)
    params = base.get_params() if hasattr(base, "get_params") else {}
    names = [name for name in params if name.split("__")[-1] in ("ledger", "budget")]
    return base.set_params(**dict.fromkeys(names)) if names else base


def set_noise_seed(estimator: Any, seed: int) -> None:
    """Give an estimator, or the last step of a pipeline, another seed if it has one."""
    steps = getattr(estimator, "steps", None)
    net = steps[-1][1] if steps else estimator
    if getattr(net, "noise_seed", None) is not None:
        net.noise_seed = seed


def check_forget(forget: ArrayLike, n: int, name: str = "forget") -> NDArray[np.intp]:
    """Return the positions, sorted and each once; raises ValueError for none, or all."""
    positions = np.unique(np.asarray(forget))
    integral = np.issubdtype(positions.dtype, np.integer)
    if positions.ndim != 1 or not len(positions) or not integral:
        raise ValueError(f"{name}={forget!r} names no rows; give positions in X")
    if positions[0] < 0 or positions[-1] >= n:
        raise ValueError(f"{name} names row {positions[0 if positions[0] < 0 else -1]} of {n}")
    if len(positions) == n:
        raise ValueError(f"{name} names all {n} rows; at least one must remain")
    return positions
