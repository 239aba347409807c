"""In-memory batches: one gather per epoch, then views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from skorch.dataset import Dataset
from torch.utils.data import Subset


class TensorDataset(Dataset):
    """skorch dataset that holds tensors; a batch is one index operation."""

    def __init__(self, X: object, y: object = None) -> None:
        X = torch.as_tensor(_writeable(X))
        y = torch.zeros(len(X), dtype=torch.int64) if y is None else torch.as_tensor(_writeable(y))
        super().__init__(X, y)

    def __getitem__(self, index: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.X[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        chosen = torch.as_tensor(indices)
        return list(zip(self.X[chosen], self.y[chosen], strict=True))


class BatchIterator:
    """What a DataLoader does for tensors in memory, without a step per row.

    Parameters
    ----------
    dataset : TensorDataset or torch.utils.data.Subset of one
    batch_size : int
    shuffle : bool
        A fresh permutation each epoch, gathered once.
    drop_last : bool
        Leave out an incomplete last batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> None:
        if isinstance(dataset, Subset):
            chosen = torch.as_tensor(np.asarray(dataset.indices))
            self.X, self.y = dataset.dataset.X[chosen], dataset.dataset.y[chosen]
        else:
            self.X, self.y = dataset.X, dataset.y
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last

    def __len__(self) -> int:
        n, size = len(self.X), self.batch_size
        return n // size if self.drop_last else -(-n // size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        X, y = self.X, self.y
        if self.shuffle:
            order = torch.randperm(len(X))
            X, y = X[order], y[order]
        for k in range(len(self)):
            part = slice(k * self.batch_size, (k + 1) * self.batch_size)
            yield X[part], y[part]


def _writeable(values: object) -> object:
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        return values.copy()
    return values
