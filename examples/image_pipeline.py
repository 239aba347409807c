"""
Images: fixed features, a certified head
========================================

Scattering features, which no data has shaped, a normaliser, and a linear head: choose, fit and
delete through one pipeline, without losing accuracy.

With the environment variable ``SK_UNLEARN_DATA`` naming a folder that holds MNIST
(``MNIST/raw`` or ``mnist10k.npz``) the images are MNIST's; without it, the 8 x 8 digits that
come with scikit-learn.
"""

# %%
# Images
# ------

import os
import warnings
from time import perf_counter

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer

from sk_unlearn import CertifiedNeuralClassifier, make_unlearning_scorer, unlearn
from sk_unlearn.datasets import load_mnist
from sk_unlearn.exceptions import UnlearningWarning
from sk_unlearn.features import Scattering2D
from sk_unlearn.modules import LinearHead

if os.environ.get("SK_UNLEARN_DATA"):
    images, labels = load_mnist(subset="test", return_X_y=True)
    scattering = Scattering2D(groups=27, pool=3)
else:
    print("SK_UNLEARN_DATA is not set: these are scikit-learn's digits, not MNIST")
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16
    scattering = Scattering2D(groups=27)
X_train, X_test, y_train, y_test = train_test_split(
    images, labels, train_size=600, test_size=400, stratify=labels, random_state=0
)
print(X_train.shape)

# %%
# Features, normaliser, head
# --------------------------
# Each step looks at one image at a time and learns nothing, so nothing of a deleted image stays
# in it. Only the head is trained; its objective is strongly convex, and so its deletions are
# certified with invisible noise.

net = CertifiedNeuralClassifier(LinearHead, classes=range(10))
pipe = Pipeline([("scattering", scattering), ("normalise", Normalizer()), ("head", net)])

# %%
# Choose by the accuracy after a deletion
# ---------------------------------------
# ``C = 10`` is too narrow for these features, which ``fit`` would warn about.

warnings.filterwarnings("ignore", category=UnlearningWarning)
search = GridSearchCV(
    pipe,
    {"head__lam": [1e-5, 1e-3], "head__C": [10.0, 1000.0]},
    scoring=make_unlearning_scorer(epsilon=1.0, delta=1e-5, fraction=0.02, random_state=0),
    cv=2,
)
start = perf_counter()
search.fit(X_train, y_train)
print(f"searched in {perf_counter() - start:.1f} s")
for setting, score in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"{setting}  {score:.2%}")

# %%
# Delete one image in fifty
# -------------------------
# The images themselves are handed in, as they were to ``fit``; they pass through the same steps.

best = search.best_estimator_
forget = np.random.default_rng(0).choice(len(X_train), size=12, replace=False)
retrained = clone(best).fit(np.delete(X_train, forget, axis=0), np.delete(y_train, forget))
start = perf_counter()
unlearn(search, X_train[forget], y_train[forget], epsilon=1.0, delta=1e-5)
print(f"deleted {len(forget)} images in {perf_counter() - start:.2f} s, their features included")
print(best["head"].certificate_)

# %%
# Beside a pipeline that was fitted without them:

accuracy, ideal = best.score(X_test, y_test), retrained.score(X_test, y_test)
print(f"test accuracy: {accuracy:.2%} after the deletion, {ideal:.2%} retrained")

assert best["head"].certificate_.formal
assert best["head"].certificate_.n_deleted == 12
assert abs(accuracy - ideal) <= 0.01
assert accuracy > 0.93

# %%
# Keep it
# -------
# One file, without the images and without a pickle; it is read back to the last bit.

path = "head.safetensors"
best["head"].save(path)
loaded = CertifiedNeuralClassifier.load(path)
os.remove(path)
features = best[:-1].transform(X_test)
assert np.array_equal(loaded.predict_proba(features), best["head"].predict_proba(features))
