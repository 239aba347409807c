"""Deletion as a service: what is recorded when, what waits, what a copy sees."""

from __future__ import annotations

import os
import pickle
from copy import deepcopy

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from sk_unlearn import Certificate, CertifiedNeuralClassifier
from sk_unlearn._cli import main
from sk_unlearn._net import to_vector
from sk_unlearn._row_names import row_names
from sk_unlearn._rows import TrainingRows
from sk_unlearn.audit import DeletionTimelineDisplay, audit_unlearning, compare, report
from sk_unlearn.exceptions import (
    DeletionRequestError,
    LedgerError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnknownRowError,
)
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Residual, Retrain
from sk_unlearn.modules import LinearHead
from sk_unlearn.pipeline import UnlearningPipeline

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
IDS = np.array([f"user{i // 3}" for i in range(150)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def fitted(path=None, ids=IDS, **parameters):
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=path, **parameters)
    return net.fit(X, y, sample_ids=ids)


def story(net):
    return [(entry.state, entry.request_ids, entry.n_rows) for entry in net.ledger_]


def weights(net):
    return to_vector(net._trainable())


# ---------------------------------------------------------------- the ledger of an estimator


def test_unlearn_records_a_request_and_its_release():
    net = fitted().unlearn(indices=[0, 1, 2])
    (request, release) = net.ledger_
    assert (request.state, release.state) == ("requested", "released")
    assert request.n_rows == release.n_rows == 3
    assert request.request_ids == release.request_ids
    assert Certificate.from_json(release.certificate).to_json() == net.certificate_.to_json()
    assert net.ledger_.find("user0") == list(request.request_ids)
    assert net.ledger_.verify().sequence == 2


def test_a_ledger_file_is_made_by_the_first_deletion_and_by_nothing_before(path):
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=path)
    clone(net)
    search = GridSearchCV(net, {"lam": [1e-3, 1e-2]}, cv=2).fit(X, y)
    best = search.best_estimator_
    best.partial_fit(X[:1], y[:1])
    pickle.dumps(best)
    with pytest.raises(UnknownRowError):
        best.unlearn(X[:1] + 99, y[:1])
    assert os.listdir(path.parent) == []
    best.unlearn(X[:1], y[:1])
    assert path.is_file() and len(DeletionLedger(path)) == 2


def test_there_is_no_ledger_before_fit():
    assert not hasattr(CertifiedNeuralClassifier(), "ledger_")


@pytest.mark.parametrize("ledger", [1, DeletionLedger(), b"path", ["path"]])
def test_a_ledger_that_is_no_path_is_refused(ledger):
    with pytest.raises(ValueError, match="ledger="):
        fitted(ledger)


def test_a_ledger_in_memory_pickles_and_copies_with_the_net():
    net = fitted().unlearn(indices=[0])
    for copy in (pickle.loads(pickle.dumps(net)), deepcopy(net)):
        assert story(copy) == story(net)
        copy.unlearn(indices=[0])
        assert len(copy.ledger_) == 4 and len(net.ledger_) == 2
        assert copy.ledger_.verify().sequence == 4


def test_a_second_fit_goes_on_with_the_same_ledger_as_another_model():
    net = fitted().unlearn(indices=[0]).fit(X, y).unlearn(indices=[0])
    assert len(net.ledger_) == 4
    models = {entry.detail["model"] for entry in net.ledger_}
    assert len(models) == 2 and net.model_id_ in models


def test_two_models_share_a_file(path):
    one, other = fitted(path), fitted(path)
    one.request_deletion(indices=[5])
    other.unlearn(indices=[0])
    assert other.certificate_.n_deleted == 1
    one.unlearn(indices=[1])
    assert one.certificate_.n_deleted == 2
    assert len(DeletionLedger(path)) == 5


def test_neither_a_feature_nor_a_label_reaches_the_ledger(path, tmp_path):
    secret = np.float32(7.654321)
    rows = np.concatenate([X, np.full((1, 4), secret)])
    labels = np.array([*np.array(["setosa", "versicolor", "virginica"])[y], "setosa"])
    net = CertifiedNeuralClassifier(
        LinearHead, C=100.0, ledger=path, method=Residual(tol=1e-30, noise_std=None)
    )
    net.fit(rows, labels, sample_ids=["alice-17"] * 151)
    with pytest.raises(ToleranceNotReachedError):
        net.unlearn(indices=[150])
    net.request_deletion(rows[150:], labels[150:])
    net.method_ = Residual()
    net.process_deletions()
    net.ledger_.export(tmp_path / "export.jsonl")
    text = (tmp_path / "export.jsonl").read_text()
    assert "ToleranceNotReachedError" in text
    for value in ("7.65432", "setosa", "alice", secret.tobytes().hex()):
        assert value not in text


def test_a_trial_leaves_the_ledger_alone(path):
    net = fitted(path)
    net.request_deletion(indices=[3])
    control = net.control(indices=[3, 4])
    assert control.certificate_.n_deleted == 2 and len(control.ledger_) == 2
    assert list(net.queue_.values()) == [[3]] and len(net.ledger_) == 1
    raw = CertifiedNeuralClassifier(LinearHead, C=100.0, ledger=path, random_state=0)
    compare(raw, X, y, [0, 1], X, y)
    audit_unlearning(raw, X, y, [0, 1], n_runs=20)
    assert len(net.ledger_) == 1


def test_report_timeline_and_command_line_read_it(path, tmp_path, capsys):
    net = fitted(path)
    net.request_deletion(indices=[0, 1])
    net.unlearn(indices=[100])
    net.request_deletion(indices=[0])
    page = report(net, tmp_path / "page.html").read_text()
    assert "Each of the 4 entries contains the hash" in page
    steps = DeletionTimelineDisplay.from_ledger(net.ledger_).steps
    assert steps["requested"][1][-1] == 4 and steps["released"][1][-1] == 3
    head = net.ledger_.head
    net.ledger_.close()
    assert main(["verify", str(path), "--head", f"{head.sequence}:{head.hash}"]) == 0
    assert "ok: 4 entries" in capsys.readouterr().out


# ---------------------------------------------------------------- what fails


@pytest.mark.parametrize("file", [True, False])
def test_bad_input_leaves_no_trace(path, file):
    net = fitted(path if file else None)
    for request in (
        {},
        {"indices": [150]},
        {"indices": [0], "sample_ids": ["user1"]},
        {"X_u": X[:1]},
        {"sample_ids": ["nobody"]},
        {"indices": range(150)},
        {"indices": range(50)},
    ):
        with pytest.raises(DeletionRequestError):
            net.unlearn(**request)
        with pytest.raises(DeletionRequestError):
            net.request_deletion(**request)
    with pytest.raises(DeletionRequestError, match="names no rows"):
        net.request_deletion(indices=[])
    for request_id in ("", 7, "\ud800"):
        with pytest.raises(DeletionRequestError, match="request id"):
            net.request_deletion(indices=[0], request_id=request_id)
    with pytest.raises(DeletionRequestError, match="epsilon=-1"):
        net.process_deletions(epsilon=-1)
    assert len(net.ledger_) == 0 and net.queue_ == {} and not path.exists()


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ToleranceNotReachedError, "refused"),
        (RuntimeError, "failed"),
        (KeyboardInterrupt, "failed"),
    ],
)
def test_what_the_method_raises_is_recorded_by_its_name(path, file, error, state, monkeypatch):
    net = fitted(path if file else None)
    before = weights(net)

    def breaks(*_):
        raise error("row 7.2 setosa")

    with monkeypatch.context() as patch:
        patch.setattr(Residual, "center", breaks)
        with pytest.raises(error):
            net.unlearn(indices=[0])
        net.request_deletion(indices=[1], request_id="ticket")
        with pytest.raises(error):
            net.process_deletions()
    if file:
        assert [entry.state for entry in net.ledger_] == ["requested", state, "requested"]
        assert [entry.detail for entry in net.ledger_][1] == error.__name__
    else:
        assert [entry.request_ids for entry in net.ledger_] == [("ticket",)]
    np.testing.assert_array_equal(weights(net), before)
    assert net.n_rows_ == 150 and net.queue_ == {"ticket": [1]}
    net.process_deletions()
    assert net.n_rows_ == 149 and net.ledger_.state("ticket") == "released"


# ---------------------------------------------------------------- requests that wait


def test_requests_are_served_together_in_one_release():
    net = fitted()
    ids = [
        net.request_deletion(sample_ids=["user3", "user4"]),
        net.request_deletion(X[[140]], y[[140]], request_id="ticket"),
        net.request_deletion(indices=[0, 149]),
    ]
    assert list(net.ledger_.pending()) == ids and net.n_rows_ == 150
    assert net.process_deletions() is net
    assert net.certificate_.n_deleted == 9 and net.n_releases_ == 1
    assert [release.request_ids for release in net.ledger_.releases()] == [tuple(ids)]
    np.testing.assert_array_equal(net.rows_.X, np.delete(X, [*range(9, 15), 140, 0, 149], axis=0))
    before = weights(net)
    net.process_deletions()
    np.testing.assert_array_equal(weights(net), before)
    assert len(net.ledger_) == 4


def test_unlearn_serves_what_waits():
    net = fitted()
    waiting = net.request_deletion(indices=[5])
    net.unlearn(indices=[6])
    assert net.certificate_.n_deleted == 2 and net.queue_ == {}
    assert net.ledger_.state(waiting) == "released" and net.ledger_.pending() == {}


def test_the_release_of_a_queue_is_that_of_one_request():
    queued, direct = (fitted(method=Retrain(), random_state=0) for _ in range(2))
    for i in (7, 3, 99):
        queued.request_deletion(indices=[i])
    queued.process_deletions()
    direct.unlearn(indices=[3, 7, 99])
    np.testing.assert_array_equal(weights(queued), weights(direct))


@pytest.mark.parametrize("name", ["indices", "sample_ids", "rows"])
def test_rows_that_are_queued_already_are_named(name):
    net = fitted()
    net.request_deletion(sample_ids=["user1"], request_id="first")
    again = {
        "indices": {"indices": [0, 4]},
        "sample_ids": {"sample_ids": ["user1"]},
        "rows": {"X_u": X[3:5], "y_u": y[3:5]},
    }[name]
    for ask in (net.request_deletion, net.unlearn):
        with pytest.raises(DeletionRequestError, match=r"queued already, by the requests.*first"):
            ask(**again)
    assert len(net.ledger_) == 1


def test_copies_of_a_row_are_queued_one_after_the_other():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0)
    net.fit(np.concatenate([X, X[:2]]), np.concatenate([y, y[:2]]))
    net.request_deletion(X[:1], y[:1])
    net.request_deletion(X[:1], y[:1])
    assert sorted(net.queue_.values()) == [[0], [150]]
    with pytest.raises(DeletionRequestError, match="queued already"):
        net.request_deletion(X[:1], y[:1])
    net.process_deletions()
    assert net.certificate_.n_deleted == 2 and net.n_rows_ == 150


def test_the_last_row_of_a_class_is_kept_also_from_a_queue():
    net = fitted()
    net.request_deletion(indices=range(49))
    with pytest.raises(DeletionRequestError, match="last row of class 0"):
        net.request_deletion(indices=[49])
    with pytest.raises(DeletionRequestError, match="last row of class 0"):
        net.unlearn(indices=[49])
    assert len(net.ledger_) == 1


def test_a_used_request_id_is_an_error():
    net = fitted()
    net.request_deletion(indices=[0], request_id="ticket")
    with pytest.raises(LedgerError, match="ticket"):
        net.request_deletion(indices=[1], request_id="ticket")
    assert net.queue_ == {"ticket": [0]}


def test_without_stored_rows_nothing_can_be_queued():
    net = fitted(store_data=False)
    for call in (lambda: net.request_deletion(X[:1], y[:1]), net.process_deletions):
        with pytest.raises(DeletionRequestError, match="store_data=False"):
            call()
    net.unlearn(X[:1], y[:1], X_r=X[1:], y_r=y[1:])
    assert net.certificate_.n_deleted == 1 and len(net.ledger_) == 2


def test_before_fit():
    for call in (
        lambda: CertifiedNeuralClassifier().request_deletion(X[:1], y[:1]),
        lambda: CertifiedNeuralClassifier().process_deletions(),
    ):
        with pytest.raises(NotFittedError):
            call()


def test_fit_refuses_while_requests_wait():
    net = fitted()
    net.request_deletion(indices=[0], request_id="ticket")
    with pytest.raises(DeletionRequestError, match=r"'ticket'.*wait"):
        net.fit(X, y)
    assert net.queue_ == {"ticket": [0]}
    net.ledger_.refused("ticket", "withdrawn")
    net.fit(X, y)
    assert net.queue_ == {}


def test_a_request_that_was_withdrawn_is_not_served():
    net = fitted()
    net.request_deletion(indices=[0], request_id="withdrawn")
    net.request_deletion(indices=[1], request_id="kept")
    net.ledger_.refused("withdrawn", "asked to be kept")
    net.process_deletions()
    assert net.certificate_.n_deleted == 1
    np.testing.assert_array_equal(net.rows_.X, np.delete(X, 1, axis=0))


# ---------------------------------------------------------------- through a pipeline


def test_a_pipeline_queues_and_serves():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0)
    pipe = UnlearningPipeline([("norm", Normalizer()), ("net", net)])
    pipe.fit(X, y, net__sample_ids=IDS)
    ticket = pipe.request_deletion(X[[3]], y[[3]])
    pipe.request_deletion(sample_ids=["user40"])
    assert pipe.process_deletions(epsilon=0.5).certificate_.n_deleted == 4
    assert pipe[-1].ledger_.state(ticket) == "released"
    assert any("norm" in line for line in pipe.certificate_.scope)
    np.testing.assert_array_equal(pipe[-1].rows_.y, np.delete(y, [3, 120, 121, 122]))


def test_a_pipeline_that_leaks_serves_only_when_told_to():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0)
    pipe = UnlearningPipeline([("scale", StandardScaler()), ("net", net)]).fit(X, y)
    pipe.request_deletion(X[[3]], y[[3]])
    with pytest.raises(NotApplicableError, match="scale"):
        pipe.process_deletions()
    assert len(pipe[-1].ledger_) == 1
    assert not pipe.process_deletions(allow_leaks=True).certificate_.formal
    assert not hasattr(
        UnlearningPipeline([("tree", DecisionTreeClassifier())]), "process_deletions"
    )


# ---------------------------------------------------------------- names of rows


def test_names_of_rows_are_all_different_and_stay_when_others_leave():
    doubled = TrainingRows(np.concatenate([X, X[:5]]), np.r_[y, y[:5]], np.r_[IDS, IDS[:5]])
    names = row_names(doubled)
    assert len(set(names)) == 155
    assert row_names(doubled.without(np.arange(150, 155))) == names[:150]
    zero = TrainingRows(np.zeros((1, 4), np.float32), y[:1])
    assert row_names(zero) == row_names(TrainingRows(-zero.X, zero.y))
    other = TrainingRows(X, np.roll(y, 50), IDS)
    assert not set(row_names(other)) & set(names)
    assert not set(row_names(TrainingRows(X, y, np.roll(IDS, 3)))) & set(names)
