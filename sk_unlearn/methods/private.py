"""Differentially private training, which needs no work at deletion (T3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import nn
from tqdm.auto import tqdm

from ..assumptions import Assumption, Status
from ..constraint import project
from ..events import Event, PoissonSampledTraining
from ..exceptions import DeletionRequestError, NotApplicableError
from ._checks import require_count, require_number
from .base import Outcome, Problem, Setting, UnlearningMethod

_INSIDE = 1.0 - 1e-5
_MOST_ROWS = 2**17  # whose float64 sums are off by less than the hair that _INSIDE leaves


class PrivateTraining(UnlearningMethod):
    """Train with per-row clipped gradients and noise; delete without doing anything (T3).

    The baseline of Koloskova et al. 2025. ``fit`` runs DP-SGD: at each step every row takes part
    with probability `sample_rate`, independently; the gradients of those that do are clipped
    one by one, summed, and noised. The model then hardly depends on any
    `max_deletions` rows, so deleting them leaves it as it is. What one row is worth grows to a
    group of rows by (T3); deletions are counted from the training on, over all requests.

    Every constant is declared, none follows from the number of rows: that number differs between
    the two worlds. Needs the extra ``sk_unlearn[private]``.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise of a sum over `clip_norm`.
        :func:`sk_unlearn.accounting.sampled_gaussian_noise` says what (epsilon, delta) needs.
    clip_norm : float
        Euclidean norm that the gradient of each row, over all weights, is clipped to.
    learning_rate : float
        Step size.
    steps : int
        Number of steps.
    sample_rate : float
        Probability that a row takes part in a step.
    batch_size : int
        What noisy sums are divided by; about ``sample_rate`` times the number of rows.
    max_deletions : int
        Rows that may be deleted, in all requests together, until the next fit.

    Raises
    ------
    NotApplicableError
        At fit, when a parameter is out of range, for a module that Opacus cannot
        differentiate row by row or that is random (dropout), for a criterion with
        ``ignore_index``, and for ``partial_fit`` (a model that has seen rows already).
    DeletionRequestError
        At unlearn, beyond `max_deletions`.

    Examples
    --------
    >>> from sk_unlearn.accounting import sampled_gaussian_noise
    >>> from sk_unlearn.methods import PrivateTraining
    >>> noise = sampled_gaussian_noise(0.02, 200, epsilon=1.0, delta=1e-5, group=2)
    >>> method = PrivateTraining(noise, steps=200, sample_rate=0.02, max_deletions=2)
    """

    trains = False

    def __init__(
        self,
        noise_multiplier: float = 1.0,
        clip_norm: float = 1.0,
        learning_rate: float = 0.5,
        steps: int = 1000,
        sample_rate: float = 0.01,
        batch_size: int = 128,
        max_deletions: int = 1,
    ) -> None:
        self.noise_multiplier = noise_multiplier
        self.clip_norm = clip_norm
        self.learning_rate = learning_rate
        self.steps = steps
        self.sample_rate = sample_rate
        self.batch_size = batch_size
        self.max_deletions = max_deletions

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse parameters that are out of range, and modules without per-row gradients."""
        for name in ("noise_multiplier", "clip_norm", "learning_rate", "sample_rate"):
            require_number("PrivateTraining", name, getattr(self, name))
        for name in ("steps", "batch_size", "max_deletions"):
            require_count("PrivateTraining", name, getattr(self, name), at_least=1)
        if self.sample_rate > 1:
            raise NotApplicableError(
                f"PrivateTraining(sample_rate={self.sample_rate!r}): give a probability"
            )
        if getattr(criterion, "ignore_index", -1) >= 0:
            raise NotApplicableError(
                f"PrivateTraining does not apply: criterion with ignore_index="
                f"{criterion.ignore_index} divides by the number of rows that count, so that one "
                "row more changes the gradients of all; leave it out"
            )
        opacus, module = _opacus(), deepcopy(module).train()
        errors = opacus.validators.ModuleValidator.validate(module, strict=False)
        try:
            opacus.GradSampleModule(module)
        except NotImplementedError as error:
            errors.append(error)
        if errors:
            raise NotApplicableError(
                f"PrivateTraining needs the gradient of each row, and Opacus refuses this module: "
                f"{errors[0]}"
            )

    def event(self, setting: Setting) -> Event:
        """Announce what the training was."""
        return PoissonSampledTraining(
            float(self.noise_multiplier),
            float(self.sample_rate),
            int(self.steps),
            int(self.max_deletions),
        )

    def amend_obstacle(self) -> str | None:
        """Refuse: the training is over, and knows nothing of corrected rows."""
        return (
            "it does nothing after training, so the model would not learn the corrected rows; fit "
            "again, on the corrected data"
        )

    @property
    def passes_of_fit(self) -> float:
        """Passes over the training rows that fit makes, in expectation."""
        return float(self.steps * self.sample_rate)

    def passes(self, setting: Setting, n_rows: int) -> float:
        """Return the passes over the retained rows that a release makes: none."""
        return 0.0

    def prepare(self, problem: Problem) -> tuple[np.ndarray, int]:
        """Train; keep the number of rows, against which deletions are counted."""
        if problem.state is not None:
            raise NotApplicableError(
                "PrivateTraining covers one training from a fresh initialisation; training on "
                "would spend the guarantee of the rows seen before a second time: call fit, with "
                "warm_start=False"
            )
        return self._train(problem), len(problem.retained)

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Return the weights as they are, if the rows are few enough."""
        if problem.state is None:
            raise NotApplicableError(
                "these weights do not come from PrivateTraining, so it promises nothing about "
                "them; it does nothing at deletion and has no control"
            )
        deleted = problem.state - len(problem.retained)
        if deleted > event.max_deletions:
            before = deleted - len(problem.deleted)
            raise DeletionRequestError(
                f"{len(problem.deleted)} rows to delete after {before} deleted before: the "
                f"training covers max_deletions={event.max_deletions} in all. Fit again on the "
                "rows that stay, and with a larger max_deletions if more are to come"
            )
        mechanism = (
            f"{event.steps} steps; each row takes part in a step with probability "
            f"{event.sample_rate:g}, drawn from the operating system's entropy; its gradient over "
            f"all weights is clipped to norm {self.clip_norm:g}; sums get fresh noise of "
            f"{event.noise_multiplier:g} times that norm from the same source and are divided by a "
            "constant"
        )
        group = (
            f"at most {event.max_deletions} rows are deleted after the training, over all requests "
            "together (T3)"
        )
        assumptions = (
            Assumption("private training", Status.BY_CONSTRUCTION, mechanism),
            Assumption("group", Status.BY_CONSTRUCTION, group, f"{deleted} rows until now"),
        )
        seen = {"passes": 0.0}
        state = problem.state
        return Outcome(problem.parameters, event, assumptions, seen, scope=_SCOPE, state=state)

    def _train(self, problem: Problem) -> np.ndarray:
        sums = _ClippedSums(problem, self.clip_norm)
        rate, lam = self.learning_rate / self.batch_size, problem.setting.lam
        std = rate * self.noise_multiplier * self.clip_norm
        x = project(problem.parameters, problem.reference, problem.setting.C)
        chosen = _poisson_samples(problem, self.sample_rate, self.steps)
        quiet = problem.verbose < 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for rows in tqdm(chosen, "private training", self.steps, leave=False, disable=quiet):
                x = x - rate * sums(x, rows) - self.learning_rate * lam * (x - problem.reference)
                x = problem.noise.release(x, std)
                x = project(x, problem.reference, problem.setting.C)
        return x


_SCOPE = (
    "whether module and criterion compute the loss of a row from that row alone",
    "that the float32 gradient of a row differs, in its last bits, with the rows it is computed "
    "together with",
)


class _ClippedSums:
    """Sum over rows of their clipped gradients, at weights given as one float64 vector.

    Clipped and summed in float64: in float32 a row can move the sum by a third more than its
    own clipped gradient, by the rounding of all the others (Casacuberta et al. 2022).
    """

    def __init__(self, problem: Problem, clip_norm: float) -> None:
        module = deepcopy(problem.module).train()
        self.module = _opacus().GradSampleModule(module, loss_reduction="mean")
        self.criterion = deepcopy(problem.criterion)
        self.trainable = [p for p in self.module.parameters() if p.requires_grad]
        self.X = torch.as_tensor(problem.retained.X)
        self.y = torch.as_tensor(problem.retained.y)
        self.clip_norm = clip_norm * _INSIDE

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.zeros_like(x)
        if len(rows) > _MOST_ROWS:
            raise NotApplicableError(
                f"a step with {len(rows)} rows: the rounding of a sum of more than {_MOST_ROWS} "
                "is not covered; lower sample_rate"
            )
        like = self.trainable[0]
        nn.utils.vector_to_parameters(
            torch.as_tensor(x).to(like.device, like.dtype), self.trainable
        )
        self.module.zero_grad()
        X, y = self.X[rows].to(like.device), self.y[rows].to(like.device)
        before = _random_state(like.device)
        self.criterion(self.module(X), y).backward()
        if not torch.equal(before, _random_state(like.device)):
            raise NotApplicableError(
                f"{type(self.module._module).__name__} draws random numbers (dropout?): one row "
                "more or less would change what the others draw, and so the sum by more than its "
                "own clipped gradient; leave them out"
            )
        gradients = [p.grad_sample.flatten(1).double() for p in self.trainable]
        return torch.cat(clipped_sums(gradients, self.clip_norm)).cpu().numpy()


def _random_state(device: torch.device) -> torch.Tensor:
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.tensor([])
    return torch.cat([torch.get_rng_state(), own.to(torch.uint8)])


def clipped_sums(gradients: list[torch.Tensor], clip_norm: float) -> list[torch.Tensor]:
    """Return the sums over rows of gradients (n, k_i), float64, each row clipped as a whole.

    The gradient of a row counts as 0 where it is not finite: it must not touch the others.
    """
    norms = torch.stack([g.square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    share = (clip_norm / norms).clamp(max=1.0)
    finite = norms.isfinite()
    if not finite.all():
        gradients = [torch.where(finite[:, None], g, 0.0) for g in gradients]
    return [share.nan_to_num() @ g for g in gradients]


def _poisson_samples(problem: Problem, rate: float, steps: int) -> Iterator[np.ndarray]:
    """Yield for each step the rows that take part, each independently with probability `rate`."""
    level = float(ndtri(rate))
    for _ in range(steps):
        yield np.flatnonzero(problem.noise.gaussian(len(problem.retained), 1.0) < level)


def _opacus() -> Any:
    try:
        import opacus
        import opacus.validators
    except ImportError as error:
        raise ImportError(
            "PrivateTraining trains with Opacus, which is not installed: pip install "
            "'sk_unlearn[private]'"
        ) from error
    return opacus
