"""The Adult table: its encoding against a slow one, its loader against what OpenML answers."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Bunch

from sk_unlearn.datasets import _adult, encode_adult, load_adult
from sk_unlearn.datasets._adult_encoding import (
    BINS,
    CATEGORIES,
    COLUMNS,
    ENCODED,
    RANGES,
    feature_names,
)


def test_without_pandas_a_frame_cannot_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        _adult._frame({}, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def adult_rows(n=4):
    columns = {name: np.full(n, levels[0], object) for name, levels in CATEGORIES.items()}
    columns |= {name: np.full(n, low, float) for name, (low, _) in RANGES.items()}
    return {name: columns[name] for name in COLUMNS}


def openml_adult(name, version, as_frame):
    assert (name, version, as_frame) == ("adult", 2, True)
    frame = pd.DataFrame(adult_rows(48_842))
    frame["fnlwgt"] = np.arange(48_842.0)
    frame.loc[0, "fnlwgt"], frame.loc[16_281, "fnlwgt"] = 226_802, 77_516
    frame["class"] = np.where(np.arange(48_842) % 3 == 0, ">50K", "<=50K")
    frame["workclass"] = frame["workclass"].astype("category")
    frame.loc[1, "workclass"] = np.nan
    return Bunch(frame=frame)


def test_adult_from_openml_with_the_training_part_first(monkeypatch, tmp_path):
    monkeypatch.setattr(_adult, "fetch_openml", openml_adult)
    everything = load_adult(subset="all", data_home=tmp_path)
    assert everything.data.shape == (48_842, 85)
    test = load_adult(subset="test", data_home=tmp_path, as_frame=True)
    assert test.frame.shape == (16_281, 15) and test.frame.index[0] == 32_561
    assert test.frame["fnlwgt"].iloc[0] == 226_802 and pd.isna(test.frame["workclass"].iloc[1])
    np.testing.assert_array_equal(everything.data[32_561:], encode_adult(test.data))
    np.testing.assert_array_equal(everything.target[32_561:], test.target)
    train = load_adult(data_home=tmp_path)
    np.testing.assert_array_equal(everything.data[:32_561], train.data)

    def reordered(*args, **kwargs):
        return Bunch(frame=openml_adult(*args, **kwargs).frame.iloc[::-1])

    monkeypatch.setattr(_adult, "fetch_openml", reordered)
    with pytest.raises(ValueError, match="its rows have no stable ids"):
        load_adult(data_home=tmp_path)


levels = {name: st.sampled_from([*words, "?"]) for name, words in CATEGORIES.items()}
amounts = {name: st.integers(0, 2 * int(high)) for name, (_, high) in RANGES.items()}
adult_row = st.fixed_dictionaries(levels | amounts)


def encode_slowly(row):
    """One row at a time, straight from the description."""
    encoded = [
        min(max((row[name] - low) / (high - low), 0.0), 1.0) for name, (low, high) in RANGES.items()
    ]
    for name, edges in BINS.items():
        bounds = [-np.inf, *edges, np.inf]
        encoded += [a <= row[name] < b for a, b in pairwise(bounds)]
    for name, words in ENCODED.items():
        encoded += [row[name] == word for word in words]
    return np.array(encoded, dtype=np.float32)


@given(st.lists(adult_row, min_size=1, max_size=5))
def test_adult_encoding_is_the_same_row_by_row(rows):
    table = {name: [row[name] for row in rows] for name in COLUMNS}
    encoded = encode_adult(table)
    np.testing.assert_array_equal(encoded, np.stack([encode_slowly(row) for row in rows]))
    np.testing.assert_array_equal(encoded, encode_adult(pd.DataFrame(table)))
    assert encoded.min() >= 0 and encoded.max() <= 1
    assert np.linalg.norm(encoded.astype(np.float64), axis=1).max() <= np.sqrt(18)


def test_adult_encoding_has_85_named_columns():
    names = feature_names()
    assert len(names) == len(set(names)) == encode_adult(adult_rows()).shape[1] == 85


@pytest.mark.parametrize("missing", ["?", None, np.nan, pd.NA])
def test_a_missing_category_has_zeros(missing):
    table = adult_rows(2)
    table["occupation"][1] = missing
    columns = [i for i, name in enumerate(feature_names()) if name.startswith("occupation=")]
    encoded = encode_adult(table)[:, columns]
    assert encoded[0].sum() == 1 and encoded[1].sum() == 0


def test_adult_rows_that_the_encoding_does_not_know():
    table = adult_rows()
    table["workclass"][2] = "private"
    with pytest.raises(ValueError, match="column 'workclass' holds 'private'"):
        encode_adult(table)
    table = adult_rows()
    table["age"][3] = np.nan
    with pytest.raises(ValueError, match="column 'age' holds nan in row 3"):
        encode_adult(table)
    table["age"] = np.array(["39", "?", "40", "41"])
    with pytest.raises(ValueError, match="column 'age' must hold numbers"):
        encode_adult(table)
    del table["age"], table["sex"]
    with pytest.raises(ValueError, match=r"the columns \['age', 'sex'\] are missing"):
        encode_adult(table)


def test_the_real_adult(adult_home):
    adult = load_adult(data_home=adult_home)
    assert adult.data.shape == (32_561, 85) and adult.target.sum() == 7_841
    raw = load_adult(data_home=adult_home, as_frame=True)
    assert raw.data.shape == (32_561, 14) and raw.frame.shape == (32_561, 15)
    assert raw.frame["native-country"].isna().sum() == 583
    assert raw.data.iloc[0]["education"] == "Bachelors" and raw.data["age"].max() == 90
    np.testing.assert_array_equal(encode_adult(raw.data), adult.data)
    np.testing.assert_array_equal(raw.sample_ids, raw.frame.index)
    half = encode_adult(raw.data.iloc[::2])
    np.testing.assert_array_equal(half, adult.data[::2])  # a row's encoding is its own


def test_the_real_adult_teaches_what_is_known_of_it(adult_home):
    X, y = load_adult(data_home=adult_home, return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))
    train, test = rows[:26_000], rows[26_000:]
    model = LogisticRegression(C=1 / (1e-4 * len(train)), max_iter=1000).fit(X[train], y[train])
    assert 0.85 < model.score(X[test], y[test]) < 0.88
