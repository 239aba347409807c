"""The SQLite file under a deletion ledger: opened late, guarded, never shared across a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from weakref import WeakSet

from ._ledger_format import APPLICATION_ID, FORMAT_VERSION, SCHEMA
from .exceptions import LedgerCorruptError, LedgerError, LedgerLockedError

_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: "does its folder exist, and may this process write there?",
    sqlite3.SQLITE_READONLY: "may this process write to the file and its folder?",
    sqlite3.SQLITE_FULL: "nothing was recorded; free some space and repeat",
    sqlite3.SQLITE_IOERR: "is the disk full or failing? see what is recorded, then repeat",
}
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_ERROR,  # our statements are sound, so the schema is not
)
LOCK = threading.RLock()  # one for all ledgers, so that a fork can wait for all of them


class Store:
    """A connection to the ledger at `path` (in memory if None) and its transactions."""

    def __init__(self, path: str | None, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        _STORES.add(self)

    def exists(self) -> bool:
        """Whether there is anything to read."""
        if self.path is None:
            return True
        try:
            os.stat(self.path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield a snapshot; where there is no ledger yet, an empty one, and no file is made."""
        with LOCK, self.explained(), self._readable() as connection:
            connection.execute("BEGIN")
            try:
                if is_new(connection):
                    with closing(_blank()) as blank:
                        yield blank
                else:
                    yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the only writer; what was written is on the disk afterwards, or nothing is."""
        with LOCK, self.explained():
            connection = self._current() or self._open("rwc")
            try:
                is_new(connection)  # refuses before anything in a foreign file is touched
                self._write_ahead(connection)
                connection.execute("BEGIN IMMEDIATE")
                if is_new(connection):
                    _create(connection)
                yield connection
                connection.execute("COMMIT")
            finally:
                _roll_back(connection)

    def close(self) -> None:
        """Close the file; the next use opens it again. What is in memory stays."""
        with LOCK:
            if self.path is not None and self._connection is not None:
                self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _current(self) -> sqlite3.Connection | None:
        """Return the open connection, if the file is still the one that was opened."""
        if self.path is not None and self._connection is not None:
            with suppress(FileNotFoundError):
                if self._file == _identity(self.path):
                    return self._connection
            self.close()
        return self._connection

    def _open(self, mode: str) -> sqlite3.Connection:
        if self.path is None:
            self._connection = _blank()
        else:
            self._connection = _connect(f"{Path(self.path).as_uri()}?mode={mode}", self.timeout)
            self._file = _identity(self.path)
        return self._connection

    @contextmanager
    def _readable(self) -> Iterator[sqlite3.Connection]:
        current = self._current()
        if current is not None or self.path is None:
            yield current or self._open("rw")
        elif not self.exists():
            with closing(_blank()) as blank:
                yield blank
        elif self._needs_immutable():
            uri = f"{Path(self.path).as_uri()}?mode=ro&immutable=1"
            with closing(_connect(uri, self.timeout)) as connection:
                yield connection
        else:
            yield self._open("rw")

    def _needs_immutable(self) -> bool:
        """Whether the file was closed properly and lies where SQLite cannot put its -shm."""
        assert self.path is not None
        writable = os.access(os.path.dirname(self.path), os.W_OK, effective_ids=_EFFECTIVE)
        return not writable and not os.path.exists(f"{self.path}-wal")

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL; SQLite's own busy timeout does not cover the switch."""
        deadline = time.monotonic() + self.timeout
        while connection.execute("PRAGMA journal_mode").fetchone() == ("delete",):
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what SQLite and the file system say into this package's errors."""
        name = "the ledger in memory" if self.path is None else f"the ledger {self.path!r}"
        try:
            yield
        except OSError as error:
            raise LedgerError(f"{name}: {error}") from error
        except UnicodeError as error:  # what callers give was checked: it is in the file
            raise LedgerCorruptError(f"{name} is damaged or not a ledger: {error}") from error
        except sqlite3.Error as error:
            code = _code(error)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LedgerLockedError(
                    f"{name} was held by another process for more than {self.timeout} s"
                ) from error
            if code in _DAMAGED:
                raise LedgerCorruptError(f"{name} is damaged or not a ledger: {error}") from error
            advice = f" ({_ADVICE[code]})" if code in _ADVICE else ""
            raise LedgerError(f"{name}: {error}{advice}") from error


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether the database is empty; raises LedgerCorruptError if it is not a ledger's either."""
    marks = (_pragma(connection, "application_id"), _pragma(connection, "user_version"))
    found = _schema(connection)
    if marks == (0, 0) and not found:
        return True
    if marks != (APPLICATION_ID, FORMAT_VERSION):
        raise LedgerCorruptError(
            f"this SQLite database is not a deletion ledger of format {FORMAT_VERSION}: "
            f"application_id = {marks[0]}, user_version = {marks[1]}"
        )
    expected = _expected_schema()
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise LedgerCorruptError(f"the schema of the ledger was changed: {name} is missing")
        if name not in expected:
            raise LedgerCorruptError(f"the schema of the ledger was changed: {name} was added")
        if found[name] != expected[name]:
            raise LedgerCorruptError(
                f"the schema of the ledger was changed: {name} is now {found[name]}"
            )
    return False


def _schema(connection: sqlite3.Connection) -> dict[str, tuple[object, ...]]:
    rows = connection.execute("SELECT name, type, tbl_name, sql FROM sqlite_master").fetchall()
    return {f"{row[1]} {row[0]}": row for row in rows}


@cache
def _expected_schema() -> dict[str, tuple[object, ...]]:
    with closing(_blank()) as connection:
        return _schema(connection)


def _create(connection: sqlite3.Connection) -> None:
    for statement in SCHEMA:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def _blank() -> sqlite3.Connection:
    connection = _connect(":memory:", 0.0)
    _create(connection)
    return connection


def _connect(uri: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    try:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


_EFFECTIVE = os.access in os.supports_effective_ids
_STORES: WeakSet[Store] = WeakSet()


def _before_fork() -> None:
    """Close every file: SQLite's locks and its notes about them must not cross a fork."""
    LOCK.acquire()
    for store in list(_STORES):
        store.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )
