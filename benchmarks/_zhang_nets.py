"""The networks of Zhang et al. 2024, how they are trained here, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from time import process_time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit.membership import Rows, loss_attack
from sk_unlearn.curvature import CG, LiSSA
from sk_unlearn.datasets import load_cifar10, load_mnist, load_svhn
from sk_unlearn.methods import Newton
from sk_unlearn.modules import MLP, AllCNN, ResNet18
from sk_unlearn.objective import Objective, flatten

EPSILON, DELTA = 1.0, 1e-5
HAND_SET = 0.001

Net = CertifiedNeuralClassifier
Data = dict[str, tuple[np.ndarray, np.ndarray]]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One network on one data set.

    Parameters
    ----------
    load : callable
        Returns images and labels; which of them train is drawn for each seed.
    pool : int
        Side of the squares of pixels that become one.
    damping : float
        The paper's lambda.
    solvers : dict
        CG and LiSSA.
    products : int
        Cap on the Hessian products of an estimate of the spectrum.
    sigmas : tuple of float
        Noise by hand, beside the published 0.001.
    """

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    module: type[nn.Module]
    module_args: dict[str, Any]
    n_train: int
    n_test: int
    n_deleted: int
    epochs: int
    batch_size: int = 128
    lr: float = 1e-3
    lam: float = 1e-3
    C: float = 20.0
    pool: int = 1
    damping: float = 1.0
    products: int = 100
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    solvers: dict[str, Any] = field(
        default_factory=lambda: {"CG": CG(), "LiSSA": LiSSA(random_state=0)}
    )


def cases(quick: bool) -> list[Case]:
    """Return the paper's three; the quick ones are narrower, on fewer and smaller images."""
    digits = Case(
        "MNIST, MLP 784-32-32-10",
        lambda: load_mnist(subset="test", return_X_y=True),
        MLP,
        {"hidden": (32, 32)},
        8000,
        2000,
        1000,
        epochs=10 if quick else 30,
    )
    cut = " (8 channels, 16x16)" if quick else ""
    photos = {"damping": 10.0, "lam": 1e-4}
    if quick:
        solvers = {"CG": CG(tol=0.01, max_iter=20), "LiSSA": LiSSA(steps=150, random_state=0)}
        sizes = {"n_train": 1000, "n_test": 500, "n_deleted": 100, "epochs": 20}
        photos |= {"pool": 2, "lr": 3e-3, "batch_size": 32, "products": 20}
        photos |= {"solvers": solvers, "sigmas": (0.03, 0.3)}
        width = {"width": 8}
    else:
        sizes, width = {"n_deleted": 1000, "epochs": 50}, {}
    cifar = {"n_train": 50_000, "n_test": 10_000} | sizes
    svhn = {"n_train": 73_257, "n_test": 26_032} | sizes
    return [
        digits,
        Case(
            f"CIFAR-10, AllCNN{cut}",
            lambda: load_cifar10(subset="all", return_X_y=True),
            AllCNN,
            width,
            **cifar,
            **photos,
        ),
        Case(
            f"SVHN, ResNet18{cut}",
            lambda: load_svhn(subset="all", return_X_y=True),
            ResNet18,
            width,
            **svhn,
            **photos,
        ),
    ]


def load(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, each different one once: an attack is judged by rows of its own."""
    X, y = case.load()
    first = {row.tobytes(): i for i, row in reversed(list(enumerate(X)))}
    rows = np.sort(np.fromiter(first.values(), int))
    return pooled(X[rows], case.pool), y[rows]


def pooled(X: np.ndarray, side: int) -> np.ndarray:
    """Return images whose pixels are the means of squares of pixels."""
    n, channels, height, width = X.shape
    return X.reshape(n, channels, height // side, side, width // side, side).mean((3, 5))


def split(case: Case, X: np.ndarray, y: np.ndarray, seed: int) -> Data:
    """Draw the rows; the first rows of "trained" are those to delete."""
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[: case.n_train], order[case.n_train :][: case.n_test]
    parts = {"trained": train, "test": test}
    parts |= {"deleted": train[: case.n_deleted], "retained": train[case.n_deleted :]}
    return {name: (X[rows], y[rows]) for name, rows in parts.items()}


def net(case: Case, seed: int, device: str, **changes: Any) -> Net:
    """Return the untrained net; its method is a Newton step with the noise set by hand."""
    setting = {
        "lam": case.lam,
        "C": case.C,
        "lr": case.lr,
        "max_epochs": case.epochs,
        "batch_size": case.batch_size,
        "method": Newton(CG(), damping=case.damping, noise_std=HAND_SET),
        "random_state": seed,
        "device": device,
    }
    module = {f"module__{key}": value for key, value in case.module_args.items()}
    return Net(case.module, **(module | setting | changes))


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and its CPU seconds (with a GPU: those of the process that feeds it)."""
    start = process_time()
    result = action()
    return result, process_time() - start


def deleted_by(original: Net, rows: Iterable[int], **parameters: Any) -> tuple[Net, float]:
    """Return a copy of a trained net from which Newton, with these parameters, deleted rows."""
    copy = deepcopy(original)
    copy.method_.set_params(**parameters)
    return timed(lambda: copy.unlearn(indices=list(rows), epsilon=EPSILON, delta=DELTA))


def weights(trained: Net) -> torch.Tensor:
    """Return all trainable parameters as one vector."""
    return flatten([p.detach().cpu() for p in trained.module_.parameters() if p.requires_grad])


def objective(trained: Net, rows: tuple[np.ndarray, np.ndarray]) -> Objective:
    """Return the objective that `trained` minimises, on these rows."""
    X, y = (torch.as_tensor(part) for part in rows)
    return Objective(trained.module_, trained.criterion_, X, y, lam=trained.lam_)


def f1(trained: Net, rows: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the micro-F1, in percent."""
    return 100 * float(f1_score(rows[1], trained.predict(rows[0]), average="micro"))


def distance(a: Net, b: Net) -> float:
    """Return the Euclidean distance of the weights."""
    return float(torch.linalg.vector_norm(weights(a) - weights(b)))


def figures(answer: Net, data: Data, retrained: Net, seconds: float) -> Figures:
    """Return what the main table shows of one answer to the deletion request."""
    scores = {part: f1(answer, data[part]) for part in ("deleted", "retained", "test")}
    attack = loss_attack(answer, *_attack_rows(data))
    return scores | {
        "auc": attack.auc,
        "distance": distance(answer, retrained),
        "seconds": seconds,
    }


def _attack_rows(data: Data) -> tuple[Rows, Rows]:
    """Return the rows that choose the attack's threshold, and those that it is judged by."""
    X, y = data["test"]
    known = _members_and_others(*(part[: len(y) // 2] for part in data["retained"]), X[::2], y[::2])
    return known, _members_and_others(*data["deleted"], X[1::2], y[1::2])


def _members_and_others(
    X: np.ndarray, y: np.ndarray, X_other: np.ndarray, y_other: np.ndarray
) -> Rows:
    member = np.arange(len(y) + len(y_other)) < len(y)
    return Rows(np.concatenate([X, X_other]), np.concatenate([y, y_other]), member)
