"""Where data may be: a local folder first, then OpenML; and what to say where neither has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from ._files import Images

Reader = Callable[[], Images]
# Which part is read by what; None where its files are not there.
Source = dict[str, Reader | None]

_SUBSETS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}


def local_home(data_home: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder to look in, or None where none was named."""
    named = data_home if data_home is not None else os.environ.get("SK_UNLEARN_DATA") or None
    if named is None:
        return None
    home = Path(named).expanduser()
    if not home.is_dir():
        origin = "data_home" if data_home is not None else "SK_UNLEARN_DATA"
        raise FileNotFoundError(f"{origin} names {str(home)!r}, which is no folder")
    return home


def parts_of(subset: str) -> tuple[str, ...]:
    """Return the parts that `subset` asks for, training part first."""
    if subset not in _SUBSETS:
        raise ValueError(f"subset={subset!r} is none of {list(_SUBSETS)}")
    return _SUBSETS[subset]


def not_found(name: str, subset: str, places: Sequence[str], remedy: str) -> str:
    """Say where the data was looked for and what to do."""
    where = " or in ".join(places)
    looked = f"in {where}" if where else "(data_home and SK_UNLEARN_DATA are not set)"
    return f"{name}, part {subset!r}, was not found {looked}. {remedy}"


def if_there(reader: Callable[[Path], Images], path: Path) -> Reader | None:
    """Return what reads `path`, or None where there is no such file."""
    return (lambda: reader(path)) if path.is_file() else None


def joined(parts: Sequence[Images]) -> Images:
    """Return several parts as one."""
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@dataclass(frozen=True)
class OpenMLImages:
    """Where OpenML keeps images, and the first labels of both parts, which tell their order."""

    name: str
    shape: tuple[int, ...]
    n_rows: int
    first_labels: tuple[int, ...]

    def fetch(self, n_train: int) -> dict[str, Images]:
        """Fetch all rows, and split them into the two parts."""
        raw = fetch_openml(self.name, version=1, as_frame=False)
        labels = np.asarray(raw.target).astype(np.int64)
        first = (*labels[:5].tolist(), *labels[n_train : n_train + 5].tolist())
        if len(labels) != self.n_rows or first != self.first_labels:
            raise ValueError(
                f"OpenML's {self.name} has {len(labels)} rows, and its parts begin with the labels "
                f"{first}, not {self.n_rows} rows and {self.first_labels}: it is not in the "
                "published order, so its rows have no stable ids. Use a local folder."
            )
        images = np.asarray(raw.data).astype(np.uint8).reshape(-1, *self.shape)
        rows = {"train": slice(None, n_train), "test": slice(n_train, None)}
        return {part: (images[which], labels[which]) for part, which in rows.items()}


@dataclass(frozen=True)
class ImageSet:
    """One set of images: what it is called, where it may be, how its rows are numbered."""

    name: str
    n_train: int
    target_names: tuple[str, ...]
    sources: Callable[[Path], dict[str, Source]]
    openml: OpenMLImages | None
    remedy: str

    def load(
        self,
        subset: str,
        data_home: str | os.PathLike[str] | None,
        return_X_y: bool,
        download_if_missing: bool,
    ) -> Bunch | tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Read or fetch the parts of `subset`, and scale them by the constant 255."""
        parts = parts_of(subset)
        read, source = self._read(parts, subset, local_home(data_home), download_if_missing)
        images, target = joined(read)
        data = np.divide(images, np.float32(255), dtype=np.float32, order="C")
        if return_X_y:
            return data, target
        first = {"train": 0, "test": self.n_train}
        ids = [
            first[part] + np.arange(len(labels))
            for part, (_, labels) in zip(parts, read, strict=True)
        ]
        about = f"{len(target)} images divided by 255, from {source}."
        return Bunch(
            data=data,
            target=target,
            target_names=list(self.target_names),
            sample_ids=np.concatenate(ids),
            DESCR=f"{self.name}, part {subset!r}: {about}",
            source=source,
        )

    def _read(
        self, parts: tuple[str, ...], subset: str, home: Path | None, download_if_missing: bool
    ) -> tuple[list[Images], str]:
        local = self.sources(home) if home else {}
        for source, readers in local.items():
            chosen = [reader for part in parts if (reader := readers.get(part)) is not None]
            if len(chosen) == len(parts):
                return [reader() for reader in chosen], source
        remedy = f"Put it into the folder data_home, for example with {self.remedy}."
        missing = not_found(self.name, subset, list(local), remedy)
        if self.openml is None or not download_if_missing:
            raise FileNotFoundError(missing)
        try:
            fetched = self.openml.fetch(self.n_train)
        except OSError as error:
            raise FileNotFoundError(f"{missing} OpenML could not be asked: {error}") from error
        return [fetched[part] for part in parts], f"OpenML: {self.openml.name}"
