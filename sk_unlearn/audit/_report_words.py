"""The report in words: what a certificate promises to someone who is no mathematician."""

from __future__ import annotations

from math import exp, isinf
from typing import Any

from scipy.special import ndtr

STATUS = {
    "BY_CONSTRUCTION": ("by construction", "the program enforces it in every run", "good"),
    "PROVED": ("proved", "a mathematical proof, from the constants that were declared", "good"),
    "MEASURED": ("measured", "seen in this run; it might be otherwise in another", "doubt"),
    "ASSUMED": ("assumed", "taken on the word of whoever ran the program", "doubt"),
    "REFUTED": ("refuted", "this run shows that it does not hold", "bad"),
}


def noun(certificate: Any) -> str:
    """Return what was done."""
    return "correction" if certificate.corrects else "deletion"


def rows(certificate: Any) -> str:
    """Return what the model must not give away."""
    return "the rows as they were" if certificate.corrects else "the deleted rows"


def reference(certificate: Any) -> str:
    """Return how the model was trained that the released one is compared with."""
    return "trained " + (
        "on the corrected data" if certificate.corrects else "without the deleted rows"
    )


def verdict(certificate: Any) -> tuple[str, str, str]:
    """Return (kind, headline, sentence): kind is "good", "doubt" or "bad"."""
    c = certificate
    if isinf(c.epsilon):
        return (
            "bad",
            "Nothing is promised",
            f"The {noun(c)} ran, but no statement about it is proved. Treat the model as if it "
            f"still contained {rows(c)}.",
        )
    if c.epsilon == 0 and c.delta == 0:
        promise = f"The released model follows exactly the law of one that was {reference(c)}."
    else:
        promise = (
            "Whoever sees the released model can hardly tell it from one that never had "
            f"{rows(c)}; how hard that is, is stated below in numbers."
        )
    if c.formal:
        return "good", "Certified", f"{promise} Everything this rests on is enforced or proved."
    return (
        "doubt",
        "Certified on conditions",
        f"{promise} This holds only if the conditions marked “measured” or “assumed” below hold.",
    )


def promise(certificate: Any) -> list[str]:
    """Return what the numbers say, one sentence each."""
    c = certificate
    if isinf(c.epsilon):
        return []
    if c.epsilon == 0 and c.delta == 0:
        return [
            f"The {noun(c)} is exact: ε = 0 and δ = 0. Nothing that is computed from the released "
            f"model depends on {rows(c)}."
        ]
    there, seen = ("wrong", "wrong in") if c.corrects else ("there", "in")
    factor = f"{exp(c.epsilon):.4g}" if c.epsilon < 700 else f"e^{c.epsilon:.4g}"
    rarely = f"1 in {round(1 / c.delta):,}" if 0 < c.delta < 0.5 else f"{c.delta:g}"
    return [
        f"ε = {c.epsilon:g} and δ = {c.delta:g}. Take any conclusion that somebody may draw from "
        f"the released model. Its probability after this {noun(c)} is at most {factor} times "
        f"(that is e to the power ε) its probability had the rows never been {there}, plus "
        f"{rarely} (that is δ); and the same with the two cases exchanged.",
        f"An observer who must guess whether the rows were once {seen} the training data, "
        f"with even odds before looking, is right in at most {100 * best_guess(c):.1f} of 100 "
        "cases; without looking at the model it is 50.",
    ]


def best_guess(certificate: Any) -> float:
    """Largest probability of a right guess at even odds that the certificate allows.

    Of all releases since fit together where un-noised state is kept (T19). From the trade-off
    function of a Gaussian mechanism (T1) where there is one, else from
    (epsilon, delta) alone (Dong, Roth & Su 2022, eq. 5).
    """
    mu = certificate.mu if certificate.composed is None else certificate.composed_mu
    if mu is not None:
        return float(ndtr(mu / 2))
    odds = exp(-certificate.epsilon)
    return (1 + certificate.delta * odds) / (1 + odds)


def facts(certificate: Any) -> list[tuple[str, str]]:
    """Return the facts of the release as (name, text)."""
    c = certificate
    out = [("Certificate issued", c.created.replace("T", " ").replace("+00:00", " UTC"))]
    if c.n_deleted is not None:
        out.append((f"Rows {'corrected' if c.corrects else 'deleted'}", f"{c.n_deleted:,}"))
    out += [
        ("Rows that remain", f"{c.n_retained:,}"),
        ("Method", c.method),
        ("Numbers in the model", f"{c.n_parameters:,} weights"),
    ]
    if c.composed is not None:
        n = len(c.earlier_mu) + 1
        seen = f"{n} releases since training" if n > 1 else "the first release since training"
        out.append(
            (
                "State that was kept",
                "weights without noise, to make later deletions cheap; so releases add up. For the "
                f"deletion that came first, after {seen}: ε = {c.composed[0]:.4g} at δ = "
                f"{c.composed[1]:.3g}",
            )
        )
    if c.sensitivity is not None:
        out.append(("Sensitivity", f"{c.sensitivity:.4g}"))
    if c.sigma is not None:
        out.append(("Noise \N{GREEK SMALL LETTER SIGMA}", f"{c.sigma:.4g} on every weight"))
    if c.mu:
        out.append(("Strength μ", f"{c.mu:.4g}"))
    return out


def audit_words(audit: Any) -> tuple[str, str, str]:
    """Return (kind, headline, sentence) of an audit."""
    runs = f"{audit.n_runs:,} releases with the rows deleted and {audit.n_runs:,} without them"
    seen = {
        "weights": "the weights",
        "predictions": "the predictions for the deleted rows",
        "state": "the weights, all other stored numbers, and one more round of training",
    }[audit.view]
    found = f"We made {runs}, looked at {seen}, and tried to tell the two apart."
    if audit.refuted:
        return "bad", "The audit refutes the certificate", f"{found} That went better than allowed."
    if isinf(audit.certified_epsilon):
        return "doubt", "There was nothing to refute", f"{found} No ε is promised."
    return (
        "good",
        "The audit does not refute the certificate",
        f"{found} That went no better than the certificate allows. An audit can refute a "
        "promise; it cannot prove one.",
    )


def audit_facts(audit: Any) -> list[tuple[str, str]]:
    """Return the figures of an audit as (name, text)."""
    out = [
        ("Certified ε", f"{audit.certified_epsilon:.4g}"),
        ("ε is at least (whatever the mechanism)", f"{audit.epsilon_lower:.4g}"),
    ]
    if audit.certified_mu is not None:
        out += [
            ("Certified μ", f"{audit.certified_mu:.4g}"),
            ("μ is at least", f"{audit.mu_lower:.4g}"),
        ]
    return [
        *out,
        ("At δ", f"{audit.delta:g}"),
        ("Confidence of the lower bounds together", f"{audit.confidence:.0%}"),
    ]
