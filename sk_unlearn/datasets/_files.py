"""Readers of the files in which the reference data sets are kept: bytes in, uint8 arrays out.

Every reader returns images of shape (n, channels, height, width), uint8, and labels of shape
(n,), int64, and checks what it read before it returns.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]

SHA256 = {
    "mnist10k.npz": "65a5c2ccee7bbe7bd4faa4e32e452e1ea9c794fdb94afab383997ef78e7a94ba",
    "cifar10_train_jpeg.npz": "55b5721d311c0afa44621b4cd471dbab7b141d54eda5af823ee13c6c8e5360e4",
    "cifar10_test_jpeg.npz": "e7fb9ab422a771f1b2300d5849b8bf96cd0faeb7880849f23f9d3a39197bc58f",
    "adult.csv.gz": "328afbf29f2011b9f8b5cab033dcfa921235146e02a669b1638f87dea346b305",
}


def verified(path: Path) -> Path:
    """Return `path` if the file has the content that its name stands for."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[path.name]:
        raise ValueError(
            f"{path} has the SHA-256 {found}, not {SHA256[path.name]}: it is damaged or is "
            "another file of that name. Replace it, or point data_home (or SK_UNLEARN_DATA) "
            "at another folder."
        )
    return path


def checked(images: Any, labels: Any, shape: tuple[int, ...], origin: object) -> Images:
    """Return the arrays if they are images of `shape` with one label from 0 to 9 each."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.shape[1:] != shape or images.dtype != np.uint8:
        raise ValueError(
            f"{origin} holds images of shape {images.shape[1:]} and type {images.dtype}, not "
            f"{shape} and uint8; replace the file"
        )
    if labels.shape != (len(images),):
        raise ValueError(
            f"{origin} holds {len(images)} images and labels of shape {labels.shape}; "
            "replace the files"
        )
    labels = labels.astype(np.int64)
    outside = (labels < 0) | (labels > 9)
    if outside.any():
        raise ValueError(f"{origin} holds the label {labels[outside][0]}, not one from 0 to 9")
    return images, labels


def read_mnist_npz(path: Path) -> Images:
    """Read ``mnist10k.npz``: `X` uint8 (n, 28, 28) and `y` uint8 (n,)."""
    with np.load(verified(path), allow_pickle=False) as file:
        return checked(file["X"][:, None], file["y"], (1, 28, 28), path)


def idx_path(folder: Path, name: str) -> Path | None:
    """Return the IDX file of that name, as it is or gzipped; None if there is neither."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of bytes, the format that MNIST is published in."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} begins with {content[:3]!r}: it is no IDX file of bytes")
    n_axes = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=n_axes, offset=4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * n_axes)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{path} announces the shape {tuple(shape.tolist())} and holds {values.size} bytes: "
            "the download was cut short; fetch it again"
        )
    return values.reshape(shape)


def read_mnist_idx(folder: Path, prefix: str) -> Images:
    """Read the pair of IDX files ``<prefix>-images-idx3-ubyte``, ``<prefix>-labels-idx1-ubyte``."""
    images, labels = (
        idx_path(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    return checked(read_idx(images)[:, None], read_idx(labels), (1, 28, 28), folder)


def read_cifar_jpeg(path: Path) -> Images:
    """Read one part of the JPEG copy of CIFAR-10: `blob`, `offsets` (n + 1,), `y` (n,)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{path.name} holds JPEG streams, which Pillow decodes: pip install pillow"
        ) from error
    with np.load(verified(path), allow_pickle=False) as file:
        blob, offsets, labels = memoryview(file["blob"]), file["offsets"].tolist(), file["y"]
    images = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    for image, start, stop in zip(images, offsets[:-1], offsets[1:], strict=True):
        image[:] = Image.open(io.BytesIO(blob[start:stop]))
    return checked(images.transpose(0, 3, 1, 2), labels, (3, 32, 32), path)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays, containers and strings; refuse every other class, which could run code."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed class by name."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain array")
        return super().find_class(module, name)


def read_cifar_batch(path: Path) -> Images:
    """Read one pickled batch of the Python version of CIFAR-10."""
    with path.open("rb") as file:
        try:
            batch = ArrayUnpickler(file, encoding="latin1").load()
            images, labels = batch["data"], batch["labels"]
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no CIFAR-10 batch: {error}; fetch it again") from error
    images = np.asarray(images)
    if images.ndim != 2 or images.shape[1] != 3072:
        raise ValueError(f"{path} holds rows of shape {images.shape[1:]}, not (3072,)")
    return checked(images.reshape(-1, 3, 32, 32), labels, (3, 32, 32), path)


def read_svhn_mat(path: Path) -> Images:
    """Read a cropped-digits ``.mat`` file: `X` (32, 32, 3, n), `y` (n, 1) with 10 for the 0."""
    try:
        content = scipy.io.loadmat(path, variable_names=("X", "y"))
        images, labels = content["X"], content["y"]
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise ValueError(
            f"{path} is no SVHN file of cropped digits with X and y ({error}); fetch it again"
        ) from error
    if images.ndim != 4:
        raise ValueError(f"{path} holds X of shape {images.shape}, not (32, 32, 3, n)")
    labels = np.where(labels.ravel() == 10, 0, labels.ravel())
    return checked(images.transpose(3, 2, 0, 1), labels, (3, 32, 32), path)
