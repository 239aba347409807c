"""Loaders against files that the tests write, and against the published data where it is."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import Bunch

from sk_unlearn.datasets import (
    _adult,
    _files,
    _sources,
    load_adult,
    load_cifar10,
    load_mnist,
    load_svhn,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test asks OpenML, and none finds data that it did not name."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.delenv("SK_UNLEARN_DATA", raising=False)
    monkeypatch.setattr(_sources, "fetch_openml", refuse)
    monkeypatch.setattr(_adult, "fetch_openml", refuse)


def random_images(n, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, 10, n)


def idx(values):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(home, prefix, images, labels, suffix=""):
    raw = home / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (raw / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
    (raw / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


def write_cifar(home, parts):
    folder = home / "cifar-10-batches-py"
    folder.mkdir()
    for name, (images, labels) in parts.items():
        batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_svhn(home, part, images, labels):
    content = {
        "X": images.transpose(2, 3, 1, 0),
        "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
    }
    scipy.io.savemat(home / f"{part}_32x32.mat", content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_in_the_layout_of_torchvision(tmp_path, suffix):
    train, test = random_images(5, (28, 28)), random_images(3, (28, 28), seed=1)
    write_mnist(tmp_path, "train", *train, suffix)
    write_mnist(tmp_path, "t10k", *test, suffix)
    mnist = load_mnist(subset="all", data_home=tmp_path)
    expected = np.concatenate([train[0], test[0]])[:, None].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(mnist.data, expected)
    assert mnist.data.dtype == np.float32 and mnist.data.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(mnist.target, np.concatenate([train[1], test[1]]))
    assert mnist.sample_ids.tolist() == [0, 1, 2, 3, 4, 60_000, 60_001, 60_002]
    assert "8 images" in mnist.DESCR and str(tmp_path) in mnist.source
    X, y = load_mnist(subset="test", data_home=tmp_path, return_X_y=True)
    np.testing.assert_array_equal(X, expected[5:])
    np.testing.assert_array_equal(y, test[1])


def test_cifar10_in_the_layout_of_torchvision(tmp_path):
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    parts = {name: random_images(2, (3, 32, 32), seed=i) for i, name in enumerate(names)}
    write_cifar(tmp_path, parts)
    cifar = load_cifar10(data_home=tmp_path)
    expected = np.concatenate([parts[name][0] for name in names[:-1]])
    np.testing.assert_array_equal(np.rint(cifar.data * 255), expected)
    assert cifar.sample_ids.tolist() == list(range(10))
    assert cifar.target_names[6] == "frog"
    everything = load_cifar10(subset="all", data_home=tmp_path)
    np.testing.assert_array_equal(everything.target[-2:], parts["test_batch"][1])
    assert everything.sample_ids[-2:].tolist() == [50_000, 50_001]


def test_svhn_as_published_and_its_zero(tmp_path):
    train, test = random_images(40, (3, 32, 32)), random_images(4, (3, 32, 32), seed=1)
    assert 0 in train[1]
    write_svhn(tmp_path, "train", *train)
    write_svhn(tmp_path, "test", *test)
    svhn = load_svhn(subset="all", data_home=tmp_path)
    np.testing.assert_array_equal(np.rint(svhn.data * 255), np.concatenate([train[0], test[0]]))
    np.testing.assert_array_equal(svhn.target, np.concatenate([train[1], test[1]]))
    assert svhn.sample_ids[[0, 40]].tolist() == [0, 73_257]


def test_the_environment_variable_names_the_folder(tmp_path, monkeypatch):
    write_svhn(tmp_path, "train", *random_images(2, (3, 32, 32)))
    monkeypatch.setenv("SK_UNLEARN_DATA", str(tmp_path))
    assert load_svhn().data.shape == (2, 3, 32, 32)
    monkeypatch.setenv("SK_UNLEARN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"SK_UNLEARN_DATA names .*nowhere"):
        load_svhn()
    assert load_svhn(data_home=tmp_path).data.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("load", [load_mnist, load_cifar10, load_svhn, load_adult])
def test_what_is_nowhere_is_a_clear_error(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"part 'train', was not found \(data_home and"):
        load()
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load(data_home=tmp_path)
    with pytest.raises(FileNotFoundError, match="data_home names"):
        load(data_home=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"subset='validation' is none of \['train'"):
        load(subset="validation", data_home=tmp_path)


@pytest.mark.parametrize("load", [load_mnist, load_cifar10, load_adult])
def test_openml_out_of_reach_and_openml_not_wanted(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"OpenML could not be asked: .*no network"):
        load(data_home=tmp_path)
    with pytest.raises(FileNotFoundError, match="was not found in ") as caught:
        load(data_home=tmp_path, download_if_missing=False)
    assert caught.value.__cause__ is None


def test_a_folder_with_one_part_does_not_serve_the_other(tmp_path):
    write_mnist(tmp_path, "t10k", *random_images(3, (28, 28)))
    assert len(load_mnist(subset="test", data_home=tmp_path).data) == 3
    for subset in ("train", "all"):
        with pytest.raises(FileNotFoundError, match=f"part '{subset}', was not found"):
            load_mnist(subset=subset, data_home=tmp_path)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("mnist10k.npz", lambda home: load_mnist(subset="test", data_home=home)),
        ("cifar10_test_jpeg.npz", lambda home: load_cifar10(subset="test", data_home=home)),
        ("cifar10_train_jpeg.npz", lambda home: load_cifar10(data_home=home)),
        ("adult.csv.gz", lambda home: load_adult(data_home=home)),
    ],
)
def test_unknown_content_in_a_known_name_is_refused(tmp_path, name, load):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"{name} has the SHA-256 [0-9a-f]{{64}}, not "):
        load(tmp_path)


def test_damaged_idx_files_are_refused(tmp_path):
    images, labels = random_images(3, (28, 28))
    write_mnist(tmp_path, "t10k", images, labels)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(idx(images)[:-1])
    with pytest.raises(ValueError, match=r"announces the shape \(3, 28, 28\) and holds 2351 bytes"):
        load_mnist(subset="test", data_home=tmp_path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="is no IDX file"):
        load_mnist(subset="test", data_home=tmp_path)
    path.write_bytes(idx(images[:2]))
    with pytest.raises(ValueError, match=r"2 images and labels of shape \(3,\)"):
        load_mnist(subset="test", data_home=tmp_path)
    path.write_bytes(idx(images[:, :27]))
    with pytest.raises(ValueError, match=r"images of shape \(1, 27, 28\)"):
        load_mnist(subset="test", data_home=tmp_path)
    write_mnist(tmp_path, "t10k", images, np.array([3, 11, 0]))
    with pytest.raises(ValueError, match="the label 11, not one from 0 to 9"):
        load_mnist(subset="test", data_home=tmp_path)


class _RunsCode:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": _RunsCode(), "labels": []}), r"it asks for .*print"),
        (pickle.dumps({"images": 1}), "'data'"),
        (b"", "Ran out of input"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}), r"not \(3072,\)"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}), "type float64"),
    ],
)
def test_a_damaged_or_hostile_cifar_batch_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_cifar10(subset="test", data_home=tmp_path)
    assert capsys.readouterr().out == ""


def test_a_damaged_svhn_file_is_refused(tmp_path):
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(b"no matlab here" * 20)
    with pytest.raises(ValueError, match="is no SVHN file"):
        load_svhn(data_home=tmp_path)
    scipy.io.savemat(path, {"images": np.zeros(3)})
    with pytest.raises(ValueError, match="is no SVHN file"):
        load_svhn(data_home=tmp_path)
    scipy.io.savemat(path, {"X": np.zeros((32, 32), np.uint8), "y": [[1]]})
    with pytest.raises(ValueError, match=r"X of shape \(32, 32\)"):
        load_svhn(data_home=tmp_path)


def jpeg_copy(path, images, labels):
    from PIL import Image

    streams = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="jpeg", quality=95)
        streams.append(stream.getvalue())
    offsets = np.cumsum([0] + [len(stream) for stream in streams])
    blob = np.frombuffer(b"".join(streams), dtype=np.uint8)
    np.savez(path, blob=blob, offsets=offsets, y=labels.astype(np.uint8), classes=np.array(["a"]))


def test_jpeg_streams_are_cut_and_oriented_rightly(tmp_path, monkeypatch):
    ramp = np.arange(32, dtype=np.uint8) * 8
    down = np.broadcast_to(ramp[:, None], (32, 32))
    red = np.stack([down, np.zeros_like(down), np.zeros_like(down)], axis=-1)
    green = np.stack([np.zeros_like(down), down.T, np.zeros_like(down)], axis=-1)
    path = tmp_path / "cifar10_test_jpeg.npz"
    jpeg_copy(path, [red, green], np.array([7, 2]))
    digest = _files.hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(_files.SHA256, path.name, digest)
    cifar = load_cifar10(subset="test", data_home=tmp_path)
    expected = np.stack([red, green]).transpose(0, 3, 1, 2)
    assert np.abs(cifar.data * 255 - expected).max() < 25  # JPEG is lossy
    assert cifar.target.tolist() == [7, 2]


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "cifar10_train_jpeg.npz").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_cifar10(data_home=tmp_path)


def openml_answer(name, version, as_frame):
    """What OpenML answers, as it documents it: float pixels, labels as strings."""
    assert version == 1 and as_frame is False
    first, n_train, n = {
        "mnist_784": ("5041972104", 60_000, 70_000),
        "CIFAR_10": ("6994138806", 50_000, 60_000),
    }[name]
    labels = np.full(n, "0", dtype=object)
    labels[:5], labels[n_train : n_train + 5] = list(first[:5]), list(first[5:])
    width = {"mnist_784": 784, "CIFAR_10": 3072}[name]
    pixels = np.broadcast_to(np.arange(n)[:, None] % 256, (n, width)).astype(np.uint8)
    return Bunch(data=pixels, target=labels)


@pytest.mark.parametrize(("load", "n_train"), [(load_mnist, 60_000), (load_cifar10, 50_000)])
def test_openml_is_asked_when_the_folder_has_nothing(monkeypatch, tmp_path, load, n_train):
    monkeypatch.setattr(_sources, "fetch_openml", openml_answer)
    bunch = load(subset="test", data_home=tmp_path)
    assert len(bunch.data) == 10_000 and bunch.sample_ids[0] == n_train
    assert bunch.source.startswith("OpenML")
    np.testing.assert_array_equal(
        bunch.data[:, 0, 0, 0], np.float32(bunch.sample_ids % 256) / np.float32(255)
    )


def test_openml_in_another_order_is_refused(monkeypatch):
    def shuffled(*args, **kwargs):
        answer = openml_answer(*args, **kwargs)
        answer.target[[0, 4]] = answer.target[[4, 0]]
        return answer

    monkeypatch.setattr(_sources, "fetch_openml", shuffled)
    with pytest.raises(ValueError, match="not in the published order"):
        load_mnist()


def test_the_real_mnist(mnist_home):
    mnist = load_mnist(subset="test", data_home=mnist_home)
    assert mnist.data.shape == (10_000, 1, 28, 28) and mnist.data.max() == 1.0
    assert mnist.target[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(mnist.target).tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]
    assert mnist.sample_ids[[0, -1]].tolist() == [60_000, 69_999]
    X, y = mnist.data.reshape(len(mnist.data), -1), mnist.target
    nearest = KNeighborsClassifier(1).fit(X[::2], y[::2])
    assert nearest.score(X[1::2], y[1::2]) > 0.9  # 0.1 if the labels were of other images


def test_the_real_cifar10(cifar10_home):
    cifar = load_cifar10(subset="test", data_home=cifar10_home)
    assert cifar.data.shape == (10_000, 3, 32, 32)
    assert np.bincount(cifar.target).tolist() == [1000] * 10
    with np.load(Path(cifar10_home) / "cifar10_test_jpeg.npz") as file:
        assert file["classes"].tolist() == cifar.target_names
    red, green, blue = cifar.data[cifar.target == cifar.target_names.index("frog")].mean((0, 2, 3))
    assert green > blue and red > blue  # frogs are seldom blue: the channels are in order
    red, _, blue = cifar.data[cifar.target == cifar.target_names.index("airplane")].mean((0, 2, 3))
    assert blue > red


@pytest.mark.slow
def test_the_real_cifar10_training_part(cifar10_home):
    X, y = load_cifar10(data_home=cifar10_home, return_X_y=True)
    assert X.shape == (50_000, 3, 32, 32) and np.bincount(y).tolist() == [5000] * 10
