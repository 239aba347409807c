"""A frozen network for small colour images whose filters come from two public photographs."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional


class PhotoPatches(nn.Module):
    """Random patches of scikit-learn's two sample photographs as filters, and what they see.

    No image of a data set has a say in it. Patches of 6 x 6 pixels of the photographs at half
    their size, whitened, as Coates, Ng & Lee (2011) whiten patches of their training images. An
    image's responses are divided at each place by their root mean square over the filters, then
    what exceeds a threshold on either side is averaged over each quarter of the image, and over the
    image and its mirror image.

    Parameters
    ----------
    n_filters : int
        An image gives 8 numbers for each.
    """

    def __init__(self, n_filters: int) -> None:
        super().__init__()
        photos = [torch.tensor(p / 255).permute(2, 0, 1) for p in load_sample_images().images]
        patches = torch.cat([functional.unfold(p[None], 6)[0].T for p in map(_halved, photos)])
        patches -= patches.mean(1, keepdim=True)
        patches /= (patches.square().mean(1, keepdim=True) + 0.01).sqrt()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        whiten = vectors @ ((values + 0.1) ** -0.5 * vectors).T
        order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
        filters = functional.normalize(patches[order[:n_filters]] @ whiten) @ whiten
        filters -= filters.mean(1, keepdim=True)
        self.filters = nn.Parameter(filters.float().reshape(-1, 3, 6, 6), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (n, 8 n_filters) of images (n, 3, h, w) with values in [0, 1]."""
        return (self._pooled(images) + self._pooled(images.flip(-1))).flatten(1) / 2

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        seen = functional.conv2d(images, self.filters)
        seen /= (seen.square().mean(1, keepdim=True) + 0.01).sqrt()
        above = functional.adaptive_avg_pool2d((seen - 0.5).relu_(), 2)
        below = functional.adaptive_avg_pool2d(seen.neg_().sub_(0.5).relu_(), 2)
        return torch.cat([above, below], 1)


def _halved(photo: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(photo, 2)
