"""Events are frozen, and survive JSON to the last bit."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_unlearn.assumptions import Assumption, Status
from sk_unlearn.events import (
    EVENT_TYPES,
    Event,
    ExactRelease,
    GaussianRelease,
    ModelClippingIterations,
    NoisyBlocks,
    NoisyIterations,
    ObjectivePerturbation,
    PoissonSampledTraining,
    UncertifiedRelease,
    event_from_dict,
)
from sk_unlearn.exceptions import UnknownEventError

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
words = st.text(max_size=20)
events = st.one_of(
    st.builds(ExactRelease, words),
    st.builds(
        GaussianRelease,
        st.none() | positive,
        st.none() | positive,
        words,
        st.lists(st.tuples(words, positive), max_size=3).map(tuple),
    ),
    st.builds(UncertifiedRelease, positive, words),
    st.builds(ObjectivePerturbation, positive, st.none() | positive),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
EXAMPLES = (
    ExactRelease("retrained"),
    GaussianRelease(2.0, 5.0, "ball_diameter", (("C", 1.0),)),
    UncertifiedRelease(0.1, "sigma was set by hand"),
    NoisyIterations(2.0, 1.0, 0.1, 0.01, 2, None, (1.0, 2.0)),
    NoisyBlocks((1.0, 2.0), 1.0, 0.1, 0.01, 3, 0.5),
    ModelClippingIterations(2.0, 3, 0.5),
    PoissonSampledTraining(1.1, 0.01, 100, 5),
    ObjectivePerturbation(1.0, 0.25),
)


@given(events)
def test_an_event_survives_json_to_the_last_bit(event):
    record = json.loads(json.dumps(event.to_dict(), allow_nan=False))
    assert event_from_dict(record) == event


def test_infinity_is_read_from_its_string():
    record = GaussianRelease(inf, inf, "b", (("C", inf),)).to_dict()
    record |= {"sigma": "inf", "sensitivity": "inf", "constants": [["C", "inf"]]}
    assert event_from_dict(record) == GaussianRelease(inf, inf, "b", (("C", inf),))


def test_every_type_has_an_example_here():
    assert {type(event) for event in EXAMPLES} == set(EVENT_TYPES)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: type(e).__name__)
def test_events_are_frozen_and_hashable(event):
    assert hash(event) == hash(event_from_dict(event.to_dict()))
    for field in fields(event):
        with pytest.raises(FrozenInstanceError):
            setattr(event, field.name, None)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: type(e).__name__)
def test_reading_does_not_change_the_record(event):
    record = event.to_dict()
    before = dict(record)
    event_from_dict(record)
    assert record == before


@pytest.mark.parametrize("name", ["Event", "DiscreteLaplace", "", None, 3, [], "exactrelease"])
def test_an_unknown_type_is_refused_and_named(name):
    with pytest.raises(UnknownEventError, match="unknown event"):
        event_from_dict({"event": name, "how": "x"})


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: type(e).__name__)
def test_a_field_more_or_less_is_refused(event):
    record = event.to_dict()
    with pytest.raises(UnknownEventError, match="fields"):
        event_from_dict(record | {"extra": 1})
    for name in set(record) - {"event"}:
        with pytest.raises(UnknownEventError, match="fields"):
            event_from_dict({k: v for k, v in record.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma", "0.1"),
        ("sigma", True),
        ("sigma", float("nan")),
        ("sigma", [0.1]),
        ("sigma", 10**400),
        ("sensitivity", "nan"),
        ("bound", 3),
        ("bound", None),
        ("constants", None),
        ("constants", "ab"),
        ("constants", [["C"]]),
        ("constants", [["C", 1.0, 2.0]]),
        ("constants", [[1, 1.0]]),
        ("constants", [["C", None]]),
        ("constants", [["C", [1.0]]]),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(name, value):
    with pytest.raises(UnknownEventError):
        event_from_dict(EXAMPLES[1].to_dict() | {name: value})


@given(st.sampled_from(EXAMPLES), words, anything)
def test_garbage_raises_unknown_event_and_nothing_else(event, name, value):
    record = event.to_dict()
    for key in [*record, name]:
        try:
            read = event_from_dict(record | {key: value})
        except UnknownEventError:
            continue
        assert isinstance(read, EVENT_TYPES)
        hash(read)


def test_the_base_class_is_no_event_type():
    assert Event not in EVENT_TYPES


@pytest.mark.parametrize("status", list(Status))
def test_only_construction_and_proof_are_formal(status):
    assert status.formal is (status.value in ("BY_CONSTRUCTION", "PROVED"))
    assert Assumption("a", status, "b").evidence == ""
