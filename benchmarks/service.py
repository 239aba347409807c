"""A service in front of one Adult model: 1,000 requests of single users, one by one and by fifties.

One-vs-rest head, Residual, (1, 1e-5), lam = 1e-4, a ledger file; users own one to three rows. One
request in fifty cannot be served (a user who is gone already, or whom nobody knows): it is recorded
as refused, with the reason. One thread, CPU seconds, both ways of serving in one run.

    SK_UNLEARN_DATA=... python benchmarks/service.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.datasets import load_adult
from sk_unlearn.exceptions import DeletionRequestError
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.modules import LinearHead

EPSILON, DELTA, LAM = 1.0, 1e-5, 1e-4
N_TRAIN = 26_000


def data():
    X, y = load_adult(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    owners = np.repeat(np.arange(N_TRAIN), np.random.default_rng(1).integers(1, 4, N_TRAIN))
    return X[:N_TRAIN], y[:N_TRAIN], owners[:N_TRAIN], X[N_TRAIN:], y[N_TRAIN:]


def asking(owners: np.ndarray, n: int) -> list[int]:
    """Return who asks, in order; some ask again, some were never here."""
    rng = np.random.default_rng(2)
    users = rng.permutation(np.unique(owners))[:n].tolist()
    for place in range(49, n, 50):
        users[place] = users[int(rng.integers(place))] if place % 100 == 49 else -place
    return users


def request(net, user: int, ticket: str) -> None:
    try:
        net.request_deletion(sample_ids=[user], request_id=ticket)
    except DeletionRequestError as error:
        net.ledger_.request(0, sample_ids=[user], request_id=ticket)
        net.ledger_.refused(ticket, type(error).__name__)


def drift(net, X_test: np.ndarray, y_test: np.ndarray) -> dict[str, float]:
    """Compare with a model trained from scratch on the rows that are left."""
    begun = process_time()
    again = clone(net).set_params(ledger=None).fit(net.rows_.X, net.rows_.y)
    seconds = process_time() - begun
    predicted = net.predict(X_test)
    return {
        "rows": net.n_rows_,
        "accuracy": float(np.mean(predicted == y_test)),
        "retrained": again.score(X_test, y_test),
        "same predictions": float(np.mean(predicted == again.predict(X_test))),
        "retraining seconds": seconds,
    }


def serve(net, users: list[int], size: int, test: tuple[np.ndarray, np.ndarray]) -> dict:
    """Serve requests, `size` to a release; what it cost, and how the model stood meanwhile."""
    costs, passes, checked = [], [], [drift(net, *test)]
    marks = {len(users) // 2 // size * size, len(users) // size * size}
    for first in range(0, len(users), size):
        begun = process_time()
        group = users[first : first + size]
        for place, user in enumerate(group, first):
            request(net, user, f"ticket-{place}")
        net.process_deletions(EPSILON, DELTA)
        costs.append((process_time() - begun) / len(group))
        passes.append(net.certificate_.diagnostics["passes"])
        if first + size in marks:
            checked.append(drift(net, *test))
    ledger, promised = net.ledger_, net.guarantees()
    begun = process_time()
    ledger.verify(head=net.heard_)
    verifying = process_time() - begun
    states = Counter(ledger.state(f"ticket-{place}") for place in range(len(users)))
    assert not ledger.pending() and states.total() == len(users)
    assert states["released"] == len(promised) and states.keys() <= {"released", "refused"}
    assert all(g.formal and (g.epsilon, g.delta) == (EPSILON, DELTA) for g in promised)
    ledger.close()
    tenth = max(1, len(costs) // 10)
    return {
        "requests per release": size,
        "states": dict(states),
        "entries": len(ledger),
        "bytes": Path(ledger.path).stat().st_size,
        "verify seconds": verifying,
        "median": float(np.median(costs)),
        "p95": float(np.quantile(costs, 0.95)),
        "per second": 1 / float(np.mean(costs)),
        "last tenth over second": float(
            np.median(costs[-tenth:]) / np.median(costs[tenth : 2 * tenth])
        ),
        "passes": [float(np.median(p)) for p in (passes[:tenth], passes[-tenth:])],
        "drift": checked,
        "seconds": costs,
    }


def show(result: dict) -> None:
    print(
        f"{result['requests per release']:4d} to a release  "
        f"{result['states']['released']:5d} released {result['states'].get('refused', 0):3d} "
        f"refused  median {1e3 * result['median']:7.2f} ms a request, 95% "
        f"{1e3 * result['p95']:7.2f} ms, {result['per second']:7.1f} a second"
    )
    print(
        f"{'':18}last tenth / second tenth {result['last tenth over second']:.2f}; passes at the "
        f"beginning {result['passes'][0]:.0f}, at the end {result['passes'][1]:.0f}"
    )
    for when, row in zip(("start", "middle", "end"), result["drift"], strict=True):
        print(
            f"{'':18}{when:7} {row['rows']:6d} rows  accuracy {100 * row['accuracy']:.2f}, "
            f"retrained {100 * row['retrained']:.2f}, same predictions "
            f"{100 * row['same predictions']:.2f}%"
        )
    print(
        f"{'':18}ledger: {result['entries']} entries verified in "
        f"{result['verify seconds']:.2f} s, {result['bytes'] / 2**20:.1f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the size that make bench runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/service.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    X, y, owners, *test = data()
    users = asking(owners, 200 if args.quick else 1000)
    with threadpool_limits(1), TemporaryDirectory() as folder:
        fitted = CertifiedNeuralClassifier(LinearHead, lam=LAM, C=1e4)
        fitted = pickle.dumps(fitted.fit(X, y, sample_ids=owners))
        results = []
        for size in (1, 50):
            net = pickle.loads(fitted)
            net.ledger_ = DeletionLedger(Path(folder) / f"{size}.db")
            results.append(serve(net, users, size, test))
            show(results[-1])
    single, batched = results
    again = single["drift"][-1]["retraining seconds"]
    print(
        f"a request one by one / by fifties: {single['median'] / batched['median']:.1f}x; "
        f"training from scratch / a request: {again / single['median']:.2f}x one by one, "
        f"{again / batched['median']:.1f}x by fifties"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
