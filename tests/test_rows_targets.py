"""Rows with targets are found as a slow dictionary finds them, like rows with labels."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_unlearn import _rows
from sk_unlearn._rows import TrainingRows
from sk_unlearn.exceptions import UnknownRowError

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 1e-45, 3.4e38])  # few: many duplicates


def some_rows(n_targets):
    row = st.tuples(st.tuples(VALUES), st.tuples(*[VALUES] * n_targets))
    return st.lists(row, min_size=1, max_size=25)


either_width = st.integers(1, 2).flatmap(lambda k: st.tuples(some_rows(k), some_rows(k)))


def rows_of(items):
    X, y = (np.array(part, dtype=np.float32) for part in zip(*items, strict=True))
    return TrainingRows(X, y)


def key(item):
    return tuple(float(np.float32(v)) + 0.0 for part in item for v in part)


def slow_find(items, wanted):
    places = defaultdict(list)
    for position, item in enumerate(items):
        places[key(item)].append(position)
    try:
        return [places[key(item)].pop(0) for item in wanted]
    except IndexError:
        return None


@given(either_width, st.data())
def test_content_is_found_as_a_dictionary_finds_it(two, data):
    items, others = two
    wanted = data.draw(st.lists(st.sampled_from([*items, *others]), min_size=1, max_size=25))
    expected, asked = slow_find(items, wanted), rows_of(wanted)
    if expected is None:
        with pytest.raises(UnknownRowError):
            rows_of(items).find_content(asked.X, asked.y, None)
    else:
        assert rows_of(items).find_content(asked.X, asked.y, None).tolist() == expected


@given(either_width)
def test_joining_is_the_union_of_multisets_and_duplicates_are_counted(two):
    one, other = two
    joined = rows_of(one).joined(rows_of(other))
    union = Counter(map(key, one)) | Counter(map(key, other))
    assert Counter(map(key, zip(joined.X, joined.y, strict=True))) == union
    gone = set(map(key, other))
    assert rows_of(one).count_duplicates(rows_of(other)) == sum(key(i) in gone for i in one)


@pytest.mark.parametrize("bit", range(32))
def test_every_bit_of_a_target_counts(bit):
    words = np.array([0x3F800000, 0x3F800000 ^ (1 << bit)], dtype=np.uint32)
    y = words.view(np.float32)[:, None]
    rows = TrainingRows(np.zeros((2, 1), np.float32), y)
    assert rows.find_content(rows.X[1:], rows.y[1:], None).tolist() == [1]


def test_if_hashes_collide_no_row_with_another_target_is_deleted(monkeypatch):
    monkeypatch.setattr(_rows, "with_label", lambda hashes, y: hashes)
    rows = rows_of([((1.0,), (2.0,))])
    with pytest.raises(UnknownRowError):
        rows.find_content(rows.X, rows.y + 1, None)


def test_a_wrong_target_is_named_with_the_targets_that_are_there():
    rows = rows_of([((1.0,), (2.5, 0.0)), ((1.0,), (-1.0, 0.0)), ((3.0,), (0.0, 0.0))])
    message = r"another target \(row 1: \[-1.0, 0.0\], \[2.5, 0.0\], not \[7.0, 0.0\]\)"
    with pytest.raises(UnknownRowError, match=message):
        asked = rows_of([((3.0,), (0.0, 0.0)), ((1.0,), (7.0, 0.0))])
        rows.find_content(asked.X, asked.y, None)
