"""
Rectification: correct wrong labels, with a certificate
=======================================================

People may ask for their data to be corrected, not only deleted. Some rows of scikit-learn's
digits were labelled wrongly; ``amend`` puts the right labels in their place, and the certificate
compares with a model that was trained on the corrected data.
"""

# %%
# Fit on data with mistakes
# -------------------------
# One row in twelve has the label of another digit, and nobody knows yet.

from time import perf_counter

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import UnknownRowError
from sk_unlearn.modules import LinearHead

X, y = load_digits(return_X_y=True)
X = X / 16  # pixels are 0 ... 16: a public constant, not the data's maximum
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)

rng = np.random.default_rng(0)
wrong = rng.choice(len(X_train), size=len(X_train) // 12, replace=False)
y_given = y_train.copy()
y_given[wrong] = (y_train[wrong] + rng.integers(1, 10, size=len(wrong))) % 10

clf = CertifiedNeuralClassifier(LinearHead, lam=1e-4, C=1000.0, random_state=0)
clf.fit(X_train, y_given, sample_ids=[f"person {i}" for i in range(len(X_train))])
mistaken = clf.score(X_test, y_test)
print(f"fitted on {len(X_train)} rows, {len(wrong)} of them mislabelled")

# %%
# Correct
# -------
# The rows as they were, and what the labels should have been. Features are corrected in the same
# way, with ``X_new=``, and rows can be named by ``indices=`` or ``sample_ids=`` too.

start = perf_counter()
clf.amend(X_train[wrong], y_given[wrong], y_new=y_train[wrong], epsilon=1.0, delta=1e-5)
amend_time = perf_counter() - start

# %%
# The certificate
# ---------------
# It names what the released model is compared with.

print(clf.certificate_)
assert clf.certificate_.formal
assert any("corrected data" in a.statement for a in clf.certificate_.assumptions)

# %%
# Against training on the corrected data
# --------------------------------------

start = perf_counter()
retrained = clone(clf).fit(X_train, y_train)
retrain_time = perf_counter() - start

for name, score, seconds in (
    ("with the mistakes", mistaken, 0.0),
    ("corrected", clf.score(X_test, y_test), amend_time),
    ("trained on the corrected data", retrained.score(X_test, y_test), retrain_time),
):
    print(f"{name:32}{score:8.2%} on test rows {seconds:8.3f} s")

assert abs(clf.score(X_test, y_test) - retrained.score(X_test, y_test)) <= 0.01
assert clf.score(X_test, y_test) > mistaken

# %%
# What was corrected is gone
# --------------------------
# The old version of a row is no training row any more; the new one is, and keeps its owner.

try:
    clf.unlearn(X_train[wrong[:1]], y_given[wrong[:1]])
except UnknownRowError as error:
    print(error)
else:
    raise AssertionError("the old label is still there")

clf.unlearn(sample_ids=[f"person {wrong[0]}"])
assert clf.certificate_.n_deleted == 1
