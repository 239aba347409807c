"""The page: everything on it, nothing fetched, and a browser shows it without complaint."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from math import exp, inf
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.datasets import load_iris

from sk_unlearn import Assumption, CertifiedNeuralClassifier, Status
from sk_unlearn.audit import audit_unlearning, compare, report
from sk_unlearn.audit._report_words import best_guess
from sk_unlearn.exceptions import CertificateError
from sk_unlearn.ledger import DeletionLedger
from sk_unlearn.methods import Newton, Residual, Retrain
from sk_unlearn.modules import MLP, FeatureHead, LinearHead

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Parses strictly: every element that opens closes, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def build(folder):
    X, y = load_iris(return_X_y=True)
    clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, random_state=0)
    forget = [1, 2, 3]
    comparison = compare(clf, X[::2], y[::2], forget, X[1::2], y[1::2])
    audit = audit_unlearning(clf, X[::2], y[::2], forget, n_runs=40)
    clf.fit(X[::2], y[::2]).unlearn(indices=forget)
    ledger = DeletionLedger(folder / "ledger.db")
    ledger.request(3, sample_ids=["alice", "bob"], request_id="ticket <1>")
    ledger.request(1, request_id="ticket-2")
    ledger.released("ticket <1>", clf.certificate_)
    ledger.refused("ticket-2", "legal hold")
    path = report(clf, folder / "page.html", comparison=comparison, audit=audit, ledger=ledger)
    return SimpleNamespace(clf=clf, ledger=ledger, path=path, audit=audit)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("report"))
    yield built
    built.ledger.close()


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def with_certificate(full, tmp_path, **changes):
    return read(report(replace(full.clf.certificate_, **changes), tmp_path / "page.html"))


def test_every_section_is_there(full):
    page = read(full.path)
    assert page.ids == [
        *("deletion", "promise", "limits", "assumptions"),
        *("audit", "comparison", "ledger", "verify", "symbols"),
    ]
    assert "Certified" in page.text and "ticket <1>" in page.text and "legal hold" in page.text
    assert "alice" not in full.path.read_text(encoding="utf-8")
    for text in full.clf.certificate_.scope:
        assert text in page.text
    for assumption in full.clf.certificate_.assumptions:
        assert " ".join(assumption.statement.split()) in page.text


def test_nothing_is_fetched(full):
    text = full.path.read_text(encoding="utf-8")
    page = read(full.path)
    for name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:", "#"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script", text)


def test_the_pictures_are_svg_with_words_for_those_who_cannot_see(full):
    page = read(full.path)
    sources = [value for name, value in page.attributes if name == "src"]
    alts = [value for name, value in page.attributes if name == "alt"]
    assert len(sources) == len(alts) == 4 and all(len(alt) > 30 for alt in alts)
    for source in sources:
        head, _, content = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")


def test_the_certificate_in_the_page_is_the_certificate(full):
    page = read(full.path)
    (download,) = [v for n, v in page.attributes if n == "href" and v.startswith("data:app")]
    content = base64.b64decode(download.partition(",")[2])
    assert json.loads(content) == json.loads(full.clf.certificate_.to_json())
    assert sha256(content).hexdigest() in page.text
    head = full.ledger.head
    assert f"--head {head.sequence}:{head.hash}" in page.text


def test_the_numbers_in_words(full):
    page = read(full.path)
    assert "2.718 times" in page.text and "1 in 100,000" in page.text
    assert f"{100 * norm.cdf(full.clf.certificate_.mu / 2):.1f} of 100 cases" in page.text


def test_the_best_guess_is_that_of_a_bayesian_and_of_randomised_response():
    mu = 0.8
    larger, _ = quad(lambda x: max(norm.pdf(x), norm.pdf(x, mu)), -10, 11, points=[mu / 2])
    assert best_guess(SimpleNamespace(mu=mu, composed=None)) == pytest.approx(larger / 2)
    several = SimpleNamespace(mu=mu / 3, composed=(9.0, 1e-5), composed_mu=mu)
    assert best_guess(several) == pytest.approx(larger / 2)
    epsilon, delta = 1.3, 0.01
    truth = (1 - delta) * exp(epsilon) / (1 + exp(epsilon))
    outcomes = np.array(
        [[delta, truth, 1 - delta - truth, 0], [0, 1 - delta - truth, truth, delta]]
    )
    guess = best_guess(SimpleNamespace(mu=None, epsilon=epsilon, delta=delta, composed=None))
    assert guess == pytest.approx(outcomes.max(axis=0).sum() / 2)


def test_what_is_assumed_is_said_so(full, tmp_path):
    doubt = Assumption("split", Status.ASSUMED, "nobody <b>looked</b>", "so they say")
    certificate = full.clf.certificate_
    page = with_certificate(full, tmp_path, assumptions=(*certificate.assumptions, doubt))
    assert "Certified on conditions" in page.text and "nobody <b>looked</b>" in page.text
    assert "taken on the word" in page.text and "audit" not in page.ids


def test_nothing_promised_and_exact_deletion(tmp_path):
    X, y = load_iris(return_X_y=True)
    for method, words in (
        (Newton(noise_std=0.001, damping=50.0), "Nothing is promised"),
        (Retrain(), "exactly the law"),
    ):
        clf = CertifiedNeuralClassifier(LinearHead, method=method, max_epochs=1).fit(X, y)
        page = read(report(clf.unlearn(indices=[0]), tmp_path / "page.html"))
        assert words in page.text
        assert str(page.attributes).count("data:image") == 1  # the ledger, and no trade-off


def test_a_refuted_audit_is_the_first_thing_said_about_it(full, tmp_path):
    audit = replace(full.audit, refuted=True, mu_lower=2.0, epsilon_lower=3.0)
    text = read(report(full.clf, tmp_path / "page.html", audit=audit)).text
    assert "The audit refutes the certificate" in text
    nothing = replace(full.audit, certified_epsilon=inf, certified_mu=None)
    text = read(report(full.clf, tmp_path / "page.html", audit=nothing)).text
    assert "There was nothing to refute" in text


def test_a_broken_ledger_is_said_so(full, tmp_path):
    path = tmp_path / "ledger.db"
    with DeletionLedger(path) as ledger:
        ledger.request(1, request_id="ticket-1")
    path.write_bytes(path.read_bytes().replace(b"ticket-1", b"ticket-9"))
    with DeletionLedger(path) as ledger:
        text = read(report(full.clf, tmp_path / "page.html", ledger=ledger)).text
    assert "The ledger does not verify" in text and "ticket-9" not in text


def test_requests_that_were_not_served_are_said_at_the_top(full, tmp_path):
    head, _, rest = read(full.path).text.partition("What was done")
    assert "Of the requests on record, 1 was refused. The promise is not about" in head
    assert "Served by a release 1 (3 rows) Waiting 0 (0 rows) Refused 1 (1 row)" in rest
    with DeletionLedger() as ledger:
        for name, n_rows in (("a", 2), ("b", 5), ("c", 1), ("d", 4)):
            ledger.request(n_rows, request_id=name)
        ledger.failed(["b", "c"], "no memory")
        text = read(report(full.clf, tmp_path / "page.html", ledger=ledger)).text
        assert "Of the requests on record, 2 wait and 2 failed." in text and "no memory" in text
        assert "Waiting 2 (6 rows) Refused 0 (0 rows) Failed 2 (6 rows)" in text
        assert "What is promised today" not in text  # by a ledger that is not the net's own
        for name in ("a", "d"):
            ledger.released(name, full.clf.certificate_)
    with DeletionLedger() as ledger:
        ledger.request(3, request_id="a")
        ledger.released("a", full.clf.certificate_)
        text = read(report(full.clf, tmp_path / "page.html", ledger=ledger)).text
    assert "Not every request" not in text


def test_state_that_is_kept_and_rows_that_cannot_be_deleted_are_on_the_page(tmp_path):
    X, y = load_iris(return_X_y=True)
    method = Residual(state="secret", horizon=3)
    clf = CertifiedNeuralClassifier(
        FeatureHead, module__backbone=MLP, method=method, C=1e3, max_epochs=2, random_state=0
    )
    clf.fit(X, y, permanent=np.arange(150) % 3 == 0)
    clf.unlearn(indices=[1]).unlearn(indices=[1])
    page = read(report(clf, tmp_path / "page.html"))
    composed = clf.certificate_.composed[0]
    assert f"after 2 releases since training: ε = {composed:.4g} at δ = 1e-05" in page.text
    first, second = clf.guarantees()
    assert composed == pytest.approx(first.epsilon) and first.epsilon > second.epsilon
    today = page.text.partition("What is promised today")[2].partition("The entries")[0]
    assert f"1 {first.epsilon:.4g} 1e-05 on conditions" in today
    assert f"1 {second.epsilon:.4g} 1e-05 on conditions" in today
    limits = page.text.partition("What is not promised")[2]
    assert "the 50 permanent rows" in limits and "holds un-noised weights" in limits


def test_a_certificate_that_does_not_verify_is_not_reported(full, tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(CertificateError):
        report(replace(full.clf.certificate_, epsilon=0.1), path)
    with pytest.raises(TypeError, match="no certificate_"):
        report(CertifiedNeuralClassifier(), path)
    assert not path.exists()


def chromium(*arguments, home):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        reason = "no chromium is installed (Debian: apt-get install chromium): page not looked at"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return subprocess.run(
        [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={home}"),
            *("--enable-logging=stderr", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it(full, tmp_path, width):
    shot = tmp_path / "shot.png"
    url = full.path.as_uri()
    done = chromium(
        f"--screenshot={shot}", f"--window-size={width},3000", url, home=tmp_path / "home"
    )
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB"), dtype=int)
    assert pixels.shape == (3000, width, 3)
    background = pixels[0, 0]
    drawn = (np.abs(pixels - background).sum(axis=2) > 60).any(axis=1)
    assert drawn[2000:].any()  # the page is long, and the window is full of it
    assert not (np.abs(pixels[:, -4:] - background).sum(axis=2) > 60).any()  # nothing sticks out


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_and_nothing_scrolls_sideways(full, tmp_path, width):
    """In a frame, for a browser's own window is at least 500 wide."""
    text = full.path.read_text(encoding="utf-8")
    probe = """<script>const cut = [document.documentElement, ...document.querySelectorAll("*")]
        .filter(e => e.scrollWidth > Math.max(e.clientWidth, e.offsetWidth) + 1)
        .filter(e => getComputedStyle(e).display !== "inline").map(e => e.outerHTML.slice(0, 80));
        parent.postMessage(innerWidth + " " + JSON.stringify(cut), "*")</script></body>"""
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text(text.replace("</body>", probe), encoding="utf-8")
    outer.write_text(
        f"<body><iframe src='{inner.as_uri()}' width='{width}' height='900' frameborder='0'>"
        "</iframe><script>onmessage = e => document.title = e.data</script></body>",
        encoding="utf-8",
    )
    size = f"--window-size={width + 100},1000"
    wait = "--virtual-time-budget=5000"
    done = chromium("--dump-dom", size, wait, outer.as_uri(), home=tmp_path / "home")
    assert f"<title>{width} []</title>" in done.stdout, done.stdout


@pytest.mark.parametrize("method", [None, Retrain()], ids=["noise", "exact"])
def test_a_correction_is_called_one_throughout(tmp_path, method):
    X, y = load_iris(return_X_y=True)
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0, method=method or "auto").fit(X, y)
    clf.amend(X[:2], y[:2], X[:2] + 0.1, y[:2])
    assert clf.certificate_.corrects
    text = read(report(clf, tmp_path / "page.html")).text
    assert "Correction report" in text and "trained on the corrected data" in text
    assert "Rows corrected" in text and "Rows deleted" not in text
    assert "had the rows never been wrong" in text or method is not None
    promised = text[: text.index("What is not promised")]
    assert "deleted" not in promised and "deletion" not in promised.lower()
    clf.unlearn(indices=[0])
    assert not clf.certificate_.corrects
    text = read(report(clf, tmp_path / "page.html")).text
    assert "Deletion report" in text and "trained without the deleted rows" in text
