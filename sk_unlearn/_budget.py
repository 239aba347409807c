"""What a net has promised so far, and what a budget leaves for releases to come."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import floor, inf, isinf, nextafter, sqrt

from ._guarantees import Chronicle, Guarantees, composed
from ._ledger_format import LedgerEntry
from ._plan import announced
from .accounting import compose, event_delta, event_mu, gaussian_delta, gaussian_mu
from .bounds import TO_RETRAINED
from .events import Event
from .exceptions import BudgetExceededError


class BudgetMixin:
    """``guarantees`` and ``releases_left`` for a net with a ledger."""

    def guarantees(self) -> Guarantees:
        """Return what is promised today for each deletion since fit, as the ledger tells it.

        With ``state="released"`` that is what its certificate says (T18); with
        ``state="secret"`` the releases since then compose, mu = sqrt(sum of mu_i^2), at the
        deletion's delta (T19). A row that comes back through ``partial_fit`` is a new one: of what
        the model learns from it its earlier deletion says nothing.

        Returns
        -------
        tuple of Guarantee
            With ``request_id``, ``n_rows``, ``epsilon``, ``delta``, ``mu``, ``formal``,
            ``release`` and ``n_composed``; the tuple has a ``to_frame()``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        LedgerError
            If the ledger cannot be read.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y)
        >>> clf = clf.unlearn(indices=[0]).unlearn(indices=[0, 80], epsilon=0.5)
        >>> [(g.n_rows, g.epsilon, g.release) for g in clf.guarantees()]
        [(1, 1.0, 1), (2, 0.5, 2)]
        """
        self.check_is_fitted()
        return Chronicle(self._own_entries()).guarantees()

    def releases_left(self, epsilon: float | None = 1.0, delta: float = 1e-5) -> float:
        """Return how many more releases at (epsilon, delta) the budget and the horizon allow.

        Parameters
        ----------
        epsilon, delta : float
            As in ``unlearn``.

        Returns
        -------
        float
            A whole number; infinity without a limit.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If epsilon or delta is no guarantee.
        CalibrationError
            If the method cannot give it.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.methods import Residual
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> method = Residual(state="secret", horizon=3)
        >>> clf = CertifiedNeuralClassifier(LinearHead, C=100.0, method=method).fit(X, y)
        >>> clf.releases_left(), clf.unlearn(indices=[0]).releases_left()
        (3, 2)
        """
        self.check_is_fitted()
        try:
            event, _, _ = announced(
                self.method_, self._setting(), epsilon, delta, self.release_mus_
            )
        except BudgetExceededError:
            return 0
        left = self._left_in_budget(event)
        horizon = getattr(self.method_, "horizon", None)
        return left if horizon is None else min(left, horizon - len(self.release_mus_))

    def _asked(
        self, epsilon: float | None, delta: float, waiting: Collection[str]
    ) -> tuple[Event, float, float]:
        """Return the next release's complete event and what is asked of it, if budgets allow it."""
        asked = announced(self.method_, self._setting(), epsilon, delta, self.release_mus_)
        budget, event = self.fit_config_["budget"], asked[0]
        if budget is None:
            return asked
        if not self._left_in_budget(event) or not self._may_repeat(event, waiting):
            raise BudgetExceededError(
                f"budget={budget!r}: after {len(self.release_mus_)} releases since fit, 0 more at "
                f"epsilon = {asked[1]:g}, delta = {asked[2]:g} remain: one more would leave a "
                "deletion with less than the budget promises. Ask for a smaller epsilon "
                "(releases_left() says what it leaves), or fit again on the rows that are left. "
                "Nothing was changed."
            )
        return asked

    def _left_in_budget(self, event: Event) -> float:
        budget = self.fit_config_["budget"]
        if budget is None:
            return inf
        if not event_delta(event, budget[0]) <= budget[1]:
            return 0
        mu = event_mu(event)
        if self.method_.state != "secret" or mu == 0:
            return inf
        return how_many(self.release_mus_, inf if mu is None else mu, budget)

    def _may_repeat(self, event: Event, waiting: Collection[str]) -> bool:
        """Whether the budget allows to delete once more what an older copy of this net must."""
        epsilon, delta = self.fit_config_["budget"]
        details = [entry.detail for r, entry in self.ledger_.pending().items() if r in waiting]
        again = {detail["repeats"] for detail in details if "repeats" in detail}
        told = Chronicle(self._own_entries() if again else ())
        for first in again & told.served.keys():
            if getattr(event, "bound", None) in TO_RETRAINED:
                return False
            together = (composed(told.about(first))[2], event_mu(event))
            mu = compose([inf if m is None else m for m in together])
            if not gaussian_delta(mu, epsilon) <= delta:
                return False
        return True

    def _own_entries(self) -> list[LedgerEntry]:
        return [entry for entry in self.ledger_ if self._ours(entry)]

    def _ours(self, entry: LedgerEntry) -> bool:
        return isinstance(entry.detail, dict) and entry.detail.get("model") == self.model_id_


def how_many(earlier: Sequence[float], mu: float, budget: tuple[float, float]) -> int:
    """Return how many releases of `mu` > 0, after earlier ones, together satisfy a budget."""
    spent = compose(earlier)
    if isinf(spent) or isinf(mu):
        return 0

    def fits(count: int) -> bool:
        several = nextafter(mu * nextafter(sqrt(count), inf), inf)
        return bool(gaussian_delta(compose((*earlier, several)), budget[0]) <= budget[1])

    count = max(0, floor((float(gaussian_mu(*budget)) ** 2 - spent**2) / mu**2) + 1)
    while count and not fits(count):
        count -= 1
    return count
