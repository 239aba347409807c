from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_unlearn.preprocessing import ClipToBall, PublicOneHotEncoder, PublicScaler

ALL = [ClipToBall(radius=0.3), PublicScaler(center=1.0, scale=3.0), PublicOneHotEncoder([["a", 0]])]


@parametrize_with_checks(ALL)
def test_sklearn_checks(estimator, check):
    check(estimator)


def rows_of_floats(dtype):
    width = np.dtype(dtype).itemsize * 8
    return hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=width),
    )


# ------------------------------------------------------------------------------------ ClipToBall


def square_norms(X):
    return [sum(Fraction(float(value)) ** 2 for value in row) for row in X]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data(), radius=st.floats(1e-30, 1e200))
def test_no_exact_norm_exceeds_the_radius(dtype, data, radius):
    X = data.draw(rows_of_floats(dtype))
    clipped = ClipToBall(radius).transform(X)
    assert clipped.dtype == dtype
    assert max(square_norms(clipped)) <= Fraction(radius) ** 2
    assert np.array_equal(ClipToBall(radius).transform(clipped), clipped)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_rows_inside_stay_and_rows_outside_land_on_the_sphere(dtype, data):
    X = data.draw(rows_of_floats(dtype))
    clipped = ClipToBall(1.0).transform(X)
    near = 1e-6 if dtype is np.float32 else 1e-14
    for row, new, square, new_square in zip(
        X, clipped, square_norms(X), square_norms(clipped), strict=True
    ):
        if square <= 1 - near:
            assert np.array_equal(row, new)
        if square >= 1:
            assert new_square >= 1 - 2 * near
            np.testing.assert_allclose(
                new / np.abs(new).max(), row / np.abs(row).max(), rtol=4 * near, atol=1e-30
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_only_look_as_if_they_were_inside(dtype):
    X = np.random.default_rng(0).normal(size=(300, 50))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(dtype)
    assert max(square_norms(X)) > 1
    assert max(square_norms(ClipToBall().transform(X))) <= 1


def test_long_rows_stay_in_the_ball():
    X = np.random.default_rng(0).normal(size=(3, 50_000))
    assert all(square <= 1 for square in square_norms(ClipToBall().transform(X)))
    assert all(square <= 1 for square in square_norms(ClipToBall().transform(X.astype(np.float32))))


@pytest.mark.parametrize("radius", [0, -1.0, np.inf, np.nan, 1e-31, "1", True, None])
def test_clip_to_ball_refuses_radius(radius):
    for use in ("fit", "transform"):
        with pytest.raises(ValueError, match=f"radius must .*{radius!r}"):
            getattr(ClipToBall(radius), use)([[1.0]])


# ---------------------------------------------------------------------------------- PublicScaler


def test_public_scaler_is_a_standard_scaler_with_declared_constants():
    X = np.random.default_rng(0).normal(3, 5, size=(50, 4))
    fitted = StandardScaler().fit(X)
    scaler = PublicScaler(center=fitted.mean_, scale=fitted.scale_)
    np.testing.assert_allclose(scaler.transform(X), fitted.transform(X), rtol=1e-13)
    np.testing.assert_allclose(PublicScaler(scale=2.0).transform(X), X / 2)
    assert scaler.transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"center": [1.0, 2.0]}, r"center has shape \(2,\).*3 columns"),
        ({"scale": [[1.0, 2.0, 3.0]]}, r"scale has shape \(1, 3\)"),
        ({"scale": 0.0}, r"scale must be positive; got 0\.0"),
        ({"scale": [1.0, -2.0, 1.0]}, r"scale must be positive; got \[1\.0, -2\.0"),
        ({"center": np.nan}, "center must be finite; got nan"),
        ({"scale": np.inf}, "scale must be finite; got inf"),
        ({"center": "mean"}, "center must be numbers; got 'mean'"),
    ],
)
def test_public_scaler_refuses(arguments, message):
    for use in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(PublicScaler(**arguments), use)(np.ones((2, 3)))


# --------------------------------------------------------------------------- PublicOneHotEncoder

SECTORS = ["private", "public", "self"]


@given(
    cells=st.lists(
        st.tuples(st.sampled_from(SECTORS), st.sampled_from([1, 2, 5])), min_size=1, max_size=20
    )
)
def test_encodes_as_scikit_learn_does(cells):
    X = np.array(cells, dtype=object)
    theirs = OneHotEncoder(categories=[SECTORS, [1, 2, 5]], sparse_output=False).fit(X)
    ours = PublicOneHotEncoder([SECTORS, [1, 2, 5]])
    assert np.array_equal(ours.transform(X), theirs.transform(X))
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


@pytest.mark.parametrize("dtype", ["object", "str", "category"])
def test_every_missing_cell_takes_the_missing_category(dtype):
    frame = pd.DataFrame({"sector": ["private", None, np.nan, pd.NA, "public"]}).astype(dtype)
    expected = [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0]]
    for missing in (None, np.nan, float("nan")):
        encoder = PublicOneHotEncoder([["private", "public", missing]])
        assert encoder.transform(frame).tolist() == expected
    with pytest.raises(ValueError, match=r"column 0 holds \['nan'\].*declare"):
        PublicOneHotEncoder([["private", "public"]]).transform(frame)
    nothing = PublicOneHotEncoder([["private", "public"]], handle_unknown="ignore")
    assert nothing.transform(frame).sum(axis=1).tolist() == [1, 0, 0, 0, 1]


@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_code_of_a_row_does_not_depend_on_other_rows(rows):
    X = np.array([["a", 1.5], [7, 2], [None, "2"], ["zz", np.nan]], dtype=object)
    encoder = PublicOneHotEncoder([["a", 7], [1.5, 2, "2", None]], handle_unknown="ignore")
    alone = [[1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert encoder.transform(X[rows]).tolist() == [alone[i] for i in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got None: collected from the rows"),
        ({"categories": "auto"}, "got 'auto': collected from the rows"),
        ({"categories": [["a"]]}, "1 entries, but X has 2 columns"),
        ({"categories": [["a"], "bc"]}, "column 1 must be a list; got 'bc'"),
        ({"categories": [["a"], []]}, r"column 1 must be distinct and at least one; got \[\]"),
        ({"categories": [["a"], ["b", "c", "b"]]}, r"column 1 .*\['b', 'c', 'b'\]"),
        ({"categories": [["a"], [None, np.nan]]}, "column 1 must be distinct"),
        ({"categories": [["a"], ["b"]], "handle_unknown": "drop"}, "'drop'"),
    ],
)
def test_one_hot_encoder_refuses(arguments, message):
    for use in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(PublicOneHotEncoder(**arguments), use)([["a", "b"]])


def test_an_unknown_cell_is_named():
    encoder = PublicOneHotEncoder([SECTORS, ["x"]])
    with pytest.raises(ValueError, match=r"column 0 holds \['army'\], not among .*'private'"):
        encoder.transform([["army", "x"], ["self", "x"]])


# ----------------------------------------------------------------- what they have in common

COLUMNS = pd.DataFrame({"a": [0.5, 2.0, -3.0], "b": [1.0, 0.0, 4.0]}, index=[10, 20, 30])
COMMON = [
    ClipToBall(),
    PublicScaler([1.0, 2.0], [3.0, 4.0]),
    PublicOneHotEncoder([[0.5, 2, -3], [0, 1, 4]]),
]


@pytest.mark.parametrize("transformer", COMMON, ids=lambda t: type(t).__name__)
def test_fit_learns_nothing_but_the_columns(transformer):
    assert not get_tags(transformer).requires_fit
    unfitted = transformer.transform(COLUMNS.to_numpy())
    fitted = clone(transformer).fit(COLUMNS.iloc[:1])
    learned = fitted.__dict__.keys() - transformer.get_params().keys()
    assert learned <= {"n_features_in_", "feature_names_in_"}
    for again in (fitted, clone(fitted).fit(COLUMNS), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(again.transform(COLUMNS), unfitted)
    with pytest.raises(ValueError, match="2 features"):
        clone(fitted).fit(COLUMNS.to_numpy()).transform(np.ones((2, 3)))
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(COLUMNS[["b", "a"]])


@pytest.mark.parametrize("transformer", COMMON, ids=lambda t: type(t).__name__)
def test_frames_in_and_out(transformer):
    fitted = clone(transformer).set_output(transform="pandas").fit(COLUMNS)
    frame = fitted.transform(COLUMNS)
    assert list(frame.index) == [10, 20, 30]
    assert list(frame.columns) == list(fitted.get_feature_names_out())
    assert np.array_equal(frame, transformer.transform(COLUMNS.to_numpy()))
    assert all(name[0] in "ab" for name in frame.columns)
    with pytest.raises(ValueError, match="input_features"):
        fitted.get_feature_names_out(["b", "a"])


@pytest.mark.parametrize("transformer", COMMON[:2], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_rows_are_the_same_bits_in_every_batch(transformer, dtype, data):
    X = np.random.default_rng(0).normal(size=(40, 2)).astype(dtype)
    chosen = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=50))
    rows = transformer.transform(X)[chosen]
    for same in (X[chosen], np.asfortranarray(X[chosen]), pd.DataFrame(X).iloc[chosen].to_numpy()):
        assert transformer.transform(same).tobytes() == rows.tobytes()


def test_long_clipped_rows_are_the_same_bits_in_every_batch():
    X = np.random.default_rng(0).normal(size=(64, 730))
    rows = ClipToBall().transform(X)
    for part in (slice(0, 1), slice(5, 8), slice(None, None, -3)):
        assert ClipToBall().transform(X[part]).tobytes() == rows[part].tobytes()
        assert np.array_equal(ClipToBall().transform(np.asfortranarray(X[part])), rows[part])


def test_inputs_are_not_modified():
    X = np.random.default_rng(0).normal(size=(5, 2)) * 10
    before = X.copy()
    for transformer in COMMON[:2]:
        transformer.fit(X).transform(X)[:] = 0
    assert np.array_equal(X, before)


def test_in_a_grid_search_over_a_pipeline_with_columns():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "age": rng.normal(40, 12, 300),
            "hours": rng.normal(40, 9, 300),
            "sector": ["x", "y", "z"] * 100,
        }
    )
    y = (X["age"] > 40) ^ (X["sector"] == "x")
    columns = make_column_transformer(
        (PublicScaler(center=40.0, scale=10.0), ["age", "hours"]),
        (PublicOneHotEncoder([["x", "y", "z"]]), ["sector"]),
        verbose_feature_names_out=False,
    )
    pipe = make_pipeline(columns, ClipToBall(), LogisticRegression())
    search = GridSearchCV(pipe, {"cliptoball__radius": [1e-3, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"cliptoball__radius": 10.0}
    names = search.best_estimator_[:-1].get_feature_names_out()
    assert list(names) == ["age", "hours", "sector_x", "sector_y", "sector_z"]
