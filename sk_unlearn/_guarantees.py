"""What is promised today for each deletion, derived from a ledger and nothing else (T18, T19)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from math import floor, inf, nextafter
from typing import TYPE_CHECKING, Any

from .accounting import compose, gaussian_delta, gaussian_epsilon, gaussian_mu
from .events import number, optional_number
from .ledger import DeletionLedger, LedgerEntry

if TYPE_CHECKING:
    import pandas as pd

FIT, RELEASE, SECRET = "fit", "release", "secret"


@dataclass(frozen=True)
class Guarantee:
    """What is promised today for one deletion.

    Parameters
    ----------
    request_id : str
        The request.
    n_rows : int
        How many rows it named.
    time : str
        UTC time of the release that served it, as in the ledger.
    epsilon, delta : float
        The guarantee, composed over `n_releases`; `delta` as asked for where it is one
        release, or where the releases have a Gaussian-DP parameter.
    mu : float or None
        Gaussian-DP parameter, composed; None where a method has none.
    n_releases : int
        How many releases could tell something about the rows.
    formal : bool
        Whether each of their certificates is formal.
    """

    request_id: str
    n_rows: int
    time: str
    epsilon: float
    delta: float
    mu: float | None
    n_releases: int
    formal: bool


class Guarantees(tuple[Guarantee, ...]):
    """One :class:`Guarantee` for each deletion, in the order of the requests."""

    def to_frame(self) -> pd.DataFrame:
        """Return them as a pandas DataFrame, one row each."""
        import pandas as pd

        names = [f.name for f in fields(Guarantee)]
        return pd.DataFrame.from_records([asdict(item) for item in self], columns=names)


@dataclass(frozen=True)
class Node:
    """One release: what it bought, and from which state it was computed.

    Parameters
    ----------
    release, model : str
        Random names of the release and of the model it belongs to.
    after : str
        The release, or the model, whose state it started from.
    starts_from : {"fit", "release", "secret"}
        Which state that was: the trained model, the released weights, or un-noised ones.
    epsilon, delta, mu : float
        Of its certificate.
    formal : bool
    time : str
    request_ids : tuple of str
        Whom it served.
    """

    release: str
    model: str
    after: str
    starts_from: str
    epsilon: float
    delta: float
    mu: float | None
    formal: bool = True
    time: str = ""
    request_ids: tuple[str, ...] = ()


class Chronicle:
    """The requests and releases of one model, as its ledger tells them."""

    def __init__(self, ledger: DeletionLedger, model: str) -> None:
        self.requests: dict[str, LedgerEntry] = {}
        self.nodes: list[Node] = []
        states: dict[str, str] = {}
        for entry in ledger:
            for request_id in entry.request_ids:
                states[request_id] = entry.state
            if entry.state == "requested" and belongs(entry, model):
                self.requests[entry.request_ids[0]] = entry
            elif entry.certificate is not None:
                node = _node(entry)
                if node is not None and node.model == model:
                    self.nodes.append(node)
        self.states = {request_id: states[request_id] for request_id in self.requests}
        self.served = {r: node for node in self.nodes for r in node.request_ids}
        self._repeats: dict[str, list[str]] = {}
        for request_id, entry in self.requests.items():
            if "repeats" in entry.detail and self.states[request_id] in ("requested", "released"):
                self._repeats.setdefault(entry.detail["repeats"], []).append(request_id)
        self._carried_on: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.starts_from == SECRET:
                self._carried_on.setdefault(node.after, []).append(node)

    def repeated(self, request_id: str) -> list[str]:
        """Return a request and those that repeat it after a crash, unless refused or failed."""
        ids = [request_id]
        for current in ids:
            ids += self._repeats.get(current, [])
        return ids

    def history_of(self, release: str) -> set[str]:
        """Return a release and those that its state was computed from."""
        parents = {node.release: node.after for node in self.nodes}
        found = set()
        while release in parents and release not in found:
            found.add(release)
            release = parents[release]
        return found

    def lost(self, release: str) -> list[str]:
        """Return the requests that were released, but not in the history of `release`."""
        mine = self.history_of(release)
        gone = [r for node in self.nodes if node.release not in mine for r in node.request_ids]
        return [r for r in gone if r in self.requests and r not in self._repeats]

    def about(self, request_id: str, extra: Node | None = None) -> list[Node]:
        """Return the releases that could tell something about the rows of a request.

        The one that served it; those that repeated it; and those computed from an un-noised
        state of one of them (T19). All others are post-processing (T18).

        Parameters
        ----------
        request_id : str
        extra : Node, optional
            One more release, that has not happened.
        """
        ids = self.repeated(request_id)
        found = {self.served[r].release: self.served[r] for r in ids if r in self.served}
        todo = list(found.values())
        for node in todo:
            new = [n for n in self._carried_on.get(node.release, []) if n.release not in found]
            found |= {n.release: n for n in new}
            todo += new
        if extra is not None:
            carries_on = extra.starts_from == SECRET and extra.after in found
            if carries_on or not set(ids).isdisjoint(extra.request_ids):
                todo.append(extra)
        return todo

    def originals(self) -> list[str]:
        """Return the served requests, without those that only repeat another."""
        return [r for r in self.served if "repeats" not in self.requests[r].detail]

    def guarantees(self) -> Guarantees:
        """Return what is promised for each deletion."""
        known: dict[tuple[str, ...], tuple[float, float, float | None]] = {}
        out = []
        for request_id in self.originals():
            nodes = self.about(request_id)
            key = tuple(node.release for node in nodes)
            if key not in known:
                known[key] = composed(nodes)
            epsilon, delta, mu = known[key]
            formal = all(node.formal for node in nodes)
            served = self.served[request_id]
            n_rows = self.requests[request_id].n_rows
            out.append(
                Guarantee(
                    request_id, n_rows, served.time, epsilon, delta, mu, len(nodes), formal
                )
            )
        return Guarantees(out)


def belongs(entry: LedgerEntry, model: str) -> bool:
    """Whether a request was made to the model of this name."""
    return isinstance(entry.detail, dict) and entry.detail.get("model") == model


def composed(nodes: Sequence[Node]) -> tuple[float, float, float | None]:
    """Return (epsilon, delta, mu) of releases together (T3); basic composition without a mu."""
    if len(nodes) == 1:
        return nodes[0].epsilon, nodes[0].delta, nodes[0].mu
    mus = [node.mu for node in nodes]
    if any(mu is None for mu in mus):
        delta = min(1.0, _sum_up(node.delta for node in nodes))
        return _sum_up(node.epsilon for node in nodes), delta, None
    mu = compose([m for m in mus if m is not None])
    delta = max(node.delta for node in nodes)
    return (0.0, 0.0, 0.0) if mu == 0 else (float(gaussian_epsilon(mu, delta)), delta, mu)


def fits(nodes: Sequence[Node], budget: tuple[float, float]) -> bool:
    """Whether releases together satisfy (epsilon, delta)."""
    epsilon, delta, mu = composed(nodes)
    if mu is not None:
        return bool(gaussian_delta(mu, budget[0]) <= budget[1])
    return epsilon <= budget[0] and delta <= budget[1]


def how_many(nodes: Sequence[Node], one: Node, budget: tuple[float, float]) -> float:
    """Return how many more releases like `one`, each composing with `nodes`, fit a budget."""
    if not fits([*nodes, one], budget):
        return 0
    epsilon, delta, mu = composed(nodes) if nodes else (0.0, 0.0, 0.0)
    if one.mu is None or mu is None:
        ratios = [(budget[0] - epsilon) / one.epsilon, (budget[1] - delta) / one.delta]
        return max(1, floor(min(ratios) * (1 - 1e-12)))
    if one.mu == 0:
        return inf
    left = float(gaussian_mu(*budget)) ** 2 - mu**2
    count = max(1, floor(left / one.mu**2))
    while count > 1 and gaussian_delta(_several(mu, one.mu, count), budget[0]) > budget[1]:
        count -= 1
    return count


def _several(mu: float, each: float, count: int) -> float:
    together = nextafter(each * nextafter(count**0.5, inf), inf)
    return compose([mu, together])


def _sum_up(values: Iterable[float]) -> float:
    total = 0.0
    for value in values:
        total = nextafter(total + value, inf) if total and value else total + value
    return total


def _node(entry: LedgerEntry) -> Node | None:
    record: dict[str, Any] = json.loads(entry.certificate or "{}")
    lineage = record.get("diagnostics", {}).get("lineage")
    if not isinstance(lineage, dict):
        return None
    return Node(
        release=lineage["release"],
        model=lineage["model"],
        after=lineage["after"],
        starts_from=lineage["starts_from"],
        epsilon=number(record["epsilon"]),
        delta=number(record["delta"]),
        mu=optional_number(record["mu"]),
        formal=record["formal"],
        time=entry.time,
        request_ids=entry.request_ids,
    )
