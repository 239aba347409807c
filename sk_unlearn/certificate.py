"""What is promised about one release, on which assumptions, in a form that anyone can check."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from math import inf, isfinite, isinf, isnan
from typing import Any

from . import bounds
from ._certificate_json import READ, finite, without_repetition
from ._certificate_text import as_html, as_text
from .accounting import compose, event_delta, event_mu, gaussian_delta, gaussian_epsilon
from .assumptions import CORRECTION, Assumption, Status
from .events import Event, GaussianRelease, ObjectivePerturbation, UncertifiedRelease
from .exceptions import CertificateError, SkUnlearnError

FORMAT = "sk_unlearn certificate 1"
_OPERATOR_ONLY = ("n_deleted", "diagnostics")
__all__ = ["Assumption", "Certificate", "Status"]

_PACKAGES = ("numpy", "scipy", "scikit-learn", "skorch", "torch")


@dataclass(frozen=True, repr=False)
class Certificate:
    """An (epsilon, delta) statement about one release, with all that is needed to check it.

    The statement is (T0) of the theory notes: the released parameters are
    (epsilon, delta)-indistinguishable from those of the same release step run on a model
    that never saw the deleted rows, or, if rows were corrected, saw them as they are now.
    ``epsilon`` is what was asked for, to the last bit;
    what the event buys is never more than that (:meth:`verify`).

    Parameters
    ----------
    epsilon, delta : float
        The guarantee. ``epsilon`` is infinite where nothing is proved.
    mu : float or None
        Gaussian-DP parameter of the event (T1), None where a method has none.
    sigma : float or None
        Standard deviation of the noise per weight, absolute.
    sensitivity : float or None
        Euclidean distance that the noise covers, over all weights together.
    method : str
        The method, with its parameters.
    event : Event
        The record of what ran.
    n_deleted : int or None
        Rows deleted, or corrected, by this release; None in the public copy.
    n_retained : int
        Rows that remain.
    n_parameters : int or None
        Weights that were released; None for a model that is no vector of weights.
    assumptions : tuple of Assumption
        What the statement rests on.
    scope : tuple of str
        What the statement does not say.
    weights_norm : float or None
        Euclidean distance of the released weights from the anchor, noise included; None for a
        model that is no vector of weights.
    diagnostics : dict
        Measurements of this run, for the operator only.
    versions : dict
        Versions of the packages that ran.
    created : str
        UTC time, ISO 8601; the day alone in the public copy.
    state : {"released", "secret"}
        Whether later releases are computed from this one alone, which is then not weakened by
        them (T18), or from un-noised state that was kept, so that releases compose (T19).
    composed : tuple of (float, float) or None
        Where un-noised state is kept: the (epsilon, delta) that holds now, this release included,
        for rows deleted by the earliest release since fit.
    earlier_mu : tuple of float
        Where un-noised state is kept: the Gaussian-DP parameters of the earlier releases since
        fit, in their order; infinite where one proved nothing.
    """

    epsilon: float
    delta: float
    mu: float | None
    sigma: float | None
    sensitivity: float | None
    method: str
    event: Event
    n_deleted: int | None
    n_retained: int
    n_parameters: int | None
    assumptions: tuple[Assumption, ...]
    scope: tuple[str, ...]
    weights_norm: float | None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    state: str = "released"
    composed: tuple[float, float] | None = None
    earlier_mu: tuple[float, ...] = ()

    @property
    def proved_mu(self) -> float:
        """Gaussian-DP parameter of this release alone; infinite where none is proved."""
        return inf if self.mu is None or isinf(self.epsilon) else self.mu

    @property
    def composed_mu(self) -> float:
        """Gaussian-DP parameter of this and the earlier releases together, rounded up (T19)."""
        return compose((*self.earlier_mu, self.proved_mu))

    @property
    def corrects(self) -> bool:
        """True when rows were corrected, not deleted: it is about training on what they became."""
        return any(a.name == CORRECTION.name for a in self.assumptions)

    @property
    def formal(self) -> bool:
        """True when every assumption holds by construction or is proved, and epsilon is finite."""
        return isfinite(self.epsilon) and all(a.status.formal for a in self.assumptions)

    @property
    def noise_to_weights(self) -> float:
        """Expected Euclidean norm of the noise over :attr:`weights_norm`."""
        if not self.sigma or self.n_parameters is None:
            return 0.0
        noise = self.sigma * self.n_parameters**0.5
        return noise / self.weights_norm if self.weights_norm else inf

    @classmethod
    def issue(
        cls,
        event: Event,
        epsilon: float,
        delta: float,
        assumptions: tuple[Assumption, ...],
        **facts: Any,
    ) -> Certificate:
        """Write the certificate of a complete event, as asked for or, if it proves nothing, so.

        An uncertified event, or a refuted assumption, makes ``epsilon`` infinite.

        Raises
        ------
        CertificateError
            If the event buys less than (epsilon, delta).
        """
        if isinstance(event, UncertifiedRelease) or any(
            a.status is Status.REFUTED for a in assumptions
        ):
            epsilon = inf
        certificate = cls(
            epsilon=epsilon,
            delta=delta,
            mu=event_mu(event),
            sigma=getattr(event, "sigma", None),
            sensitivity=getattr(event, "sensitivity", None),
            event=event,
            assumptions=tuple(assumptions),
            versions=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        )
        if certificate.state == "secret":
            together = gaussian_epsilon(certificate.composed_mu, delta)
            certificate = replace(certificate, composed=(float(together), delta))
        return certificate.verify()

    def verify(self) -> Certificate:
        """Recompute from the event that it buys no more than it says.

        Returns
        -------
        Certificate
            Itself, so that calls can be chained.

        Raises
        ------
        CertificateError
            On any mismatch, naming what is written and what the event gives.
        """
        if isnan(self.epsilon) or self.epsilon < 0 or not 0 <= self.delta <= 1:
            raise CertificateError(
                f"epsilon = {self.epsilon}, delta = {self.delta} is no guarantee"
            )
        if any(a.status is Status.REFUTED for a in self.assumptions) and isfinite(self.epsilon):
            raise CertificateError(f"epsilon = {self.epsilon} although an assumption is REFUTED")
        if isinstance(self.event, ObjectivePerturbation) and self.formal:
            raise CertificateError("an ObjectivePerturbation rests on an assumption, none is named")
        for name in ("sigma", "sensitivity"):
            written, recorded = getattr(self, name), getattr(self.event, name, None)
            if written != recorded:
                raise CertificateError(f"{name} = {written}, but the event records {recorded}")
        try:
            mu, delta = event_mu(self.event), event_delta(self.event, self.epsilon)
            if isinstance(self.event, GaussianRelease):
                self._verify_sensitivity(self.event)
        except CertificateError:
            raise
        except (SkUnlearnError, ValueError, TypeError) as error:
            raise CertificateError(f"the event cannot be accounted for: {error}") from error
        if mu != self.mu:
            raise CertificateError(f"mu = {self.mu}, but the event gives {mu}")
        if delta > self.delta:
            raise CertificateError(
                f"delta = {self.delta} at epsilon = {self.epsilon}, but the event needs {delta}"
            )
        self._verify_composed()
        return self

    def _verify_composed(self) -> None:
        if self.state == "released":
            if self.composed is not None or self.earlier_mu:
                raise CertificateError("composed and earlier_mu are for state = 'secret'")
            return
        if self.state != "secret":
            raise CertificateError(f"state = {self.state!r} is neither 'released' nor 'secret'")
        if self.composed is None:
            raise CertificateError("un-noised state is kept, but composed says nothing")
        bound = getattr(self.event, "bound", None)
        if bound in bounds.TO_RETRAINED:
            raise CertificateError(f"un-noised state is kept, but {bound} does not compose (T19)")
        try:
            needed = (
                0.0
                if self.composed[0] == inf
                else gaussian_delta(self.composed_mu, self.composed[0])
            )
        except (ValueError, TypeError) as error:
            raise CertificateError(f"the releases do not compose: {error}") from error
        if not needed <= self.composed[1] <= 1:
            raise CertificateError(
                f"composed = {self.composed}, but {len(self.earlier_mu) + 1} releases of mu = "
                f"{self.composed_mu} together need delta = {needed}"
            )

    @staticmethod
    def _verify_sensitivity(event: GaussianRelease) -> None:
        if event.bound not in bounds.DISTANCES:
            raise CertificateError(f"{event.bound!r} is not a distance of sk_unlearn.bounds")
        proved = getattr(bounds, event.bound)(**dict(event.constants))
        if not event.sensitivity >= proved:
            raise CertificateError(
                f"sensitivity = {event.sensitivity}, but {event.bound}"
                f"({', '.join(f'{k}={v}' for k, v in event.constants)}) is {proved}"
            )

    def to_json(self, audience: str = "operator") -> str:
        """Return the certificate as JSON; infinity is the string ``"inf"``.

        Parameters
        ----------
        audience : {"operator", "public"}
            The public copy leaves out what depends on the deleted rows: how many they
            were, evidence, diagnostics, and the time of day.

        Raises
        ------
        ValueError
            If `audience` is something else.
        """
        if audience not in ("operator", "public"):
            raise ValueError(f"audience={audience!r}; choose 'operator' or 'public'")
        shown = self if audience == "operator" else self._public()
        record = {f.name: getattr(shown, f.name) for f in fields(shown)}
        record["event"] = shown.event.to_dict()
        record["assumptions"] = [asdict(a) for a in shown.assumptions]
        if audience == "public":
            record = {k: v for k, v in record.items() if k not in _OPERATOR_ONLY}
            for assumption in record["assumptions"]:
                assumption.pop("evidence")
        record = {"format": FORMAT, "audience": audience, "formal": shown.formal} | record
        return json.dumps(finite(record), indent=1, allow_nan=False)

    def _public(self) -> Certificate:
        return replace(
            self,
            n_deleted=None,
            diagnostics={},
            assumptions=tuple(replace(a, evidence="") for a in self.assumptions),
            created=self.created[:10],
        )

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read either copy back.

        Raises
        ------
        CertificateError
            If the text is not a certificate of this format.
        """
        try:
            record = json.loads(text, object_pairs_hook=without_repetition)
            json.dumps(record, ensure_ascii=False).encode()  # half a character is no text
            if record.pop("format") != FORMAT:
                raise CertificateError(f"this version reads {FORMAT!r}")
            formal, audience = record.pop("formal"), record.pop("audience")
            if audience == "public":
                record |= {"n_deleted": None, "diagnostics": {}}
            elif audience != "operator":
                raise CertificateError(f"audience = {audience!r}")
            certificate = cls(**{name: READ[name](value) for name, value in record.items()})
        except CertificateError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CertificateError(f"not a certificate: {error}") from error
        if certificate.formal is not formal:
            raise CertificateError(
                f"formal = {formal}, but its assumptions say {certificate.formal}"
            )
        return certificate

    def __repr__(self) -> str:
        """Return the certificate in words."""
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def _versions() -> dict[str, str]:
    from . import __version__

    return {"sk-unlearn": __version__} | {name: _installed(name) for name in _PACKAGES}


@cache
def _installed(name: str) -> str:
    return metadata.version(name)
