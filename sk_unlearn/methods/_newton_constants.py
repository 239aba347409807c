"""What (T9) asks to be declared for a Newton step, and what a run can say against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..assumptions import Assumption, Status
from ..curvature import extreme_eigenvalues
from ..objective import Objective

if TYPE_CHECKING:
    from .newton import Newton


def declared(method: Newton) -> list[Assumption]:
    """Return what ``bound="newton"`` rests on."""
    return [
        Assumption(
            "gradient bound",
            Status.BY_CONSTRUCTION,
            f"fit stops at gradient norm <= {method.gradient_bound:g} or fails",
        ),
        Assumption(
            "residual",
            Status.BY_CONSTRUCTION,
            f"the linear system is solved to residual <= {method.residual_tol:g} or the release "
            "fails (T10)",
        ),
        Assumption(
            "hessian_lipschitz",
            Status.ASSUMED,
            f"the Hessian of F is {method.hessian_lipschitz:g}-Lipschitz over the ball: declared, "
            "not proved (T9)",
        ),
        Assumption(
            "lambda_min",
            Status.ASSUMED,
            f"no Hessian of F over the ball has an eigenvalue below {method.lambda_min:g}: "
            "declared, not proved (T9)",
        ),
    ]


def contradictions(
    method: Newton, objective: Objective, start: np.ndarray, stepped: np.ndarray
) -> tuple[list[Assumption], int]:
    """Look for evidence against the declared constants; finding none proves nothing.

    Returns also the Hessian products that this took.
    """
    out = []
    here, there = (
        objective.hessian_at(objective.as_point(torch.as_tensor(w))) for w in (start, stepped)
    )
    ends = extreme_eigenvalues(here)
    seen, products = ends.smallest, ends.n_products
    if seen < method.lambda_min:
        out.append(
            Assumption(
                "lambda_min contradicted",
                Status.REFUTED,
                "a curvature below the declared lambda_min was met",
                f"{seen:.4g} < {method.lambda_min:g}",
            )
        )
    move = stepped - start
    distance = float(np.linalg.norm(move))
    if distance > 0:
        v = objective.as_point(torch.as_tensor(move / distance))
        slope = float(torch.linalg.vector_norm(there(v) - here(v))) / distance
        products += 2
        if slope > method.hessian_lipschitz:
            out.append(
                Assumption(
                    "hessian_lipschitz contradicted",
                    Status.REFUTED,
                    "along the step the Hessian changed faster than declared",
                    f"{slope:.4g} > {method.hessian_lipschitz:g}",
                )
            )
    return out, products
