"""The public encoding of the Adult table: every list, range and bin is a constant here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = "?"

RANGES: dict[str, tuple[float, float]] = {
    "age": (17, 90),
    "fnlwgt": (0, 1_500_000),
    "education-num": (1, 16),
    "capital-gain": (0, 10_000),
    "capital-loss": (0, 2_500),
    "hours-per-week": (1, 99),
}

BINS: dict[str, tuple[int, ...]] = {
    "age": (25, 35, 45, 55, 65),
    "capital-gain": (1, 3_000, 5_000, 7_000, 10_000),
    "capital-loss": (1, 1_500, 1_800, 2_000),
    "hours-per-week": (35, 41, 50),
}

CATEGORIES: dict[str, tuple[str, ...]] = {
    "workclass": (
        "Federal-gov",
        "Local-gov",
        "Never-worked",
        "Private",
        "Self-emp-inc",
        "Self-emp-not-inc",
        "State-gov",
        "Without-pay",
    ),
    "education": tuple(
        "Preschool 1st-4th 5th-6th 7th-8th 9th 10th 11th 12th HS-grad Some-college Assoc-voc "
        "Assoc-acdm Bachelors Masters Prof-school Doctorate".split()
    ),
    "marital-status": (
        "Divorced",
        "Married-AF-spouse",
        "Married-civ-spouse",
        "Married-spouse-absent",
        "Never-married",
        "Separated",
        "Widowed",
    ),
    "occupation": tuple(
        "Adm-clerical Armed-Forces Craft-repair Exec-managerial Farming-fishing "
        "Handlers-cleaners Machine-op-inspct Other-service Priv-house-serv Prof-specialty "
        "Protective-serv Sales Tech-support Transport-moving".split()
    ),
    "relationship": tuple("Husband Not-in-family Other-relative Own-child Unmarried Wife".split()),
    "race": ("Amer-Indian-Eskimo", "Asian-Pac-Islander", "Black", "Other", "White"),
    "sex": ("Female", "Male"),
    "native-country": tuple(
        "Cambodia Canada China Columbia Cuba Dominican-Republic Ecuador El-Salvador England "
        "France Germany Greece Guatemala Haiti Holand-Netherlands Honduras Hong Hungary India "
        "Iran Ireland Italy Jamaica Japan Laos Mexico Nicaragua "
        "Outlying-US(Guam-USVI-etc) Peru Philippines Poland Portugal Puerto-Rico Scotland South "
        "Taiwan Thailand Trinadad&Tobago United-States Vietnam Yugoslavia".split()
    ),
}

# The categories that get a column, where that is not all of them.
ENCODED = CATEGORIES | {"sex": ("Female",), "native-country": ("United-States",)}

COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
)


def feature_names() -> list[str]:
    """Names of the 85 encoded columns, in order."""
    bins = [
        f"{name} in [{low}, {high})"
        for name, edges in BINS.items()
        for low, high in zip(("-inf", *edges), (*edges, "inf"), strict=True)
    ]
    levels = [f"{name}={level}" for name, levels in ENCODED.items() for level in levels]
    return [*RANGES, *bins, *levels]


def numbers(name: str, column: Any) -> NDArray[np.float64]:
    """Read a numeric column; a value that is missing or no number is an error."""
    try:
        values = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"column {name!r} must hold numbers ({error}); the encoding has no column for a "
            "missing number: drop or fill those rows first"
        ) from None
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"column {name!r} holds {values[bad][0]} in row {np.flatnonzero(bad)[0]}; the encoding "
            "has no column for a missing number: drop or fill those rows first"
        )
    return values


def codes(name: str, column: Any) -> NDArray[np.intp]:
    """Position of each value in the public list of its column, -1 where it is missing."""
    words = np.asarray(column, dtype=object).astype(str)
    missing = np.isin(words, (MISSING, "nan", "None", "<NA>"))
    order = np.argsort(CATEGORIES[name])
    ranked = np.asarray(CATEGORIES[name])[order]
    place = np.minimum(np.searchsorted(ranked, words), len(ranked) - 1)
    unknown = (ranked[place] != words) & ~missing
    if unknown.any():
        raise ValueError(
            f"column {name!r} holds {str(words[unknown][0])!r}, which is not in its public list "
            f"{list(CATEGORIES[name])}; spell it as there, or write {MISSING!r}"
        )
    return np.where(missing, -1, order[place])


def encode_adult(frame: Mapping[str, Any]) -> NDArray[np.float32]:
    """Encode raw Adult rows as 85 numbers in [0, 1], the same for any other set of rows.

    Nothing is fitted: the lists, ranges and bins are constants of this package, so a row's
    encoding does not depend on which other rows are there, and deleting a row cannot change
    that of another. (The constants were chosen once, with the public table in view.) In order:

    - 6 numeric columns, mapped from a public range onto [0, 1] and clipped;
    - 21 indicators of the public bins of age, capital gain, capital loss and weekly hours;
    - 58 indicators of categories: all the levels of workclass, education, marital status,
      occupation, relationship and race; ``sex=Female``; ``native-country=United-States``.

    A missing category (``"?"``, None or NaN) has zeros in all the columns of its variable.
    Each row's Euclidean norm is at most ``sqrt(18)``.

    Parameters
    ----------
    frame : pandas.DataFrame or mapping of str to array-like of shape (n_rows,)
        The 14 raw columns, under the names of the UCI file.

    Returns
    -------
    ndarray of shape (n_rows, 85), float32
        The encoded rows. The columns are named in ``load_adult().feature_names``.

    Raises
    ------
    ValueError
        If a column is missing, a number is missing, or a category is not in its list.

    Examples
    --------
    >>> from sk_unlearn.datasets import encode_adult
    >>> row = {"age": [39], "workclass": ["?"], "fnlwgt": [77516], "education": ["Bachelors"],
    ...        "education-num": [13], "marital-status": ["Never-married"],
    ...        "occupation": ["Adm-clerical"], "relationship": ["Not-in-family"],
    ...        "race": ["White"], "sex": ["Male"], "capital-gain": [2174],
    ...        "capital-loss": [0], "hours-per-week": [40], "native-country": ["Cuba"]}
    >>> encode_adult(row).shape
    (1, 85)
    """
    absent = [name for name in COLUMNS if name not in frame]
    if absent:
        raise ValueError(f"the columns {absent} are missing; the raw table has {list(COLUMNS)}")
    raw = {name: numbers(name, frame[name]) for name in RANGES}
    blocks = [
        np.clip((raw[name] - low) / (high - low), 0, 1)[:, None]
        for name, (low, high) in RANGES.items()
    ]
    for name, edges in BINS.items():
        bins = np.searchsorted(edges, raw[name], side="right")
        blocks.append(bins[:, None] == np.arange(len(edges) + 1))
    for name, levels in ENCODED.items():
        wanted = [CATEGORIES[name].index(level) for level in levels]
        blocks.append(codes(name, frame[name])[:, None] == np.asarray(wanted))
    return np.concatenate(blocks, axis=1).astype(np.float32)
