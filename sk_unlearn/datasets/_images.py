"""Loaders of the three image sets that the reproduced papers use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from . import _files as files
from ._sources import ImageSet, OpenMLImages, Reader, Source, if_there, joined

_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def _mnist_sources(home: Path) -> dict[str, Source]:
    raw = home / "MNIST" / "raw"
    single = home / "mnist10k.npz"

    def pair(prefix: str) -> Reader | None:
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        if any(files.idx_path(raw, name) is None for name in names):
            return None
        return lambda: files.read_mnist_idx(raw, prefix)

    return {
        str(raw): {"train": pair("train"), "test": pair("t10k")},
        str(single): {"test": if_there(files.read_mnist_npz, single)},
    }


def _cifar10_sources(home: Path) -> dict[str, Source]:
    folder = home / "cifar-10-batches-py"

    def batches(*names: str) -> Reader | None:
        paths = [folder / name for name in names]
        if not all(path.is_file() for path in paths):
            return None
        return lambda: joined([files.read_cifar_batch(path) for path in paths])

    jpeg = {part: home / f"cifar10_{part}_jpeg.npz" for part in ("train", "test")}
    return {
        str(folder): {
            "train": batches(*(f"data_batch_{i}" for i in range(1, 6))),
            "test": batches("test_batch"),
        },
        f"the JPEG copy in {home}": {
            part: if_there(files.read_cifar_jpeg, path) for part, path in jpeg.items()
        },
    }


def _svhn_sources(home: Path) -> dict[str, Source]:
    paths = {part: home / f"{part}_32x32.mat" for part in ("train", "test")}
    parts = {part: if_there(files.read_svhn_mat, path) for part, path in paths.items()}
    return {f"the .mat files in {home}": parts}


_MNIST = ImageSet(
    name="MNIST",
    n_train=60_000,
    target_names=_DIGITS,
    sources=_mnist_sources,
    openml=OpenMLImages("mnist_784", (1, 28, 28), 70_000, (5, 0, 4, 1, 9, 7, 2, 1, 0, 4)),
    remedy="torchvision.datasets.MNIST(data_home, download=True)",
)
_CIFAR10 = ImageSet(
    name="CIFAR-10",
    n_train=50_000,
    target_names=_CIFAR10_CLASSES,
    sources=_cifar10_sources,
    openml=OpenMLImages("CIFAR_10", (3, 32, 32), 60_000, (6, 9, 9, 4, 1, 3, 8, 8, 0, 6)),
    remedy="torchvision.datasets.CIFAR10(data_home, download=True)",
)
_SVHN = ImageSet(
    name="SVHN",
    n_train=73_257,
    target_names=_DIGITS,
    sources=_svhn_sources,
    openml=None,
    remedy="torchvision.datasets.SVHN(data_home, split=..., download=True)",
)


def load_mnist(
    *,
    subset: str = "train",
    data_home: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load MNIST: 60,000 training and 10,000 test images of digits, 28 by 28, grey.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Which part of the data.
    data_home : path-like, default=None
        Folder that holds ``MNIST/raw/`` as torchvision leaves it, or ``mnist10k.npz`` (the
        test part alone). None stands for the environment variable ``SK_UNLEARN_DATA``.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    download_if_missing : bool, default=True
        Fetch ``mnist_784`` from OpenML if the folder does not hold the part.

    Returns
    -------
    Bunch or tuple
        ``data`` float32 (n, 1, 28, 28) in [0, 1]; ``target`` int64 (n,); ``target_names``;
        ``sample_ids`` int64 (n,), training images from 0 and test images from 60,000;
        ``DESCR``; ``source``, where the rows were read.

    Raises
    ------
    FileNotFoundError
        If the data is neither in the folder nor to be had from OpenML.
    ValueError
        If a file is damaged or is not what its name says, or `subset` is none of the three.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from sk_unlearn.datasets import load_mnist
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     raw = pathlib.Path(folder, "MNIST", "raw")
    ...     raw.mkdir(parents=True)
    ...     images = raw / "t10k-images-idx3-ubyte"
    ...     labels = raw / "t10k-labels-idx1-ubyte"
    ...     shape = [0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]
    ...     _ = images.write_bytes(bytes([0, 0, 8, 3, *shape, *[255] * 784]))
    ...     _ = labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    ...     mnist = load_mnist(subset="test", data_home=folder)
    >>> mnist.data.shape, mnist.target, mnist.sample_ids
    ((1, 1, 28, 28), array([7]), array([60000]))
    """
    return _MNIST.load(subset, data_home, return_X_y, download_if_missing)


def load_cifar10(
    *,
    subset: str = "train",
    data_home: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32 by 32, RGB.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Which part of the data.
    data_home : path-like, default=None
        Folder that holds ``cifar-10-batches-py/`` as torchvision leaves it, or the JPEG copies
        ``cifar10_train_jpeg.npz`` and ``cifar10_test_jpeg.npz`` (for which Pillow is needed).
        None stands for the environment variable ``SK_UNLEARN_DATA``.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    download_if_missing : bool, default=True
        Fetch ``CIFAR_10`` from OpenML if the folder does not hold the part.

    Returns
    -------
    Bunch or tuple
        ``data`` float32 (n, 3, 32, 32) in [0, 1]; ``target`` int64 (n,); ``target_names``;
        ``sample_ids`` int64 (n,), training images from 0 and test images from 50,000;
        ``DESCR``; ``source``, where the rows were read.

    Raises
    ------
    FileNotFoundError
        If the data is neither in the folder nor to be had from OpenML.
    ImportError
        If the JPEG copy is to be read and Pillow is not installed.
    ValueError
        If a file is damaged or is not what its name says, or `subset` is none of the three.

    Notes
    -----
    The JPEG copy is lossy and keeps another order of the rows than the original: its sample
    ids are stable, and they are not those of the original.

    Examples
    --------
    >>> import pathlib, pickle, tempfile
    >>> import numpy as np
    >>> from sk_unlearn.datasets import load_cifar10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     batch = pathlib.Path(folder, "cifar-10-batches-py", "test_batch")
    ...     batch.parent.mkdir()
    ...     rows = {"data": np.zeros((2, 3072), np.uint8), "labels": [3, 8]}
    ...     _ = batch.write_bytes(pickle.dumps(rows))
    ...     cifar = load_cifar10(subset="test", data_home=folder)
    >>> cifar.data.shape, cifar.target, cifar.sample_ids
    ((2, 3, 32, 32), array([3, 8]), array([50000, 50001]))
    """
    return _CIFAR10.load(subset, data_home, return_X_y, download_if_missing)


def load_svhn(
    *,
    subset: str = "train",
    data_home: str | os.PathLike[str] | None = None,
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load SVHN: 73,257 training and 26,032 test images of house digits, 32 by 32, RGB.

    There is no fetching here: the copy on OpenML does not say how a row is laid out.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Which part of the data.
    data_home : path-like, default=None
        Folder that holds ``train_32x32.mat`` and ``test_32x32.mat``, as published and as
        torchvision leaves them. None stands for the environment variable ``SK_UNLEARN_DATA``.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    Bunch or tuple
        ``data`` float32 (n, 3, 32, 32) in [0, 1]; ``target`` int64 (n,), the digit itself;
        ``target_names``; ``sample_ids`` int64 (n,), training images from 0 and test images
        from 73,257; ``DESCR``; ``source``, where the rows were read.

    Raises
    ------
    FileNotFoundError
        If the folder does not hold the part.
    ValueError
        If a file is not what its name says, or `subset` is none of the three.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, scipy.io
    >>> from sk_unlearn.datasets import load_svhn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     content = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[10], [4]]}
    ...     scipy.io.savemat(f"{folder}/train_32x32.mat", content)
    ...     svhn = load_svhn(data_home=folder)
    >>> svhn.data.shape, svhn.target
    ((2, 3, 32, 32), array([0, 4]))
    """
    return _SVHN.load(subset, data_home, return_X_y, download_if_missing=False)
