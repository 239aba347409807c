"""
Deep features and a formal certificate: permanent rows
======================================================

Some rows will never have to be deleted: the people consented, the records are public or
synthetic. They may train a whole network by ordinary means. Every other row trains only a part
that is convex, on top of it, and can be deleted with a complete proof.
"""

# %%
# A network of permanent rows, a head of all
# ------------------------------------------
# ``FeatureHead`` freezes the network below its last layer; ``Linearized`` keeps all weights, and
# expands the network to first order around the one that the permanent rows have trained.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import DeletionRequestError
from sk_unlearn.modules import MLP, FeatureHead, Linearized

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, test_size=0.3, stratify=y, random_state=0
)
permanent = np.arange(len(X_train)) < 400
shared = {"lam": 1e-3, "C": 100.0, "max_epochs": 60, "random_state": 0}
nets = {
    "head on its features": CertifiedNeuralClassifier(FeatureHead, module__backbone=MLP, **shared),
    "linearised around it": CertifiedNeuralClassifier(
        Linearized, module__module=MLP, anchor="init", **shared
    ),
}
alone = CertifiedNeuralClassifier(MLP, method="retrain", **shared)
alone.fit(X_train[permanent], y_train[permanent])
print(f"the network of the permanent rows alone {alone.score(X_test, y_test):.2%}")

# %%
# Delete any of the others
# ------------------------

for name, net in nets.items():
    net.fit(X_train, y_train, permanent=permanent)
    before = net.score(X_test, y_test)
    net.unlearn(indices=np.arange(400, 412), epsilon=1.0, delta=1e-5)
    after = net.score(X_test, y_test)
    print(f"{name:39} {before:.2%}, after the deletion {after:.2%}")
    assert net.certificate_.formal
    assert abs(after - before) < 0.01

print(net.certificate_)

# %%
# A permanent row stays
# ---------------------

try:
    net.unlearn(indices=[0])
except DeletionRequestError as error:
    print(error)
else:
    raise AssertionError("a permanent row was deleted")
