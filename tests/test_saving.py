"""``save`` and ``load``: the same net comes back, and nothing in the file is executed."""

from __future__ import annotations

import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor, _net_file
from sk_unlearn._plain_values import NotPlainError, decode, encode
from sk_unlearn.curvature import CG
from sk_unlearn.exceptions import (
    DeletionRequestError,
    LedgerError,
    NotApplicableError,
    SavedNetError,
    SkUnlearnError,
)
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    GradientClipping,
    Newton,
    Residual,
    Retrain,
)
from sk_unlearn.modules import MLP, FeatureHead, LinearHead, Linearized, LinearRegressor, RidgeHead
from sk_unlearn.noise import NoiseSource

X, y = load_iris(return_X_y=True)
LABELS = np.array(["setosa", "versicolor", "virginica"])[y]


class Own(nn.Module):
    """A module that no list of known classes contains."""

    def __init__(self, n_hidden=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, n_hidden), nn.GELU(), nn.Linear(n_hidden, 3))
        self.layers[0].bias.requires_grad = False
        self.register_buffer("offset", torch.full((4,), 0.25))

    def forward(self, x):
        return self.layers(x - self.offset)


CASES = {
    "head": {"module": LinearHead, "method": Residual(noise_std=0.02), "C": 100.0},
    "ridge": {"module": RidgeHead, "method": Analytic(), "C": 100.0},
    "auto": {"module__hidden": (7, 6), "optimizer__eps": 1e-7},
    "clipping": {
        "method": GradientClipping(radius=0.1, clip_norm=0.1, steps=5, finetune_epochs=1),
        "anchor": "init",
        "classes": np.array(["other", "setosa", "versicolor", "virginica"]),
    },
    "newton": {"method": Newton(solver=CG(tol=1e-3), noise_std=1e-3)},
    "feature head": {"module": FeatureHead, "module__backbone": MLP, "C": 100.0},
    "linearized": {"module": Linearized, "module__module": MLP, "lam": 0.1, "C": 100.0},
    "removal": {
        "module": LinearHead,
        "method": CertifiedRemoval(50.0, row_norm=12.0, tol=1e-6),
        "lam": 0.1,
    },
    "sgd": {"optimizer": torch.optim.SGD, "criterion": nn.CrossEntropyLoss, "lr": 0.125},
}


def _net(name="head", **parameters):
    defaults = {"random_state": 0, "max_epochs": 2}
    return CertifiedNeuralClassifier(**(defaults | CASES[name] | parameters))


def _arrays(net):
    return {k: v.numpy() for k, v in net.module_.state_dict().items()}


@pytest.mark.parametrize("include_data", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::sk_unlearn.exceptions.UnlearningWarning")
def test_a_loaded_net_is_the_saved_one_and_goes_on(name, include_data, tmp_path):
    net = _net(name).fit(X, LABELS, sample_ids=np.arange(150) // 3)
    net.unlearn(indices=[0, 77])
    path = tmp_path / "net.safetensors"
    assert net.save(path, include_data=include_data) is net
    loaded = CertifiedNeuralClassifier.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(X), net.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))
    assert loaded.certificate_ == net.certificate_
    assert loaded.classes_.dtype == net.classes_.dtype
    assert repr(loaded.method_) == repr(net.method_)
    assert repr(loaded.criterion_) == repr(net.criterion_)
    assert vars(loaded).keys() == vars(net).keys()
    for key in ("lam_", "C_", "n_rows_", "n_releases_", "input_shape_", "n_features_in_"):
        assert getattr(loaded, key) == getattr(net, key)
    kept = {k: repr(v) for k, v in net.get_params(deep=False).items() if k != "store_data"}
    now = {k: repr(v) for k, v in loaded.get_params(deep=False).items() if k != "store_data"}
    assert now == kept
    rest = np.delete(np.arange(150), [0, 77])
    if include_data:
        assert loaded.store_data
        np.testing.assert_array_equal(loaded.rows_.sample_ids, net.rows_.sample_ids)
        loaded.refresh().unlearn(sample_ids=[5])
        assert loaded.certificate_.n_retained == 145
        loaded.unlearn(X[1:3], LABELS[1:3])
        assert loaded.certificate_.n_retained == 143
    else:
        assert not loaded.store_data
        with pytest.raises(DeletionRequestError, match="X_r"):
            loaded.unlearn(X[rest[:2]], LABELS[rest[:2]])
        gone, stay = rest[:2], rest[2:]
        loaded.unlearn(X[gone], LABELS[gone], X_r=X[stay], y_r=LABELS[stay])
        assert loaded.certificate_.n_retained == 146
    assert loaded.certificate_.verify().n_deleted in (2, 3)


@pytest.mark.parametrize("include_data", [False, True])
@pytest.mark.parametrize("targets", [X[:, 3], X[:, 2:]], ids=["one", "two"])
def test_a_loaded_regressor_is_the_saved_one_and_goes_on(targets, include_data, tmp_path):
    net = CertifiedNeuralRegressor(LinearRegressor, lam=1e-2, C=100.0).fit(X[:, :2], targets)
    net.unlearn(indices=[0]).save(tmp_path / "net", include_data=include_data)
    loaded = CertifiedNeuralRegressor.load(tmp_path / "net")
    np.testing.assert_array_equal(loaded.predict(X[:, :2]), net.predict(X[:, :2]))
    rest = {} if include_data else {"X_r": X[3:, :2], "y_r": targets[3:]}
    loaded.unlearn(X[1:3, :2], targets[1:3], **rest)
    assert loaded.certificate_.verify().formal and loaded.certificate_.n_retained == 147
    with pytest.raises(SavedNetError, match="holds a CertifiedNeuralRegressor; use its load"):
        CertifiedNeuralClassifier.load(tmp_path / "net")


@pytest.mark.parametrize("name", ["feature head", "linearized"])
def test_the_next_release_after_load_is_that_of_the_saved_net(name, tmp_path, monkeypatch):
    monkeypatch.setattr(NoiseSource, "gaussian", lambda self, size, std: np.zeros(size))
    net = _net(name).fit(X, y).unlearn(indices=[0, 77])
    net.save(tmp_path / "net", include_data=True)
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net").unlearn(indices=[3])
    net.unlearn(indices=[3])
    assert loaded.certificate_.formal
    assert loaded.certificate_.event == net.certificate_.event
    for key, value in _arrays(net).items():
        np.testing.assert_allclose(_arrays(loaded)[key], value, atol=1e-6)


def test_a_loaded_net_of_certified_removal_trains_again_and_says_so(tmp_path):
    net = _net("removal").fit(X, y)
    net.save(tmp_path / "net", include_data=True)
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net").unlearn(indices=[0])
    net.unlearn(indices=[0])
    retrained = [n.certificate_.diagnostics["retrained"] for n in (net, loaded)]
    assert retrained == [False, True]
    loaded.unlearn(indices=[0])
    assert not loaded.certificate_.diagnostics["retrained"]


def test_partial_fit_goes_on_from_the_loaded_weights(tmp_path):
    net = _net("sgd", lr=1e-3).fit(X, y)
    net.save(tmp_path / "net", include_data=True)
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    loaded.partial_fit(X[:10] + 1, y[:10])
    moved = [np.abs(_arrays(net)[k] - v).max() for k, v in _arrays(loaded).items()]
    assert 0 < max(moved) < 0.1
    assert len(loaded.rows_) == 160
    net.save(tmp_path / "net")
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    loaded.partial_fit(X[:10] + 1, y[:10])
    assert (loaded.rows_, loaded.n_rows_) == (None, 160)


def test_own_modules_and_instances_are_given_again(tmp_path):
    path = tmp_path / "net"
    net = _net("sgd", module=Own, module__n_hidden=6).fit(X, y)
    net.save(path)
    with pytest.raises(
        SavedNetError, match=r"only describes module= \(the class .*Own\).*load\(path, module="
    ):
        CertifiedNeuralClassifier.load(path)
    loaded = CertifiedNeuralClassifier.load(path, module=Own)
    np.testing.assert_array_equal(loaded.predict_proba(X), net.predict_proba(X))
    with pytest.raises(SavedNetError, match=r"Own .*give the module= that was fitted"):
        CertifiedNeuralClassifier.load(path, module=lambda n_hidden: Own(n_hidden + 1))
    instance = CertifiedNeuralClassifier(Own(), max_epochs=1).fit(X, y)
    instance.save(path)
    with pytest.raises(SavedNetError, match=r"module= \(a .*Own\)"):
        CertifiedNeuralClassifier.load(path)
    again = CertifiedNeuralClassifier.load(path, module=Own())
    np.testing.assert_array_equal(again.predict_proba(X), instance.predict_proba(X))
    trainable = Own()
    trainable.layers[0].bias.requires_grad = True
    with pytest.raises(SavedNetError, match=r"trains .*layers\.0\.bias"):
        CertifiedNeuralClassifier.load(path, module=trainable)


def test_parameters_set_after_fit_come_back_as_they_are(tmp_path):
    net = _net().fit(X, y).set_params(lam=0.5, module__multi_class="multinomial", verbose=3)
    net.save(tmp_path / "net")
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    assert (loaded.lam, loaded.lam_) == (0.5, 1e-3)
    assert loaded.module__multi_class == "multinomial"
    assert loaded.module_.multi_class == "ovr"
    assert loaded.verbose == 3
    assert CertifiedNeuralClassifier.load(tmp_path / "net", verbose=0).verbose == 0
    with pytest.raises(SavedNetError, match=r"lam=2\.0: the file holds its value"):
        CertifiedNeuralClassifier.load(tmp_path / "net", lam=2.0)
    with pytest.raises(SavedNetError, match="lamb='x'"):
        CertifiedNeuralClassifier.load(tmp_path / "net", lamb="x")


def test_loading_leaves_the_random_streams_of_the_caller(tmp_path):
    _net("auto").fit(X, y).save(tmp_path / "net")
    before = torch.get_rng_state()
    CertifiedNeuralClassifier.load(tmp_path / "net")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_saved_is_refused(tmp_path):
    path = tmp_path / "net"
    with pytest.raises(NotFittedError):
        _net().save(path)
    with pytest.raises(DeletionRequestError, match="keeps no training rows"):
        _net(store_data=False).fit(X, y).save(path, include_data=True)
    net = _net().fit(X, y)
    net.extra_ = object()
    with pytest.raises(SavedNetError, match=r"extra_ cannot be saved: it is a builtins\.object"):
        net.save(path)
    assert not os.listdir(tmp_path)


def test_the_file_is_private_and_an_older_one_survives_a_crash(tmp_path, monkeypatch):
    path = tmp_path / "net"
    net = _net().fit(X, y)
    net.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old = path.read_bytes()
    net.unlearn(X[:2], y[:2])
    for name in ("fsync", "replace"):
        with monkeypatch.context() as context:
            context.setattr(os, name, _full_disk)
            with pytest.raises(OSError, match="No space left"):
                net.save(path)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["net"]
    net.save(path)
    assert path.read_bytes() != old


def _full_disk(*args):
    raise OSError(28, "No space left on device")


def test_files_that_are_no_nets(tmp_path):
    with pytest.raises(FileNotFoundError):
        CertifiedNeuralClassifier.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        CertifiedNeuralClassifier.load(tmp_path)
    path = tmp_path / "net"
    for content in (b"", b"\0" * 8, b"\xff" * 64, b"{}", save_tensors({"a": torch.ones(2)})):
        path.write_bytes(content)
        with pytest.raises(SavedNetError, match="no file that save"):
            CertifiedNeuralClassifier.load(path)


class Bomb:
    """Runs when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return (_explode, ())


def _explode():
    Bomb.exploded = True


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SavedNetError):
        CertifiedNeuralClassifier.load(path)
    torch.save(Bomb(), path)
    with pytest.raises(SavedNetError):
        CertifiedNeuralClassifier.load(path)
    assert not Bomb.exploded


def _rewritten(path, change):
    """Change the record as someone would who can compute the checksum."""
    tensors, record = _net_file.read(str(path))
    change(record)
    _net_file.write(str(path), tensors, record)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "sk_unlearn._ledger_store:os.system",
        "sk_unlearn.ledger:DeletionLedger",
        "sk_unlearn.estimator:CertifiedNeuralClassifier",
        "torch.nn.modules.module:torch.hub.load",
        "torch.nn:Linear",
        "torch.nn.no_such_module:Linear",
        "sk_unlearn.modules.networks:LinearHead.__init__",
        ":",
        "",
    ],
)
def test_names_are_resolved_from_the_list_of_known_classes_alone(name, tmp_path):
    path = tmp_path / "net"
    _net().fit(X, y).save(path)

    def change(record):
        record["configuration"]["module"] = record["parameters"]["module"] = {"$class": name}

    _rewritten(path, change)
    with pytest.raises(SavedNetError, match=r"only describes module= \(the class"):
        CertifiedNeuralClassifier.load(path)


def test_a_file_cannot_ask_for_memory_that_its_weights_do_not_fill(tmp_path):
    path = tmp_path / "net"
    _net("auto").fit(X, y).save(path)
    huge = {"$tuple": [10**7, 10**7]}  # 400 TB of weights

    def change(record):
        record["configuration"]["module__hidden"] = record["parameters"]["module__hidden"] = huge

    _rewritten(path, change)
    with pytest.raises(SavedNetError, match="10000000"):
        CertifiedNeuralClassifier.load(path)
    with pytest.raises(ValueError, match="no array"):
        decode({"$array": {"dtype": "<U9999", "shape": [10**6], "values": ["a"] * 10**6}})


def test_methods_that_do_not_cover_the_net_are_refused_at_load(tmp_path):
    path = tmp_path / "net"
    _net("auto").fit(X, y).save(path)
    _rewritten(path, lambda record: record["attributes"].update(method_=encode(Residual())))
    with pytest.raises(NotApplicableError, match="Residual does not apply"):
        CertifiedNeuralClassifier.load(path)


def test_a_certificate_that_claims_more_than_its_event_is_refused(tmp_path):
    path = tmp_path / "net"
    _net().fit(X, y).unlearn(X[:2], y[:2]).save(path)

    def change(record):
        record["certificate"] = json.dumps(json.loads(record["certificate"]) | {"epsilon": 0.1})

    _rewritten(path, change)
    with pytest.raises(ValueError, match=r"delta = .* but the event needs"):
        CertifiedNeuralClassifier.load(path)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**70,
        0.1,
        float("inf"),
        "ä\ud800"[:1],
        (1, (2.5, "a"), []),
        {1: "a", "b": (None,)},
        range(3, 10, 2),
        np.float32(0.1),
        np.int64(3),
        np.array([[1.5, np.nan], [np.inf, -0.0]], dtype=np.float32),
        np.array(["a", "bcd"]),
        np.array(["a", "b"], dtype=object),
        np.array([b"a\xff", b"b"]),
        np.zeros((0, 3), dtype=np.int8),
        nn.Linear,
        torch.optim.Adam,
        Retrain,
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value):
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
        assert back.tolist() == value.tolist() or np.array_equal(back, value, equal_nan=True)
    else:
        assert back == value


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, np.array([object()]), 1j, b"a"])
def test_other_values_have_no_plain_form(value):
    with pytest.raises(NotPlainError):
        encode(value)


def _mutated(content, rng):
    data = bytearray(content)
    kind = rng.integers(6)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 2:
        start = rng.integers(len(data))
        data[start : start + rng.integers(1, 64)] = rng.bytes(rng.integers(0, 64))
    elif kind == 3:
        header = 8 + int.from_bytes(content[:8], "little")
        data[rng.integers(header)] = rng.integers(256)
    elif kind == 4:
        one, other = sorted(rng.integers(len(data), size=2))
        data[one:other] = data[one:other][::-1]
    else:
        data += rng.bytes(rng.integers(1, 64))
    return bytes(data)


def test_mutated_files_give_our_error_or_the_saved_net(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "net"
    net = _net().fit(X, y).unlearn(X[:2], y[:2])
    net.save(path, include_data=True)
    content = path.read_bytes()
    refused = 0
    for _ in range(1000):
        path.write_bytes(_mutated(content, rng))
        try:
            loaded = CertifiedNeuralClassifier.load(path)
        except SavedNetError:
            refused += 1
            continue
        assert loaded.certificate_ == net.certificate_
        assert repr(loaded) == repr(net)
        np.testing.assert_array_equal(loaded.rows_.X, net.rows_.X)
        for key, value in _arrays(net).items():
            np.testing.assert_array_equal(_arrays(loaded)[key], value)
    assert refused > 900
    path.write_bytes(content)
    CertifiedNeuralClassifier.load(path)


_JUNK = (None, True, -1, 0, 2**70, 1e308, "", "zero", "cuda", [], {}, [[]], {"$tuple": [1]})


def _with_junk(value, rng):
    """Replace one random leaf or branch of a tree of JSON values."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        value = value.copy()
        value[key] = _with_junk(value[key], rng)
        return value
    return _JUNK[rng.integers(len(_JUNK))]


@pytest.mark.slow
def test_forged_records_give_our_error_or_a_net(tmp_path):
    """The checksum is right, one value is not: nothing but our errors, and no other exception."""
    rng = np.random.default_rng(1)
    path = str(tmp_path / "net")
    _net("clipping").fit(X, LABELS).unlearn(X[:2], LABELS[:2]).save(path, include_data=True)
    tensors, record = _net_file.read(path)
    refused = 0
    for _ in range(500):
        _net_file.write(path, tensors, _with_junk(record, rng))
        try:
            CertifiedNeuralClassifier.load(path)
        except SkUnlearnError:
            refused += 1
    assert refused > 200


def test_a_ledger_in_memory_comes_along_without_its_key(tmp_path):
    path = tmp_path / "net"
    net = _net().fit(X, y, sample_ids=[f"user-{i}" for i in range(150)])
    net.unlearn(sample_ids=["user-3"])
    net.request_deletion(sample_ids=["user-90", "user-91"], request_id="ticket")
    with pytest.raises(DeletionRequestError, match=r"\['ticket'\] wait.*include_data=True"):
        net.save(path)
    net.save(path, include_data=True)
    assert net.ledger_._key.in_memory not in path.read_bytes()
    assert net.ledger_._key.in_memory.hex().encode() not in path.read_bytes()
    loaded = CertifiedNeuralClassifier.load(path)
    assert loaded.ledger_.head == net.ledger_.head == loaded.ledger_.verify(net.ledger_.head)
    with pytest.raises(LedgerError, match="linkable to nobody"):
        loaded.ledger_.find("user-3")
    loaded.process_deletions()
    assert loaded.ledger_.state("ticket") == "released"
    assert loaded.certificate_.n_deleted == 2
    with pytest.raises(SavedNetError, match="ledger='elsewhere'"):
        CertifiedNeuralClassifier.load(path, ledger="elsewhere")


def test_a_ledger_file_is_found_again_and_verified(tmp_path):
    path, file = tmp_path / "net", tmp_path / "ledger"
    net = _net(ledger=file).fit(X, y, sample_ids=np.arange(150)).unlearn(indices=[1])
    net.request_deletion(sample_ids=[5], request_id="ticket")
    with pytest.raises(DeletionRequestError, match="ticket"):
        net.save(path)
    net.save(path, include_data=True)
    net.ledger_.close()
    loaded = CertifiedNeuralClassifier.load(path)
    assert loaded.ledger_.path == str(file)
    loaded.process_deletions()
    assert loaded.ledger_.state("ticket") == "released"
    assert loaded.ledger_.find(5) == ["ticket"]
    loaded.ledger_.close()
    moved = tmp_path / "moved"
    os.replace(file, moved)
    with pytest.raises(LedgerError, match="no ledger at"):
        CertifiedNeuralClassifier.load(path)
    again = CertifiedNeuralClassifier.load(path, ledger=moved)
    assert again.ledger_.path == str(moved)
    other = DeletionLedger(tmp_path / "other")
    other.request(1)
    with pytest.raises(LedgerError, match="missing|remembered"):
        CertifiedNeuralClassifier.load(path, ledger=tmp_path / "other")
    with pytest.raises(SavedNetError, match="ledger=None"):
        CertifiedNeuralClassifier.load(path, ledger=None)


def test_a_request_that_a_net_without_rows_cannot_find_is_not_lost(tmp_path):
    net = _net(ledger=tmp_path / "ledger").fit(X, y, sample_ids=np.arange(150))
    net.save(tmp_path / "net")
    net.request_deletion(sample_ids=[5], request_id="by id")
    net.request_deletion(indices=[7], request_id="by position")
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    for request_id in ("by id", "by position"):
        with pytest.raises(DeletionRequestError, match=f"{request_id}.*cannot be found"):
            loaded.unlearn(X[:1], y[:1], X_r=X[1:], y_r=y[1:])
        assert loaded.ledger_.state(request_id) == "requested"
        net.ledger_.refused(request_id, "for the test")
    loaded.unlearn(X[:1], y[:1], X_r=X[1:], y_r=y[1:])


def test_a_ledger_file_that_was_not_begun_is_not_missed(tmp_path):
    net = _net(ledger=tmp_path / "ledger").fit(X, y)
    net.save(tmp_path / "net")
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    assert os.listdir(tmp_path) == ["net"]
    assert len(loaded.ledger_) == 0


@pytest.mark.parametrize("column", range(12))
def test_a_changed_ledger_entry_is_found_at_load(column, tmp_path):
    path = tmp_path / "net"
    _net().fit(X, y, sample_ids=np.arange(150)).unlearn(sample_ids=[3]).save(path)

    def change(record):
        entry = record["ledger"]["rows"][0]
        entry[column] = entry[column] + 1 if isinstance(entry[column], int) else "changed"

    _rewritten(path, change)
    with pytest.raises(LedgerError):
        CertifiedNeuralClassifier.load(path)


def test_the_format_is_plain_safetensors(tmp_path):
    path = tmp_path / "net"
    net = _net().fit(X, y)
    net.save(path)
    tensors = load_tensors(path.read_bytes())
    assert set(tensors) == {"module.linear.weight", "module.linear.bias"}
    np.testing.assert_array_equal(tensors["module.linear.weight"], _arrays(net)["linear.weight"])
