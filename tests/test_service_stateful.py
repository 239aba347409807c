"""Random histories of a service, against a model that knows only which rows must be gone."""

from __future__ import annotations

import pickle
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import DeletionRequestError, LedgerError, UnlearningWarning
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearHead

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2)).astype(np.float32)
X[12:16] = X[:4]  # copies, of another owner
X[17] = X[16]  # and of the same one
y = np.arange(24) % 4 // 2
y[12:16], y[17] = y[:4], y[16]
IDS = np.arange(24) // 2  # rows from 18 on are asked for by nobody, so that no class goes
ROWS = Counter(zip(IDS.tolist(), map(bytes, X), strict=True))
some = st.lists(st.integers(0, 17), min_size=1, max_size=3, unique=True)


class Died(BaseException):
    """The process ends here."""


def _dies(*_, **__):
    raise Died


def _fails(*_):
    raise MemoryError


class Service(RuleBasedStateMachine):
    """The net in use, what another process or the disk has of it, and what must hold.

    A row is (owner, content). ``asked`` maps each accepted request to the rows that it named,
    ``gone`` is which requests the net in use has served (``kept_gone``: the one that is kept), and
    ``releases`` which requests each release took out, whatever became of the net that made it.
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
        self.asked, self.gone, self.releases = {}, set(), []
        self.keep()

    def teardown(self):
        if hasattr(self, "net"):
            self.verify()
            self.net.ledger_.close()
            self.folder.cleanup()

    # ---- what is where

    def rows(self, positions):
        rows = self.net.rows_.take(np.asarray(positions, dtype=int))
        return Counter(zip(rows.sample_ids.tolist(), map(bytes, rows.X), strict=True))

    def present(self):
        return self.rows(range(self.net.n_rows_))

    def left_without(self, requests):
        return ROWS - sum((self.asked[r] for r in requests), Counter())

    def queued(self):
        return {p for positions in self.net.queue_.values() for p in positions}

    def positions(self, kinds):
        """Positions of rows of these original numbers that are there and not queued."""
        wanted = Counter((int(IDS[i]), bytes(X[i])) for i in kinds)
        out = []
        for position in sorted(set(range(self.net.n_rows_)) - self.queued()):
            (row,) = self.rows([position])
            if wanted[row]:
                wanted[row] -= 1
                out.append(position)
        return out

    def pending(self):
        entries = self.net.ledger_.pending().items()
        return {r for r, e in entries if e.detail["model"] == self.net.model_id_}

    def behind(self):
        """Whether the ledger knows of what the net in use does not."""
        released = set().union(*self.releases)
        return bool(self.pending() - self.net.queue_.keys()) or not released <= self.gone

    # ---- what is done

    def call(self, action, *arguments, **keywords):
        """Run it; it says so if the ledger is ahead of the net, and not otherwise."""
        behind = self.behind()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UnlearningWarning)
            try:
                return action(*arguments, **keywords)
            finally:
                said = any("net of before" in str(w.message) for w in caught)
                said |= any("is of before" in str(w.message) for w in caught)
                assert not said or behind

    def ask(self, action, rows, **named):
        """Let something be asked for; True if it was accepted, and False if that was right.

        An older net refuses rows that the ledger says were asked for, or released, meanwhile.
        """
        behind = self.behind()
        try:
            return self.call(action, **named)
        except DeletionRequestError as error:
            assert behind and "queued already" in str(error)
            overlap = sum((self.rows(p) for p in self.net.queue_.values()), Counter())
            assert overlap & rows
            return None

    def new_requests(self, since):
        return [
            entry.request_ids[0]
            for entry in self.net.ledger_.since(since)
            if entry.state == "requested" and "repeats" not in entry.detail
        ]

    @rule(kinds=some, by_content=st.booleans())
    def request(self, kinds, by_content):
        positions = self.positions(kinds)
        if positions:
            rows, named = self.rows(positions), {"indices": positions}
            if by_content:
                taken = self.net.rows_.take(np.array(positions))
                named = {"X_u": taken.X, "y_u": taken.y}
            before = {} if self.behind() else self.net.queue_
            name = self.ask(self.net.request_deletion, rows, **named)
            if name is not None:
                assert before.items() <= self.net.queue_.items()
                self.asked[name] = self.rows(self.net.queue_[name])
                contents = [Counter(x for _, x in of.elements()) for of in (rows, self.asked[name])]
                assert contents[0] == contents[1]

    @rule(owner=st.integers(0, 8))
    def request_by_id(self, owner):
        mine = np.flatnonzero(self.net.rows_.sample_ids == owner).tolist()
        if mine and self.queued().isdisjoint(mine):
            rows = self.rows(mine)
            name = self.ask(self.net.request_deletion, rows, sample_ids=[owner])
            if name is not None:
                self.asked[name] = rows

    @rule()
    def process(self):
        waits = bool(self.asked.keys() - self.gone)
        self.call(self.net.process_deletions)
        if waits:
            self.end_of_release()
        self.check_release()

    @rule(kinds=some)
    def unlearn(self, kinds):
        positions = self.positions(kinds)
        if positions:
            rows, head = self.rows(positions), self.net.ledger_.head
            if self.ask(self.net.unlearn, rows, indices=positions) is not None:
                (name,) = self.new_requests(head)
                self.asked[name] = rows
                self.end_of_release()
                self.check_release()

    def end_of_release(self):
        self.releases.append(self.asked.keys() - self.gone)
        self.gone = set(self.asked)

    def check_release(self):
        assert not self.net.queue_ and not self.pending()
        assert self.present() == self.left_without(self.asked)
        self.verify()

    @rule(kinds=some)
    def duplicate_request(self, kinds):
        queued = sorted(self.queued())[: len(kinds)]
        if queued:
            for attempt in (self.net.request_deletion, self.net.unlearn):
                with pytest.raises(DeletionRequestError, match="queued already"):
                    self.call(attempt, indices=queued)
            used = next(iter(self.net.queue_))
            other = self.positions(range(18))[:1]
            if other:
                with pytest.raises(LedgerError, match="in the ledger already"):
                    self.call(self.net.request_deletion, indices=other, request_id=used)

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

    # ---- what else happens

    @rule()
    def keep(self):
        self.kept, self.kept_gone = pickle.dumps(self.net), set(self.gone)
        self.kept_rest = (dict(self.asked), list(self.releases))

    @rule(by=st.sampled_from(["pickle", "save"]))
    def store_and_load(self, by):
        if by == "pickle":
            self.net = pickle.loads(pickle.dumps(self.net))
        else:
            path = Path(self.folder.name) / "net.safetensors"
            self.net.save(path, include_data=True)
            self.net.ledger_.close()
            self.net = CertifiedNeuralClassifier.load(path)

    @rule()
    def crash(self):
        """The net in use is lost. In memory the ledger goes with it."""
        self.net.ledger_.close()
        self.net, self.gone = pickle.loads(self.kept), set(self.kept_gone)
        if not self.on_disk:
            self.asked, self.releases = dict(self.kept_rest[0]), list(self.kept_rest[1])

    @precondition(lambda self: self.on_disk)
    @rule()
    def another_process_goes_on(self):
        mine, gone = pickle.dumps(self.net), self.gone
        self.crash()
        self.kept, self.kept_gone = mine, gone

    @precondition(lambda self: self.on_disk)
    @rule(kinds=some, moment=st.sampled_from(["method", "before", "after"]))
    def crash_in_a_release(self, kinds, moment):
        """Nothing that the dying process would have written afterwards is written."""
        positions = self.positions(kinds)
        if not positions:
            return
        rows, head = self.rows(positions), self.net.ledger_.head
        released = DeletionLedger.released

        def after(*arguments, **keywords):
            released(*arguments, **keywords)
            raise Died

        where = (Residual, "center") if moment == "method" else (DeletionLedger, "released")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*where, after if moment == "after" else _dies)
            for end in ("failed", "refused"):
                patch.setattr(DeletionLedger, end, lambda *_: None)
            try:
                self.ask(self.net.unlearn, rows, indices=positions)
            except Died:
                (name,) = self.new_requests(head)
                self.asked[name] = rows
                if moment == "after":
                    self.end_of_release()
        self.crash()

    @rule(kinds=some)
    def the_method_fails(self, kinds):
        positions = self.positions(kinds)
        if positions:
            before, rows = self.present(), self.rows(positions)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Residual, "center", _fails)
                with suppress(MemoryError):
                    self.ask(self.net.unlearn, rows, indices=positions)
            assert self.present() == before

    @rule()
    def fit(self):
        if self.pending():
            with pytest.raises(DeletionRequestError, match="wait to be served"):
                self.net.fit(X, y, sample_ids=IDS)
        else:
            self.fit_again()

    # ---- what must hold

    def verify(self):
        ledger = self.net.ledger_
        if not self.on_disk or Path(ledger.path).exists():
            ledger.verify()

    @invariant()
    def nothing_is_lost_and_nothing_is_gone_that_nobody_asked_for(self):
        if hasattr(self, "net"):
            assert self.present() == self.left_without(self.gone)
            states = {name: self.net.ledger_.state(name) for name in self.asked}
            released = set().union(*self.releases)
            assert {name for name, state in states.items() if state == "released"} == released
            assert {name for name, state in states.items() if state == "requested"} == (
                self.asked.keys() - released
            )

    @invariant()
    def every_promise_counts_all_releases_that_could_tell(self):
        if hasattr(self, "net"):
            told = {}
            for served in self.releases:
                for name in served | (told.keys() if self.secret else set()):
                    told[name] = told.get(name, 0) + 1
            promised = self.net.guarantees()
            assert {g.request_id: g.n_composed for g in promised} == told
            for g in promised:
                assert g.n_rows == self.asked[g.request_id].total()
                if not self.secret:
                    assert (g.epsilon == 1.0) == (g.n_composed == 1) and g.epsilon >= 1.0


class InMemory(Service):
    on_disk = False


class Secret(Service):
    secret = True


LENGTHS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
TestOnDisk, TestInMemory, TestSecret = (kind.TestCase for kind in (Service, InMemory, Secret))
TestOnDisk.settings = settings(max_examples=8, stateful_step_count=15, **LENGTHS)
TestInMemory.settings = settings(max_examples=4, stateful_step_count=15, **LENGTHS)
TestSecret.settings = TestInMemory.settings


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Service, Secret])
def test_longer_histories(kind):
    long = settings(max_examples=80, stateful_step_count=30, **LENGTHS)
    run_state_machine_as_test(kind, settings=long)
