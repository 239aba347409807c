"""Keyed digests of sample ids, and the key that makes them linkable until it is destroyed."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from contextlib import suppress
from numbers import Integral
from secrets import token_bytes
from tempfile import mkstemp
from typing import Any

from .exceptions import LedgerError

N_BYTES = 32


class DigestKey:
    """The random key of a ledger, in the file `path` (mode 0600), or in memory if None."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.in_memory: bytes | None = None

    def read(self) -> bytes | None:
        """Return the key, None if there is none; raises LedgerError if it is damaged."""
        if self.path is None:
            return self.in_memory
        try:
            with open(self.path, "rb") as file:
                key = file.read()
        except FileNotFoundError:
            return None
        if key == bytes(N_BYTES):  # destroy() was interrupted, or is at it now
            return None
        if len(key) != N_BYTES:
            raise LedgerError(f"the key {self.path!r} holds {len(key)} bytes, not {N_BYTES}")
        return key

    def read_or_make(self) -> bytes:
        """Return the key, a new one if there is none. The caller is the ledger's only writer."""
        key = self.read()
        if key is None:
            key = token_bytes(N_BYTES)
            if self.path is None:
                self.in_memory = key
            else:
                write_atomically(self.path, key)
        return key

    def destroy(self) -> None:
        """Overwrite and remove the key; its digests are then linkable to nobody."""
        self.in_memory = None
        if self.path is None:
            return
        with suppress(FileNotFoundError):
            with open(self.path, "r+b") as file:
                file.write(bytes(N_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.remove(self.path)
            _sync(os.path.dirname(os.path.abspath(self.path)))


def key_id(key: bytes) -> str:
    """Name a key without telling it."""
    return hmac.digest(key, b"key", "sha256").hex()[:16]


def message(sample_id: Any) -> bytes:
    """Encode a sample id; ``1``, ``"1"`` and ``b"1"`` are three different ids."""
    if isinstance(sample_id, str):
        return b"str:" + sample_id.encode("utf-8", "surrogatepass")
    if isinstance(sample_id, bytes):
        return b"bytes:" + sample_id
    if isinstance(sample_id, Integral) and not isinstance(sample_id, bool):
        return b"int:" + str(int(sample_id)).encode("ascii")
    raise TypeError(
        f"sample id {sample_id!r} is a {type(sample_id).__name__}; "
        "make it an int, a str or bytes that stays the same for good"
    )


def distinct_messages(sample_ids: Iterable[Any]) -> set[bytes]:
    """Encode each distinct sample id."""
    if isinstance(sample_ids, str | bytes) or not isinstance(sample_ids, Iterable):
        raise TypeError(f"sample_ids={sample_ids!r} is one id; pass a list of ids")
    messages = {message(sample_id) for sample_id in sample_ids}
    if not messages:
        raise ValueError("sample_ids is empty; pass None if there are no ids")
    return messages


def digest(key: bytes, encoded: bytes) -> str:
    """HMAC-SHA256 of an encoded sample id, in hexadecimal."""
    return hmac.digest(key, encoded, "sha256").hex()


def write_atomically(path: str, content: bytes) -> None:
    """Write a whole file (mode 0600) or none: temporary file, fsync, rename, fsync the folder."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.remove(temporary)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
