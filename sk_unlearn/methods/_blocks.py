"""Blocks of weights, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from ..exceptions import NotApplicableError


def groups(blocks: str | Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """Cut the names of the trainable tensors into blocks.

    Raises
    ------
    NotApplicableError
        If a block is empty, or a tensor is in no block or in two.
    """
    if isinstance(blocks, str):
        if blocks != "layer":
            raise NotApplicableError(
                f"GradientClipping(blocks={blocks!r}): give None, 'layer' or a list of names"
            )
        prefixes = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        return [[n for n in names if n.rpartition(".")[0] == prefix] for prefix in prefixes]
    found = [[n for n in names if f"{n}.".startswith(f"{block}.")] for block in blocks]
    held = [name for group in found for name in group]
    for block, group in zip(blocks, found, strict=True):
        if not group:
            raise NotApplicableError(
                f"GradientClipping(blocks): {block!r} names no trainable weights; there are "
                f"{', '.join(names)}"
            )
    wrong = [name for name in names if held.count(name) != 1]
    if wrong:
        raise NotApplicableError(
            f"GradientClipping(blocks={list(blocks)!r}): every trainable tensor must be in "
            "exactly one block, or it is released without noise, or noised twice: "
            f"{', '.join(wrong)}"
        )
    return found
