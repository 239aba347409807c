from __future__ import annotations

import copy
import hashlib
import hmac
import json
import os
import pickle
import shutil
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

import sk_unlearn.ledger
from sk_unlearn.accounting import event_mu
from sk_unlearn.certificate import Certificate
from sk_unlearn.events import ExactRelease
from sk_unlearn.exceptions import (
    CertificateError,
    LedgerCorruptError,
    LedgerError,
    UnlearningWarning,
)
from sk_unlearn.ledger import DeletionLedger

SAMPLE_IDS = ["alice.smith@example.org", "bob-jones-1977", 31415926535]


def make_certificate(**changes):
    event = ExactRelease("retrained from scratch")
    facts = dict(
        epsilon=0.5,
        delta=1e-6,
        mu=event_mu(event),
        sigma=None,
        sensitivity=None,
        method="Retrain",
        event=event,
        n_deleted=3,
        n_retained=97,
        n_parameters=10,
        assumptions=(),
        scope=("this release alone",),
        weights_norm=1.0,
    )
    return Certificate(**(facts | changes))


CERTIFICATE = make_certificate()


def fill(ledger):
    """Seven entries, every state, every column used."""
    ledger.request(3, sample_ids=SAMPLE_IDS, request_id="r1", detail={"source": "form"})
    ledger.request(1, request_id="r2", detail="by telephone")
    ledger.request(2, sample_ids=["carol"], request_id="r3")
    ledger.released(["r1", "r2"], CERTIFICATE)
    ledger.refused("r3", "legal hold")
    ledger.request(5, request_id="r4")
    ledger.failed(["r4"], "out of memory")
    return ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a closed, filled ledger, its rows and its head."""
    path = tmp_path_factory.mktemp("written") / "ledger.db"
    with fill(DeletionLedger(path)) as ledger:
        head = ledger.head
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    return path, rows, head


@pytest.fixture
def tampered(written, tmp_path):
    """Copy of the file, and a function that runs SQL on it with the guards taken down."""
    path = tmp_path / "tampered.db"
    shutil.copy(written[0], path)

    def tamper(*statements, guards=True):
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("PRAGMA ignore_check_constraints = ON")
            raw.execute("PRAGMA synchronous = OFF")
            triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            triggers = triggers.fetchall()
            assert len(triggers) == 3
            if guards:
                for name, _ in triggers:
                    raw.execute(f"DROP TRIGGER {name}")
            for statement, *values in statements:
                raw.execute(statement, values)
            if guards:
                for _, sql in triggers:
                    raw.execute(sql)
        return DeletionLedger(path)

    return tamper


@pytest.fixture(params=["memory", "file"])
def ledger(request, tmp_path):
    with DeletionLedger(None if request.param == "memory" else tmp_path / "ledger.db") as ledger:
        yield ledger


# ---------------------------------------------------------------- what it records


def test_states_pending_and_releases(ledger):
    fill(ledger)
    assert [e.state for e in ledger] == [
        "requested",
        "requested",
        "requested",
        "released",
        "refused",
        "requested",
        "failed",
    ]
    assert len(ledger) == 7 and ledger.pending() == {}
    ids = ("r1", "r2", "r3", "r4")
    assert [ledger.state(i) for i in ids] == ["released", "released", "refused", "failed"]
    ledger.request(4, request_id="r5", detail={"indices": [3, 1]})
    entry = ledger.pending()["r5"]
    assert (entry.n_rows, entry.detail, entry.sequence) == (4, {"indices": [3, 1]}, 8)
    (release,) = ledger.releases()
    assert release.sequence == 4 and release.request_ids == ("r1", "r2")
    assert release.certificate_json == CERTIFICATE.to_json()
    assert Certificate.from_json(release.certificate_json) == CERTIFICATE
    entries = list(ledger)
    assert entries[3].n_rows == 4 and entries[3].time == release.time
    assert entries[4].detail == "legal hold" and entries[6].detail == "out of memory"
    assert ledger.verify() == ledger.head == (8, entries[-1].hash)


def test_a_certificate_may_come_as_text_and_all_pending_are_served(ledger):
    for i in range(5):
        ledger.request(i, request_id=f"r{i}")
    ledger.released(ledger.pending(), CERTIFICATE.to_json())
    assert ledger.pending() == {}
    assert next(ledger.releases()).request_ids == ("r0", "r1", "r2", "r3", "r4")


def test_random_request_ids_differ(ledger):
    ids = [ledger.request(1) for _ in range(20)]
    assert len(set(ids)) == 20 and list(ledger.pending()) == ids


def test_n_rows_may_be_a_numpy_integer(ledger):
    ledger.request(np.int64(7), request_id="r")
    assert ledger.pending()["r"].n_rows == 7
    ledger.verify()


@pytest.mark.parametrize("final", ["released", "refused", "failed"])
@pytest.mark.parametrize("again", ["released", "refused", "failed"])
def test_a_final_state_is_final(ledger, final, again):
    arguments = {"released": CERTIFICATE, "refused": "why", "failed": "why"}
    ledger.request(1, request_id="a")
    ledger.request(1, request_id="b")
    getattr(ledger, final)("a", arguments[final])
    head = ledger.head
    with pytest.raises(LedgerError, match=rf"'a' cannot become {again}: it is {final} already"):
        getattr(ledger, again)(["b", "a"], arguments[again])
    assert ledger.head == head and list(ledger.pending()) == ["b"]


def test_unknown_and_repeated_request_ids(ledger):
    ledger.request(1, request_id="a")
    with pytest.raises(LedgerError, match="'x' is not in the ledger"):
        ledger.refused("x", "why")
    with pytest.raises(LedgerError, match="'x' is not in the ledger"):
        ledger.state("x")
    with pytest.raises(LedgerError, match=r"'a' is in the ledger already \(requested\)"):
        ledger.request(1, request_id="a")
    with pytest.raises(ValueError, match="names a request twice"):
        ledger.refused(["a", "a"], "why")
    with pytest.raises(ValueError, match="empty"):
        ledger.released([], CERTIFICATE)
    assert len(ledger) == 1
    ledger.verify()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(n_rows=-1), ValueError, "n_rows=-1"),
        (dict(n_rows=2**63), ValueError, "n_rows=9223372036854775808"),
        (dict(n_rows=1.0), TypeError, r"n_rows=1\.0"),
        (dict(n_rows=True), TypeError, "n_rows=True"),
        (dict(n_rows=None), TypeError, "n_rows=None"),
        (dict(n_rows=np.arange(3)), TypeError, "integer scalar"),
        (dict(n_rows=1, sample_ids="alice"), TypeError, "sample_ids='alice' is one id"),
        (dict(n_rows=1, sample_ids=7), TypeError, "sample_ids=7 is one id"),
        (dict(n_rows=1, sample_ids=[]), ValueError, "sample_ids is empty"),
        (dict(n_rows=1, sample_ids=[1.5]), TypeError, r"sample id 1\.5 is a float"),
        (dict(n_rows=1, sample_ids=[None]), TypeError, "sample id None"),
        (dict(n_rows=1, sample_ids=[True]), TypeError, "sample id True"),
        (dict(n_rows=1, sample_ids=np.eye(2)), TypeError, "is a ndarray"),
        (dict(n_rows=1, request_id=""), ValueError, "request id='' is empty"),
        (dict(n_rows=1, request_id=5), TypeError, "request id=5 is a int"),
        (dict(n_rows=1, request_id="\ud800"), ValueError, "UTF-8"),
        (dict(n_rows=1, detail=np.eye(2)), TypeError, "detail is a ndarray"),
        (dict(n_rows=1, detail={"row": np.eye(2)}), TypeError, "ndarray is not JSON"),
        (dict(n_rows=1, detail={"x": float("nan")}), ValueError, "JSON"),
    ],
)
def test_malformed_requests_record_nothing(ledger, arguments, error, message):
    with pytest.raises(error, match=message):
        ledger.request(**arguments)
    assert len(ledger) == 0
    assert ledger._key.read() is None


@pytest.mark.parametrize("reason", ["", None, 5])
def test_a_reason_is_needed(ledger, reason):
    ledger.request(1, request_id="a")
    for change in (ledger.refused, ledger.failed):
        with pytest.raises((TypeError, ValueError), match="reason="):
            change("a", reason)
    assert ledger.state("a") == "requested"


def test_a_certificate_that_does_not_verify_is_not_recorded(ledger):
    ledger.request(1, request_id="a")
    for bad in ("{}", "no json", make_certificate(mu=0.25), make_certificate(mu=0.25).to_json()):
        with pytest.raises(CertificateError):
            ledger.released("a", bad)
    assert ledger.state("a") == "requested" and len(ledger) == 1


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_a_time(timeout):
    with pytest.raises(ValueError, match="timeout="):
        DeletionLedger(timeout=timeout)


def test_a_clock_that_goes_back_is_recorded_and_breaks_nothing(ledger, monkeypatch):
    times = ["2026-05-01T12:00:00", "2026-05-01T11:00:00", "2026-05-01T11:30:00", "2020-01-01"]
    times = [f"{t:T<20}"[:10] + "T12:00:00.000000+00:00" if len(t) == 10 else t for t in times]
    for given_time in times:
        monkeypatch.setattr(sk_unlearn.ledger, "_utc_now", lambda now=given_time: now)
        ledger.request(1)
    assert [e.time for e in ledger] == times
    assert [e.clock_went_back for e in ledger] == [False, True, False, True]
    assert ledger.verify() == ledger.head


def test_the_clock_is_utc_and_iso(ledger):
    ledger.request(1)
    (entry,) = ledger
    assert pd.Timestamp(entry.time).utcoffset() == pd.Timedelta(0)
    assert abs(pd.Timestamp.now("UTC") - pd.Timestamp(entry.time)) < pd.Timedelta(hours=1)


# ---------------------------------------------------------------- opened late


def test_nothing_is_opened_before_the_first_request(path, tmp_path):
    ledger = DeletionLedger(path)
    assert repr(ledger) == f"DeletionLedger({str(path)!r})"
    assert (len(ledger), ledger.pending(), list(ledger), list(ledger.releases())) == (0, {}, [], [])
    assert ledger.head == DeletionLedger().head
    assert ledger.find("alice") == [] and ledger.to_frame().empty
    ledger.destroy_key()
    pickle.loads(pickle.dumps(ledger)).close()
    with pytest.raises(LedgerError, match="there is no ledger at"):
        ledger.verify()
    assert os.listdir(tmp_path) == []
    ledger.request(1)
    assert path.exists() and ledger.verify().sequence == 1
    ledger.close()
    assert os.listdir(tmp_path) == ["ledger.db"]


def test_it_goes_on_after_close_and_in_another_object(path):
    with DeletionLedger(path) as ledger:
        ledger.request(1, request_id="a")
    other = DeletionLedger(path)
    other.request(1, request_id="b")
    assert list(ledger.pending()) == ["a", "b"]
    ledger.refused("b", "why")
    assert other.state("b") == "refused" and other.head == ledger.head
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    for each in (ledger, other):
        with each._store.reading() as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        each.close()


def test_a_relative_path_is_fixed_at_construction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = DeletionLedger("ledger.db")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    ledger.request(1)
    assert (tmp_path / "ledger.db").exists() and ledger.path == str(tmp_path / "ledger.db")
    ledger.close()


def test_the_memory_keeps_its_content_after_close():
    with DeletionLedger() as ledger:
        ledger.request(1)
    assert len(ledger) == 1 and repr(ledger) == "DeletionLedger()" and ledger.path is None


# ---------------------------------------------------------------- append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET n_rows = 9 WHERE sequence = 1",
        "UPDATE entries SET sequence = 99 WHERE sequence = 7",
        "DELETE FROM entries WHERE sequence = 7",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE sequence = 1",
        "INSERT INTO entries SELECT sequence + 10, time, clock_went_back, state, request_ids,"
        " n_rows, sample_digests, key_id, detail, certificate, previous_hash, hash FROM entries",
        "INSERT INTO entries SELECT NULL, time, clock_went_back, state, request_ids, n_rows,"
        " sample_digests, key_id, detail, certificate, previous_hash, hash FROM entries LIMIT 1",
        "INSERT INTO entries SELECT 8, time, clock_went_back, state, request_ids, n_rows,"
        " sample_digests, key_id, detail, certificate, 'other', hash FROM entries LIMIT 1",
    ],
)
def test_the_database_refuses_everything_but_appends(path, statement):
    ledger = fill(DeletionLedger(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        before = raw.execute("SELECT * FROM entries").fetchall()
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
        assert raw.execute("SELECT * FROM entries").fetchall() == before
    ledger.verify()
    ledger.close()


# ---------------------------------------------------------------- every change is found

COLUMNS = [
    "sequence",
    "time",
    "clock_went_back",
    "state",
    "request_ids",
    "n_rows",
    "sample_digests",
    "key_id",
    "detail",
    "certificate",
    "previous_hash",
    "hash",
]
NULLABLE = {"sample_digests", "key_id", "detail", "certificate"}


def changes(column, value):
    """Other values that SQLite would store in the place of `value`."""
    if isinstance(value, int):
        others = [value + 1, value - 1, -value - 100, value + 2**40]
        return others if column == "sequence" else [*others, value + 0.5, "many", b"\x01"]
    if value is None:
        return ["", "x", "null", "[]", "{}", 0, b""]
    flipped = chr(ord(value[0]) ^ 1) + value[1:]
    ends = value[:-1] + chr(ord(value[-1]) ^ 1)
    others = ["", value + " ", value[:-1], flipped, ends, value.upper() + "é", value.encode()]
    return [*others, None] if column in NULLABLE else others


@pytest.mark.parametrize("column", COLUMNS)
def test_every_stored_value_changed_in_turn_is_found(written, tampered, column):
    _, rows, _ = written
    n_changes = 0
    for sequence, row in enumerate(rows, start=1):
        value = row[COLUMNS.index(column)]
        for other in changes(column, value):
            if column == "sequence" and 1 <= other <= len(rows):
                continue  # taken: reordering has its own test
            update = f"UPDATE entries SET {column} = ? WHERE sequence = ?"
            ledger = tampered((update, other, sequence))
            first = sequence
            if column == "sequence" and (other < 1 or sequence == len(rows)):
                first = other  # met under its new number before an entry is missing
            with pytest.raises(LedgerCorruptError, match=rf"^entry {first}\b"):
                ledger.verify()
            ledger.close()
            where = other if column == "sequence" else sequence
            ledger = tampered((update, value, where))  # back: and all is well again
            assert ledger.verify().sequence == len(rows)
            ledger.close()
            n_changes += 1
    assert n_changes >= 7 * 2


def test_text_that_is_no_utf8_is_found(tampered):
    ledger = tampered(("UPDATE entries SET detail = CAST(x'22ff22' AS TEXT) WHERE sequence = 2",))
    with pytest.raises(LedgerCorruptError, match=r"^entry 2 "):
        ledger.verify()
    ledger.close()


def test_an_invalid_byte_is_not_taken_for_the_character_that_replaces_it(path):
    ledger = DeletionLedger(path)
    ledger.request(1, request_id="a")
    plain = json.loads(make_certificate(scope=("\ufffd",)).to_json())
    ledger.released("a", json.dumps(plain, ensure_ascii=False))
    assert ledger.verify().sequence == 2
    ledger.close()
    content = path.read_bytes()
    assert content.count("\ufffd".encode()) == 1
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        (sql,) = raw.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_never_change'")
        raw.execute("DROP TRIGGER entries_never_change")
        raw.execute(
            "UPDATE entries SET certificate = CAST(replace(CAST(certificate AS BLOB), x'efbfbd',"
            " x'ff') AS TEXT) WHERE sequence = 2"
        )
        raw.execute(*sql)
    with pytest.raises(LedgerCorruptError, match="entry 2 of the ledger was changed"):
        ledger.verify()
    ledger.close()


@pytest.mark.parametrize(
    ("position", "content", "message"),
    [
        (44, b"\0\0\0\x09", "unsupported file format"),
        (36, b"\0\0\0\x05", "the file of the ledger is damaged: .*[Ff]reelist"),
        (b"CREATE TABLE entries (", b"CREATE TABLE entries \xff", "damaged or not a ledger"),
    ],
)
def test_damage_outside_the_entries_is_found(written, path, position, content, message):
    damaged = bytearray(written[0].read_bytes())
    start = position if isinstance(position, int) else damaged.index(position)
    damaged[start : start + len(content)] = content
    path.write_bytes(damaged)
    ledger = DeletionLedger(path)
    with pytest.raises(LedgerCorruptError, match=message):
        ledger.verify()
    ledger.close()


@pytest.mark.parametrize("sequence", [1, 3, 4, 6])
def test_a_removed_entry_is_found(tampered, sequence):
    ledger = tampered(("DELETE FROM entries WHERE sequence = ?", sequence))
    with pytest.raises(LedgerCorruptError, match=f"entry {sequence} of the ledger is missing"):
        ledger.verify()
    ledger.close()


def test_a_removed_entry_is_found_when_the_later_ones_move_up(tampered):
    ledger = tampered(
        ("DELETE FROM entries WHERE sequence = 3",),
        ("UPDATE entries SET sequence = -sequence WHERE sequence > 3",),
        ("UPDATE entries SET sequence = -sequence - 1 WHERE sequence < 0",),
    )
    with pytest.raises(LedgerCorruptError, match=r"^entry 3 "):
        ledger.verify()
    ledger.close()


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 3), (1, 6), (5, 7)])
def test_reordered_entries_are_found(tampered, one, other):
    ledger = tampered(
        ("UPDATE entries SET sequence = -1 WHERE sequence = ?", one),
        ("UPDATE entries SET sequence = ? WHERE sequence = ?", one, other),
        ("UPDATE entries SET sequence = ? WHERE sequence = -1", other),
    )
    with pytest.raises(LedgerCorruptError, match=f"^entry {one} "):
        ledger.verify()
    ledger.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TRIGGER entries_never_change", "trigger entries_never_change is missing"),
        ("DROP TRIGGER entries_never_go", "trigger entries_never_go is missing"),
        ("DROP TRIGGER entries_follow_the_last", "trigger entries_follow_the_last is missing"),
        (
            "CREATE TRIGGER extra AFTER INSERT ON entries BEGIN SELECT 1; END",
            "trigger extra was added",
        ),
        ("CREATE TABLE extra (x)", "table extra was added"),
        ("CREATE VIEW extra AS SELECT * FROM entries", "view extra was added"),
        ("CREATE INDEX extra ON entries (state)", "index extra was added"),
        ("ALTER TABLE entries ADD COLUMN extra TEXT", "table entries is now"),
        ("ALTER TABLE entries RENAME COLUMN detail TO remark", "is now"),
        ("ALTER TABLE entries RENAME TO elsewhere", "is missing|was added"),
        ("DROP TABLE entries", "is missing"),
        ("PRAGMA user_version = 2", "user_version = 2"),
        ("PRAGMA application_id = 0", "application_id = 0"),
    ],
)
def test_a_changed_schema_is_found_by_every_method(tampered, statement, message):
    ledger = tampered((statement,), guards=False)
    for use in (ledger.verify, ledger.pending, lambda: ledger.request(1), lambda: list(ledger)):
        with pytest.raises(LedgerCorruptError, match=message):
            use()
    ledger.close()


def test_a_trigger_with_its_name_but_without_its_teeth_is_found(tampered):
    ledger = tampered(
        ("DROP TRIGGER entries_never_go",),
        ("CREATE TRIGGER entries_never_go BEFORE DELETE ON entries BEGIN SELECT 1; END",),
        guards=False,
    )
    with pytest.raises(LedgerCorruptError, match="trigger entries_never_go is now"):
        ledger.verify()
    ledger.close()


def test_a_check_removed_by_writing_the_schema_is_found(tampered):
    ledger = tampered(
        ("PRAGMA writable_schema = ON",),
        ("UPDATE sqlite_master SET sql = replace(sql, 'CHECK (n_rows >= 0)', '')",),
        guards=False,
    )
    with pytest.raises(LedgerCorruptError, match="table entries is now"):
        ledger.verify()
    ledger.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_changes_nothing_that_is_read_or_is_found(written, tmp_path, data):
    source, _, head = written
    entries = list(DeletionLedger(source))
    content = bytearray(source.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "flipped.db"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(content)
    ledger = DeletionLedger(path)
    try:
        ledger.verify(head=head)
        assert list(ledger) == entries
    except LedgerCorruptError:
        pass
    ledger.close()


# ---------------------------------------------------------------- against a remembered head


def chained(rows):
    """The rows with hashes that fit, as a forger would make them; an independent computation."""
    previous = hashlib.sha256(b"sk_unlearn deletion ledger 1").hexdigest()
    out = []
    for sequence, row in enumerate(rows, start=1):
        values = [sequence, *row[1:-2], previous]
        previous = hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()
        out.append((*values, previous))
    return out


def rewritten(tampered, rows):
    insert = f"INSERT INTO entries VALUES ({', '.join('?' * 12)})"
    return tampered(("DELETE FROM entries",), *((insert, *row) for row in chained(rows)))


def test_the_chain_is_what_it_is_said_to_be(written):
    assert chained(written[1]) == written[1]


def test_an_entry_replaced_together_with_its_hash_is_found_by_the_next_one(written, tampered):
    _, rows, _ = written
    for sequence in range(1, 7):
        forged = list(rows[sequence - 1])
        forged[1] = "1999-12-31T00:00:00.000000+00:00"
        text = json.dumps(forged[:-1], separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        update = "UPDATE entries SET time = ?, hash = ? WHERE sequence = ?"
        ledger = tampered((update, forged[1], digest, sequence))
        with pytest.raises(
            LedgerCorruptError, match=f"entry {sequence + 1} of the ledger does not follow"
        ):
            ledger.verify()
        ledger.close()
        ledger = tampered((update, rows[sequence - 1][1], rows[sequence - 1][-1], sequence))
        assert ledger.verify().sequence == 7
        ledger.close()


def test_truncation_is_found_with_a_remembered_head_only(written, tampered):
    _, _, head = written
    ledger = tampered(("DELETE FROM entries WHERE sequence > 5",))
    assert ledger.verify().sequence == 5  # without a head nobody can tell
    with pytest.raises(LedgerCorruptError, match="entry 6 of the ledger is missing"):
        ledger.verify(head=head)
    ledger.close()


def test_a_rewritten_ledger_is_found_with_a_remembered_head_only(written, tampered):
    _, rows, head = written
    forged = [list(row) for row in rows]
    forged[1][COLUMNS.index("time")] = "1999-12-31T00:00:00.000000+00:00"
    ledger = rewritten(tampered, forged)
    assert ledger.verify().sequence == 7
    with pytest.raises(LedgerCorruptError, match="entry 7 of the ledger is not the one"):
        ledger.verify(head=head)
    ledger.close()


def test_an_older_head_stays_good(path):
    ledger = DeletionLedger(path)
    heads = [ledger.head]
    for _ in range(4):
        ledger.request(1)
        heads.append(ledger.head)
    for head in heads:
        assert ledger.verify(head=head) == heads[-1]
        assert ledger.verify(head=tuple(json.loads(json.dumps(head)))) == heads[-1]
    with pytest.raises(LedgerCorruptError, match="entry 2 of the ledger is not the one"):
        ledger.verify(head=(2, heads[3].hash))
    ledger.close()


@pytest.mark.parametrize(
    "head", [3, "ab", (1, 2), ("1", "x"), (-1, "x"), (0, "x"), (1, "a", 2), (True, "x")]
)
def test_a_malformed_head(head):
    with pytest.raises((TypeError, ValueError), match="head="):
        DeletionLedger().verify(head=head)


def test_a_ledger_in_use_notices_that_its_own_past_changed(path, tmp_path):
    ledger = fill(DeletionLedger(path))
    ledger.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        (sql,) = raw.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_never_go'")
        raw.execute("DROP TRIGGER entries_never_go")
        raw.execute("DELETE FROM entries WHERE sequence > 5")
        raw.execute(*sql)
    for use in (ledger.verify, ledger.pending, lambda: ledger.request(1)):
        with pytest.raises(LedgerCorruptError, match="entry 7 of the ledger was removed"):
            use()
    ledger.close()


def test_each_certificate_is_verified(written, tampered):
    forged = [list(row) for row in written[1]]
    forged[3][COLUMNS.index("certificate")] = make_certificate(mu=0.25).to_json()
    ledger = rewritten(tampered, forged)
    with pytest.raises(LedgerCorruptError, match=r"^entry 4 .* certificate does not verify: mu"):
        ledger.verify()
    ledger.close()


@pytest.mark.parametrize(
    ("sequence", "column", "value", "message"),
    [
        (4, "n_rows", 5, "n_rows = 5 is not that of its requests"),
        (4, "request_ids", '["r1", "r9"]', "'r9' is not in the ledger"),
        (4, "request_ids", '["r1", "r1"]', "twice"),
        (6, "request_ids", '["r1"]', "'r1' is in the ledger already"),
        (7, "request_ids", '["r3"]', "'r3' cannot become failed: it is refused already"),
        (4, "request_ids", "7", "request_ids cannot be read"),
        (4, "request_ids", '[["r1"], "r2"]', "request_ids cannot be read"),
        (1, "detail", "{", "detail cannot be read"),
        (1, "sample_digests", "7", "sample_digests cannot be read"),
    ],
)
def test_well_chained_nonsense_is_found(written, tampered, sequence, column, value, message):
    forged = [list(row) for row in written[1]]
    forged[sequence - 1][COLUMNS.index(column)] = value
    ledger = rewritten(tampered, forged)
    with pytest.raises(LedgerCorruptError, match=rf"^entry {sequence} .*{message}"):
        ledger.verify()
    ledger.close()


# ---------------------------------------------------------------- sample ids


def test_no_sample_id_is_stored_anywhere(path, tmp_path):
    ledger = fill(DeletionLedger(path))
    for state in ("open", "closed"):
        names = os.listdir(tmp_path)
        assert ("ledger.db-wal" in names) == (state == "open") and "ledger.db.key" in names
        for name in names:
            content = (tmp_path / name).read_bytes().lower()
            for sample_id in [*SAMPLE_IDS, "carol"]:
                plain = str(sample_id).encode()
                assert plain not in content and plain.hex().encode() not in content
                assert hashlib.sha256(plain).hexdigest().encode() not in content
                assert hashlib.sha256(plain).digest() not in content
        ledger.close()
    ledger.export(tmp_path / "export.jsonl")
    text = (tmp_path / "export.jsonl").read_text()
    assert not any(str(i) in text for i in SAMPLE_IDS) and "legal hold" in text


def test_digests_are_hmac_sha256_under_the_key_in_the_file(path):
    ledger = fill(DeletionLedger(path))
    key = (path.parent / "ledger.db.key").read_bytes()
    assert len(key) == 32
    assert stat.S_IMODE(os.stat(f"{path}.key").st_mode) == 0o600
    messages = [b"str:alice.smith@example.org", b"str:bob-jones-1977", b"int:31415926535"]
    expected = sorted(hmac.new(key, m, hashlib.sha256).hexdigest() for m in messages)
    first, second, third = list(ledger)[:3]
    assert list(first.sample_digests) == expected
    assert second.sample_digests is None and second.key_id is None
    assert first.key_id == third.key_id
    ledger.close()


def test_find(ledger):
    fill(ledger)
    ledger.request(1, sample_ids=np.array([31415926535, 2]), request_id="r5")
    ledger.request(1, sample_ids=pd.Series(["carol", "carol"]), request_id="r6")
    ledger.request(1, sample_ids=["2", b"2", "2"], request_id="r7")
    assert ledger.find("bob-jones-1977") == ["r1"]
    assert ledger.find(31415926535) == ["r1", "r5"]
    assert ledger.find("carol") == ["r3", "r6"]
    assert ledger.find(2) == ["r5"] and ledger.find("2") == ledger.find(b"2") == ["r7"]
    assert ledger.find("dave") == []
    digests = [e.sample_digests for e in ledger if e.request_ids[0] in ("r6", "r7")]
    assert [len(d) for d in digests] == [1, 2]
    with pytest.raises(TypeError, match=r"sample id 1\.5"):
        ledger.find(1.5)


def test_two_ledgers_digest_differently(tmp_path):
    digests = set()
    for ledger in (DeletionLedger(), DeletionLedger(), DeletionLedger(tmp_path / "a.db")):
        ledger.request(1, sample_ids=["alice"])
        digests.add(next(iter(ledger)).sample_digests)
        ledger.close()
    assert len(digests) == 3


def test_a_destroyed_key(ledger):
    fill(ledger)
    head = ledger.head
    ledger.destroy_key()
    ledger.destroy_key()
    assert ledger.path is None or not os.path.exists(f"{ledger.path}.key")
    assert ledger.verify(head=head) == head
    with pytest.raises(LedgerError, match=r"key of .* is gone"):
        ledger.find("bob-jones-1977")
    ledger.request(1, sample_ids=["bob-jones-1977"], request_id="new")
    with pytest.warns(UnlearningWarning, match="2 of 3 requests cannot be searched"):
        assert ledger.find("bob-jones-1977") == ["new"]
    ledger.verify(head=head)


def test_a_key_that_was_only_overwritten_counts_as_destroyed(path):
    ledger = fill(DeletionLedger(path))
    with open(f"{path}.key", "wb") as file:
        file.write(bytes(32))
    with pytest.raises(LedgerError, match="is gone"):
        ledger.find("carol")
    ledger.request(1, sample_ids=["carol"])
    with open(f"{path}.key", "rb") as file:
        assert file.read() != bytes(32)
    ledger.close()


def test_a_damaged_key_is_refused_and_nothing_recorded(path):
    ledger = fill(DeletionLedger(path))
    with open(f"{path}.key", "wb") as file:
        file.write(b"short")
    head = ledger.head
    for use in (lambda: ledger.find("carol"), lambda: ledger.request(1, sample_ids=["carol"])):
        with pytest.raises(LedgerError, match="holds 5 bytes, not 32"):
            use()
    assert ledger.verify() == head
    ledger.close()


# ---------------------------------------------------------------- leaving


def test_export_is_the_whole_chain_for_anyone_to_follow(ledger, tmp_path):
    fill(ledger)
    target = tmp_path / "export.jsonl"
    ledger.export(target)
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o600
    records = [json.loads(line) for line in target.read_text("ascii").splitlines()]
    assert [list(record) for record in records] == [COLUMNS] * 7
    rows = [tuple(record.values()) for record in records]
    assert chained(rows) == rows and rows[-1][-1] == ledger.head.hash
    assert records[3]["certificate"] == CERTIFICATE.to_json()
    assert ledger.verify(head=(records[-1]["sequence"], records[-1]["hash"])) == ledger.head
    ledger.request(1)
    ledger.export(str(target))
    assert len(target.read_text().splitlines()) == 8
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]


def test_export_never_overwrites_the_ledger_itself(path, tmp_path):
    ledger = fill(DeletionLedger(path))
    (tmp_path / "link").symlink_to(path)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.key", "link"):
        with pytest.raises(ValueError, match="belongs to the ledger itself"):
            ledger.export(tmp_path / name)
    through_link = DeletionLedger(tmp_path / "link")
    with pytest.raises(ValueError, match="belongs to the ledger itself"):
        through_link.export(path)
    assert ledger.verify().sequence == through_link.verify().sequence == 7
    through_link.close()
    ledger.close()


def test_a_failed_export_leaves_the_old_file(ledger, tmp_path, monkeypatch):
    fill(ledger)
    target = tmp_path / "export.jsonl"
    target.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.export(target)
    assert target.read_text() == "old"
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]
    with pytest.raises(LedgerError, match="No such file"):
        ledger.export(tmp_path / "nowhere" / "export.jsonl")


def test_to_frame(ledger):
    empty = ledger.to_frame()
    assert empty.columns.tolist() == COLUMNS and len(empty) == 0
    fill(ledger)
    frame = ledger.to_frame()
    assert frame.columns.tolist() == COLUMNS and len(frame) == 7
    assert str(frame["time"].dt.tz) == "UTC" and frame["clock_went_back"].dtype == bool
    assert frame["n_rows"].tolist() == [3, 1, 2, 4, 2, 5, 5]
    assert frame["request_ids"].tolist()[3] == ("r1", "r2")
    assert frame["detail"].tolist()[0] == {"source": "form"}
    assert frame["certificate"].notna().sum() == 1


# ---------------------------------------------------------------- pickles and copies


@pytest.mark.parametrize("clone", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_memory_pickles_with_its_content_and_its_key(clone):
    ledger = fill(DeletionLedger(timeout=5))
    other = clone(ledger)
    assert list(other) == list(ledger) and other.verify() == ledger.head
    assert other.find("bob-jones-1977") == ["r1"] and other._store.timeout == 5
    other.request(1, request_id="only here")
    assert len(ledger) == 7 and len(other) == 8
    ledger.destroy_key()
    with pytest.raises(LedgerError, match="is gone"):
        clone(ledger).find("carol")


def test_a_file_pickles_as_its_path(path):
    ledger = fill(DeletionLedger(path))
    content = pickle.dumps(ledger)
    assert len(content) < 500 and b"legal hold" not in content
    other = pickle.loads(content)
    other.request(1, request_id="seen by both")
    assert "seen by both" in ledger.pending() and other.path == ledger.path
    ledger.close()
    other.close()


def test_a_changed_pickle_is_found(monkeypatch):
    ledger = fill(DeletionLedger())
    state = ledger.__getstate__()
    row = list(state["rows"][1])
    state["rows"][1] = (*row[:5], 77, *row[6:])
    other = DeletionLedger()
    other.__setstate__(state)
    with pytest.raises(LedgerCorruptError, match=r"^entry 2 "):
        other.verify()
    del state["rows"][0]
    with pytest.raises(LedgerCorruptError, match="append-only"):
        DeletionLedger().__setstate__(state)


# ---------------------------------------------------------------- against a model


class LedgerMachine(RuleBasedStateMachine):
    """Random histories of a ledger against a dictionary."""

    requests = Bundle("requests")
    served = Bundle("served")

    @initialize(in_file=st.booleans())
    def start(self, in_file):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.ledger = DeletionLedger(f"{self.folder.name}/l.db" if in_file else None)
        self.states, self.rows, self.owners, self.heads = {}, {}, {}, []
        self.n_entries = self.n_releases = 0
        self.key_destroyed = False

    @rule(
        target=requests,
        n_rows=st.integers(0, 10),
        sample_ids=st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=3),
    )
    def request(self, n_rows, sample_ids):
        request_id = self.ledger.request(n_rows, sample_ids)
        self.states[request_id], self.rows[request_id] = "requested", n_rows
        for sample_id in set(sample_ids or ()):
            self.owners.setdefault(sample_id, []).append(request_id)
        self.n_entries += 1
        return request_id

    @rule(
        target=served,
        ids=st.lists(consumes(requests), min_size=1, max_size=3),
        state=st.sampled_from(["released", "refused", "failed"]),
    )
    def serve(self, ids, state):
        argument = CERTIFICATE if state == "released" else "because"
        getattr(self.ledger, state)(ids, argument)
        self.states |= dict.fromkeys(ids, state)
        self.n_entries += 1
        self.n_releases += state == "released"
        assert list(self.ledger)[-1].n_rows == sum(self.rows[i] for i in ids)
        return multiple(*ids)

    @rule(request_id=served, state=st.sampled_from(["released", "refused", "failed"]))
    def serve_again(self, request_id, state):
        with pytest.raises(LedgerError, match="already"):
            getattr(self.ledger, state)(
                request_id, CERTIFICATE if state == "released" else "because"
            )

    @rule(request_id=requests)
    def request_again(self, request_id):
        with pytest.raises(LedgerError, match="already"):
            self.ledger.request(1, request_id=request_id)

    @rule(request_id=st.text(min_size=1, max_size=4))
    def bogus(self, request_id):
        with pytest.raises((LedgerError, ValueError)):
            self.ledger.refused(request_id, "because")

    @rule()
    def close(self):
        self.ledger.close()

    @rule()
    def pickled(self):
        self.ledger = pickle.loads(pickle.dumps(self.ledger))

    @rule()
    def second_object(self):
        if self.ledger.path is not None:
            self.ledger = DeletionLedger(self.ledger.path)

    @rule()
    def remember(self):
        self.heads.append(self.ledger.head)

    @rule()
    def destroy_key(self):
        self.ledger.destroy_key()
        self.owners.clear()
        self.key_destroyed = True

    @rule(sample_id=st.integers(0, 5))
    def find(self, sample_id):
        if not self.key_destroyed:
            assert self.ledger.find(sample_id) == self.owners.get(sample_id, [])

    @invariant()
    def as_the_model_says(self):
        if not hasattr(self, "ledger"):
            return
        pending = [i for i, state in self.states.items() if state == "requested"]
        assert list(self.ledger.pending()) == pending
        assert {i: self.ledger.state(i) for i in self.states} == self.states
        assert len(self.ledger) == self.n_entries
        assert len(list(self.ledger.releases())) == self.n_releases
        if self.n_entries:
            for head in [None, *self.heads]:
                assert self.ledger.verify(head=head) == self.ledger.head

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
