"""The Adult table: raw or encoded, from a local file or OpenML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from ._adult_encoding import CATEGORIES, COLUMNS, MISSING, RANGES, encode_adult, feature_names
from ._files import verified
from ._sources import local_home, not_found, parts_of

_N_TRAIN, _N_TEST = 32_561, 16_281
Table = dict[str, NDArray[Any]]


def load_adult(
    *,
    subset: str = "train",
    data_home: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Any:
    """Load UCI Adult: 32,561 training and 16,281 test rows of the 1994 census.

    The label is 1 where the income is above 50,000 dollars a year. With ``as_frame=False``
    the rows come as the 85 numbers of :func:`encode_adult`, an encoding that is fitted to no
    data; with ``as_frame=True`` as the 14 raw columns, missing values as NaN.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Which part of the data.
    data_home : path-like, default=None
        Folder that holds ``adult.csv.gz`` (the training part, with a header). None stands for
        the environment variable ``SK_UNLEARN_DATA``.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Return the raw table as a pandas DataFrame and the target as a Series, both indexed by
        sample id; categories carry their public lists.
    download_if_missing : bool, default=True
        Fetch ``adult``, version 2, from OpenML (pandas needed) if the folder does not hold the
        part.

    Returns
    -------
    Bunch or tuple
        ``data`` float32 (n, 85) in [0, 1], or a DataFrame (n, 14); ``target`` int64 (n,);
        ``target_names``; ``feature_names``; ``sample_ids`` int64 (n,), training rows from 0
        and test rows from 32,561; ``frame`` (the raw table with the target, or None);
        ``DESCR``; ``source``.

    Raises
    ------
    FileNotFoundError
        If the data is neither in the folder nor to be had from OpenML.
    ValueError
        If the file is damaged or is not what its name says, or `subset` is none of the three.

    Notes
    -----
    A call, where the data is at hand::

        X, y = load_adult(return_X_y=True)             # (32561, 85)
        raw = load_adult(as_frame=True).frame          # (32561, 15)
    """
    parts = parts_of(subset)
    table, source = _read(parts, subset, local_home(data_home), download_if_missing)
    target = (table["label"] == ">50K").astype(np.int64)
    ids = np.arange(len(target)) + (_N_TRAIN if parts == ("test",) else 0)
    if as_frame:
        frame = _frame(table, target, ids)
        data, target, names = frame[list(COLUMNS)], frame["target"], list(COLUMNS)
    else:
        frame, data, names = None, encode_adult(table), feature_names()
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        frame=frame,
        feature_names=names,
        target_names=["<=50K", ">50K"],
        sample_ids=ids,
        DESCR=f"UCI Adult (CC BY 4.0), part {subset!r}: {len(ids)} rows, from {source}.",
        source=source,
    )


def _read(
    parts: tuple[str, ...], subset: str, home: Path | None, download_if_missing: bool
) -> tuple[Table, str]:
    path = home / "adult.csv.gz" if home else None
    if parts == ("train",) and path and path.is_file():
        return _read_csv(path), str(path)
    places = [f"{path} (the training part)"] if path else []
    remedy = "OpenML has it: call again with download_if_missing=True and pandas installed."
    missing = not_found("Adult", subset, places, remedy)
    if not download_if_missing:
        raise FileNotFoundError(missing)
    try:
        fetched = _fetch()
    except OSError as error:
        raise FileNotFoundError(f"{missing} OpenML could not be asked: {error}") from error
    columns = fetched["train"].keys()
    table = {name: np.concatenate([fetched[part][name] for part in parts]) for name in columns}
    return table, "OpenML: adult, version 2"


def _read_csv(path: Path) -> Table:
    rows = np.loadtxt(verified(path), dtype=str, delimiter=",", comments=None)
    table = dict(zip(rows[0].tolist(), rows[1:].T, strict=True))
    table["label"] = table.pop("income-per-year")
    return table


def _fetch() -> dict[str, Table]:
    raw = fetch_openml("adult", version=2, as_frame=True).frame.rename(columns={"class": "label"})
    # OpenML keeps the test part first; the first census weight of each part tells.
    weights = raw["fnlwgt"].to_numpy(dtype=float)
    if len(raw) != _N_TRAIN + _N_TEST or weights[0] != 226_802 or weights[_N_TEST] != 77_516:
        raise ValueError(
            f"OpenML's adult has {len(raw)} rows and begins with fnlwgt={weights[0]:.0f}: it is "
            f"not the table of {_N_TRAIN + _N_TEST} rows, test part first, that is known here, "
            "so its rows have no stable ids. Use a local folder."
        )
    rows = {"test": slice(None, _N_TEST), "train": slice(_N_TEST, None)}
    return {
        part: {name: raw[name].to_numpy()[which] for name in (*COLUMNS, "label")}
        for part, which in rows.items()
    }


def _frame(table: Mapping[str, Any], target: NDArray[np.int64], ids: NDArray[np.int64]) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("as_frame=True needs pandas: pip install pandas") from error
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = np.asarray(table[name])
        if name in RANGES:
            columns[name] = values.astype(np.int64)
        else:
            known = np.where(values == MISSING, None, values)
            columns[name] = pd.Categorical(known, categories=list(CATEGORIES[name]))
    return pd.DataFrame(columns | {"target": target}, index=pd.Index(ids, name="sample_id"))
