"""What is promised today for each deletion, derived from a ledger and nothing else (T18, T19)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, nextafter
from typing import TYPE_CHECKING, Any

from ._ledger_format import REQUESTED, LedgerEntry
from .accounting import compose, gaussian_epsilon
from .bounds import TO_RETRAINED
from .events import number, optional_number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Guarantee:
    """What is promised today for one deletion, or correction.

    Parameters
    ----------
    request_id : str
        The request.
    n_rows : int
        How many rows it named.
    epsilon, delta : float
        The guarantee (T0), composed over `n_composed` releases. It is about all rows that its
        release deleted, together.
    mu : float or None
        Gaussian-DP parameter, composed and rounded up; None where a release has none.
    formal : bool
        Whether the certificates of all these releases are formal and, if they are several, compose:
        a distance to the retrained model does not (T19).
    release : int
        Which release since fit served it, from 1, as the ledger counts.
    n_composed : int
        How many releases could tell something about its rows: 1 for ``state="released"``, unless
        an older copy of the net had to delete the rows once more (T18); for ``state="secret"``
        all from `release` to the last (T19).
    """

    request_id: str
    n_rows: int
    epsilon: float
    delta: float
    mu: float | None
    formal: bool
    release: int
    n_composed: int


class Guarantees(tuple[Guarantee, ...]):
    """One :class:`Guarantee` for each deletion, in the order of the releases."""

    def to_frame(self) -> pd.DataFrame:
        """Return them as a pandas DataFrame, one row each."""
        import pandas as pd

        names = [f.name for f in fields(Guarantee)]
        return pd.DataFrame.from_records([asdict(item) for item in self], columns=names)


@dataclass(frozen=True)
class Promise:
    """What one release promised, alone.

    Parameters
    ----------
    epsilon, delta, mu
        As in its certificate; no mu where epsilon is infinite, as after a refuted assumption.
    formal, secret, composes : bool
        Whether it is formal; whether it started from un-noised state; whether its distance is one
        between any two worlds.
    request_ids : tuple of str
        Whom it served.
    """

    epsilon: float
    delta: float
    mu: float | None
    formal: bool
    secret: bool
    composes: bool
    request_ids: tuple[str, ...]

    @classmethod
    def from_entry(cls, entry: LedgerEntry) -> Promise:
        """Read it from the entry of a release."""
        record: dict[str, Any] = json.loads(entry.certificate or "")
        epsilon = number(record["epsilon"])
        return cls(
            epsilon,
            number(record["delta"]),
            None if epsilon == inf else optional_number(record["mu"]),
            record["formal"],
            record.get("state") == "secret",
            record["event"].get("bound") not in TO_RETRAINED,
            entry.request_ids,
        )


class Chronicle:
    """The requests to one model and its releases, as the entries of a ledger tell them."""

    def __init__(self, entries: Iterable[LedgerEntry]) -> None:
        self.n_rows: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.releases: list[Promise] = []
        sharing: dict[str, set[str]] = {}
        for entry in entries:
            if entry.state == REQUESTED:
                (request_id,) = entry.request_ids
                self.n_rows[request_id] = entry.n_rows
                first = self.first[request_id] = entry.detail.get("repeats", request_id)
                for other in entry.detail.get("shares", ()):
                    sharing.setdefault(self.first[other], set()).add(first)
            elif entry.certificate is not None:
                self.releases.append(Promise.from_entry(entry))
        self.served: dict[str, list[int]] = {}
        for place, release in enumerate(self.releases):
            for request_id in dict.fromkeys(self.first[r] for r in release.request_ids):
                self.served.setdefault(request_id, []).append(place)
        for request_id in sharing.keys() & self.served.keys():
            places = [self.served[r] for r in (request_id, *sharing[request_id])]
            self.served[request_id] = sorted(set().union(*places))

    def about(self, request_id: str) -> list[Promise]:
        """Return the releases that could tell something about the rows of a served request.

        Those that served it, a repetition of it or another request for some of its rows, and
        since the first of them those that started from un-noised state. All others are
        post-processing (T18).
        """
        places = self.served[request_id]
        return [
            release
            for place, release in enumerate(self.releases)
            if place in places or (place > places[0] and release.secret)
        ]

    def guarantees(self) -> Guarantees:
        """Return what is promised for each deletion."""
        known: dict[tuple[int, ...], tuple[float, float, float | None]] = {}
        out = []
        for request_id, places in self.served.items():
            group = self.about(request_id)
            key = tuple(places)
            if key not in known:
                known[key] = composed(group)
            epsilon, delta, mu = known[key]
            n_rows, release, count = self.n_rows[request_id], places[0] + 1, len(group)
            formal = all(r.formal and (r.composes or count == 1) for r in group)
            out.append(Guarantee(request_id, n_rows, epsilon, delta, mu, formal, release, count))
        return Guarantees(out)


def composed(releases: Sequence[Promise]) -> tuple[float, float, float | None]:
    """Return (epsilon, delta, mu) of releases together (T3); basic composition without a mu.

    With a mu, delta is that of the first release that has one. One release alone, after which
    nothing is kept, is what its certificate says.
    """
    if len(releases) == 1 and not releases[0].secret:
        return releases[0].epsilon, releases[0].delta, releases[0].mu
    mus = [release.mu for release in releases if release.mu is not None]
    if len(mus) < len(releases):
        epsilon, delta = (
            _sum_up(getattr(release, name) for release in releases) for name in ("epsilon", "delta")
        )
        return epsilon, min(1.0, delta), None
    mu = compose(mus)
    delta = next((release.delta for release in releases if release.delta), 0.0)
    return float(gaussian_epsilon(mu, delta)) if mu else 0.0, delta, mu


def _sum_up(values: Iterable[float]) -> float:
    total = 0.0
    for value in values:
        total = nextafter(total + value, inf) if total and value else total + value
    return total
