"""kill -9 at every step of a service: the next start finds nothing lost, nothing done twice."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections import Counter
from copy import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import sk_unlearn._ledger_key
import sk_unlearn._ledger_store
import sk_unlearn.ledger
from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._unlearning import UnlearningMixin
from sk_unlearn.exceptions import UnlearningWarning
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead
from sk_unlearn.noise import NoiseSource

pytest.importorskip("resource", reason="forks and signals are POSIX")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
X[22] = X[21]  # a copy
y = np.arange(60) // 30
IDS = np.arange(60) // 3
ROWS = {"by id": {9, 10, 11}, "by index": {0, 59}, "direct": {21}}  # the copy stays


@cache
def fitted() -> CertifiedNeuralClassifier:
    return CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y, sample_ids=IDS)


def start(folder: Path) -> Path:
    folder.mkdir()
    net = copy(fitted())
    net.ledger_ = DeletionLedger(folder / "ledger.db")
    save(net, folder)
    return folder


def save(net, folder: Path) -> None:
    (folder / "net.new").write_bytes(pickle.dumps(net))
    os.replace(folder / "net.new", folder / "net")


def load(folder: Path):
    return pickle.loads((folder / "net").read_bytes())


def serve(folder: Path) -> None:
    """A day's work; what the caller was told is written down."""
    net = load(folder)
    with open(folder / "told", "a", buffering=1) as told:
        net.request_deletion(sample_ids=[3], request_id="by id")
        print("requested by id", file=told)
        save(net, folder)
        net.request_deletion(indices=[0, 59], request_id="by index")
        print("requested by index", file=told)
        net.process_deletions()
        print("released by id\nreleased by index", file=told)
        save(net, folder)
        net.unlearn(X[[21]], y[[21]], epsilon=0.5)
        print("released direct", file=told)
        save(net, folder)


def next_start(folder: Path, recovered: bool = False) -> tuple[str, ...]:
    """Load what is there, check it against what the caller was told, and serve what waits."""
    net, told = load(folder), folder / "told"
    ledger, n_before = net.ledger_, net.n_rows_
    lines = told.read_text().splitlines() if told.exists() else []
    asked = {e.request_ids[0]: e.detail for e in ledger if e.state == "requested"}
    first = {request_id: detail.get("repeats", request_id) for request_id, detail in asked.items()}
    names = {r: first[r] if first[r] in ROWS else "direct" for r in asked}
    known = {names[r]: ledger.state(r) for r in asked if first[r] == r}
    for line in lines:
        word, _, name = line.partition(" ")
        assert known[name] in (word, "released"), (line, known)
    queued, waiting = set(net.queue_), set(ledger.pending())
    served = {r for release in ledger.releases() for r in release.request_ids}
    missed = {r for r in served if not ROWS[names[r]].isdisjoint(present(net))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnlearningWarning)
        net.process_deletions()
    said = " ".join(str(w.message) for w in caught)
    assert ("were not served" in said) == bool(waiting - queued)
    assert ("were released after this net was stored" in said) == bool(missed)
    gone = set().union(*(ROWS[name] for name in known))
    assert present(net) == set(range(60)) - gone
    assert net.n_rows_ == 60 - len(gone) <= n_before
    assert not ledger.pending() and not net.queue_
    promised = {names[g.request_id]: g.n_composed for g in net.guarantees()}
    if not recovered:
        assert promised == {names[r]: 1 + (r in missed) for r in asked}
    net.unlearn(indices=[0])
    assert net.n_rows_ == 59 - len(gone) and ledger.verify() == net.heard_
    ledger.close()
    return tuple(sorted(known.values()))


def present(net) -> set[int]:
    """Which rows are left; of a row with a copy, the copy stays longer."""
    places = {}
    for position in reversed(range(60)):
        places.setdefault((IDS[position], X[position].tobytes()), []).append(position)
    rows = zip(net.rows_.sample_ids, net.rows_.X, strict=True)
    return {places[owner, x.tobytes()].pop(0) for owner, x in rows}


def kill_here() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path, arm, work=serve) -> bool:
    """Work in a child that `arm` lets die somewhere; False if it did not come there."""
    pid = os.fork()
    if not pid:
        try:
            arm()
            work(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


STEPS = {
    "request, before the disk": (DeletionLedger, "request", False),
    "request, on the disk": (DeletionLedger, "request", True),
    "the method": (Residual, "center", False),
    "the noise": (NoiseSource, "release", True),
    "the certificate": (UnlearningMixin, "_certify", True),
    "the new state": (UnlearningMixin, "_released", True),
    "released, before the disk": (DeletionLedger, "released", False),
    "released, before the swap": (DeletionLedger, "released", True),
    "the entry's hash": (sk_unlearn.ledger, "entry_hash", False),
    "the key's file": (sk_unlearn._ledger_key, "write_atomically", True),
    "flushing": (os, "fsync", False),
    "storing the net, before": (os, "replace", False),
    "storing the net, after": (os, "replace", True),
}


def at_step(owner, name, after, number):
    """Return what arms a child to die at the `number`-th call."""

    def arm():
        original, calls = getattr(owner, name), Counter()

        def deadly(*arguments, **keywords):
            calls[name] += 1
            if calls[name] == number and not after:
                kill_here()
            out = original(*arguments, **keywords)
            if calls[name] == number:
                kill_here()
            return out

        setattr(owner, name, deadly)

    return arm


def at_statement(number, log):
    """Return what arms a child to die before the `number`-th SQL statement on the file."""

    def arm():
        connect, seen = sk_unlearn._ledger_store._connect, Counter()

        def traced(uri, timeout):
            connection = connect(uri, timeout)

            def step(statement):
                seen["n"] += 1
                if seen["n"] == number:
                    log.write_text(statement.split()[0])
                    kill_here()

            if uri != ":memory:":
                connection.set_trace_callback(step)
            return connection

        sk_unlearn._ledger_store._connect = traced

    return arm


def table(kills: dict[str, Counter]) -> None:
    """Print how often a child was killed in each phase, and what its ledger said then."""
    print()
    for phase, ends in kills.items():
        found = "; ".join(f"{' '.join(states) or 'empty'}: {n}" for states, n in ends.items())
        print(f"{phase:28}{sum(ends.values()):4}  {found}")
    print(f"{'kills':28}{sum(sum(ends.values()) for ends in kills.values()):4}")


def test_kill_9_around_each_step_of_a_service(tmp_path):
    kills = {phase: Counter() for phase in STEPS}
    for phase, step in STEPS.items():
        for number in (1, 2):
            folder = start(tmp_path / f"{phase} {number}")
            if killed(folder, at_step(*step, number)):
                kills[phase][next_start(folder)] += 1
    table(kills)
    assert all(kills.values())


def recover(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlearningWarning)
        net = load(folder)
        net.process_deletions()
        save(net, folder)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["the method", "released, before the swap"])
def test_kill_9_of_a_recovery_and_of_the_one_after(tmp_path, first):
    kills = {phase: Counter() for phase in STEPS}
    for phase, step in STEPS.items():
        folder = start(tmp_path / phase)
        assert killed(folder, at_step(*STEPS[first], 1))
        for _ in range(2):
            if killed(folder, at_step(*step, 1), recover):
                kills[phase]["recovery",] += 1
        known = next_start(folder, recovered=True)
        kills[phase][known] += 1
    table(kills)


@pytest.mark.slow
def test_kill_9_before_each_sql_statement_of_a_service(tmp_path):
    kills, number, alive = {}, 0, True
    while alive:
        number += 1
        folder = start(tmp_path / str(number))
        alive = killed(folder, at_statement(number, folder / "statement"))
        if alive:
            phase = (folder / "statement").read_text()
            kills.setdefault(phase, Counter())[next_start(folder)] += 1
    table(kills)
    assert sum(kills["COMMIT"].values()) == 5 and number > 60


def test_an_unharmed_day(tmp_path):
    folder = start(tmp_path / "day")
    assert not killed(folder, lambda: None)
    assert next_start(folder) == ("released",) * 3
