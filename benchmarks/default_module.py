"""Would another module make a better default? Accuracy and time, before and after a deletion.

A linear head, the default MLP trained as the estimator trains it by default, and the same MLP
linearised at its initialisation; scikit-learn's digits, breast cancer and wine, and rows of
Adult. Mean over five stratified splits (30% for testing), for two values of lam; columns
standardised on the training rows of each split, the same for all. Then 1% of the training rows
are deleted at (1, 1e-5): by `Residual` from the convex ones, by retraining from the MLP. One
thread, CPU seconds.

    python benchmarks/default_module.py [--quick]

Adult is looked for in SK_UNLEARN_DATA, and left out where it is not there.
"""

from __future__ import annotations

import argparse
import json
import warnings
from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.datasets import load_adult
from sk_unlearn.methods import Residual, Retrain
from sk_unlearn.modules import MLP, LinearHead, Linearized

ADULT_ROWS = 6_000
LAMS = (1e-3, 1e-4)


def adult():
    X, y = load_adult(return_X_y=True)
    chosen = np.random.default_rng(0).choice(len(X), ADULT_ROWS, replace=False)
    return X[chosen], y[chosen]


DATA = {
    "digits": lambda: load_digits(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "adult, 6,000": adult,
}
MODELS = {
    "linear head": {"module": LinearHead, "method": Residual(), "C": 1e3},
    "MLP, trained": {"module": MLP, "method": Retrain()},
    "MLP, linearised": {
        "module": Linearized,
        "module__module": MLP,
        "method": Residual(),
        "C": 1e3,
    },
}


def timed(work):
    begun = process_time()
    work()
    return process_time() - begun


def measure(params, X, y, train, test, seed):
    """Return accuracy and seconds of one fit and one deletion."""
    scaler = StandardScaler().fit(X[train])
    X_train, X_test = scaler.transform(X[train]), scaler.transform(X[test])
    net = CertifiedNeuralClassifier(**params, random_state=seed, classes=np.unique(y))
    figures = {"fit_seconds": timed(lambda: net.fit(X_train, y[train]))}
    figures["accuracy"] = 100 * net.score(X_test, y[test])
    forget = np.random.default_rng(seed).choice(len(train), max(1, len(train) // 100), False)
    figures["deletion_seconds"] = timed(lambda: net.unlearn(indices=forget))
    figures["accuracy_after"] = 100 * net.score(X_test, y[test])
    figures["formal"] = net.certificate_.formal
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/default_module.json"))
    parser.add_argument("--quick", action="store_true", help="nothing less: it takes a minute")
    out = parser.parse_args().out
    warnings.filterwarnings("ignore", module="sk_unlearn")
    results = []
    CertifiedNeuralClassifier(LinearHead).fit(*load_wine(return_X_y=True))  # first use costs more
    print(f"{'':34}lam  accuracy %     fit s   after deletion %   deletion s")
    for dataset, load in DATA.items():
        try:
            X, y = load()
        except FileNotFoundError as error:
            print(f"{dataset}: left out, {error}")
            continue
        splits = StratifiedShuffleSplit(5, test_size=0.3, random_state=0)
        for (model, params), lam in product(MODELS.items(), LAMS):
            runs = [
                measure(params | {"lam": lam}, X, y, train, test, seed)
                for seed, (train, test) in enumerate(splits.split(X, y))
            ]
            results.append(
                {"data": dataset, "model": model, "lam": lam, "rows": len(X), "runs": runs}
            )
            mean = {name: np.mean([run[name] for run in runs]) for name in runs[0]}
            spread = np.std([run["accuracy"] for run in runs], ddof=1)
            print(
                f"{dataset:16} {model:16} {lam:6.0e} {mean['accuracy']:6.2f} ± {spread:4.2f} "
                f"{mean['fit_seconds']:8.2f} {mean['accuracy_after']:14.2f} "
                f"{mean['deletion_seconds']:16.2f}",
                flush=True,
            )
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
