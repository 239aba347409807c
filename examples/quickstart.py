"""
Quickstart: delete one percent of the digits, with a certificate
================================================================

Fit a classifier on scikit-learn's digits, delete 1% of the training rows, read the
certificate, and compare with doing nothing and with retraining.
"""

# %%
# Fit
# ---
# A linear head on the pixels. Its objective is strongly convex, so deletion is certified
# without losing accuracy; ``CertifiedNeuralClassifier`` takes any torch module.

from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit import audit_unlearning, compare, report
from sk_unlearn.modules import LinearHead

X, y = load_digits(return_X_y=True)
X = X / 16  # pixels are 0 ... 16: a public constant, not the data's maximum
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)

clf = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0, random_state=0)
clf.fit(X_train, y_train)
print(f"Fitted on {len(X_train)} rows of digits.")

# %%
# Delete
# ------
# Twelve people ask to be forgotten.

rng = np.random.default_rng(0)
forget = rng.choice(len(X_train), size=len(X_train) // 100, replace=False)
X_u, y_u = X_train[forget], y_train[forget]
X_r, y_r = np.delete(X_train, forget, axis=0), np.delete(y_train, forget)

nothing = clone(clf).fit(X_train, y_train)
start = perf_counter()
clf.unlearn(X_u, y_u, epsilon=1.0, delta=1e-5)
unlearn_time = perf_counter() - start
print(f"Deleted {len(forget)} of them in {unlearn_time:.2f} s. The certificate of that:\n")

# %%
# The certificate
# ---------------
# What is promised, on which assumptions, and what is not promised.

print(clf.certificate_)
print("\n(T0), (T12) and so on are the statements of docs/theory.md, with proof or source.")

# %%
# The same as JSON, for whoever wants to check it: ``verify`` recomputes the statement from
# the recorded event.

public = clf.certificate_.to_json("public")
checked = type(clf.certificate_).from_json(public).verify()
print(f"Its public copy, read back: the recorded event proves epsilon = {checked.epsilon:g}.")

# %%
# What it cost
# ------------

start = perf_counter()
retrained = clone(clf).fit(X_r, y_r)
retrain_time = perf_counter() - start

print("\nShare of right answers on the rows that stay, on the deleted ones, and on new ones:\n")
print(f"{'':34}{'retained':>10}{'deleted':>10}{'test':>10}{'seconds':>10}")
for name, net, seconds in (
    ("do nothing", nothing, 0.0),
    ("retrained (same initialisation)", retrained, retrain_time),
    (f"unlearn, {clf.method_}", clf, unlearn_time),
):
    accuracy = [net.score(*rows) for rows in ((X_r, y_r), (X_u, y_u), (X_test, y_test))]
    print(f"{name:34}" + "".join(f"{a:10.2%}" for a in accuracy) + f"{seconds:10.3f}")

assert clf.certificate_.formal
assert abs(clf.score(X_test, y_test) - retrained.score(X_test, y_test)) <= 0.01

# %%
# The report
# ----------
# One page for whoever answers for the deletion: what is promised in plain words, an attempt to
# refute it, what it cost, and how to check all of that.

print("\nTrying to refute the certificate, and writing the report ...")
blank = clone(clf)
page = report(
    clf,
    Path(mkdtemp(prefix="sk-unlearn-")) / "report.html",
    comparison=compare(blank, X_train, y_train, forget, X_test, y_test),
    audit=audit_unlearning(blank, X_train, y_train, forget, n_runs=100),
)
print(f"Open this page in a browser: {page}")
