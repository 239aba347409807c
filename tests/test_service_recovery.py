"""After a crash: whatever net is loaded next to the ledger, nothing is skipped or lost."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from sklearn.datasets import load_iris

import sk_unlearn.ledger
from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._interrupt import hold_interrupt
from sk_unlearn._net import to_vector
from sk_unlearn.exceptions import (
    DeletionRequestError,
    LedgerCorruptError,
    LedgerError,
    LedgerLockedError,
    UnlearningWarning,
)
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
X[:5] = X[0]  # copies
IDS = np.arange(150) // 3
BEFORE = pytest.warns(UnlearningWarning, match="this net is of before")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def fitted(path, **parameters):
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=path, **parameters)
    return net.fit(X, y, sample_ids=IDS)


def left(net):
    """Which rows are left, by owner and content."""
    return sorted(
        (int(i), *x.tolist()) for i, x in zip(net.rows_.sample_ids, net.rows_.X, strict=True)
    )


def without(*positions):
    rows = np.delete(np.arange(150), positions)
    return sorted((int(IDS[i]), *X[i].tolist()) for i in rows)


class Crash(BaseException):
    """What no handler expects."""


def crash(net, monkeypatch, owner, name, call, after=False):
    """Let a process die at a step: nothing that it would do afterwards reaches the disk."""
    original = getattr(owner, name)

    def dies(*arguments, **keywords):
        if after:
            original(*arguments, **keywords)
        for end in ("failed", "refused"):
            patch.setattr(DeletionLedger, end, lambda *_: None)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Crash):
            call(net)
    net.ledger_.close()


NAMED = {
    "indices": ({"indices": [1, 70]}, (1, 70)),
    "ids": ({"sample_ids": [0, 7]}, (0, 1, 2, 21, 22, 23)),
    "rows": ({"X_u": X[[0, 0, 60]], "y_u": y[[0, 0, 60]]}, (0, 1, 60)),
}


@pytest.mark.parametrize("how", NAMED)
@pytest.mark.parametrize("next_call", ["process", "unlearn", "request"])
def test_a_queued_request_is_found_again_by_a_net_that_was_stored_before_it(path, how, next_call):
    request, gone = NAMED[how]
    net = fitted(path)
    stored = pickle.dumps(net)
    net.request_deletion(**request, request_id="ticket")
    old = pickle.loads(stored)
    with BEFORE:
        if next_call == "process":
            old.process_deletions()
        elif next_call == "unlearn":
            old.unlearn(indices=[149])
            gone = (*gone, 149)
        else:
            old.request_deletion(indices=[149])
            old.process_deletions()
            gone = (*gone, 149)
    assert left(old) == without(*gone)
    assert old.ledger_.state("ticket") == "released" and not old.ledger_.pending()
    assert old.ledger_.verify()


@pytest.mark.parametrize("how", NAMED)
def test_a_direct_unlearn_that_died_is_queued_and_can_be_served(path, how, monkeypatch):
    request, gone = NAMED[how]
    net = fitted(path)
    crash(net, monkeypatch, Residual, "center", lambda net: net.unlearn(**request))
    assert left(net) == without()
    with BEFORE, pytest.raises(DeletionRequestError, match="queued already"):
        net.unlearn(**request)
    net.process_deletions()
    assert left(net) == without(*gone) and not net.ledger_.pending()


@pytest.mark.parametrize("how", NAMED)
@pytest.mark.parametrize("queued", [True, False])
def test_a_release_that_a_stored_net_missed_is_repeated_with_its_next(path, how, queued):
    request, gone = NAMED[how]
    net = fitted(path)
    stored = pickle.dumps(net)
    if queued:
        net.request_deletion(**request)
        net.process_deletions()
    else:
        net.unlearn(**request)
    net.unlearn(indices=[100])
    gone = (*gone, np.delete(np.arange(150), gone)[100])
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning, match=r"\(2 in all\) were released after this net"):
        old.unlearn(indices=[149])
    assert left(old) == without(*gone, 149)
    assert old.n_releases_ == 3 and len(old.release_mus_) == 3
    assert [g.n_composed for g in old.guarantees()] == [2, 2, 1]
    assert old.ledger_.verify() and not old.ledger_.pending()
    twice = pickle.loads(pickle.dumps(old))
    twice.unlearn(indices=[0])
    assert twice.n_rows_ == old.n_rows_ - 1


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_around_the_commit_of_a_release(path, monkeypatch, after):
    net = fitted(path)
    stored = pickle.dumps(net)
    net.request_deletion(indices=[7], request_id="ticket")
    crash(net, monkeypatch, DeletionLedger, "released", lambda n: n.process_deletions(), after)
    old = pickle.loads(stored)
    assert old.ledger_.state("ticket") == ("released" if after else "requested")
    message = "released after this net was stored" if after else "were not served"
    with pytest.warns(UnlearningWarning, match=message):
        old.process_deletions()
    assert left(old) == without(7) and old.ledger_.state("ticket") == "released"
    assert [g.n_composed for g in old.guarantees()] == [1 + after]
    assert left(net) == without()  # of before
    net.ledger_.verify()


def test_a_repetition_that_was_queued_and_lost_is_not_queued_twice(path, monkeypatch):
    net = fitted(path)
    stored = pickle.dumps(net)
    net.unlearn(indices=[7])
    for _ in range(3):
        old = pickle.loads(stored)
        with pytest.warns(UnlearningWarning):
            crash(old, monkeypatch, Residual, "center", lambda n: n.process_deletions())
    assert len(net.ledger_.pending()) == 1
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning, match="released after this net was stored"):
        old.process_deletions()
    assert left(old) == without(7) and not old.ledger_.pending()


def test_two_nets_of_one_origin_take_turns_and_each_loses_every_row(path):
    one = fitted(path)
    other = pickle.loads(pickle.dumps(one))
    one.unlearn(indices=[0])
    with pytest.warns(UnlearningWarning, match="released after"):
        other.unlearn(indices=[149])
    with pytest.warns(UnlearningWarning, match="released after"):
        one.process_deletions()
    assert left(one) == left(other) == without(0, 149)
    promised = {g.request_id: g.n_composed for g in one.guarantees()}
    assert list(promised.values()) == [2, 2] and len(one.guarantees()) == 2


def test_a_release_that_another_process_overtook_is_not_recorded(path, monkeypatch):
    one = fitted(path)
    other = pickle.loads(pickle.dumps(one))
    center = Residual.center

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(Residual, "center", center)
            other.unlearn(indices=[149])
        return center(*arguments)

    before = to_vector(one._trainable())
    with monkeypatch.context() as patch:
        patch.setattr(Residual, "center", overtaken)
        with pytest.raises(LedgerError, match="another process has released"):
            one.unlearn(indices=[0])
    np.testing.assert_array_equal(to_vector(one._trainable()), before)
    assert len(list(one.ledger_.releases())) == 1 and not one.ledger_.pending()
    with pytest.warns(UnlearningWarning, match="released after"):
        one.process_deletions()
    assert left(one) == left(other) == without(0, 149)


def test_a_request_from_elsewhere_does_not_stop_a_release(path, monkeypatch):
    one = fitted(path)
    other = pickle.loads(pickle.dumps(one))
    asked = []
    released = DeletionLedger.released

    def meanwhile(ledger, *arguments, **keywords):
        if not asked:
            asked.append(other.request_deletion(indices=[100]))
        return released(ledger, *arguments, **keywords)

    monkeypatch.setattr(DeletionLedger, "released", meanwhile)
    one.unlearn(indices=[0])
    assert list(one.ledger_.pending()) == asked
    with pytest.warns(UnlearningWarning, match="were not served"):
        one.process_deletions()
    assert left(one) == without(0, 100)


def test_a_row_that_two_copies_asked_for_is_taken_out_for_both(path):
    one = fitted(path)
    copies = [pickle.loads(pickle.dumps(one)) for _ in range(2)]
    copies[0].request_deletion(indices=[7])
    with BEFORE, pytest.raises(DeletionRequestError, match="queued already"):
        copies[1].request_deletion(indices=[7])
    copies[1].request_deletion(indices=[8], request_id="ticket")
    with BEFORE:
        one.process_deletions()
    assert left(one) == without(7, 8) and one.ledger_.state("ticket") == "released"


def overtaken(net, monkeypatch, meanwhile, call):
    """Let another process act after `net` has read the ledger, before it writes its request."""
    request = DeletionLedger.request

    def late(*arguments, **keywords):
        patch.undo()
        meanwhile()
        return request(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(DeletionLedger, "request", late)
        return call(net)


@pytest.mark.parametrize("first", ["net", "other"])
def test_two_that_ask_for_the_same_rows_at_the_same_moment(path, monkeypatch, first):
    net = fitted(path)
    other = pickle.loads(pickle.dumps(net))
    late = overtaken(
        other,
        monkeypatch,
        lambda: net.unlearn(sample_ids=[0]),
        lambda net: net.request_deletion(sample_ids=[0]),
    )
    if first == "net":
        with pytest.warns(UnlearningWarning, match="were not served"):
            net.process_deletions()
        assert net.ledger_.state(late) == "failed"
        assert list(net.ledger_)[-1].detail == "none of its rows is among the training rows"
    with pytest.warns(UnlearningWarning, match="were released after this net was stored"):
        other.process_deletions()
    assert left(net) == left(other) == without(0, 1, 2)
    assert [g.n_composed for g in other.guarantees()] == ([2] if first == "net" else [2, 2])


@pytest.mark.parametrize("how", NAMED)
def test_rows_that_a_later_state_released_are_not_requested_anew(path, how):
    request, gone = NAMED[how]
    net = fitted(path)
    stored = pickle.dumps(net)
    again = {"sample_ids": [7]} if how == "ids" else {"indices": gone[-1:]}
    net.request_deletion(**request, request_id="ticket")
    net.process_deletions()
    for ask in ("request_deletion", "unlearn"):
        old = pickle.loads(stored)
        message = r"queued already, because requests \['ticket'\] released them from a later state"
        with pytest.warns(UnlearningWarning, match="is of before|net of before"):
            with pytest.raises(DeletionRequestError, match=message):
                getattr(old, ask)(**again)
    old.process_deletions()
    assert left(old) == without(*gone) and not old.ledger_.pending()
    assert [(g.request_id, g.n_composed) for g in old.guarantees()] == [("ticket", 2)]


def test_a_further_copy_of_a_released_row_can_be_requested_of_an_older_net(path):
    net = fitted(path)
    old = pickle.loads(pickle.dumps(net))
    net.unlearn(X[:1], y[:1])  # one of five copies, of which three have this owner
    with pytest.warns(UnlearningWarning, match="were released after this net was stored"):
        old.request_deletion(X[:1], y[:1])
    old.process_deletions()
    assert old.n_rows_ == 148
    assert [g.n_composed for g in old.guarantees()] == [2, 1]


def test_rows_that_one_copy_queued_and_another_released_leave_both(path):
    one = fitted(path)
    stored = pickle.dumps(one)
    one.request_deletion(indices=[7], request_id="ticket")
    one.process_deletions()
    copies = [pickle.loads(stored) for _ in range(2)]
    with pytest.warns(UnlearningWarning, match="were released after"):
        copies[0].request_deletion(indices=[8])  # queues row 7 once more, too
    for copy in reversed(copies):
        with pytest.warns(UnlearningWarning, match="net of before|is of before"):
            copy.process_deletions()
        assert left(copy) == without(7, 8) and not copy.ledger_.pending()
    assert one.guarantees()[0].n_composed == 3
    with pytest.warns(UnlearningWarning, match="were released after"):
        one.process_deletions()
    assert left(one) == without(7, 8)


def test_what_another_copy_repeats_does_not_take_a_second_row_out_here(path):
    one = fitted(path)
    other = pickle.loads(pickle.dumps(one))
    one.unlearn(X[:1], y[:1])  # of three copies with this owner
    with pytest.warns(UnlearningWarning, match="were released after"):
        other.request_deletion(indices=[149])
    with pytest.warns(UnlearningWarning, match="were not served"):
        one.process_deletions()
    assert left(one) == without(0, 149)
    with pytest.warns(UnlearningWarning, match="were released after"):
        other.process_deletions()
    assert left(other) == without(0, 149) and not other.ledger_.pending()


def test_fit_refuses_while_a_request_waits_in_the_ledger_alone(path, monkeypatch):
    net = fitted(path)
    stored = pickle.dumps(net)
    net.request_deletion(indices=[7], request_id="ticket")
    old = pickle.loads(stored)
    before = pickle.dumps(old)
    with pytest.raises(DeletionRequestError, match=r"'ticket'.* wait to be served"):
        old.fit(X, y)
    assert pickle.dumps(old) == before
    with BEFORE:
        old.process_deletions()
    assert left(old) == without(7)
    assert old.fit(X, y).n_rows_ == 150


def test_without_the_key_a_net_of_before_is_refused_with_advice(path):
    net = fitted(path)
    stored = pickle.dumps(net)
    net.request_deletion(indices=[7], request_id="ticket")
    net.ledger_.destroy_key()
    old = pickle.loads(stored)
    for call in (old.process_deletions, lambda: old.unlearn(indices=[0])):
        with pytest.raises(LedgerError, match=r"key .*'ticket'.* was destroyed"):
            call()
    assert left(old) == without() and len(old.ledger_) == 1
    old.ledger_.failed("ticket", "the key is gone; asked again")
    old.unlearn(indices=[7])
    net = pickle.loads(stored)
    net.ledger_.destroy_key()
    with pytest.raises(LedgerError, match="was destroyed"):
        net.unlearn(indices=[0])


def test_an_older_or_another_ledger_is_refused(path, tmp_path):
    net = fitted(path).unlearn(indices=[0])
    net.ledger_.close()
    for name in os.listdir(tmp_path):
        os.remove(tmp_path / name)
    copy = pickle.loads(pickle.dumps(net))
    for call in (copy.process_deletions, lambda: copy.unlearn(indices=[0])):
        with pytest.raises(LedgerCorruptError, match="cut off or rewritten, or it is another"):
            call()
    DeletionLedger(path).request(1)
    DeletionLedger(path).request(1)
    with pytest.raises(LedgerCorruptError, match="entry 2 of .* is not the one"):
        pickle.loads(pickle.dumps(net)).unlearn(indices=[0])


@pytest.mark.parametrize("late", [False, True])
def test_without_stored_rows_a_request_that_died_waits_for_its_rows(path, monkeypatch, late):
    net = fitted(path, store_data=False)
    stored = pickle.dumps(net)
    if late:
        net.unlearn(X[7:9], y[7:9], X_r=np.delete(X, [7, 8], 0), y_r=np.delete(y, [7, 8]))
    else:
        crash(
            net,
            monkeypatch,
            Residual,
            "center",
            lambda n: n.unlearn(
                X[7:9], y[7:9], X_r=np.delete(X, [7, 8], 0), y_r=np.delete(y, [7, 8])
            ),
        )
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning), pytest.raises(DeletionRequestError, match="X_u must"):
        old.unlearn(X[:1], y[:1], X_r=X[1:], y_r=y[1:])
    gone = [7, 8, 100]
    old.unlearn(X[gone], y[gone], X_r=np.delete(X, gone, 0), y_r=np.delete(y, gone))
    assert old.n_rows_ == 147 and not old.ledger_.pending() and old.ledger_.verify()
    assert [g.n_composed for g in old.guarantees()] == [1 + late, 1]


# ---------------------------------------------------------------- faults of the ledger


def test_a_locked_ledger_leaves_everything_and_the_next_call_serves(path, monkeypatch):
    net = fitted(path)
    net.request_deletion(indices=[0], request_id="a")
    net.ledger_ = DeletionLedger(path, timeout=0.05)
    center = Residual.center
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:

        def locks(*arguments):
            raw.execute("BEGIN IMMEDIATE")
            return center(*arguments)

        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerLockedError):
            net.request_deletion(indices=[1])
        with pytest.raises(LedgerLockedError):
            net.unlearn(indices=[1])
        raw.execute("ROLLBACK")
        assert net.queue_ == {"a": [0]} and len(net.ledger_) == 1
        with monkeypatch.context() as patch:
            patch.setattr(Residual, "center", locks)
            with pytest.raises(LedgerLockedError):
                net.unlearn(indices=[1])
        raw.execute("ROLLBACK")
    assert left(net) == without() and len(net.ledger_.pending()) == 2
    with BEFORE:
        net.process_deletions()
    assert left(net) == without(0, 1) and not net.ledger_.pending()


@pytest.mark.parametrize("step", ["request", "release"])
def test_a_full_disk_leaves_everything_as_it_was(path, monkeypatch, step):
    net = fitted(path)
    net.request_deletion(indices=range(40), request_id="a")
    connection = net.ledger_._store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match=r"disk is full"):
        if step == "request":
            net.request_deletion(indices=range(100, 140))
        else:
            net.process_deletions()
    assert left(net) == without() and net.queue_ == {"a": list(range(40))}
    assert list(net.ledger_.pending()) == ["a"] and net.ledger_.verify().sequence == 1
    net.ledger_.close()  # lifts the limit
    net.process_deletions()
    assert left(net) == without(*range(40)) and net.ledger_.verify().sequence == 2


def test_no_space_for_the_key_stops_the_first_request(path, monkeypatch):
    net = fitted(path)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        for call in (net.request_deletion, net.unlearn):
            with pytest.raises(LedgerError, match="No space left"):
                call(indices=[0])
    assert net.queue_ == {} and len(net.ledger_) == 0 and left(net) == without()
    assert net.unlearn(indices=[0]).n_rows_ == 149


def test_a_damaged_ledger_stops_before_anything_is_changed(path):
    net = fitted(path).unlearn(indices=[0])
    net.ledger_.close()
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 2] = b"\xa5" * 4096
    path.write_bytes(content)
    weights = to_vector(net._trainable())
    for call in (
        lambda: net.unlearn(indices=[0]),
        lambda: net.request_deletion(indices=[0]),
        net.process_deletions,
        net.guarantees,
    ):
        with pytest.raises(LedgerCorruptError):
            call()
    np.testing.assert_array_equal(to_vector(net._trainable()), weights)
    assert net.n_rows_ == 149 and net.queue_ == {}


def test_a_clock_that_goes_back_changes_nothing_but_the_mark(path, monkeypatch):
    net = fitted(path)
    stored = pickle.dumps(net)
    times = iter(f"20{99 - k}-01-01T00:00:00.000000+00:00" for k in range(99))
    monkeypatch.setattr(sk_unlearn.ledger, "_utc_now", lambda: next(times))
    net.unlearn(indices=[0])
    net.request_deletion(indices=[0], request_id="a")
    old = pickle.loads(stored)
    with pytest.warns(UnlearningWarning):
        old.process_deletions()
    assert left(old) == without(0, 1)
    assert all(entry.clock_went_back for entry in list(old.ledger_)[1:]) and old.ledger_.verify()
    assert [g.release for g in old.guarantees()] == [1, 2]


# ---------------------------------------------------------------- Ctrl-C


def test_an_interrupt_between_commit_and_swap_waits_for_both(path, monkeypatch):
    net = fitted(path)
    released = DeletionLedger.released

    def pressed(*arguments, **keywords):
        out = released(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGINT)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(DeletionLedger, "released", pressed)
        with pytest.raises(KeyboardInterrupt):
            net.unlearn(indices=[0])
    assert left(net) == without(0) and net.n_releases_ == 1
    assert [entry.state for entry in net.ledger_] == ["requested", "released"]
    net.unlearn(indices=[0])
    assert [g.n_composed for g in net.guarantees()] == [1, 1]


@pytest.mark.parametrize("file", [True, False])
def test_an_interrupt_between_request_and_queue_waits_for_both(path, monkeypatch, file):
    net = fitted(path if file else None)
    request = DeletionLedger.request

    def pressed(*arguments, **keywords):
        out = request(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGINT)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(DeletionLedger, "request", pressed)
        with pytest.raises(KeyboardInterrupt):
            net.request_deletion(indices=[0])
        with pytest.raises(KeyboardInterrupt):
            net.unlearn(indices=[1])
    assert list(net.ledger_.pending()) == list(net.queue_)
    if file:  # the direct request failed
        assert list(net.queue_.values()) == [[0]] and left(net) == without()
        net.process_deletions()
        assert left(net) == without(0)
    else:  # its request and its release are one step
        assert net.queue_ == {} and left(net) == without(0, 1)


def test_the_handler_of_before_is_back_and_is_called_once():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with hold_interrupt():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [1]
        signal.raise_signal(signal.SIGINT)
        assert calls == [1, 1]
        with pytest.raises(ValueError), hold_interrupt():
            raise ValueError
    finally:
        signal.signal(signal.SIGINT, before)
