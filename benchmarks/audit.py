"""Audits of every method at (1, 1e-5): honest ones stand, each sabotage falls.

Two cases. "worst": two classes, 100 equal rows of which 90 are deleted, in a ball so small that
the weights end at opposite poles with and without them: the deletion moves the un-noised weights
by the whole diameter. "iris": ten rows deleted from Iris, rows clipped to the unit ball; a lower
bound of 0 is what to expect. A sabotage runs the code of an honest method and lies about one
thing. A method of the package that is not audited here counts as a failure. Columns: epsilon as
certified; lower bounds on it, for any mechanism and through the mu of Gaussian DP.

    python benchmarks/audit.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from inspect import isabstract, isclass
from pathlib import Path
from time import process_time

import numpy as np
from sklearn.datasets import load_iris
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor, methods
from sk_unlearn.accounting import gaussian_sigma, sampled_gaussian_noise
from sk_unlearn.audit import audit_unlearning
from sk_unlearn.events import GaussianRelease
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    DescentToDelete,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    PrivateTraining,
    Residual,
    Retrain,
    SekhariNewton,
)
from sk_unlearn.modules import (
    MLP,
    FeatureHead,
    LinearHead,
    Linearized,
    LinearRegressor,
    RidgeHead,
)
from sk_unlearn.noise import NoiseSource
from sk_unlearn.preprocessing import ClipToBall
from sk_unlearn.sharded import ShardedClassifier

EPSILON, DELTA, C = 1.0, 1e-5, 0.1
FITS_EVERY_RUN = {"CertifiedRemoval", "PrivateTraining", "Retrain", "ShardedClassifier"}


class FifthOfTheNoise(OutputPerturbation):
    def release(self, center, noise):
        released = noise.release(center.parameters, center.event.sigma / 5)
        return replace(center, parameters=released)


class ReusedNoise(OutputPerturbation):
    def release(self, center, noise):
        return super().release(center, NoiseSource(seed=7))


class HandSetNewton(Newton):
    def event(self, setting):
        pretended = 0.001 / gaussian_sigma(1.0, EPSILON, DELTA) / 2
        return GaussianRelease(2 * pretended, None, "ball_diameter", (("C", pretended),))


class LeavesTheOptimum(Residual):
    """Says that the tolerance was reached, and took no step towards the rows that stay."""

    def center(self, problem, event):
        return replace(super().center(problem, event), parameters=problem.parameters)


class LetsBuffersThrough(OutputPerturbation):
    covers_buffers = True


class NormalisedHead(nn.Sequential):
    def __init__(self, n_features_in: int, n_classes: int) -> None:
        super().__init__(nn.BatchNorm1d(n_features_in), nn.Linear(n_features_in, n_classes))


class KeepsTheOptimizer(CertifiedNeuralClassifier):
    def _released(self, *args, **kwargs):
        after = super()._released(*args, **kwargs)
        after["optimizer_"].load_state_dict(self.optimizer_.state_dict())
        return after


def worst_case(method, kind=CertifiedNeuralClassifier, **parameters):
    settings = {"module": LinearHead, "lam": 0.0, "C": C, "classes": [0, 1], "lr": 0.05}
    return kind(method=method, random_state=0, **(settings | parameters))


def worst_rows(spread: bool = False):
    y = np.repeat([0, 1], [10, 90])
    X = np.where(y, 5.0, -5.0) + np.linspace(-0.1, 0.1, 100) if spread else np.ones(100)
    return X.reshape(-1, 1).astype(np.float32), y, np.arange(10, 100)


def iris_case(method, module=LinearHead, **parameters):
    settings = {"lam": 1e-2, "classes": [0, 1, 2]} | parameters
    return CertifiedNeuralClassifier(module, method=method, random_state=0, **settings)


def private():
    noise = sampled_gaussian_noise(0.05, 5, EPSILON, DELTA, group=10)
    return PrivateTraining(noise, steps=5, sample_rate=0.05, batch_size=8, max_deletions=10)


def cases(quick: bool):
    """Yield (case, honest, view, estimator, rows)."""
    worst, spread = worst_rows(), worst_rows(spread=True)
    X, y = load_iris(return_X_y=True)
    iris = ClipToBall().fit_transform(X / 10), y, np.arange(45, 55)
    # Damped so far that the step corrects nothing: the worst case remains one.
    uncorrected = {"damping": 1e6}
    noisy = {"clip_norm": 1e-3, "steps": 3, "finetune_epochs": 0}
    poles = (
        OutputPerturbation(),
        Newton(**uncorrected),
        GradientClipping(radius=C, **noisy),
        GradientClipping(radius=C / 2**0.5, blocks=["linear.weight", "linear.bias"], **noisy),
        ModelClipping(radius=C, steps=3, finetune_epochs=0),
        Retrain(),
    )
    regressor = CertifiedNeuralRegressor(LinearRegressor, lam=1e-2, method=Residual())
    few, wide = {"max_fraction": 10 / 140}, {"C": 1e4}
    solved = (
        iris_case(Residual()),
        iris_case(Residual(state="secret", horizon=2)),
        iris_case(Residual(), FeatureHead, module__backbone=MLP, **wide),
        iris_case(Residual(), Linearized, module__module=MLP, module__hidden=(8,), **wide),
        iris_case(Analytic(), RidgeHead),
        iris_case(SekhariNewton(**few)),
        iris_case(DescentToDelete(iterations=50, **few)),
        iris_case(CertifiedRemoval(noise_std=10.0)),
        iris_case(private()),
        iris_case(Newton(damping=10.0)),
        iris_case(Retrain(), MLP, max_epochs=5),
    )
    for view in ("weights", "predictions", "state"):
        for method in poles:
            yield "worst", True, view, worst_case(method), worst
        for estimator in solved:
            method = estimator.method  # "state" is partial_fit, and what is not kept secret
            hidden = isinstance(method, PrivateTraining) or method.state == "secret"
            if view == "weights" or not (quick or (hidden and view == "state")):
                yield "iris", True, view, estimator, iris
    inner = iris_case(Retrain(), max_epochs=5)
    yield (
        "iris",
        True,
        "predictions",
        ShardedClassifier(inner, n_shards=2, classes=range(3), random_state=0),
        iris,
    )
    yield "iris", True, "weights", regressor, (iris[0], iris[0][:, 0], iris[2])
    for view in ("weights", "predictions"):
        for method in (FifthOfTheNoise(), ReusedNoise(), HandSetNewton(**uncorrected)):
            yield "worst", False, view, worst_case(method), worst
    yield "iris", False, "weights", iris_case(LeavesTheOptimum()), iris
    buffers = worst_case(LetsBuffersThrough(), module=NormalisedHead)
    yield "worst", False, "state", buffers, spread
    moments = worst_case(OutputPerturbation(), KeepsTheOptimizer, lr=1.0)
    yield "worst", False, "state", moments, worst


def name_of(estimator) -> str:
    """Return the class that says what is audited: the method's, or the liar's."""
    if type(estimator) in (CertifiedNeuralClassifier, CertifiedNeuralRegressor):
        return type(estimator.method).__name__
    return type(estimator).__name__


def kind_of(estimator) -> str:
    """Return what it is a method for, where that is worth a word."""
    module = getattr(estimator, "module", None)
    secret = getattr(getattr(estimator, "method", None), "state", "") == "secret"
    shown = (FeatureHead, Linearized, LinearRegressor, MLP)
    return "secret state" if secret else module.__name__ if module in shown else ""


def not_audited(names) -> list[str]:
    """Return the methods of the package that are not among these names."""
    shipped = (getattr(methods, name) for name in methods.__all__)
    return [
        kind.__name__
        for kind in shipped
        if isclass(kind)
        and issubclass(kind, methods.UnlearningMethod)
        and not isabstract(kind)
        and kind.__name__ not in names
    ]


def _number(value):
    return "" if value is None else f"{value:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="150 releases instead of 300")
    quick = parser.parse_args().quick
    runs = 150 if quick else 300
    warnings.simplefilter("ignore")  # a small ball binds, which fit warns about at every run
    print(f"{runs} releases of each world; certified at ({EPSILON:g}, {DELTA:g})")
    print(
        f"{'method':20}{'of':16}{'case':7}{'view':13}{'certified':>10}{'eps >=':>8}"
        f"{'mu eps >=':>10}{'cpu s':>9}  verdict"
    )
    found, wrong = [], 0
    for case, honest, view, estimator, rows in cases(quick):
        name, start = name_of(estimator), process_time()
        own = (60 if quick else 100) if name in FITS_EVERY_RUN else runs
        own = max(own, 400) if name == "FifthOfTheNoise" else own  # the mildest of the lies
        result = audit_unlearning(
            estimator, *rows, n_runs=own, epsilon=EPSILON, delta=DELTA, view=view
        )
        seconds = process_time() - start
        as_expected = result.refuted is not honest
        wrong += not as_expected
        verdict = "refuted" if result.refuted else "stands"
        print(
            f"{name:20}{kind_of(estimator):16}{case:7}{view:13}{result.certified_epsilon:>10.3g}"
            f"{result.epsilon_lower:>8.3f}{_number(result.mu_epsilon_lower):>10}"
            f"{seconds:>9.1f}  {verdict}{'' if as_expected else '  UNEXPECTED'}",
            flush=True,
        )
        found.append(
            {
                "method": name,
                "of": kind_of(estimator),
                "parameters": result.method,
                "case": case,
                "honest": honest,
                "view": view,
                "certified_epsilon": result.certified_epsilon,
                "epsilon_lower": result.epsilon_lower,
                "mu_epsilon_lower": result.mu_epsilon_lower,
                "refuted": result.refuted,
                "cpu_seconds": round(seconds, 1),
                "runs": own,
            }
        )
    missing = not_audited({record["method"] for record in found})
    target = Path(__file__).parent / "results" / f"audit{'_quick' if quick else ''}.json"
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} audits, {wrong} not as expected; not audited: {missing or 'none'}")
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main())
