"""A certificate says no more than its event proves, tells the public nothing about the deleted
rows, and survives JSON, tampering and hostile text."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from html.parser import HTMLParser
from math import inf, nan, nextafter, sqrt

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sk_unlearn
from sk_unlearn import bounds
from sk_unlearn.accounting import calibrate, event_epsilon, event_mu
from sk_unlearn.certificate import Assumption, Certificate, Status
from sk_unlearn.events import (
    Event,
    ExactRelease,
    GaussianRelease,
    ObjectivePerturbation,
    UncertifiedRelease,
)
from sk_unlearn.exceptions import CertificateError, UnknownEventError

TOL, LAM = 1e-6, 1e-3
PROVED = (
    Assumption("residual", Status.PROVED, "gradient norm <= tol", "seen: 3e-9"),
    Assumption("noise", Status.BY_CONSTRUCTION, "from the operating system"),
)
FACTS = {
    "method": "Residual(tol=1e-06)",
    "n_deleted": 987654321,
    "n_retained": 1780,
    "n_parameters": 650,
    "scope": ("copies of the data kept elsewhere",),
    "weights_norm": 3.5,
    "diagnostics": {"n_iter": 4, "ball_active": False, "gradient_norm_bound": 3e-9},
}


def residual_event(tol=TOL, lam=LAM, sigma=None):
    constants = (("tol", tol), ("lam", lam))
    distance = bounds.residual_distance(tol, lam)
    return GaussianRelease(distance, sigma, "residual_distance", constants)


def issue(event, epsilon=1.0, delta=1e-5, assumptions=PROVED, **facts):
    return Certificate.issue(event, epsilon, delta, assumptions, **(FACTS | facts))


def gaussian(epsilon=1.0, delta=1e-5, **facts):
    return issue(calibrate(residual_event(), epsilon, delta), epsilon, delta, **facts)


EXACT = issue(ExactRelease("retrained"), 0.0, 0.0)
UNCERTIFIED = issue(UncertifiedRelease(0.001, "sigma was set by hand"))
GAUSSIAN = gaussian()
KINDS = pytest.mark.parametrize(
    "certificate", [EXACT, UNCERTIFIED, GAUSSIAN], ids=["exact", "uncertified", "gaussian"]
)

words = st.text(max_size=30)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
anything = st.recursive(
    plain | st.just(nan),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
assumptions = st.lists(
    st.builds(Assumption, words, st.sampled_from(Status), words, words), max_size=3
).map(tuple)


@st.composite
def certificates(draw):
    epsilon = draw(st.floats(1e-3, 100))
    delta = draw(st.floats(1e-12, 0.5))
    tol, lam = draw(st.floats(1e-12, 1.0)), draw(st.floats(1e-9, 10.0))
    event = draw(
        st.sampled_from(
            [
                ExactRelease(draw(words)),
                UncertifiedRelease(draw(st.floats(1e-9, 1e9)), draw(words)),
                calibrate(residual_event(tol, lam), epsilon, delta),
            ]
        )
    )
    return issue(
        event,
        epsilon,
        delta,
        draw(assumptions),
        method=draw(words),
        n_deleted=draw(st.integers(0, 10**30)),
        n_retained=draw(st.integers(0, 10**30)),
        n_parameters=draw(st.integers(0, 10**12)),
        scope=tuple(draw(st.lists(words, max_size=3))),
        weights_norm=draw(st.floats(0, 1e300)),
        diagnostics=draw(st.dictionaries(words, st.integers() | finite | words, max_size=3)),
    )


def strict(text):
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def keys_of(value):
    if isinstance(value, dict):
        return set(value) | {k for item in value.values() for k in keys_of(item)}
    if isinstance(value, list):
        return {k for item in value for k in keys_of(item)}
    return set()


# ------------------------------------------------------------------ what it says


def test_epsilon_and_delta_are_those_asked_for_to_the_last_bit():
    for epsilon in (0.1, 1.0, nextafter(1.0, 2.0), 1 / 3, 8.0):
        for delta in (1e-5, nextafter(1e-5, 1.0), 1e-12):
            certificate = gaussian(epsilon, delta)
            assert (certificate.epsilon, certificate.delta) == (epsilon, delta)


def test_the_event_s_numbers_stand_in_the_certificate():
    event = GAUSSIAN.event
    assert (GAUSSIAN.sigma, GAUSSIAN.sensitivity) == (event.sigma, event.sensitivity)
    assert GAUSSIAN.mu == event_mu(event)
    assert GAUSSIAN.versions["sk-unlearn"] == sk_unlearn.__version__
    assert {"numpy", "scipy", "scikit-learn", "skorch", "torch"} < set(GAUSSIAN.versions)


def test_an_exact_release_promises_zero():
    assert (EXACT.epsilon, EXACT.delta, EXACT.mu) == (0.0, 0.0, 0.0)
    assert (EXACT.sigma, EXACT.sensitivity) == (None, None)
    assert EXACT.formal


def test_an_uncertified_release_promises_nothing():
    assert UNCERTIFIED.epsilon == inf and UNCERTIFIED.mu is None
    assert not UNCERTIFIED.formal


def test_a_refuted_assumption_makes_epsilon_infinite():
    refuted = (*PROVED, Assumption("M", Status.REFUTED, "M <= 1", "measured 3"))
    for event in (GAUSSIAN.event, ExactRelease("retrained")):
        certificate = issue(event, assumptions=refuted)
        assert certificate.epsilon == inf and not certificate.formal
        assert "Nothing is promised" in repr(certificate)


def test_issue_refuses_an_event_that_buys_less():
    with pytest.raises(CertificateError, match="the event needs"):
        issue(residual_event(sigma=GAUSSIAN.sigma * 0.999))
    with pytest.raises(CertificateError, match="the event needs"):
        issue(GAUSSIAN.event, epsilon=0.999)
    with pytest.raises(UnknownEventError):
        issue(Event())


@given(assumptions)
def test_formal_needs_every_assumption(items):
    certificate = issue(GAUSSIAN.event, assumptions=items)
    weakest = {a.status for a in items}
    assert certificate.formal is (weakest <= {Status.BY_CONSTRUCTION, Status.PROVED})
    assert (certificate.epsilon == inf) is (Status.REFUTED in weakest)


def test_it_is_frozen():
    for field in fields(Certificate):
        with pytest.raises(FrozenInstanceError):
            setattr(GAUSSIAN, field.name, None)
    with pytest.raises(AttributeError):
        GAUSSIAN.formal = True


def test_noise_to_weights_compares_expected_norms():
    assert GAUSSIAN.noise_to_weights == pytest.approx(GAUSSIAN.sigma * sqrt(650) / 3.5)
    assert replace(GAUSSIAN, weights_norm=0.0).noise_to_weights == inf
    assert EXACT.noise_to_weights == 0.0


# ------------------------------------------------------------------ JSON


@given(certificates())
def test_the_operator_copy_survives_json(certificate):
    text = certificate.to_json()
    strict(text)
    assert Certificate.from_json(text) == certificate
    assert Certificate.from_json(text).to_json() == text
    Certificate.from_json(text).verify()


@given(certificates())
def test_the_public_copy_survives_json_and_verifies(certificate):
    text = certificate.to_json("public")
    strict(text)
    read = Certificate.from_json(text)
    assert read.to_json("public") == text
    read.verify()
    kept = {f.name for f in fields(read)} - {"n_deleted", "diagnostics", "assumptions", "created"}
    assert all(getattr(read, name) == getattr(certificate, name) for name in kept)
    assert read.formal is certificate.formal


@given(certificates())
def test_the_public_copy_has_no_field_that_depends_on_the_deleted_rows(certificate):
    record = strict(certificate.to_json("public"))
    assert not keys_of(record) & {"n_deleted", "evidence"}
    assert "diagnostics" not in record
    assert len(record["created"]) == len("2026-01-01")


@given(certificates(), st.integers(0, 10**6), words, st.dictionaries(words, words, max_size=2))
def test_the_public_copy_is_a_function_of_what_the_public_may_know(certificate, n, text, found):
    """Two deletions that differ in nothing else have one public copy, byte for byte."""
    other = replace(
        certificate,
        n_deleted=n,
        diagnostics=found,
        assumptions=tuple(replace(a, evidence=text) for a in certificate.assumptions),
        created=certificate.created[:10] + "T23:59:59+00:00",
    )
    assert other.to_json("public") == certificate.to_json("public")


def test_the_operator_copy_has_everything():
    record = strict(GAUSSIAN.to_json())
    assert {f.name for f in fields(Certificate)} | {"format", "audience", "formal"} == set(record)
    assert record["n_deleted"] == 987654321
    assert record["assumptions"][0]["evidence"] == "seen: 3e-9"
    assert record["diagnostics"] == FACTS["diagnostics"]


def test_infinity_is_a_string():
    record = strict(UNCERTIFIED.to_json())
    assert record["epsilon"] == "inf"
    assert Certificate.from_json(UNCERTIFIED.to_json()).epsilon == inf
    text = replace(GAUSSIAN, diagnostics={"ratio": inf, "list": [nan, -inf]}).to_json()
    assert strict(text)["diagnostics"] == {"ratio": "inf", "list": ["nan", "-inf"]}


@pytest.mark.parametrize("audience", ["everyone", "", None, "Public"])
def test_an_unknown_audience_is_refused(audience):
    with pytest.raises(ValueError, match="audience"):
        GAUSSIAN.to_json(audience)
    text = GAUSSIAN.to_json().replace('"audience": "operator"', f'"audience": "{audience}"')
    with pytest.raises(CertificateError, match="audience"):
        Certificate.from_json(text)


@given(st.text() | st.binary())
def test_garbage_is_no_certificate(text):
    with pytest.raises(CertificateError):
        Certificate.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": ' * 100_000,
        "[]",
        "null",
        "1",
        '"format"',
        "{}",
        "1" * 5000,
        GAUSSIAN.to_json()[:-1],
        GAUSSIAN.to_json().replace("certificate 1", "certificate 2"),
        GAUSSIAN.to_json().replace('"epsilon": 1.0', f'"epsilon": {10**400}'),
        GAUSSIAN.to_json().replace('"epsilon": 1.0', '"epsilon": NaN'),
    ],
)
def test_hostile_text_is_no_certificate(text):
    with pytest.raises(CertificateError):
        Certificate.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_deleted", -1),
        ("n_deleted", 1.0),
        ("n_retained", "3"),
        ("n_retained", None),
        ("n_parameters", True),
        ("weights_norm", "many"),
        ("epsilon", None),
        ("delta", "1e-5"),
        ("method", 3),
        ("scope", "all"),
        ("scope", [1]),
        ("assumptions", {}),
        ("assumptions", [{"name": "a", "status": "PERHAPS", "statement": "b"}]),
        ("assumptions", [{"name": "a", "status": "PROVED"}]),
        ("versions", {"numpy": 2}),
        ("diagnostics", []),
        ("created", 2026),
        ("event", None),
        ("unheard of", 1),
    ],
)
def test_a_field_of_the_wrong_kind_is_no_certificate(name, value):
    with pytest.raises(CertificateError):
        Certificate.from_json(json.dumps(json.loads(GAUSSIAN.to_json()) | {name: value}))


@pytest.mark.parametrize("name", ["epsilon", "sigma", "formal", "status"])
def test_a_name_that_occurs_twice_is_no_certificate(name):
    """One reader takes the first, another the last."""
    text = GAUSSIAN.to_json()
    assert f'"{name}": ' in text
    with pytest.raises(CertificateError, match="occurs twice"):
        Certificate.from_json(text.replace(f'"{name}": ', f'"{name}": 0, "{name}": ', 1))


@KINDS
@given(data=st.data())
def test_any_change_of_the_json_is_refused_or_still_a_sound_certificate(certificate, data):
    record = json.loads(certificate.to_json(data.draw(st.sampled_from(["operator", "public"]))))
    target = record
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [v for v in target.values() if isinstance(v, dict)] if target else []
        inner += [
            a for v in target.values() if isinstance(v, list) for a in v if isinstance(a, dict)
        ]
        if inner:
            target = data.draw(st.sampled_from(inner))
    name = data.draw(st.sampled_from(sorted(target)) if target else words)
    match data.draw(st.integers(0, 2)):
        case 0:
            target[name] = data.draw(anything)
        case 1:
            target.pop(name, None)
        case 2:
            target[data.draw(words)] = data.draw(anything)
    try:
        read = Certificate.from_json(json.dumps(record)).verify()
    except CertificateError:
        return
    assert read.epsilon >= event_epsilon(read.event, read.delta) * (1 - 1e-9)
    assert repr(read) and read._repr_html_()


# ------------------------------------------------------------------ verify

EVENT = GAUSSIAN.event
SMALLER = 1 - 1e-6


def consistent(event, **changes):
    """Return what a forger would write who knows the format: one story in all fields."""
    return replace(
        GAUSSIAN,
        event=event,
        sigma=getattr(event, "sigma", None),
        sensitivity=getattr(event, "sensitivity", None),
        mu=event_mu(event),
        **changes,
    )


TAMPERED = {
    "epsilon lowered": replace(GAUSSIAN, epsilon=SMALLER),
    "epsilon zero": replace(GAUSSIAN, epsilon=0.0),
    "epsilon negative": replace(GAUSSIAN, epsilon=-1.0),
    "epsilon nan": replace(GAUSSIAN, epsilon=nan),
    "delta lowered": replace(GAUSSIAN, delta=1e-5 * SMALLER),
    "delta zero": replace(GAUSSIAN, delta=0.0),
    "delta negative": replace(GAUSSIAN, delta=-1e-5),
    "delta above one": replace(GAUSSIAN, delta=1.5),
    "delta nan": replace(GAUSSIAN, delta=nan),
    "mu lowered by one bit": replace(GAUSSIAN, mu=nextafter(GAUSSIAN.mu, 0)),
    "mu raised by one bit": replace(GAUSSIAN, mu=nextafter(GAUSSIAN.mu, 1)),
    "mu missing": replace(GAUSSIAN, mu=None),
    "sigma raised beside the event": replace(GAUSSIAN, sigma=nextafter(GAUSSIAN.sigma, 1)),
    "sigma lowered beside the event": replace(GAUSSIAN, sigma=nextafter(GAUSSIAN.sigma, 0)),
    "sigma missing": replace(GAUSSIAN, sigma=None),
    "sigma lowered everywhere": consistent(replace(EVENT, sigma=EVENT.sigma * SMALLER)),
    "sigma zero": consistent(replace(EVENT, sigma=0.0)),
    "sigma raised, mu forgotten": replace(GAUSSIAN, sigma=1.0, event=replace(EVENT, sigma=1.0)),
    "sensitivity lowered beside the event": replace(GAUSSIAN, sensitivity=1e-9),
    "sensitivity missing": replace(GAUSSIAN, sensitivity=None),
    "sensitivity lowered everywhere": consistent(
        replace(EVENT, sensitivity=nextafter(EVENT.sensitivity, 0))
    ),
    "sensitivity raised everywhere": consistent(
        replace(EVENT, sensitivity=EVENT.sensitivity / SMALLER)
    ),
    "sensitivity and sigma negative": replace(
        GAUSSIAN,
        sensitivity=-EVENT.sensitivity,
        sigma=-EVENT.sigma,
        event=replace(EVENT, sensitivity=-EVENT.sensitivity, sigma=-EVENT.sigma),
    ),
    "sensitivity nan": replace(GAUSSIAN, sensitivity=nan, event=replace(EVENT, sensitivity=nan)),
    "sigma nan": replace(GAUSSIAN, sigma=nan, event=replace(EVENT, sigma=nan)),
    "sigma open": replace(GAUSSIAN, sigma=None, event=replace(EVENT, sigma=None)),
    "tol raised": consistent(replace(EVENT, constants=(("tol", TOL * 1.01), ("lam", LAM)))),
    "lam lowered": consistent(replace(EVENT, constants=(("tol", TOL), ("lam", LAM * 0.99)))),
    "lam negative": consistent(replace(EVENT, constants=(("tol", TOL), ("lam", -LAM)))),
    "lam zero": consistent(replace(EVENT, constants=(("tol", TOL), ("lam", 0.0)))),
    "constants missing": consistent(replace(EVENT, constants=())),
    "constants of another bound": consistent(replace(EVENT, constants=(("C", 1e-9),))),
    "constants that are no numbers": consistent(
        replace(EVENT, constants=(("tol", "0"), ("lam", LAM)))
    ),
    "bound unknown": consistent(replace(EVENT, bound="wishful_thinking")),
    "bound private": consistent(replace(EVENT, bound="__name__")),
    "bound that is no distance": consistent(
        replace(EVENT, bound="residual_tolerance", constants=(("sensitivity", 0.0), ("lam", LAM)))
    ),
    "bound of other arguments": consistent(replace(EVENT, bound="ball_diameter")),
    "event exact, the rest left": replace(GAUSSIAN, event=ExactRelease("retrained")),
    "event uncertified": consistent(UncertifiedRelease(EVENT.sigma, "by hand")),
    "event unknown": replace(GAUSSIAN, event=Event()),
    "assumption refuted": replace(
        GAUSSIAN, assumptions=(Assumption("M", Status.REFUTED, "M <= 1"),)
    ),
    "uncertified, epsilon finite": replace(UNCERTIFIED, epsilon=1e300),
    "uncertified, mu zero": replace(UNCERTIFIED, mu=0.0),
    "uncertified, sigma raised": replace(UNCERTIFIED, sigma=1e9),
    "objective perturbation called formal": consistent(ObjectivePerturbation(1.0, 0.1)),
    "exact, with noise": replace(EXACT, sigma=1.0),
    "exact, mu missing": replace(EXACT, mu=None),
}


@pytest.mark.parametrize("certificate", TAMPERED.values(), ids=TAMPERED)
def test_verify_detects(certificate):
    with pytest.raises(CertificateError):
        certificate.verify()


def test_every_field_that_carries_the_claim_is_tampered_with_above():
    claim = {"epsilon", "delta", "mu", "sigma", "sensitivity", "event", "assumptions"}
    changed = {
        f.name
        for c in TAMPERED.values()
        for base in (GAUSSIAN, UNCERTIFIED, EXACT)
        for f in fields(Certificate)
        if type(c.event) is type(base.event) and getattr(c, f.name) != getattr(base, f.name)
    }
    assert claim <= changed


@pytest.mark.parametrize("certificate", [GAUSSIAN, UNCERTIFIED, EXACT])
def test_verify_returns_the_certificate_it_checked(certificate):
    assert certificate.verify() is certificate


@pytest.mark.parametrize("formal", [False, None, 1, "true"])
def test_from_json_detects_a_changed_formal_flag(formal):
    record = json.loads(GAUSSIAN.to_json()) | {"formal": formal}
    with pytest.raises(CertificateError, match="formal"):
        Certificate.from_json(json.dumps(record))
    assumed = gaussian(assumptions=(Assumption("noise", Status.ASSUMED, "the seed is secret"),))
    for certificate in (assumed, UNCERTIFIED):
        record = json.loads(certificate.to_json()) | {"formal": True}
        with pytest.raises(CertificateError, match="formal"):
            Certificate.from_json(json.dumps(record))


ASSUMED = gaussian(assumptions=(Assumption("noise", Status.ASSUMED, "the seed is secret"),))
MORE_NOISE = replace(EVENT, sigma=10 * EVENT.sigma)
BEYOND_RECOMPUTATION = {
    "a claim that is weaker than the event": replace(GAUSSIAN, epsilon=2.0, delta=1e-3),
    "an ASSUMED status upgraded to PROVED": replace(
        ASSUMED, assumptions=(replace(ASSUMED.assumptions[0], status=Status.PROVED),)
    ),
    "an ASSUMED assumption left out": replace(ASSUMED, assumptions=()),
    "a scope left out": replace(GAUSSIAN, scope=()),
    "more noise than was drawn, in all fields": consistent(MORE_NOISE, epsilon=0.1),
    "a smaller tolerance than was reached, in all fields": consistent(
        replace(residual_event(TOL / 10), sigma=EVENT.sigma), epsilon=0.1
    ),
    "another method, in words": replace(GAUSSIAN, method="Retrain()"),
    "a Gaussian release called exact": consistent(ExactRelease("trust me"), epsilon=0.0, delta=0.0),
    "counts, norms, versions and dates": replace(
        GAUSSIAN, n_deleted=0, n_retained=1, weights_norm=1e9, versions={}, created="1970-01-01"
    ),
}


@pytest.mark.parametrize("certificate", BEYOND_RECOMPUTATION.values(), ids=BEYOND_RECOMPUTATION)
def test_verify_is_a_recomputation_and_cannot_detect(certificate):
    """What an operator forges in one consistent story takes a witness, not arithmetic."""
    certificate.verify()
    assert Certificate.from_json(certificate.to_json()) == certificate


# ------------------------------------------------------------------ for people

XSS = "<script>alert('x')</script><img src=x onerror=alert(1)>\"&'"


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = set(), [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        assert all(name == "style" for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


OURS = {"div", "p", "b", "i", "table", "tr", "th", "td", "details", "summary", "ul", "li"}


def test_hostile_text_stays_text():
    hostile = gaussian(
        method=XSS,
        scope=(XSS,),
        assumptions=(Assumption(XSS, Status.PROVED, XSS, XSS),),
    )
    for certificate in (
        replace(hostile, created=XSS),
        replace(UNCERTIFIED, event=UncertifiedRelease(0.001, XSS), method=XSS),
    ):
        page = Tags(certificate._repr_html_())
        assert page.tags <= OURS and not page.open
        assert page.text.count("alert('x')") >= 2


@pytest.mark.parametrize("character", ["\x1b", "\r", "\x08", "\u202e", "\x85", "\u2028"])
def test_control_characters_are_shown_and_not_obeyed(character):
    """An escape sequence could write another headline over the first."""
    text = f"{character}[2J Formal certificate"
    hostile = gaussian(method=text, scope=(text,), assumptions=(*ASSUMED.assumptions,))
    for shown in (repr(hostile), hostile._repr_html_()):
        assert character not in shown and "Formal certificate" in shown
    assert len(repr(hostile).splitlines()) == len(repr(ASSUMED).splitlines())


def test_half_a_character_is_no_certificate():
    """It could be read, but neither printed nor written."""
    text = GAUSSIAN.to_json().replace("Residual(", "\\ud800(")
    with pytest.raises(CertificateError, match="surrogates not allowed"):
        Certificate.from_json(text)


@given(certificates())
def test_repr_and_html_never_fail(certificate):
    for c in (certificate, Certificate.from_json(certificate.to_json("public"))):
        assert isinstance(repr(c), str) and repr(c)
        page = Tags(c._repr_html_())
        assert page.tags <= OURS and not page.open


@KINDS
def test_text_and_html_say_the_same_figures(certificate):
    page = Tags(certificate._repr_html_()).text
    text = " ".join(repr(certificate).split())
    assert certificate.method in page and certificate.method in text
    for assumption in certificate.assumptions:
        for part in (assumption.name, assumption.statement, assumption.evidence, assumption.status):
            assert part in page and part in text
    assert certificate.scope[0] in page and certificate.scope[0] in text


def test_the_noise_beside_the_weights_is_said():
    ratio = f"{GAUSSIAN.noise_to_weights:.3g}"
    for text in (repr(GAUSSIAN), Tags(GAUSSIAN._repr_html_()).text):
        assert "noise / weights" in text and ratio in text and "3.5" in text
    assert "noise / weights" not in repr(EXACT)


def test_a_model_that_is_no_vector_of_weights_has_no_noise_beside_them():
    sharded = replace(EXACT, weights_norm=None, n_parameters=None)
    for c in (sharded, Certificate.from_json(sharded.to_json("public"))):
        assert c.noise_to_weights == 0.0
        assert "noise / weights" not in repr(c) and "None" not in repr(c)
    forged = replace(GAUSSIAN, weights_norm=None)
    assert "noise / weights" not in repr(forged) + forged._repr_html_()


def test_the_headline_is_honest():
    head = lambda c: repr(c).splitlines()[0]  # noqa: E731
    assert head(GAUSSIAN) == "Formal certificate, (1, 1e-05)-certified deletion."
    assert head(ASSUMED).startswith("NOT a formal certificate")
    assert "exact" in head(EXACT)
    assert head(UNCERTIFIED) == "Nothing is promised: epsilon is infinite."
    assert "sigma was set by hand" in repr(UNCERTIFIED)


def test_evidence_is_shown_to_the_operator_alone():
    public = Certificate.from_json(GAUSSIAN.to_json("public"))
    assert "seen: 3e-9" in repr(GAUSSIAN) and "987654321 deleted" in repr(GAUSSIAN)
    assert "seen" not in repr(public) and "deleted," not in repr(public)


def test_equal_certificates_have_equal_records():
    again = Certificate(**{f.name: getattr(GAUSSIAN, f.name) for f in fields(GAUSSIAN)})
    assert again == GAUSSIAN and asdict(again) == asdict(GAUSSIAN)


# ------------------------------------------------------------------ un-noised state is kept


def secret(earlier_mu=(), epsilon=1.0, **facts):
    return gaussian(epsilon, state="secret", earlier_mu=earlier_mu, **facts)


@settings(max_examples=30)
@given(st.lists(st.floats(1e-3, 3.0), max_size=5).map(tuple), st.floats(0.05, 8.0))
def test_composed_is_that_of_the_root_of_the_sum_of_squares_in_60_digits(earlier, epsilon):
    certificate = secret(earlier, epsilon)
    together, delta = certificate.composed
    assert delta == certificate.delta
    with mpmath.workdps(60):
        mu = mpmath.sqrt(mpmath.fsum(mpmath.mpf(m) ** 2 for m in (*earlier, certificate.mu)))

        def needed(e):
            return mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)

        assert mu <= certificate.composed_mu <= mu * (1 + mpmath.mpf(2) ** -50)
        assert needed(mpmath.mpf(together)) <= delta
        assert needed(mpmath.mpf(together) * (1 - mpmath.mpf(10) ** -9)) > delta


def test_the_first_of_the_releases_composes_to_itself():
    epsilon, _ = secret().composed
    assert 1.0 - 1e-9 <= epsilon <= 1.0


@pytest.mark.parametrize("audience", ["operator", "public"])
def test_composed_survives_json(audience):
    certificate = secret((0.3, inf, 0.2))
    assert certificate.composed == (inf, 1e-5)
    again = Certificate.from_json(certificate.to_json(audience)).verify()
    for name in ("state", "composed", "earlier_mu"):
        assert getattr(again, name) == getattr(certificate, name)


def test_a_certificate_of_before_the_fields_existed_is_one_of_released_state():
    record = json.loads(GAUSSIAN.to_json())
    for name in ("state", "composed", "earlier_mu"):
        del record[name]
    assert Certificate.from_json(json.dumps(record)).verify() == GAUSSIAN


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"composed": (0.9, 1e-5)}, "together need"),
        ({"composed": (1.5, 1e-6)}, "together need"),
        ({"composed": (1.5, 1.5)}, "together need"),
        ({"composed": (nan, 1e-5)}, "compose"),
        ({"composed": None}, "says nothing"),
        ({"earlier_mu": (0.3, 0.2, 0.2)}, "3 releases|4 releases"),
        ({"earlier_mu": (-0.3,)}, "do not compose"),
        ({"earlier_mu": (nan,)}, "do not compose"),
        ({"state": "released"}, "are for state = 'secret'"),
        ({"state": "public"}, "neither"),
    ],
)
def test_a_changed_composition_is_found(changes, complaint):
    certificate = secret((0.3, 0.2))
    certificate.verify()
    with pytest.raises(CertificateError, match=complaint):
        replace(certificate, **changes).verify()


def test_a_distance_to_the_retrained_model_does_not_compose():
    constants = {"C": 0.5, "hessian_lipschitz": 0.1, "damping": 0.0, "lambda_min": 1.0}
    distance = bounds.newton_error(**constants)
    event = GaussianRelease(distance, None, "newton_error", tuple(constants.items()))
    event = calibrate(event, 1.0, 1e-5)
    assert issue(event).epsilon == 1.0
    with pytest.raises(CertificateError, match="newton_error does not compose"):
        issue(event, state="secret", earlier_mu=(0.1,))


def test_released_state_composes_nothing():
    with pytest.raises(CertificateError, match="are for state = 'secret'"):
        replace(GAUSSIAN, earlier_mu=(0.1,)).verify()


def test_a_release_that_proves_nothing_spoils_the_composition():
    refuted = (*PROVED, Assumption("lambda_min contradicted", Status.REFUTED, "seen"))
    for certificate in (
        secret((0.1,), assumptions=refuted),
        issue(UncertifiedRelease(0.001, "by hand"), state="secret", earlier_mu=(0.1,)),
    ):
        assert certificate.proved_mu == inf
        assert certificate.composed == (inf, certificate.delta)


def test_composed_is_told_in_words():
    certificate = secret((0.3, 0.2))
    assert "3 releases counted" in " ".join(repr(certificate).split())
    assert "3 releases counted" in certificate._repr_html_()
    assert "releases counted" not in repr(GAUSSIAN)
