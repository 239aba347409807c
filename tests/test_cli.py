"""The command line, as a shell sees it: output, exit codes, one-line errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from sklearn.datasets import load_iris

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._cli import FAILED, OK, UNUSABLE, main
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Newton
from sk_unlearn.modules import LinearHead

ROOT = Path(__file__).parents[1]


def shell(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "sk_unlearn", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(cwd)},
        check=False,
    )


@pytest.fixture(scope="module")
def certificate():
    X, y = load_iris(return_X_y=True)
    clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, random_state=0).fit(X, y)
    return clf.unlearn(indices=[0, 1]).certificate_


@pytest.fixture
def certificate_file(tmp_path, certificate):
    path = tmp_path / "certificate.json"
    path.write_text(certificate.to_json())
    return path


@pytest.fixture
def ledger_file(tmp_path, certificate):
    path = tmp_path / "ledger.db"
    with DeletionLedger(path) as ledger:
        ledger.request(2, sample_ids=["alice"], request_id="ticket-1")
        ledger.request(1, request_id="ticket-2")
        ledger.released("ticket-1", certificate)
    return path


def test_verify_through_the_shell(tmp_path, certificate_file):
    done = shell("verify", certificate_file, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("ok: ") and not done.stderr
    assert hashlib.sha256(certificate_file.read_bytes()).hexdigest() in done.stdout


def test_a_lie_is_one_line_and_code_1_through_the_shell(tmp_path, certificate_file):
    record = json.loads(certificate_file.read_text())
    record["epsilon"] = 0.5
    certificate_file.write_text(json.dumps(record))
    done = shell("verify", certificate_file, cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "FAILED" in done.stderr and "0.5" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("delta", 1e-7), ("sigma", 0.001), ("formal", False), ("mu", 0.1), ("epsilon", "none")],
)
def test_each_altered_figure_fails(certificate_file, capsys, name, value):
    record = json.loads(certificate_file.read_text())
    record[name] = value
    certificate_file.write_text(json.dumps(record))
    assert main(["verify", str(certificate_file)]) == FAILED
    assert "FAILED" in capsys.readouterr().err


def test_both_copies_verify(tmp_path, certificate, capsys):
    for audience in ("operator", "public"):
        path = tmp_path / f"{audience}.json"
        path.write_text(certificate.to_json(audience))
        assert main(["verify", "--json", str(path)]) == OK
        answer = json.loads(capsys.readouterr().out)
        assert answer == {
            "ok": True,
            "kind": "certificate",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "epsilon": 1.0,
            "delta": 1e-5,
            "formal": True,
        }


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": "else"}', b"[" * 100_000]
)
def test_what_is_no_certificate_is_code_2(tmp_path, capsys, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert main(["verify", "--json", str(path)]) == UNUSABLE
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == UNUSABLE and err.count("\n") == 1


def test_missing_files_and_wrong_usage_are_code_2(tmp_path, certificate_file, capsys):
    missing = str(tmp_path / "nothing.json")
    for arguments in (["verify", missing], ["verify"], [], ["explode"], ["show", str(tmp_path)]):
        assert main(arguments) == UNUSABLE
    assert main(["verify", str(certificate_file), "--head", "1:abc"]) == UNUSABLE
    assert main(["verify", str(certificate_file), "--head", "abc"]) == UNUSABLE
    assert not Path(missing).exists()
    assert main(["--help"]) == OK
    assert "exit codes" in capsys.readouterr().out


def test_a_ledger_verifies_against_its_remembered_head(ledger_file, capsys):
    assert main(["verify", str(ledger_file), "--json"]) == OK
    head = json.loads(capsys.readouterr().out)["head"]
    assert head.startswith("3:")
    assert main(["verify", str(ledger_file), "--head", head]) == OK
    number, digest = head.split(":")
    assert main(["verify", str(ledger_file), "--head", f"4:{digest}"]) == FAILED
    assert "entry 4" in capsys.readouterr().err
    assert main(["verify", str(ledger_file), "--head", f"{number}:{'0' * 64}"]) == FAILED


def test_an_altered_ledger_fails(ledger_file, capsys):
    content = bytearray(ledger_file.read_bytes())
    at = content.index(b"ticket-1")
    content[at : at + 8] = b"ticket-9"
    ledger_file.write_bytes(content)
    assert main(["verify", str(ledger_file)]) == FAILED
    assert capsys.readouterr().err.count("\n") == 1


def test_a_request_id_cannot_write_lines_of_its_own(tmp_path, capsys):
    path = tmp_path / "ledger.db"
    with DeletionLedger(path) as ledger:
        ledger.request(1, request_id="a\n    2  released\x1b[2K")
    assert main(["show", str(path)]) == OK
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 2 and "\x1b" not in shown and r"a\n    2" in shown


def test_show_says_what_is_promised_and_what_happened(certificate_file, ledger_file, capsys):
    assert main(["show", str(certificate_file)]) == OK
    assert "It does not cover" in capsys.readouterr().out
    assert main(["show", str(certificate_file), "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["certificate"]["n_deleted"] == 2
    assert main(["show", str(ledger_file)]) == OK
    out = capsys.readouterr().out
    assert "requests pending: 1" in out and "released" in out and "alice" not in out
    assert main(["show", str(ledger_file), "--json"]) == OK
    states = [entry["state"] for entry in json.loads(capsys.readouterr().out)["log"]]
    assert states == ["requested", "requested", "released"]


def test_an_infinite_epsilon_is_json(tmp_path, capsys):
    X, y = load_iris(return_X_y=True)
    clf = CertifiedNeuralClassifier(method=Newton(noise_std=0.001), max_epochs=1).fit(X, y)
    path = tmp_path / "certificate.json"
    path.write_text(clf.unlearn(indices=[0]).certificate_.to_json())
    assert main(["verify", "--json", str(path)]) == OK
    assert json.loads(capsys.readouterr().out)["epsilon"] == "inf"


def test_report_of_a_certificate_and_of_a_ledger(tmp_path, certificate_file, ledger_file, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(certificate_file), "-o", str(page)]) == OK
    assert capsys.readouterr().out.strip() == str(page) and "ticket-1" not in page.read_text()
    assert (
        main(["report", str(certificate_file), "-o", str(page), "--ledger", str(ledger_file)]) == OK
    )
    assert "ticket-1" in page.read_text()
    assert main(["report", str(ledger_file), "-o", str(page)]) == OK
    assert "ticket-1" in page.read_text()
    assert main(["report", str(ledger_file), "--ledger", str(ledger_file)]) == UNUSABLE
    with DeletionLedger(tmp_path / "empty.db") as empty:
        empty.request(1)
    assert main(["report", str(tmp_path / "empty.db"), "-o", str(page)]) == UNUSABLE


def test_the_demo_leaves_a_page_and_a_certificate_that_verifies(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo"), "--json"]) == OK
    answer = json.loads(capsys.readouterr().out)
    assert main(["verify", answer["certificate"]]) == OK
    page = Path(answer["report"]).read_text(encoding="utf-8")
    assert "The audit does not refute" in page and "What the deletion cost" in page


def test_the_package_ships_the_script_and_the_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, name = project["project"]["scripts"]["sk-unlearn"].partition(":")
    assert getattr(import_module(module), name) is main
    (pattern,) = project["tool"]["setuptools"]["package-data"]["sk_unlearn"]
    assert [path.name for path in (ROOT / "sk_unlearn").glob(pattern)] == ["report.html.jinja"]
