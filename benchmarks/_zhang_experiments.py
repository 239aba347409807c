"""The experiments of ``zhang2024.py``; each returns one record, or one for each cell."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch
from _zhang_nets import (
    DELTA,
    EPSILON,
    HAND_SET,
    Case,
    Data,
    Figures,
    Net,
    deleted_by,
    distance,
    f1,
    figures,
    net,
    objective,
    pooled,
    timed,
    weights,
)

from sk_unlearn.accounting import gaussian_epsilon, gaussian_sigma
from sk_unlearn.assumptions import Status
from sk_unlearn.bounds import ball_diameter, newton_distance
from sk_unlearn.curvature import CG, Exact, LiSSA, extreme_eigenvalues
from sk_unlearn.exceptions import NotApplicableError
from sk_unlearn.methods import Newton
from sk_unlearn.modules import MLP

DECLARED_LIPSCHITZ = 1.0


def fitted(model: Net, rows: tuple[np.ndarray, np.ndarray]) -> tuple[Net, float]:
    return timed(lambda: model.fit(*rows))


def answers(case: Case, data: Data, seed: int, device: str) -> tuple[Figures, Figures, Net]:
    """Return every answer to one request, what the bounds ask for, and the original net."""
    original, _ = fitted(net(case, seed, device), data["trained"])
    retrained, seconds = fitted(net(case, seed, device), data["retained"])
    other, other_seconds = fitted(net(case, seed + 100, device), data["retained"])
    rows = {
        "original = do nothing": figures(original, data, retrained, 0.0),
        "retrain, same init": figures(retrained, data, retrained, seconds),
        "retrain, other init": figures(other, data, retrained, other_seconds),
    }
    gone = range(case.n_deleted)
    known = bounds_at(case, original, data["retained"])

    def newton(name: str, **parameters: Any) -> None:
        released, seconds = deleted_by(original, gone, **parameters)
        certificate = released.certificate_
        solved = certificate.diagnostics
        rows[name] = figures(released, data, retrained, seconds) | {
            "sigma": certificate.event.sigma,
            "epsilon": certificate.epsilon,
            "residual": solved["residual_norm"] / known["gradient norm"],
            "status": solved["solver_status"],
        }

    exact = Exact()
    if known["weights"] <= exact.max_parameters:
        newton(f"Newton, exact, sigma {HAND_SET}", solver=exact)
    for name, solver in case.solvers.items():
        newton(f"Newton, {name}, sigma {HAND_SET}", solver=solver)
    for sigma in case.sigmas:
        newton(f"Newton, CG, sigma {sigma}", solver=case.solvers["CG"], noise_std=sigma)
    newton("Newton, CG, certified", solver=case.solvers["CG"], noise_std=None)
    known["largest class"] = 100 * np.bincount(data["test"][1]).max() / len(data["test"][1])
    return rows, known, original


def bounds_at(case: Case, trained: Net, rows: tuple[np.ndarray, np.ndarray]) -> Figures:
    """Return the ends of the spectrum, and the noise that either bound asks for."""
    on, w = objective(trained, rows), weights(trained)
    ends = extreme_eigenvalues(on.hessian_at(on.as_point(w)), max_products=case.products)
    gradient = float(torch.linalg.vector_norm(on.gradient(on.as_point(w))))
    ball = ball_diameter(trained.C_)
    newton = inf
    if case.damping + ends.smallest > 0:
        newton = newton_distance(
            trained.C_, DECLARED_LIPSCHITZ, case.damping, ends.smallest, gradient
        )
    return {
        "weights": on.n_parameters,
        "norm of the weights": float(torch.linalg.vector_norm(w)),
        "gradient norm": gradient,
        "smallest eigenvalue": ends.smallest,
        "largest eigenvalue": ends.largest,
        "ball bound": ball,
        "newton bound": newton,
        "sigma from the ball": gaussian_sigma(ball, EPSILON, DELTA),
        "sigma from newton": gaussian_sigma(newton, EPSILON, DELTA) if newton < inf else inf,
        "epsilon at the hand-set sigma": gaussian_epsilon(ball / HAND_SET, DELTA),
    }


def sweep(case: Case, data: Data, seed: int, device: str, radii: tuple, dampings: tuple) -> list:
    """Return what a Newton step with hand-set noise does for each C and lambda."""
    gone, cells = range(case.n_deleted), []
    for C in radii:
        original, _ = fitted(net(case, seed, device, C=C), data["trained"])
        retrained, _ = fitted(net(case, seed, device, C=C), data["retained"])
        at_start = {
            "C": C,
            "deleted before": f1(original, data["deleted"]),
            "deleted retrained": f1(retrained, data["deleted"]),
            "distance before": distance(original, retrained),
        }
        for damping in dampings:
            known = bounds_at(replace(case, damping=damping), original, data["retained"])
            released, _ = deleted_by(original, gone, damping=damping)
            cells.append(
                at_start
                | known
                | {
                    "lambda": damping,
                    "deleted": f1(released, data["deleted"]),
                    "test": f1(released, data["test"]),
                    "distance": distance(released, retrained),
                    "status": released.certificate_.diagnostics["solver_status"],
                }
            )
    return cells


def convergence(
    case: Case, data: Data, seed: int, device: str, epochs: tuple, declared: tuple
) -> list:
    """Return what is certified under a declared gradient bound G, for long and short training."""
    gone, out = range(case.n_deleted), []
    for n_epochs in epochs:
        original, _ = fitted(net(case, seed, device, max_epochs=n_epochs), data["trained"])
        retrained, _ = fitted(net(case, seed, device, max_epochs=n_epochs), data["retained"])
        stepped, _ = deleted_by(original, gone)
        on = objective(original, data["trained"])
        common = {
            "epochs": n_epochs,
            "gradient norm": float(torch.linalg.vector_norm(on.gradient(weights(original)))),
            "distance before": distance(original, retrained),
            "distance": distance(stepped, retrained),
            "deleted before": f1(original, data["deleted"]),
            "deleted": f1(stepped, data["deleted"]),
            "deleted retrained": f1(retrained, data["deleted"]),
        }
        for bound in declared:
            out.append(common | {"G": bound} | _under(case, data, seed, device, n_epochs, bound))
    return out


def _under(
    case: Case, data: Data, seed: int, device: str, n_epochs: int, gradient_bound: float
) -> Figures:
    """Fit and delete with the paper's bound: M = 1 and lambda_min = 0 declared."""
    method = Newton(
        CG(tol=1e-4),
        damping=case.damping,
        bound="newton",
        hessian_lipschitz=DECLARED_LIPSCHITZ,
        lambda_min=0.0,
        gradient_bound=gradient_bound,
        residual_tol=0.01,
    )
    model = net(case, seed, device, method=method, max_epochs=n_epochs)
    try:
        model.fit(*data["trained"])
    except NotApplicableError as error:
        return {"refused": str(error).split(";")[0]}
    model.unlearn(indices=range(case.n_deleted), epsilon=EPSILON, delta=DELTA)
    certificate = model.certificate_
    return {
        "bound": certificate.event.sensitivity,
        "sigma": certificate.event.sigma,
        "epsilon": certificate.epsilon,
        "refuted": [a.name for a in certificate.assumptions if a.status is Status.REFUTED],
        "test": f1(model, data["test"]),
    }


def sequence(
    case: Case, data: Data, seed: int, device: str, shown: tuple, n_requests: int = 10
) -> list:
    """Return the state of affairs after some of ten requests for a tenth of the rows each."""
    step = case.n_deleted // n_requests
    X, y = data["trained"]
    retrained = {
        k: fitted(net(case, seed, device), (X[k * step :], y[k * step :]))[0] for k in shown
    }
    original, _ = fitted(net(case, seed, device), data["trained"])
    models: dict[str, Net | None] = {"do nothing": None}
    for what, noise in (("hand-set", HAND_SET), ("certified", None)):
        for state in ("released", "secret"):
            method = Newton(CG(), damping=case.damping, noise_std=noise, state=state)
            models[f"{what} noise, {state} state"], _ = fitted(
                net(case, seed, device, method=method), data["trained"]
            )
    out = []
    for what, model in models.items():
        for k in range(1, n_requests + 1):
            if model is not None:
                model.unlearn(indices=range(step), epsilon=EPSILON, delta=DELTA)
            if k not in shown:
                continue
            now = model or original
            row = {
                "answer": what,
                "requests": k,
                "deleted": f1(now, (X[: k * step], y[: k * step])),
                "deleted retrained": f1(retrained[k], (X[: k * step], y[: k * step])),
                "test": f1(now, data["test"]),
                "distance": distance(now, retrained[k]),
            }
            if model is not None:
                certificate = model.certificate_
                own = (certificate.epsilon, certificate.delta)
                row["epsilon"] = (certificate.composed or own)[0]
            out.append(row)
    return out


def lissa_over_exact(case: Case, data: Data, seed: int, pools: tuple, steps: tuple) -> list:
    """Return seconds of the exact solve and of LiSSA, for nets small enough for the former."""
    out = []
    for pool in pools:
        small = replace(case, module=MLP, module_args={"hidden": (5,)}, C=100.0)
        parts = {name: (pooled(X, pool), y) for name, (X, y) in data.items()}
        trained, _ = fitted(net(small, seed, "cpu"), parts["trained"])
        on, w = objective(trained, parts["retained"]), weights(trained)
        g = on.gradient(w)
        LiSSA(steps=2).solve(on, w, g, case.damping)  # imports and traces
        found, exact = timed(lambda on=on, w=w, g=g: Exact().solve(on, w, g, case.damping))
        cg = timed(lambda on=on, w=w, g=g: CG().solve(on, w, g, case.damping))[1]
        for count in steps:
            solver = LiSSA(steps=count, random_state=0)
            ours, seconds = timed(lambda s=solver, on=on, w=w, g=g: s.solve(on, w, g, case.damping))
            out.append(
                {
                    "weights": on.n_parameters,
                    "rows": on.n_rows,
                    "steps": count,
                    "exact seconds": exact,
                    "LiSSA seconds": seconds,
                    "CG seconds": cg,
                    "error": float((ours.value - found.value).norm() / found.value.norm()),
                    "status": ours.status.name,
                }
            )
    return out
