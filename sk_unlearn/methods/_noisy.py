"""Noisy gradient steps on the retained rows: the loop that (T4), (T5) and (T6) share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest
from math import inf

import numpy as np
import torch
from tqdm.auto import tqdm

from ..assumptions import Assumption, Status
from ..exceptions import CertificateError
from ..noise import NoiseSource
from .base import Problem, Rows

_DRAWS_AT_ONCE = 1 << 16
_INSIDE = 1.0 - 1e-9

Centre = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Trace:
    """What was seen while the steps ran."""

    steps: int = 0
    rows: int = 0
    largest_gradient: float = 0.0
    not_finite: int = 0


class BatchGradient:
    """Gradient of the mean batch loss in chosen weights, which lie in one flat vector.

    The module is copied; the penalty is not part of the loss. Dropout and the like are active,
    as in training.

    Parameters
    ----------
    problem : Problem
    weights : ndarray of shape (p,), float64
        Values of all trainable weights; those not chosen stay at them.
    chosen : ndarray of bool of shape (p,)
        Weights to differentiate in; whole tensors only.
    """

    def __init__(self, problem: Problem, weights: np.ndarray, chosen: np.ndarray) -> None:
        self.module = deepcopy(problem.module).train()
        self.criterion = deepcopy(problem.criterion)
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        like = trainable[0]
        self.weights = torch.as_tensor(weights).to(like.device, like.dtype)
        self.gradient = torch.zeros_like(self.weights)
        start = 0
        for parameter in trainable:
            part = slice(start, start + parameter.numel())
            parameter.data = self.weights[part].view_as(parameter)
            if chosen[start]:
                parameter.grad = self.gradient[part].view_as(parameter)
            else:
                parameter.requires_grad_(False)
            start = part.stop
        every = chosen.all()
        self.span = (
            slice(None) if every else torch.from_numpy(np.flatnonzero(chosen)).to(like.device)
        )

    def __call__(self, point: np.ndarray, X: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        """Return the gradient at `point` (k,), in float64 on the CPU."""
        self.weights[self.span] = torch.from_numpy(point).to(self.weights)
        self.gradient.zero_()
        self.criterion(self.module(X), y).backward()
        return self.gradient[self.span].cpu().numpy().astype(np.float64)


def batches(
    rows: Rows, batch_size: int, steps: int, seed: Sequence[int], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield exactly `steps` batches: a fresh permutation each epoch, an incomplete batch left out.

    A batch is at most all rows. `seed` is public; the generator is new, so the indices have
    the same law whatever was trained on before.
    """
    generator = np.random.default_rng(seed)
    n = len(rows)
    size = min(batch_size, n)
    while steps > 0:
        count = min(steps, n // size)
        order = generator.permutation(n)[: count * size]
        X = torch.as_tensor(rows.X[order]).to(device)
        y = torch.as_tensor(rows.y[order]).to(device)
        yield from zip(X.split(size), y.split(size), strict=True)
        steps -= count


def unit_noise(source: NoiseSource, size: int, steps: int) -> Iterator[np.ndarray]:
    """Yield a fresh standard normal vector for each step.

    Several steps are drawn at a time, and the next ones in the background: drawing from the
    operating system takes as long as a gradient of a small net.
    """
    together = max(1, _DRAWS_AT_ONCE // size)
    counts = [min(together, steps - start) for start in range(0, steps, together)]
    with ThreadPoolExecutor(1) as background:
        pending = [background.submit(source.gaussian, count * size, 1.0) for count in counts[:1]]
        for count, following in zip_longest(counts, counts[1:]):
            drawn = pending.pop().result().reshape(count, size)
            if following:
                pending.append(background.submit(source.gaussian, following * size, 1.0))
            yield from drawn


def run(
    problem: Problem,
    gradient: BatchGradient,
    start: np.ndarray,
    centre: Centre,
    sigmas: np.ndarray,
    batch_size: int,
    seed: Sequence[int],
) -> tuple[np.ndarray, Trace]:
    """Take one noisy step for each entry of `sigmas`: ``x = centre(x, g) + N(0, sigma_t^2 I)``.

    Parameters
    ----------
    problem : Problem
    gradient : BatchGradient
    start : ndarray of shape (k,), float64
        First point; not modified.
    centre : callable
        ``centre(x, g)``, the next point before its noise, given a finite gradient.
    sigmas : ndarray of shape (steps,)
        Standard deviation of the noise of each step.
    batch_size : int
    seed : sequence of int
        Of the batches.

    Returns
    -------
    x : ndarray of shape (k,), float64
        The last point, on the public grid of its noise.
    trace : Trace
        With the number of steps that ran.
    """
    trace, x = Trace(), start.copy()
    steps, last = len(sigmas), len(sigmas) - 1
    rows = batches(problem.retained, batch_size, steps, seed, gradient.weights.device)
    noise = unit_noise(problem.noise, len(x), last)
    with fresh_torch_stream(seed, gradient.weights.device):
        for X, y in tqdm(rows, "noisy steps", steps, leave=False, disable=problem.verbose < 1):
            g = gradient(x, X, y)
            norm = float(np.linalg.norm(g))
            if not norm < inf:
                g, norm = np.zeros_like(g), 0.0
                trace.not_finite += 1
            trace.largest_gradient = max(trace.largest_gradient, norm)
            x = centre(x, g)
            if trace.steps < last:
                x += sigmas[trace.steps] * next(noise)
            else:
                x = problem.noise.release(x, float(sigmas[last]))
            trace.steps += 1
            trace.rows += len(y)
    return x, trace


def clipped_step(
    reference: np.ndarray, clip_norm: float, learning_rate: float, lam: float
) -> Centre:
    """Return the step of (T4): the whole gradient clipped, then a contraction to `reference`."""
    keep = 1.0 - learning_rate * lam

    def centre(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        norm = float(np.linalg.norm(g))
        if norm > clip_norm * _INSIDE:
            g *= clip_norm * _INSIDE / norm
        assert np.linalg.norm(g) <= clip_norm
        x = x - reference
        x *= keep
        g *= learning_rate
        x -= g
        x += reference
        return x

    return centre


def require_steps(ran: int, wanted: int) -> None:
    """Raise unless exactly the steps ran that the certificate was computed for."""
    if ran != wanted:
        raise CertificateError(
            f"{ran} noisy steps ran, but the certificate was computed for {wanted}; nothing was "
            "released"
        )


@contextmanager
def fresh_torch_stream(seed: Sequence[int], device: torch.device) -> Iterator[None]:
    """Run on a new random stream of torch (for dropout); the caller's is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def fine_tuned(
    problem: Problem, released: np.ndarray, epochs: int
) -> tuple[np.ndarray, tuple[Assumption, ...]]:
    """Train on from released weights on the retained rows, which is post-processing (T7)."""
    if not epochs:
        return released, ()
    assumption = Assumption(
        "fine-tuning",
        Status.BY_CONSTRUCTION,
        f"{epochs} epochs of training from the released weights on the retained rows, with a new "
        "optimizer and generator: post-processing (T7)",
    )
    return problem.finetune(released, epochs), (assumption,)


BATCHES = Assumption(
    "batches",
    Status.BY_CONSTRUCTION,
    "drawn from the retained rows in their order by a new generator: the same law in both worlds",
)
