"""The command line: verify and show certificates and ledgers, write a report, see a demo."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from ._certificate_text import visible
from .certificate import FORMAT, Certificate
from .exceptions import CertificateError, LedgerCorruptError, LedgerError
from .ledger import DeletionLedger

OK, FAILED, UNUSABLE = 0, 1, 2
_SQLITE = b"SQLite format 3\0"
_EPILOG = "exit codes: 0 ok; 1 verification failed; 2 wrong usage, or a file that cannot be read"


class UnusableError(Exception):
    """What was given cannot be worked on; no verdict."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0 for ok, 1 for a verification that failed, 2 for what cannot be worked on.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse: 2 for wrong usage, 0 for --help
        return int(stop.code or 0)
    try:
        answer, text = options.run(options)
    except (CertificateError, LedgerCorruptError) as error:
        return _fail(options, FAILED, f"{options.command}: FAILED: {error}")
    except (UnusableError, LedgerError, OSError, ImportError) as error:
        return _fail(options, UNUSABLE, f"{options.command}: {error}")
    print(json.dumps({"ok": True} | answer, allow_nan=False) if options.json else text)
    return OK


def _fail(options: argparse.Namespace, code: int, message: str) -> int:
    line = visible(" ".join(message.split()))
    if options.json:
        print(json.dumps({"ok": False, "exit_code": code, "error": line}))
    print(f"sk-unlearn {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sk-unlearn", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=description, description=description, epilog=_EPILOG
        )
        command.add_argument("--json", action="store_true", help="one JSON object, for machines")
        command.set_defaults(run=run)
        return command

    verify = add("verify", _verify, "Recompute what a certificate or a ledger says.")
    verify.add_argument("path", type=Path, help="certificate (JSON) or deletion ledger")
    verify.add_argument(
        "--head",
        type=_head,
        metavar="NUMBER:HASH",
        help="last entry of the ledger as remembered elsewhere; shows what was cut off since",
    )
    show = add("show", _show, "Say in words what a certificate or a ledger holds.")
    show.add_argument("path", type=Path, help="certificate (JSON) or deletion ledger")
    report = add("report", _report, "Write an HTML page about a certificate or a ledger.")
    report.add_argument("path", type=Path, help="certificate, or ledger (its last release)")
    report.add_argument("-o", "--output", type=Path, default=Path("deletion-report.html"))
    report.add_argument("--ledger", type=Path, help="ledger to show beside a certificate")
    demo = add("demo", _demo, "Fit, delete, certify, audit and report, on scikit-learn's digits.")
    demo.add_argument("-o", "--output", type=Path, default=Path("sk-unlearn-demo"), help="folder")
    return parser


def _head(text: str) -> tuple[int, str]:
    number, separator, digest = text.partition(":")
    if not (separator and number.isascii() and number.isdigit() and digest):
        raise argparse.ArgumentTypeError(f"{text!r} is not NUMBER:HASH")
    return int(number), digest


def _open(path: Path) -> tuple[Certificate | None, DeletionLedger | None, bytes]:
    """Return a certificate or a ledger, neither verified, and the content of the file."""
    with path.open("rb") as file:
        content = file.read(len(_SQLITE))
        if content == _SQLITE:
            return None, DeletionLedger(path), content
        content += file.read()
    try:
        text = content.decode("utf-8")
        known = json.loads(text)["format"] == FORMAT
    except (ValueError, LookupError, TypeError, RecursionError):
        known = False
    if not known:
        raise UnusableError(f"{path} is neither a certificate ({FORMAT!r}) nor a deletion ledger")
    return Certificate.from_json(text), None, content


def _verified(options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    certificate, ledger, content = _open(options.path)
    if certificate is not None:
        if getattr(options, "head", None) is not None:
            raise UnusableError("--head belongs to a ledger, and this is a certificate")
        certificate.verify()
        facts = {
            "kind": "certificate",
            "sha256": sha256(content).hexdigest(),
            "epsilon": certificate.epsilon if isfinite(certificate.epsilon) else "inf",
            "delta": certificate.delta,
            "formal": certificate.formal,
        }
        return certificate, None, facts
    assert ledger is not None
    try:
        head = ledger.verify(getattr(options, "head", None))
    except (TypeError, ValueError) as error:
        raise UnusableError(f"--head: {error}") from error
    facts = {"kind": "ledger", "entries": head.sequence, "head": f"{head.sequence}:{head.hash}"}
    return None, ledger, facts


def _verify(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    certificate, _, facts = _verified(options)
    if certificate is not None:
        strength = "formal" if certificate.formal else "NOT formal"
        return facts, (
            f"ok: the recorded event proves epsilon = {facts['epsilon']}, delta = "
            f"{facts['delta']:g} ({strength})\nsha256 {facts['sha256']}"
        )
    return facts, (
        f"ok: {facts['entries']} entries, chain and certificates verify\nhead {facts['head']}"
    )


def _show(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    certificate, ledger, facts = _verified(options)
    if certificate is not None:
        return facts | {"certificate": json.loads(certificate.to_json())}, repr(certificate)
    entries = list(ledger)
    width = max([len(entry.state) for entry in entries], default=0)
    lines = [
        f"{entry.sequence:>5}  {entry.time[:19]}  {entry.state:<{width}}  {entry.n_rows:>7} rows  "
        + visible(", ".join(entry.request_ids))
        for entry in entries
    ]
    lines.append(f"entries: {len(entries)}; requests pending: {len(ledger.pending())}")
    return facts | {"log": [asdict(entry) for entry in entries]}, "\n".join(lines)


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from .audit import report

    certificate, ledger, _ = _verified(options)
    if ledger is not None and options.ledger is not None:
        raise UnusableError("--ledger belongs to a certificate, and this is a ledger")
    if ledger is not None:
        releases = list(ledger.releases())
        if not releases:
            raise UnusableError(f"{options.path} holds no release to report on")
        certificate = Certificate.from_json(releases[-1].certificate_json)
    elif options.ledger is not None:
        _, ledger, _ = _open(options.ledger)
        if ledger is None:
            raise UnusableError(f"{options.ledger} is not a deletion ledger")
    path = report(certificate, options.output, ledger=ledger)
    return {"report": str(path)}, str(path)


def _demo(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from sklearn.datasets import load_digits

    from .audit import audit_unlearning, compare, report
    from .estimator import CertifiedNeuralClassifier
    from .modules import LinearHead

    X, y = load_digits(return_X_y=True)
    X = X / 16  # pixels are 0 ... 16
    X_train, y_train, forget = X[:1200], y[:1200], list(range(12))
    net = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0, random_state=0)
    comparison = compare(net, X_train, y_train, forget, X[1200:], y[1200:])
    audit = audit_unlearning(net, X_train, y_train, forget, n_runs=200)
    net.fit(X_train, y_train).unlearn(indices=forget)
    options.output.mkdir(parents=True, exist_ok=True)
    certificate_path = (options.output / "certificate.json").absolute()
    certificate_path.write_text(net.certificate_.to_json(), encoding="utf-8")
    page = report(net, options.output / "report.html", comparison=comparison, audit=audit)
    answer = {"certificate": str(certificate_path), "report": str(page)}
    text = f"{net.certificate_!r}\n\n{comparison!r}\n\n{audit!r}\n\n{certificate_path}\n{page}"
    return answer, text
