"""Random histories of a service, against a model that knows only which rows must be gone."""

from __future__ import annotations

import pickle
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import DeletionRequestError, UnlearningWarning
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2)).astype(np.float32)
X[12:16] = X[:4]  # copies, of another owner
X[17] = X[16]  # and of the same one
y = np.arange(24) % 4 // 2
y[12:16], y[17] = y[:4], y[16]
IDS = np.arange(24) // 2
PERMANENT = {18, 19, 20, 21, 22, 23}  # of both classes, so that no class loses its last row
some = st.lists(st.integers(0, 17), min_size=1, max_size=3, unique=True)


class Died(BaseException):
    """The process ends here."""


class Service(RuleBasedStateMachine):
    """One estimator, its ledger, what lies on the disk, and a model of what must hold.

    ``asked`` maps each accepted request to the multiset of rows (owner, content) that it named.
    """

    on_disk = True
    secret = False

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "ledger.db" if self.on_disk else None
        method = Residual(state="secret", horizon=1000) if self.secret else Residual()
        self.net = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=path, method=method)
        self.fit_again()

    def fit_again(self):
        self.net.fit(X, y, sample_ids=IDS)
        self.asked, self.model = {}, self.net.model_id_
        self.served_before = Counter()
        self.store()

    def teardown(self):
        if hasattr(self, "net"):
            self.net.ledger_.close()
            self.folder.cleanup()

    # ---- what a row is

    @staticmethod
    def named(net, positions):
        rows = net.rows_.take(np.asarray(positions, dtype=int))
        return [(int(i), x.tobytes()) for i, x in zip(rows.sample_ids, rows.X, strict=True)]

    def present(self):
        return Counter(self.named(self.net, range(self.net.n_rows_)))

    def must_be_gone(self):
        gone = Counter()
        for rows in self.asked.values():
            gone.update(rows)
        return gone

    # ---- what is done

    def free(self, kinds):
        """Positions of rows of these original numbers that are there and not queued."""
        queued = {p for positions in self.net.queue_.values() for p in positions}
        wanted = Counter((int(IDS[i]), X[i].tobytes()) for i in kinds)
        out = []
        for position, row in enumerate(self.named(self.net, range(self.net.n_rows_))):
            if wanted[row] and position not in queued:
                wanted[row] -= 1
                out.append(position)
        return out

    def call(self, action):
        """Run what may meet a ledger that is ahead of this net, which it then says."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnlearningWarning)
            return action()

    @rule(kinds=some, by_content=st.booleans())
    def request(self, kinds, by_content):
        positions = self.free(kinds)
        if not positions:
            return
        rows = self.named(self.net, positions)
        how = {"indices": positions}
        if by_content and not any(r[1] in self.contents_queued() for r in rows):
            taken = self.net.rows_.take(np.array(positions))
            how = {"X_u": taken.X, "y_u": taken.y}
        before = dict(self.net.queue_)
        name = self.call(lambda: self.net.request_deletion(**how))
        assert before.items() <= self.net.queue_.items()
        self.asked[name] = self.named(self.net, self.net.queue_[name])

    def contents_queued(self):
        return {r[1] for p in self.net.queue_.values() for r in self.named(self.net, p)}

    @rule(owner=st.integers(0, 8))
    def request_by_id(self, owner):
        mine = np.flatnonzero(self.net.rows_.sample_ids == owner).tolist()
        queued = {p for positions in self.net.queue_.values() for p in positions}
        if mine and queued.isdisjoint(mine):
            name = self.call(lambda: self.net.request_deletion(sample_ids=[owner]))
            self.asked[name] = self.named(self.net, mine)

    @rule()
    def process(self):
        self.call(self.net.process_deletions)
        assert not self.net.queue_ and not self.pending()
        self.check_rows()

    @rule(kinds=some)
    def unlearn(self, kinds):
        positions = self.free(kinds)
        if positions:
            rows, head = self.named(self.net, positions), self.net.ledger_.head
            self.call(lambda: self.net.unlearn(indices=positions))
            self.note_new(head, rows)
            self.check_rows()

    def note_new(self, head, rows):
        for entry in self.net.ledger_.since(head):
            if entry.state == "requested" and "repeats" not in entry.detail:
                self.asked[entry.request_ids[0]] = rows

    @rule(kinds=some)
    def duplicate_request(self, kinds):
        queued = sorted({p for positions in self.net.queue_.values() for p in positions})
        if queued:
            head = self.net.ledger_.head
            for attempt in (self.net.request_deletion, self.net.unlearn):
                with pytest.raises(DeletionRequestError, match="queued already"):
                    attempt(indices=queued[: len(kinds)])
            assert self.net.ledger_.head == head

    @rule()
    def bogus_request(self):
        head, before = self.net.ledger_.head, dict(vars(self.net))
        for bad in (
            {"indices": [99]},
            {"sample_ids": ["nobody"]},
            {},
            {"X_u": X[:1] + 7, "y_u": [0]},
        ):
            for attempt in (self.net.request_deletion, self.net.unlearn):
                with pytest.raises(DeletionRequestError):
                    attempt(**bad)
        assert self.net.ledger_.head == head and vars(self.net) == before

    @rule()
    def store(self):
        self.stored = pickle.dumps(self.net)
        self.stored_asked = dict(self.asked)

    @rule()
    def pickle_round_trip(self):
        self.net = pickle.loads(pickle.dumps(self.net))

    @precondition(lambda self: self.on_disk)
    @rule()
    def crash(self):
        self.net = pickle.loads(self.stored)

    @precondition(lambda self: not self.on_disk)
    @rule()
    def go_back_in_memory(self):
        """Net and ledger are one object, so both are of before."""
        self.net, self.asked = pickle.loads(self.stored), dict(self.stored_asked)

    @rule(kinds=some, moment=st.sampled_from(["method", "before", "after"]))
    def crash_in_a_release(self, kinds, moment):
        """Nothing that the dying process would have written afterwards is written."""
        positions = self.free(kinds)
        if not positions or not self.on_disk:
            return
        rows, head = self.named(self.net, positions), self.net.ledger_.head
        with pytest.MonkeyPatch.context() as patch:
            released = DeletionLedger.released

            def dies(*arguments, **keywords):
                if moment == "after":
                    released(*arguments, **keywords)
                for end in ("failed", "refused"):
                    patch.setattr(DeletionLedger, end, lambda *_: None)
                raise Died

            where = (Residual, "center") if moment == "method" else (DeletionLedger, "released")
            patch.setattr(*where, dies)
            with pytest.raises(Died):
                self.call(lambda: self.net.unlearn(indices=positions))
        self.note_new(head, rows)
        self.net = pickle.loads(self.stored)

    @rule(kinds=some)
    def the_method_fails(self, kinds):
        positions = self.free(kinds)
        if positions:
            before, queue = self.present(), self.net.queue_
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Residual, "center", _fails)
                with pytest.raises(MemoryError):
                    self.call(lambda: self.net.unlearn(indices=positions))
            assert self.present() == before and queue.keys() <= self.net.queue_.keys()

    @rule()
    def fit(self):
        if self.net.queue_:
            with pytest.raises(DeletionRequestError, match="wait to be served"):
                self.net.fit(X, y, sample_ids=IDS)
        elif not self.pending():
            self.fit_again()

    # ---- what must hold

    def pending(self):
        entries = self.net.ledger_.pending().values()
        return [e for e in entries if e.detail["model"] == self.net.model_id_]

    def check_rows(self):
        """After a release: every row that was asked for is gone, and no other one."""
        expected = Counter((int(i), x.tobytes()) for i, x in zip(IDS, X, strict=True))
        expected.subtract(self.must_be_gone())
        assert min(expected.values()) >= 0
        assert self.present() == +expected

    @invariant()
    def the_ledger_verifies_and_knows_every_request(self):
        if not hasattr(self, "net"):
            return
        ledger = self.net.ledger_
        if ledger.path is None or Path(ledger.path).exists():
            ledger.verify()
        for name in self.asked:
            assert ledger.state(name) in ("requested", "released")
        assert {e.request_ids[0] for e in self.pending()} >= set(self.net.queue_) or self.on_disk

    @invariant()
    def the_promises_are_those_of_the_releases(self):
        if not hasattr(self, "net"):
            return
        promised = {g.request_id: g for g in self.net.guarantees()}
        served = {name for name in self.asked if self.net.ledger_.state(name) == "released"}
        assert promised.keys() == served
        for g in promised.values():
            assert g.n_composed >= 1 and g.n_rows == len(self.asked[g.request_id])
            if not self.secret and g.n_composed == 1:
                assert g.epsilon == 1.0
            elif not self.secret:
                assert g.epsilon > 1.0

    @invariant()
    def what_was_promised_to_be_gone_is_gone_or_this_net_is_of_before(self):
        """A net in use holds a released row only if the ledger is ahead of it."""
        if not hasattr(self, "net"):
            return
        ledger = self.net.ledger_
        ahead = any(
            e.state == "released" and e.detail["model"] == self.net.model_id_
            for e in ledger.since(self.net.heard_)
        )
        repeating = any("repeats" in e.detail for e in self.pending())
        if not ahead and not repeating:
            total = Counter((int(i), x.tobytes()) for i, x in zip(IDS, X, strict=True))
            for name, rows in self.asked.items():
                if ledger.state(name) == "released":
                    total.subtract(rows)
            assert not self.present() - +total


def _fails(*_):
    raise MemoryError


class InMemory(Service):
    on_disk = False


class Secret(Service):
    secret = True


LENGTHS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
TestOnDisk = Service.TestCase
TestOnDisk.settings = settings(max_examples=4, stateful_step_count=12, **LENGTHS)
TestInMemory = InMemory.TestCase
TestInMemory.settings = settings(max_examples=6, stateful_step_count=20, **LENGTHS)
TestSecret = Secret.TestCase
TestSecret.settings = settings(max_examples=6, stateful_step_count=20, **LENGTHS)
