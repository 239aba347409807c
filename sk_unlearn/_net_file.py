"""A file of tensors and one JSON record: safetensors, with a checksum, written whole or not."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ._ledger_key import write_atomically
from .exceptions import SavedNetError

FORMAT = "sk_unlearn net 1"
_ADVICE = "it is damaged, cut off, or no file that save() wrote"


def write(path: str, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write the file; what was there before stays until the new one is on the disk."""
    text = json.dumps(record, allow_nan=False)
    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    metadata = {"format": FORMAT, "record": text}
    metadata["sha256"] = _checksum(save(own, metadata))
    write_atomically(path, save(own, metadata))


def read(path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and record.

    Raises
    ------
    OSError
        If the file cannot be read.
    SavedNetError
        If it is not what was written.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        tensors = load(content)
        metadata = _header(content)[0]["__metadata__"]
        if metadata["format"] != FORMAT:
            raise SavedNetError(
                f"{path!r} holds {metadata['format']!r}; this version reads {FORMAT!r}"
            )
        if metadata["sha256"] != _checksum(content):
            raise SavedNetError(f"{path!r} does not match its checksum: {_ADVICE}")
        record = json.loads(metadata["record"])
    except SavedNetError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SavedNetError(f"{path!r} cannot be read ({error}): {_ADVICE}") from error
    return tensors, record


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end


def _checksum(content: bytes) -> str:
    """SHA-256 of the record, the table of tensors and their bytes; of the file, but for itself."""
    table, end = _header(content)
    metadata = table.pop("__metadata__")
    known = [metadata["format"], metadata["record"], table]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode("ascii"))
    digest.update(memoryview(content)[end:])
    return digest.hexdigest()


def as_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path."""
    return os.path.abspath(os.fsdecode(path))
