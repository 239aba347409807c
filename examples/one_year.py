"""
One year of deletions
=====================

Requests arrive over time, by user; one release a month serves all that wait. Each request and
each certificate is recorded in an append-only, hash-chained ledger, and a stranger can check it
afterwards.
"""

# %%
# A model with owners
# -------------------
# ``sample_ids`` says whose row it is; one user may own several. The ledger is a file, made by
# the first request.

from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit import DeletionTimelineDisplay
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.modules import LinearHead

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.3, random_state=0)
users = np.array([f"user{i // 3:03d}" for i in range(len(X_train))])

folder = Path(mkdtemp(prefix="sk-unlearn-"))
clf = CertifiedNeuralClassifier(
    LinearHead, lam=1e-3, C=100.0, classes=range(10), ledger=folder / "deletions.db"
)
clf.fit(X_train, y_train, sample_ids=users)

# %%
# Twelve months
# -------------
# A request is on the disk as soon as ``request_deletion`` returns. Because each release is
# computed from the release before it and from rows that remain, the certificate of January's
# deletions does not weaken until December (T18).

rng = np.random.default_rng(0)
waiting = list(rng.permutation(np.unique(users)))
accuracy = [clf.score(X_test, y_test)]
for month in range(1, 13):
    for _ in range(rng.integers(1, 6)):
        clf.request_deletion(sample_ids=[waiting.pop()], request_id=f"m{month:02d}-{len(waiting)}")
    clf.process_deletions(epsilon=1.0, delta=1e-5)
    accuracy.append(clf.score(X_test, y_test))
    assert clf.certificate_.formal
print(f"{clf.n_releases_} releases, {len(clf.rows_)} rows left of {len(X_train)}")

# %%
# What is promised today, for each deletion
# -----------------------------------------

table = clf.guarantees().to_frame()
print(table.head())
assert (table["epsilon"] == 1.0).all()

# %%
# No drift: the model is that of retraining on the rows that are left.

retrained = clone(clf).set_params(ledger=None).fit(clf.rows_.X, y_train[np.isin(users, waiting)])
again = retrained.score(X_test, y_test)
print(f"{accuracy[0]:.2%} before, {accuracy[-1]:.2%} after, {again:.2%} retrained")
assert abs(accuracy[-1] - again) < 0.01

# %%
# The auditor
# -----------
# needs the file and nothing else: neither the model nor the key that links entries to people.
# A head that was remembered elsewhere makes even a cut-off end visible.

head = clf.ledger_.head
clf.ledger_.close()
ledger = DeletionLedger(folder / "deletions.db")
print(ledger.verify(head=head))
assert not ledger.pending()
DeletionTimelineDisplay.from_ledger(ledger)
