"""
Write your own method
=====================

A method receives a problem and returns an outcome. It announces, from public constants alone,
which event its release will be; the library calibrates the noise for that event and writes the
certificate. So a method cannot compute its own epsilon, nor choose its noise by looking.
"""

# %%
# The idea
# --------
# ``OutputPerturbation`` covers the whole ball that training moved in. Suppose you believe that
# what matters lies close to the (public) initialisation: project the weights onto a *smaller*
# ball before the release. Two points of that ball are at most ``2 radius`` apart, whatever the
# rows were (T8), so that is the sensitivity.

from dataclasses import replace

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier, bounds
from sk_unlearn.assumptions import Assumption, Status
from sk_unlearn.constraint import project
from sk_unlearn.events import GaussianRelease
from sk_unlearn.exceptions import NotApplicableError
from sk_unlearn.methods.base import OneShotMethod, Outcome


class SmallBall(OneShotMethod):
    """Project onto a small ball around the anchor, and add noise for its diameter (T8)."""

    def __init__(self, radius=0.01):
        self.radius = radius

    def check(self, module, criterion, setting):
        """Refuse at fit what the statement does not cover."""
        if not 0 < self.radius <= setting.C:
            raise NotApplicableError(
                f"SmallBall(radius={self.radius}): give a number above 0 and at most C={setting.C}"
            )

    def event(self, setting):
        """Announce a Gaussian release; its noise is None, to be calibrated."""
        sensitivity = bounds.ball_diameter(self.radius)
        return GaussianRelease(sensitivity, None, "ball_diameter", (("C", self.radius),))

    def center(self, problem, event):
        """Compute what is released, without its noise."""
        inside = project(problem.parameters, problem.reference, self.radius)
        ball = Assumption(
            "small ball",
            Status.BY_CONSTRUCTION,
            f"the weights are projected onto ||w - anchor|| <= {self.radius:g} before the noise",
        )
        return Outcome(inside, event, (ball,))


# %%
# It is a scikit-learn object: ``clone``, ``get_params`` and a grid search over
# ``method__radius`` work. The certificate can be checked by anyone who has the event.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
clf = CertifiedNeuralClassifier(method=SmallBall(0.01), anchor="init", random_state=0)
clf.fit(X_train, y_train).unlearn(X_train[:12], y_train[:12], epsilon=1.0, delta=1e-5)
print(clf.certificate_.verify())
assert clf.certificate_.formal
assert np.isclose(clf.certificate_.sigma, bounds.ball_diameter(0.01) * 3.7306, rtol=1e-4)

# %%
# What it gives is what (T20) allows: hardly more than the initialisation knows.

print(f"accuracy {clf.score(X_test, y_test):.2%}")

# %%
# A method that lies is found out
# -------------------------------
# The certificate recomputes the sensitivity from the named bound and its constants. An event
# that claims less than its bound proves is refused before anything is released.


class Optimist(SmallBall):
    """Claim half of the sensitivity."""

    def event(self, setting):
        """Claim too little."""
        event = super().event(setting)
        return replace(event, sensitivity=event.sensitivity / 2)


try:
    clf.set_params(method=Optimist()).fit(X_train, y_train).unlearn(indices=[0])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
else:
    raise AssertionError("a false sensitivity went through")
