"""Deletion as a service: requests queue, one release serves them, a budget bounds the sequence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any
from uuid import uuid4

import numpy as np

from ._guarantees import SECRET, Guarantees, Node, composed, fits, how_many
from ._interrupt import hold_interrupt
from ._record import RecordMixin, _reason
from ._recovery import BY_IDS, BY_ROWS
from ._rows import TrainingRows
from ._validation import check_guarantee
from .accounting import calibrate, event_mu
from .assumptions import Assumption, Status
from .events import Event, ExactRelease, UncertifiedRelease
from .exceptions import BudgetExceededError, DeletionRequestError, UnknownRowError
from .ledger import DeletionLedger
from .methods import Outcome, Problem
from .methods.base import OneShotMethod

_SECRET_SCOPE = (
    "later releases compose with this one, mu = sqrt(sum of mu_i^2), because an un-noised state "
    "is kept (T19)"
)
_RELEASED_SCOPE = (
    "later releases take nothing away from this one: each is computed from the release before it "
    "(T18)"
)


class ServiceMixin(RecordMixin):
    """``request_deletion``, ``process_deletions`` and what they promise together."""

    def request_deletion(
        self,
        X_u: Any = None,
        y_u: Any = None,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        request_id: str | None = None,
    ) -> str:
        """Queue rows for the next :meth:`process_deletions`.

        With a ledger file the request is on the disk when this returns, and the next start
        finds its rows again, whatever happens to this process.

        Parameters
        ----------
        X_u, y_u, indices, sample_ids
            The rows, named in exactly one way, as in :meth:`unlearn`; `indices` are positions
            among the rows that are left now. One id may own many rows.
        request_id : str, optional
            A name that the ledger does not have yet. Keep personal data out of it.

        Returns
        -------
        str
            The request's id.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If rows are malformed, not there (UnknownRowError), none at all, queued already, or
            the last of a class.
        LedgerError
            If `request_id` was used before, or the ledger cannot be written.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, C=100.0)
        >>> clf = clf.fit(X, y, sample_ids=[f"user{i // 3}" for i in range(150)])
        >>> clf.request_deletion(sample_ids=["user7"], request_id="ticket-1")
        'ticket-1'
        >>> clf.request_deletion(indices=[0, 80], request_id="ticket-2")
        'ticket-2'
        >>> clf.process_deletions(epsilon=1.0, delta=1e-5).certificate_.n_deleted
        5
        >>> [(g.request_id, g.epsilon) for g in clf.guarantees()]
        [('ticket-1', 1.0), ('ticket-2', 1.0)]
        """
        self.check_is_fitted()
        if self.rows_ is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False), so it cannot queue any: call "
                "unlearn(X_u, y_u, X_r=..., y_r=...) with all requests together"
            )
        positions = self._locate(X_u, y_u, indices, sample_ids)
        if not len(positions):
            raise DeletionRequestError("the request names no rows; name at least one")
        self._catch_up(self.rows_)
        positions = self._not_queued(positions, X_u, y_u)
        rows, named_by = self.rows_.take(positions), BY_ROWS if sample_ids is None else BY_IDS
        ledger = self._ledger_file() or vars(self).get("_ledger") or DeletionLedger()
        together = np.concatenate([*self.queue_.values(), positions])
        try:
            self._check_remaining(self.rows_.without(together), self.rows_.take(together))
        except DeletionRequestError as error:
            if ledger.path is not None:
                with hold_interrupt():
                    new = self._request(ledger, rows, named_by, request_id=request_id)
                    ledger.refused(new, _reason(error))
                    self._note_head(ledger, 2)
            raise
        with hold_interrupt():
            new = self._request(ledger, rows, named_by, request_id=request_id)
            vars(self).update(_ledger=ledger, queue_=self.queue_ | {new: positions})
            self._note_head(ledger, 1)
        return new

    def process_deletions(
        self,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        *,
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
    ) -> ServiceMixin:
        """Serve all queued requests in one release; without any, do nothing.

        Whatever fails leaves the requests queued and the net as it was.

        Parameters
        ----------
        epsilon, delta, assumptions, scope
            As in :meth:`unlearn`.

        Returns
        -------
        self

        Raises
        ------
        DeletionRequestError, CalibrationError, NotApplicableError, ToleranceNotReachedError
            As in :meth:`unlearn`.
        BudgetExceededError
            If the release would overspend the budget.
        LedgerError
            If the ledger cannot be written.
        """
        self.check_is_fitted()
        epsilon, delta = check_guarantee(epsilon, delta)
        if self.rows_ is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False), so nothing is queued; call "
                "unlearn"
            )
        self._catch_up(self.rows_)
        if not self.queue_:
            return self
        ids, positions = tuple(self.queue_), np.sort(np.concatenate([*self.queue_.values()]))
        retained, deleted = self.rows_.without(positions), self.rows_.take(positions)
        new = self._release(retained, deleted, epsilon, delta, assumptions, scope, ids)
        self._commit(self.ledger_, ids, new, positions)
        return self

    def guarantees(self) -> Guarantees:
        """Return what is promised today for each deletion, as the ledger tells it.

        With ``state="released"`` that is what its certificate says (T18); with
        ``state="secret"`` the releases since then compose (T19).

        Returns
        -------
        tuple of Guarantee
            One for each request that was served since fit; it has a ``to_frame()``.
        """
        self.check_is_fitted()
        return self._chronicle().guarantees()

    def releases_left(self, epsilon: float = 1.0, delta: float = 1e-5) -> float:
        """Return how many more releases at (epsilon, delta) the budget allows; inf without one.

        Raises
        ------
        CalibrationError
            If the method cannot give the guarantee.
        """
        self.check_is_fitted()
        epsilon, delta = check_guarantee(epsilon, delta)
        event = calibrate(self.method_.event(self._setting()), epsilon, delta)
        return self._left(self._next(event, epsilon, delta, ()))

    def _not_queued(self, positions: np.ndarray, X_u: Any, y_u: Any) -> np.ndarray:
        """Return `positions`, or those of further copies where the first ones are queued."""
        queued = np.concatenate([*self.queue_.values(), np.empty(0, dtype=np.int64)])
        taken = np.isin(positions, queued)
        if not taken.any():
            return positions
        if X_u is not None:
            free = np.setdiff1d(np.arange(len(self.rows_)), queued)
            wanted = self._request_rows(X_u, y_u, "X_u", "y_u")
            try:
                found = self.rows_.take(free).find_content(
                    wanted.X, wanted.y, self._label_names()
                )
                return free[found]
            except UnknownRowError:
                pass
        by = [r for r, p in self.queue_.items() if np.isin(p, positions).any()]
        raise DeletionRequestError(
            f"{int(taken.sum())} of these {len(positions)} rows are queued already, by the requests "
            f"{by[:5]}"
        )

    def _run(self, problem: Problem, event: Event) -> tuple[Outcome, np.ndarray | None]:
        """Run the method; with ``state="secret"`` return its un-noised weights too."""
        method = self.method_
        if (
            self.fit_config_["state"] != "secret"
            or not isinstance(method, OneShotMethod)
            or type(method).unlearn is not OneShotMethod.unlearn
        ):
            return method.unlearn(problem, event), None
        if "secret_weights_" in vars(self):
            problem = replace(problem, parameters=self.secret_weights_)
        center = method.center(problem, event)
        kept = Assumption(
            "un-noised weights",
            Status.ASSUMED,
            "kept by the operator for the next release (state='secret'), and shown to nobody",
        )
        outcome = method.release(center, problem.noise)
        outcome = replace(outcome, assumptions=(*outcome.assumptions, kept))
        return outcome, center.parameters

    def _next(self, event: Event, epsilon: float, delta: float, ids: Sequence[str]) -> Node:
        if isinstance(event, ExactRelease):
            epsilon = delta = 0.0
        if isinstance(event, UncertifiedRelease):
            epsilon = inf
        return Node(
            uuid4().hex,
            self.model_id_,
            self.release_id_,
            self._starts_from(),
            epsilon,
            delta,
            event_mu(event),
            request_ids=tuple(ids),
        )

    def _check_budget(self, node: Node) -> None:
        """Refuse a release after which a deletion would have less than the budget promises."""
        budget = self.fit_config_["budget"]
        if budget is None:
            return
        for nodes in self._groups(node):
            if not fits([*nodes, node], budget):
                epsilon, delta, _ = composed([*nodes, node])
                raise BudgetExceededError(
                    f"budget={budget}: with {len(nodes)} earlier releases, this one at epsilon = "
                    f"{node.epsilon:g}, delta = {node.delta:g} would leave a deletion with epsilon "
                    f"= {epsilon:.6g} at delta = {delta:g}; 0 more releases at this guarantee "
                    "remain. Ask for a smaller epsilon, or train anew"
                )

    def _left(self, node: Node) -> float:
        budget = self.fit_config_["budget"]
        if budget is None:
            return inf
        if self.fit_config_["state"] != "secret":
            fit = all(fits([*nodes, node], budget) for nodes in self._groups(node))
            return inf if fit else 0
        return min(how_many(nodes, node, budget) for nodes in self._groups(node))

    def _groups(self, node: Node) -> list[list[Node]]:
        """Return, for each deletion that a release would tell something about, the earlier ones."""
        told = self._chronicle()
        groups = [told.about(r, node) for r in told.requests if "repeats" not in
                  told.requests[r].detail]
        return [[]] + [g[:-1] for g in groups if g and g[-1] is node]

    def _lineage(self, node: Node) -> dict[str, Any]:
        """Return what the ledger needs to derive guarantees from a certificate."""
        out: dict[str, Any] = {
            "lineage": {
                "release": node.release,
                "model": node.model,
                "after": node.after,
                "starts_from": node.starts_from,
            }
        }
        if self.fit_config_["budget"] is not None:
            out["releases_left_before"] = self._left(node)
        if node.starts_from == SECRET:
            told = self._chronicle()
            pairs = [(r, told.about(r, node)) for r in told.originals()]
            out["composed"] = [
                dict(zip(("request_id", "epsilon", "delta", "mu"), (r, *composed(nodes)), strict=True))
                for r, nodes in pairs
                if nodes[-1] is node
            ]
        return out

    def _sequence_scope(self) -> str:
        return _SECRET_SCOPE if self.fit_config_["state"] == "secret" else _RELEASED_SCOPE

    def _freeze_setting(self) -> None:
        check_service(self)
        super()._freeze_setting()


def check_service(net: Any) -> None:
    """Check ``ledger``, ``budget`` and ``state``.

    Raises
    ------
    TypeError, ValueError
        Quoting the value.
    """
    if net.ledger is not None and not isinstance(net.ledger, str | os.PathLike):
        raise TypeError(f"ledger={net.ledger!r}; give a path, or None for a ledger in memory")
    if net.state not in ("released", "secret"):
        raise ValueError(f"state={net.state!r}; choose 'released' or 'secret'")
    if net.budget is not None:
        if not isinstance(net.budget, tuple | list) or len(net.budget) != 2:
            raise ValueError(f"budget={net.budget!r}; give (epsilon, delta), or None")
        check_guarantee(*net.budget)
