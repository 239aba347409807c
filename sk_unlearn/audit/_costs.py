"""What an answer to a deletion request costs, and how soon what was forgotten is learnt again."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

__all__ = ["NOTHING", "Cost", "Lesson", "measured"]

_MOST_EPOCHS = 200
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What an action took.

    Parameters
    ----------
    wall_seconds, cpu_seconds : float
        Of this process, all threads.
    memory_mib : float
        See :func:`measured`.
    """

    wall_seconds: float
    cpu_seconds: float
    memory_mib: float


NOTHING = Cost(0.0, 0.0, 0.0)


def measured(action: Callable[[], Any]) -> tuple[Any, Cost]:
    """Run an action; return what it returns and what it cost.

    The memory is the growth of the process's resident set from the start of the action to its
    peak, in MiB, whoever allocates (numpy, torch, BLAS): the kernel's ``VmHWM``, reset at the
    start. Free pages go back to the system before, as far as the C library can give them; what
    it keeps and the action uses again is not seen, and neither is memory of a GPU. NaN where
    the kernel has no such counter (other systems than Linux).
    """
    gc.collect()
    before = _reset_peak()
    wall, cpu = perf_counter(), process_time()
    result = action()
    wall, cpu = perf_counter() - wall, process_time() - cpu
    return result, Cost(wall, cpu, (_kib("VmHWM") - before) / 1024)


@dataclass(frozen=True)
class Lesson:
    """The deleted rows, to be learnt (again) by a copy of a net.

    Parameters
    ----------
    net : skorch net
        With a module of its own; everything else it shares with the net that it copies.
    X, y : tensor
        The rows, as the net takes them, and their class indices.
    """

    net: Any
    X: Any
    y: Any

    @classmethod
    def of(cls, model: Any, X: Any, y: Any) -> Lesson | None:
        """Return the lesson for a net, or a pipeline that ends in one; None for anything else."""
        steps = getattr(model, "steps", None)
        net = steps[-1][1] if steps else model
        if not (hasattr(net, "module_") and hasattr(net, "get_loss")):
            return None
        import torch

        X = model[:-1].transform(X) if steps and len(steps) > 1 else X
        twin = object.__new__(type(net))
        vars(twin).update(vars(net))
        vars(twin)["module_"] = deepcopy(net.module_)
        rows = torch.as_tensor(np.asarray(X, dtype=np.float32))
        return cls(twin, rows, torch.as_tensor(np.searchsorted(net.classes_, y)))

    def loss(self) -> float:
        """Return the mean loss, penalty excluded."""
        import torch

        self.net.module_.eval()
        with torch.no_grad():
            return float(self.net.get_loss(self.net.infer(self.X), self.y, training=False))

    def learn(self, target: float) -> tuple[float, float]:
        """Train until the loss is at most `target`; return epochs and seconds.

        Each step is one on all the rows, so one epoch: the net's own optimizer class and ``lr``,
        from a fresh state, on its own loss without penalty and without the ball, and without
        the other rows. 0 epochs if the loss is there already, infinitely many after 200.
        """
        import torch

        net, start = self.net, perf_counter()
        trainable = [p for p in net.module_.parameters() if p.requires_grad]
        optimizer = net.optimizer(trainable, lr=net.lr)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for epoch in range(_MOST_EPOCHS + 1):
                if self.loss() <= target:
                    return float(epoch), perf_counter() - start
                net.module_.train()
                optimizer.zero_grad()
                net.get_loss(net.infer(self.X), self.y, training=False).backward()
                optimizer.step()
        return inf, perf_counter() - start


def _reset_peak() -> float:
    """Give free pages back, let the kernel's peak start anew; return what is resident, KiB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass  # not the GNU C library
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return nan
    return _kib("VmRSS")


def _kib(name: str) -> float:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return nan
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name}:")), nan)
