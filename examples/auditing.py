"""
Attack a certificate
====================

A certificate is worth what it withstands. ``audit_unlearning`` releases many models in both
worlds, the one in which the rows were deleted and the one in which they never were there, and
bounds from below how well anything can tell the worlds apart. If that exceeds the certificate,
the certificate is refuted.
"""

# %%
# An honest method
# ----------------

from dataclasses import replace

import numpy as np
from sklearn.datasets import load_digits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit import TradeoffDisplay, audit_unlearning
from sk_unlearn.methods import OutputPerturbation
from sk_unlearn.modules import LinearHead

X, y = load_digits(return_X_y=True)
X = X / 16
honest = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0)
result = audit_unlearning(honest, X, y, forget=np.arange(20), n_runs=150)
print(result)
assert not result.refuted

# %%
# A liar
# ------
# A fifth of the noise that its certificate records, on rows that are made to make it visible:
# nine in ten say 1, and without them all say 0, so that the deletion moves the optimum from one
# pole of a small ball to the other.


class FifthOfTheNoise(OutputPerturbation):
    """Claim the noise that is needed, and add a fifth of it."""

    def release(self, center, noise):
        """Add too little noise."""
        released = noise.release(center.parameters, center.event.sigma / 5)
        return replace(center, parameters=released)


X_worst, y_worst = np.ones((100, 1)), np.repeat([0, 1], [10, 90])
liar = CertifiedNeuralClassifier(
    LinearHead, lam=0.0, C=0.1, classes=[0, 1], method=FifthOfTheNoise(), lr=0.05, random_state=0
)
caught = audit_unlearning(liar, X_worst, y_worst, forget=np.arange(10, 100), n_runs=400)
print(caught)
assert caught.refuted

# %%
# The same rows, the honest amount of noise: the certificate stands, and the bound rises towards
# it with more runs, because here the worst case really happens.

fair = liar.set_params(method=OutputPerturbation())
stands = audit_unlearning(fair, X_worst, y_worst, forget=np.arange(10, 100), n_runs=400)
print(stands)
assert not stands.refuted

# %%
# What the attacker achieves, and what the certificate allows
# -----------------------------------------------------------

TradeoffDisplay.from_certificate(caught.certificate, caught.scores_present, caught.scores_absent)
