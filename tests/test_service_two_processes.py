"""Two processes serve copies of one net through one ledger, at the same time."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import DeletionRequestError, LedgerError
from sk_unlearn.modules import LinearHead

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sk_unlearn.exceptions.UnlearningWarning"),
]

X, y = load_iris(return_X_y=True)
OWNERS = np.arange(150) // 3


def serve(net, users, path):
    """Ask for each user and release at once; called again where the other was faster."""
    n_lost = 0
    for user in users:
        try:
            net.request_deletion(sample_ids=[user])
        except DeletionRequestError as error:  # the other process was asked for this one too
            assert "queued already" in str(error) or "own no training row" in str(error)
        for _ in range(200):
            try:
                net.process_deletions()
                break
            except LedgerError as error:
                assert "another process has released" in str(error) or "already" in str(error)
                n_lost += 1
        else:
            raise AssertionError("the other process was always faster")
    path.write_bytes(pickle.dumps((net, n_lost)))


def fork(net, users, path):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                serve(net, users, path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def test_two_processes_lose_no_request_and_serve_none_twice(tmp_path):
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=tmp_path / "ledger.db")
    net.fit(X, y, sample_ids=OWNERS)
    asked = [[*range(2 * k, 48, 4), 1, 49] for k in range(2)]  # both for 1 and 49
    paths = [tmp_path / name for name in ("one", "two")]
    children = [fork(net, users, path) for users, path in zip(asked, paths, strict=True)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    nets, lost = zip(*(pickle.loads(path.read_bytes()) for path in paths), strict=True)
    print(f"\n{sum(lost)} releases were overtaken")
    gone = sorted({*asked[0], *asked[1]})
    for _ in range(2):
        for one in nets:
            one.process_deletions()
    for one in nets:
        np.testing.assert_array_equal(one.rows_.X, X[~np.isin(OWNERS, gone)].astype(np.float32))
    ledger = nets[0].ledger_
    assert not ledger.pending() and ledger.verify().sequence == len(ledger)
    entries = list(ledger)
    states = {e.request_ids[0]: ledger.state(e.request_ids[0]) for e in entries}
    for user in gone:
        assert "released" in {states[request_id] for request_id in ledger.find(user)}
    # each copy released each row once, and that is what is promised
    promised = {g.request_id: g for g in nets[0].guarantees()}
    firsts = [e for e in entries if e.state == "requested" and "repeats" not in e.detail]
    for entry in firsts:
        (name,) = entry.request_ids
        if states[name] == "released":
            assert promised[name].n_composed == 2 and promised[name].epsilon > 1.0
