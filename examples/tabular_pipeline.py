"""
A table: choose, fit and delete through one pipeline
====================================================

Raw rows of the Adult census go through public constants into a classifier. A grid search
chooses ``lam`` and ``C`` by the accuracy *after* a certified deletion; then three people are
deleted through the pipeline that it found.

The data is read from the folder that the environment variable ``SK_UNLEARN_DATA`` names
(``adult.csv.gz``), or fetched from OpenML.
"""

# %%
# Rows and owners
# ---------------
# Raw columns, as they come; two rows belong to one person each. The test rows are never
# trained on.

import warnings
from time import perf_counter

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from sk_unlearn import CertifiedNeuralClassifier, make_unlearning_scorer, unlearn
from sk_unlearn.datasets import load_adult
from sk_unlearn.exceptions import UnlearningWarning
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead
from sk_unlearn.preprocessing import PublicOneHotEncoder, PublicScaler

frame, target = load_adult(as_frame=True, return_X_y=True)
income = pd.Series(np.where(target == 1, "above 50K", "up to 50K"), index=frame.index)
chosen = np.random.default_rng(0).permutation(len(frame))
train, test = chosen[:4000], chosen[4000:12000]
X_train, y_train = frame.iloc[train], income.iloc[train]
X_test, y_test = frame.iloc[test], income.iloc[test]
owners = [f"person-{i // 2}" for i in range(len(train))]
print(X_train.iloc[:3].T)

# %%
# The pipeline
# ------------
# Every constant is public: units of the columns, and the census' own lists of categories. A
# ``StandardScaler`` would have computed its mean from the rows, and would carry the deleted
# ones along; ``unlearn`` refuses it.

numbers = {
    "age": (40, 20),
    "education-num": (8, 4),
    "hours-per-week": (40, 20),
    "capital-gain": (0, 10_000),
    "capital-loss": (0, 2_000),
}
words = ["workclass", "education", "marital-status", "occupation", "relationship", "sex"]
center, scale = zip(*numbers.values(), strict=True)
categories = [frame[name].cat.categories.tolist() for name in words]
columns = ColumnTransformer(
    [
        ("numbers", PublicScaler(center=center, scale=scale), list(numbers)),
        ("words", PublicOneHotEncoder(categories, handle_unknown="ignore"), words),
    ]
)
net = CertifiedNeuralClassifier(LinearHead, method=Residual(noise_std=0.1))
pipe = Pipeline([("columns", columns), ("net", net)])

# %%
# Choose by what is left after a deletion
# ---------------------------------------
# The scorer deletes 1% of the rows of each fold from a copy, certified at (1, 1e-5), and scores
# what is released. In a ball with ``C = 1`` the fit is as good as in a wide one, because only
# the direction of the weights counts; but the weights are short, and the same noise drowns them.
# A search that looks at the fit alone does not see that. (``unlearn`` warns about it.)

warnings.filterwarnings("ignore", category=UnlearningWarning)
search = GridSearchCV(
    pipe,
    {"net__lam": [1e-4, 1e-3, 1e-2], "net__C": [1.0, 100.0]},
    scoring={
        "before": "accuracy",
        "after": make_unlearning_scorer(
            "accuracy", epsilon=1.0, delta=1e-5, n_draws=5, random_state=0
        ),
    },
    refit="after",
    cv=3,
)
start = perf_counter()
search.fit(X_train, y_train, net__sample_ids=owners)
print(f"{len(search.cv_results_['params'])} settings in {perf_counter() - start:.1f} s")
table = pd.DataFrame(search.cv_results_)
table = table[["param_net__lam", "param_net__C", "mean_test_before", "mean_test_after"]]
print(table.to_string(index=False, float_format="{:.4g}".format))
print("chosen:", search.best_params_)

# %%
# The search has looked at the rows, and the choice of ``lam`` and ``C`` may remember them: no
# certificate covers that, and each says so. Where it matters, search on rows that stay.

# %%
# Delete three people
# -------------------
# By their ids, through the search; rows, indices and ids all work.

unlearn(search, sample_ids=["person-7", "person-100", "person-1999"], epsilon=1.0, delta=1e-5)
net = search.best_estimator_["net"]
print(net.certificate_)

# %%
# What it cost, and what is on record:

accuracy = np.mean(search.predict(X_test) == y_test)
print(f"test accuracy {accuracy:.2%}; the search expected {search.best_score_:.2%}")
print(net.ledger_.to_frame()[["sequence", "state", "n_rows"]])

assert net.certificate_.formal
assert net.certificate_.n_deleted == 6
assert len(net.rows_) == len(train) - 6
assert abs(accuracy - search.best_score_) < 0.02
narrow, wide = (table[table.param_net__C == C].set_index("param_net__lam") for C in (1.0, 100.0))
assert (wide.mean_test_before - narrow.mean_test_before).abs().max() < 0.01
assert (wide.mean_test_after - narrow.mean_test_after).min() > 0.01
assert search.best_params_["net__C"] == 100.0
assert net.ledger_.verify().sequence == 2
