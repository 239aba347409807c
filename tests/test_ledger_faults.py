from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import time
import traceback
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import sk_unlearn._ledger_key
import sk_unlearn._ledger_store
import sk_unlearn.ledger
from sk_unlearn.exceptions import LedgerCorruptError, LedgerError, LedgerLockedError
from sk_unlearn.ledger import DeletionLedger

resource = pytest.importorskip("resource", reason="forks, signals and limits are POSIX")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def fork(function, *arguments):
    """Run in a child forked from here; exit status 0, or 1 with a traceback."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def exit_status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_here():
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def as_nobody():
    """Give up root for a while: to it, nothing is read-only."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------- another process holds it


def test_a_locked_ledger_is_an_error_after_the_timeout_and_goes_on_afterwards(path):
    ledger = DeletionLedger(path, timeout=0.1)
    ledger.request(1, request_id="a")
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        for use in (lambda: ledger.request(1), lambda: ledger.refused("a", "why")):
            with pytest.raises(LedgerLockedError, match=r"held by another process .* 0\.1 s"):
                use()
        assert list(ledger.pending()) == ["a"] and ledger.verify().sequence == 1
        raw.execute("ROLLBACK")
    ledger.request(1, request_id="b")
    assert list(ledger.pending()) == ["a", "b"]
    ledger.close()


def test_a_ledger_locked_for_readers_too(path):
    ledger = DeletionLedger(path, timeout=0.1)
    ledger.request(1)
    ledger.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA locking_mode = EXCLUSIVE")
        raw.execute("BEGIN IMMEDIATE")
        for use in (ledger.pending, ledger.verify, lambda: ledger.head):
            with pytest.raises(LedgerLockedError):
                use()
        raw.execute("ROLLBACK")
    assert ledger.verify().sequence == 1
    ledger.close()


def test_a_waiting_writer_gets_its_turn(path):
    ledger = DeletionLedger(path, timeout=20)
    ledger.request(1)
    release_later(path, ledger)


def test_the_first_writer_waits_for_another_that_is_making_the_file(path):
    release_later(path, DeletionLedger(path, timeout=20))


def release_later(path, ledger):
    n_before = len(ledger)
    raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    raw.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, lambda: raw.execute("ROLLBACK"))
    release.start()
    ledger.request(1)
    release.join()
    raw.close()
    assert ledger.verify().sequence == n_before + 1
    ledger.close()


def append_many(path, name, n):
    ledger = DeletionLedger(path)
    for i in range(n):
        ledger.request(i, sample_ids=[i], request_id=f"{name}-{i}")
    ledger.close()


def test_two_writers_lose_nothing(path):
    children = [fork(append_many, path, name, 500) for name in "ab"]
    assert [exit_status(pid) for pid in children] == [0, 0]
    ledger = DeletionLedger(path)
    assert ledger.verify().sequence == 1000
    ids = [entry.request_ids[0] for entry in ledger]
    for name in "ab":
        assert [i for i in ids if i[0] == name] == [f"{name}-{i}" for i in range(500)]
    assert len({entry.key_id for entry in ledger}) == 1
    assert set(ledger.find(77)) == {"a-77", "b-77"}
    ledger.close()


def test_only_one_of_two_processes_may_serve_a_request(path):
    ledger = DeletionLedger(path)
    for i in range(30):
        ledger.request(1, request_id=str(i))
    read, write = os.pipe()

    def serve():
        mine = DeletionLedger(path)
        for i in range(30):
            try:
                mine.refused(str(i), f"by {os.getpid()}")
                os.write(write, b"x")
            except LedgerError as error:
                assert "already" in str(error)

    assert [exit_status(pid) for pid in [fork(serve) for _ in range(3)]] == [0, 0, 0]
    os.close(write)
    assert len(os.read(read, 1000)) == 30
    os.close(read)
    assert ledger.pending() == {} and ledger.verify().sequence == 60
    ledger.close()


def test_many_may_make_the_ledger_at_once(tmp_path):
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        children = [fork(append_many, path, str(name), 2) for name in range(6)]
        assert [exit_status(pid) for pid in children] == [0] * 6
        ledger = DeletionLedger(path)
        assert ledger.verify().sequence == 12 and len({e.key_id for e in ledger}) == 1
        ledger.close()


@pytest.mark.parametrize("in_memory", [True, False])
def test_threads_may_share_a_ledger(path, in_memory):
    ledger = DeletionLedger(None if in_memory else path)
    errors = []

    def work(name):
        try:
            for i in range(25):
                ledger.request(1, request_id=f"{name}-{i}")
                ledger.pending()
                ledger.refused(f"{name}-{i}", "why")
                len(list(ledger))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and ledger.verify().sequence == 200 and ledger.pending() == {}
    ledger.close()


# ---------------------------------------------------------------- forks


def open_files(path):
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return [target for target in targets if target.startswith(str(path))]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_connection_crosses_a_fork(path):
    ledger = DeletionLedger(path)
    ledger.request(1)
    assert open_files(path)

    def child():
        assert open_files(path) == []
        ledger.request(1)
        assert open_files(path)

    assert exit_status(fork(child)) == 0
    assert ledger.verify().sequence == 2
    ledger.close()


def test_parent_and_child_append_with_the_same_object(path):
    ledger = DeletionLedger(path)
    ledger.request(1, request_id="before")

    def append(name):
        for i in range(40):
            ledger.request(1, request_id=f"{name}-{i}")

    child = fork(append, "child")
    append("parent")
    assert exit_status(child) == 0
    assert ledger.verify().sequence == 81
    ids = set(ledger.pending())
    assert ids == {"before"} | {f"{name}-{i}" for name in ("parent", "child") for i in range(40)}
    ledger.close()


def test_after_a_fork_other_threads_may_append_in_parent_and_child(path):
    ledger = DeletionLedger(path)
    ledger.request(1)

    def append_in_a_thread():
        thread = threading.Thread(target=ledger.request, args=(1,), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    assert exit_status(fork(append_in_a_thread)) == 0
    append_in_a_thread()
    assert ledger.verify().sequence == 3
    ledger.close()


def test_a_fork_while_another_thread_appends(path):
    ledger, memory = DeletionLedger(path), DeletionLedger()
    stop = threading.Event()

    def append_until_stopped():
        while not stop.is_set():
            ledger.request(1)
            memory.request(1)

    thread = threading.Thread(target=append_until_stopped)
    thread.start()

    def child():
        ledger.request(1, request_id=f"from {os.getpid()}")
        memory.request(1)
        assert memory.verify().sequence == len(memory.pending())

    try:
        children = [fork(child) for _ in range(10)]
        assert [exit_status(pid) for pid in children] == [0] * 10
    finally:
        stop.set()
        thread.join()
    ledger.verify()
    assert {f"from {pid}" for pid in children} <= set(ledger.pending())
    ledger.close()


# ---------------------------------------------------------------- what is there is no ledger


@pytest.mark.parametrize("content", [b"not a database " * 100, bytes(range(256)) * 40, b"xy"])
def test_a_file_that_is_no_database_is_refused_and_untouched(path, content):
    path.write_bytes(content)
    ledger = DeletionLedger(path)
    for use in (ledger.pending, ledger.verify, lambda: ledger.request(1), lambda: len(ledger)):
        with pytest.raises(LedgerCorruptError, match="damaged or not a ledger"):
            use()
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_another_programs_database_is_refused_and_untouched(path):
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE customers (name)")
    content = path.read_bytes()
    ledger = DeletionLedger(path)
    for use in (ledger.pending, ledger.verify, lambda: ledger.request(1)):
        with pytest.raises(LedgerCorruptError, match="is not a deletion ledger of format 1"):
            use()
    ledger.close()
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_an_empty_file_is_a_ledger_that_was_not_begun(path):
    path.touch()
    ledger = DeletionLedger(path)
    assert len(ledger) == 0 and ledger.verify() == DeletionLedger().head
    assert path.stat().st_size == 0
    ledger.request(1)
    assert ledger.verify().sequence == 1
    ledger.close()


def filled(path, n=30):
    with DeletionLedger(path) as ledger:
        for i in range(n):
            ledger.request(i, request_id=f"r{i}", detail="x" * 500)
        return ledger.head


@pytest.mark.parametrize("page", range(1, 7))
def test_an_overwritten_page_is_found(path, page):
    head = filled(path)
    content = bytearray(path.read_bytes())
    assert len(content) > 4096 * (page + 1)
    content[4096 * page : 4096 * (page + 1)] = b"\xa5" * 4096
    path.write_bytes(content)
    ledger = DeletionLedger(path)
    with pytest.raises(LedgerCorruptError, match=r"entry|file of the ledger|damaged"):
        ledger.verify(head=head)
    ledger.close()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_found(path, share):
    head = filled(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    ledger = DeletionLedger(path)
    with pytest.raises(LedgerCorruptError):
        ledger.verify(head=head)
    ledger.close()


@pytest.mark.parametrize("replacement", ["none", "empty", "other"])
def test_a_file_that_vanishes_or_is_replaced_while_open_is_noticed(path, tmp_path, replacement):
    ledger = DeletionLedger(path)
    ledger.request(1)
    for name in os.listdir(tmp_path):
        os.remove(tmp_path / name)
    if replacement == "empty":
        path.touch()
    elif replacement == "other":
        filled(path, 3)
    for use in (lambda: ledger.request(1), ledger.pending, lambda: ledger.head):
        with pytest.raises(LedgerCorruptError, match="entry 1 of the ledger was removed"):
            use()
    ledger.close()


# ---------------------------------------------------------------- read-only places


@pytest.fixture
def public_folder():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


def test_a_read_only_folder_can_be_audited_but_not_written(public_folder):
    path = public_folder / "ledger.db"
    head = filled(path)
    before = path.read_bytes()
    path.chmod(0o644)
    public_folder.chmod(0o555)
    with as_nobody():
        ledger = DeletionLedger(path)
        assert ledger.verify(head=head) == head
        assert len(ledger) == 30 and len(ledger.pending()) == 30
        with pytest.raises(LedgerError, match=r"readonly .*may this process write"):
            ledger.request(1)
        with pytest.raises(LedgerError, match="Permission denied"):
            ledger.export(public_folder / "export.jsonl")
        assert ledger.verify(head=head) == head
        ledger.close()
    assert path.read_bytes() == before and os.listdir(public_folder) == ["ledger.db"]


def test_a_read_only_folder_in_which_another_process_writes(public_folder):
    path = public_folder / "ledger.db"
    writer = DeletionLedger(path)
    writer.request(1)
    for name in os.listdir(public_folder):
        os.chmod(public_folder / name, 0o644)
    public_folder.chmod(0o555)
    reader = DeletionLedger(path)
    for n in (1, 2, 3):
        with as_nobody():
            assert reader.verify().sequence == n
        writer.request(1)
    reader.close()
    writer.close()


def test_no_ledger_can_be_made_in_a_read_only_folder(public_folder):
    public_folder.chmod(0o555)
    with as_nobody():
        ledger = DeletionLedger(public_folder / "ledger.db")
        assert ledger.pending() == {}
        with pytest.raises(LedgerError, match="may this process write there"):
            ledger.request(1)
    assert os.listdir(public_folder) == []


def test_what_may_not_be_seen_is_not_taken_for_missing(public_folder):
    inner = public_folder / "inner"
    inner.mkdir()
    filled(inner / "ledger.db", 1)
    inner.chmod(0)
    with as_nobody(), pytest.raises(LedgerError, match="Permission denied"):
        DeletionLedger(inner / "ledger.db").pending()
    inner.chmod(0o755)


def test_no_folder_and_a_folder_in_its_place(tmp_path):
    ledger = DeletionLedger(tmp_path / "nowhere" / "ledger.db")
    assert ledger.pending() == {}
    with pytest.raises(LedgerError, match="does its folder exist"):
        ledger.request(1)
    for use in (DeletionLedger(tmp_path).pending, lambda: DeletionLedger(tmp_path).request(1)):
        with pytest.raises(LedgerError, match="unable to open"):
            use()


# ---------------------------------------------------------------- a full disk


def test_a_full_database_records_nothing_and_goes_on_when_there_is_room(path):
    ledger = DeletionLedger(path)
    ledger.request(1, request_id="a")
    connection = ledger._store._connection
    (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(LedgerError, match=r"disk is full .*nothing was recorded; free some space"):
        ledger.request(1, request_id="b", detail="x" * 100_000)
    assert list(ledger.pending()) == ["a"] and ledger.verify().sequence == 1
    ledger.close()  # lifts the limit
    ledger.request(1, request_id="b", detail="x" * 100_000)
    assert ledger.verify().sequence == 2
    ledger.close()


@pytest.mark.parametrize("spare", [0, 1000, 5000, 20_000, 60_000])
def test_a_disk_that_fills_up_in_the_middle_of_a_write(path, spare):
    with DeletionLedger(path) as ledger:
        ledger.request(1, request_id="a")

    def child():
        limit = path.stat().st_size + spare
        ledger = DeletionLedger(path)
        assert list(ledger.pending()) == ["a"]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        n = 0
        with pytest.raises(LedgerError, match=r"nothing was recorded|is the disk full"):
            for n in range(1000):
                ledger.request(1, request_id=f"{n}", detail="x" * 3000)
        assert len(ledger.pending()) == n + 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert ledger.verify().sequence == n + 1
        ledger.request(1, request_id="again")
        assert ledger.verify().sequence == n + 2
        ledger.close()

    assert exit_status(fork(child)) == 0
    ledger = DeletionLedger(path)
    ledger.verify()
    assert {"a", "again"} <= set(ledger.pending())
    ledger.close()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_key_that_cannot_be_written_stops_the_request(path, tmp_path, monkeypatch, step):
    ledger = DeletionLedger(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.request(1, sample_ids=["alice"])
    assert len(ledger) == 0 and not [n for n in os.listdir(tmp_path) if "key" in n]
    ledger.request(1, sample_ids=["alice"], request_id="a")
    assert ledger.find("alice") == ["a"] and ledger.verify().sequence == 1
    ledger.close()


def test_an_interrupt_inside_the_transaction_leaves_no_lock(path, monkeypatch):
    ledger = DeletionLedger(path)
    ledger.request(1, request_id="a")

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sk_unlearn.ledger, "entry_hash", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.request(1, request_id="b")
    assert list(ledger.pending()) == ["a"]
    other = DeletionLedger(path, timeout=0.1)
    other.request(1, request_id="c")
    ledger.refused(["a", "c"], "why")
    assert other.verify().sequence == 3
    ledger.close()
    other.close()


# ---------------------------------------------------------------- kill -9


def check_after_kill(path, before, after):
    """The ledger is that of before or of after; returns how many entries it has."""
    ledger = DeletionLedger(path)
    n = len(ledger)
    assert before <= n <= after
    if path.exists():
        assert ledger.verify().sequence == n
    ledger.request(1, sample_ids=["alice"], request_id=f"after the crash {n}")
    assert ledger.verify().sequence == n + 1
    assert f"after the crash {n}" in ledger.find("alice")
    ledger.close()
    return n


def killed_at(path, n_steps, monkeypatch, use):
    """Run `use` in a child, killed at SQL statement number `n_steps`; False if there were less."""
    connect, steps = sk_unlearn._ledger_store._connect, [0]

    def traced(uri, timeout):
        connection = connect(uri, timeout)

        def step(_):
            steps[0] += 1
            if steps[0] == n_steps:
                kill_here()

        if uri != ":memory:":
            connection.set_trace_callback(step)
        return connection

    monkeypatch.setattr(sk_unlearn._ledger_store, "_connect", traced)
    status = exit_status(fork(use, DeletionLedger(path)))
    monkeypatch.undo()
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("n_before", [0, 2])
def test_kill_9_before_each_sql_statement_of_a_request(tmp_path, monkeypatch, n_before):
    n_steps, killed = 0, True
    while killed:
        n_steps += 1
        path = tmp_path / f"{n_steps}.db"
        for i in range(n_before):
            DeletionLedger(path).request(1, request_id=str(i))
        killed = killed_at(
            path, n_steps, monkeypatch, lambda x: x.request(3, sample_ids=["bob"], request_id="x")
        )
        assert check_after_kill(path, n_before, n_before + 1) == n_before + (not killed)
    assert n_steps > 12  # the last statement is COMMIT: a kill before it leaves nothing


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (os, "fsync"),
        (os, "replace"),
        (sk_unlearn._ledger_key, "mkstemp"),
        (sk_unlearn._ledger_key, "_sync"),
        (sk_unlearn.ledger, "entry_hash"),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_9_around_the_steps_between(path, monkeypatch, module, name, moment):
    def use():
        original = getattr(module, name)

        def deadly(*arguments, **keywords):
            if moment == "after":
                original(*arguments, **keywords)
            kill_here()

        monkeypatch.setattr(module, name, deadly)
        DeletionLedger(path).request(1, sample_ids=["alice"])

    assert exit_status(fork(use)) == -signal.SIGKILL
    assert check_after_kill(path, 0, 0) == 0
    assert stat.S_IMODE(os.stat(f"{path}.key").st_mode) == 0o600


def test_kill_9_right_after_a_request_keeps_it(path):
    def use():
        DeletionLedger(path).request(1, request_id="x")
        kill_here()

    for n in range(10):
        assert exit_status(fork(lambda: DeletionLedger(path).request(1))) == 0
        path_before = len(DeletionLedger(path))
        assert path_before == n + 1
    assert exit_status(fork(use)) == -signal.SIGKILL
    assert check_after_kill(path, 11, 11) == 11


def test_kill_9_at_random_moments_keeps_all_that_was_acknowledged(path):
    rng = random.Random(0)
    n_acknowledged = n_known = 0
    for _ in range(30):
        read, write = os.pipe()

        def append(write=write):
            ledger = DeletionLedger(path)
            while True:
                ledger.request(1, sample_ids=[1], detail="x" * rng.randrange(5000))
                os.write(write, b"x")

        child = fork(append)
        os.close(write)
        os.read(read, 1)
        n_acknowledged += 1
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) == -signal.SIGKILL
        while chunk := os.read(read, 65536):
            n_acknowledged += len(chunk)
        os.close(read)
        ledger = DeletionLedger(path)
        n_known = ledger.verify().sequence
        ledger.close()
        assert n_acknowledged <= n_known <= n_acknowledged + 1
        n_acknowledged = n_known
    assert n_known > 60


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """Database and WAL of a process that was killed after 8 appends, and the 8 hashes."""
    path = tmp_path_factory.mktemp("torn") / "ledger.db"

    def use():
        ledger = DeletionLedger(path)
        for i in range(8):
            ledger.request(i, request_id=str(i), detail="x" * 700 * i)
        kill_here()

    assert exit_status(fork(use)) == -signal.SIGKILL
    database, wal = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    ledger = DeletionLedger(path)
    hashes = [entry.hash for entry in ledger]
    head = ledger.head
    ledger.close()
    assert len(hashes) == 8 and len(wal) > 8 * 4096
    return database, wal, hashes, head


def reopened(path, database, wal):
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(database)
    Path(f"{path}-wal").write_bytes(wal)
    return DeletionLedger(path)


def test_a_write_ahead_log_cut_anywhere_leaves_whole_entries_in_order(path, torn):
    database, wal, hashes, head = torn
    frame = 24 + 4096
    n_frames = (len(wal) - 32) // frame
    ends = {32 + frame * i + offset for i in range(n_frames + 1) for offset in (-1, 0, 1, 2000)}
    counts = []
    for end in sorted(ends | {0, 1, 31, len(wal)}):
        ledger = reopened(path, database, wal[:end])
        n = ledger.verify().sequence
        assert [entry.hash for entry in ledger] == hashes[:n]
        if n < 8:
            with pytest.raises(LedgerCorruptError, match=f"entry {n + 1} of the ledger is missing"):
                ledger.verify(head=head)
        counts.append(n)
        ledger.close()
    assert counts == sorted(counts) and set(counts) == set(range(9))


def test_a_write_ahead_log_with_changed_bytes_leaves_whole_entries_in_order(path, torn):
    database, wal, hashes, _ = torn
    rng = random.Random(1)
    counts = set()
    for _ in range(60):
        changed = bytearray(wal)
        changed[rng.randrange(len(wal))] ^= rng.randrange(1, 256)
        ledger = reopened(path, database, changed)
        n = ledger.verify().sequence
        assert [entry.hash for entry in ledger] == hashes[:n]
        counts.add(n)
        ledger.close()
    assert len(counts) > 4
