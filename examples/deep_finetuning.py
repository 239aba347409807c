"""
A deep network: noisy fine-tuning, and what it owes to the old model
====================================================================

Noisy fine-tuning certifies the deletion from *any* network: the weights are pulled into a small
ball around the initialisation, a few noisy steps follow, and then ordinary training on the rows
that stay. What does it save over training again? The no-model control answers: the same release,
started from weights that have learnt nothing.
"""

# %%
# Fit, and look before deleting
# -----------------------------
# ``plan`` says what a deletion would do, from public constants alone.

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.methods import GradientClipping, OutputPerturbation, Retrain

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, y, test_size=0.3, stratify=y, random_state=0
)

epochs = 8
clf = CertifiedNeuralClassifier(
    method=GradientClipping(finetune_epochs=epochs), anchor="init", max_epochs=30, random_state=0
).fit(X_train, y_train)
print(clf.plan(epsilon=1.0, delta=1e-5))

# %%
# The noise is many times the radius of the start: whatever the old model knew is gone. That is
# what the certificate promises, and it is also the price.

assert clf.plan().noise_over_radius > 1

# %%
# Delete one row in ten
# ---------------------

forget = np.random.default_rng(0).choice(len(X_train), len(X_train) // 10, replace=False)
X_r, y_r = np.delete(X_train, forget, axis=0), np.delete(y_train, forget)

control = clf.control(indices=forget, epsilon=1.0, delta=1e-5)
before = clf.score(X_test, y_test)
clf.unlearn(indices=forget, epsilon=1.0, delta=1e-5)
print(clf.certificate_)
assert clf.certificate_.formal

# %%
# Beside its control, and beside a model trained again for as many epochs
# -----------------------------------------------------------------------

again = clone(clf).set_params(method=Retrain(), max_epochs=epochs).fit(X_r, y_r)
print(f"before the deletion            {before:.2%}")
print(f"noisy fine-tuning              {clf.score(X_test, y_test):.2%}")
print(f"the same without the old model {control.score(X_test, y_test):.2%}")
print(f"trained again, {epochs} epochs        {again.score(X_test, y_test):.2%}")
assert abs(clf.score(X_test, y_test) - control.score(X_test, y_test)) < 0.05

# %%
# Noise for the whole ball instead, at the default ``C``, leaves a model that guesses; the epochs
# that follow do all the work.

noise_only = clone(clf).set_params(method=OutputPerturbation()).fit(X_train, y_train)
noise_only.unlearn(indices=forget, epsilon=1.0, delta=1e-5)
print(f"output perturbation alone      {noise_only.score(X_test, y_test):.2%}")
assert noise_only.score(X_test, y_test) < 0.5
