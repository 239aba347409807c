"""The scattering transform: image features that are fixed by a formula, without training."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array
from torch.nn import functional

from .torch_features import check_count, map_rows, probe_rows, public_row, torch_dtype

_FIRST_WIDTH = 0.8  # standard deviation of the finest envelope, in pixels
_FIRST_FREQUENCY = 0.75 * np.pi  # centre of the finest wavelet, in radians for each pixel
_NORMALISATION_EPS = 1e-5  # added to the variance of a group


class Scattering2D(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Scattering transform of order two with Morlet wavelets, for images.

    Averages of ``x``, of ``|x * psi|`` and of ``||x * psi| * psi'|`` over windows of 2^J pixels,
    for wavelets of J scales and L orientations (Bruna & Mallat 2013). Data-independent: nothing
    is learned, and `transform` works without `fit`. Group normalisation of the result before
    a linear model is due to Tramèr & Boneh (2021); it too looks at one image only.

    Images are extended by reflection: each side to a multiple of 2^J, and 2^J pixels more at
    either end, which are cut off again. An image of c channels of h x w pixels gives
    ``c * (1 + J L + J (J - 1) L^2 / 2)`` channels of ``ceil(h / 2^J) x ceil(w / 2^J)`` values.

    An image's features are the same bits whatever the other images, their order and their
    number (T12): the images run in chunks of exactly `batch_size`, the last one filled up with
    zeros, and before the first chunk it is checked on identical images that no place in the
    chunk and no neighbour changes a bit. This holds for the same parameters, build of torch,
    device and number of threads: keep them for as long as certificates are to hold.

    Parameters
    ----------
    J : int, default=2
        Number of scales. An image must have at least 2^J pixels a side.
    L : int, default=8
        Number of orientations, equally spaced over half a turn.
    groups : int, default=None
        Split the channels of an image into so many groups of neighbours and give each mean 0
        and variance 1 over its channels and places (the variance is raised by 1e-5). It must
        divide the number of channels. None for no normalisation.
    pool : int, default=None
        Average each channel over ``pool x pool`` windows. None keeps every place.
    constant : bool, default=False
        Append a column of ones.
    batch_size : int, default=16
        Images in each chunk: on a CPU small chunks are the fast ones.
    device : str or torch.device, default="cpu"
        Where the transform is computed.

    Raises
    ------
    ValueError
        If a parameter is out of range or does not fit the images, or X holds no images.
    NotApplicableError
        If this machine's kernels treat the places of a chunk differently.

    Notes
    -----
    Computed in float64 for float64 images, in float32 for all others. Values are taken as they
    are: divide 8-bit images by 255 first.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_unlearn.features import Scattering2D
    >>> X = np.random.default_rng(0).random((5, 28, 28))
    >>> Scattering2D().transform(X).shape  # 81 channels of 7 x 7
    (5, 3969)
    >>> Scattering2D(groups=27, pool=3, constant=True).transform(X).shape
    (5, 730)
    """

    def __init__(
        self,
        J: int = 2,
        L: int = 8,
        groups: int | None = None,
        pool: int | None = None,
        constant: bool = False,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
    ) -> None:
        self.J = J
        self.L = L
        self.groups = groups
        self.pool = pool
        self.constant = constant
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: ArrayLike, y: Any = None) -> Scattering2D:
        """Check the parameters and the shape of the images; learn nothing.

        Parameters
        ----------
        X : array-like of shape (n_samples, h, w) or (n_samples, c, h, w)
            Images.
        y : None
            Ignored.

        Returns
        -------
        Scattering2D
        """
        X = self._images(X)
        self._n_features_out = self._transform_of(X).n_features + bool(self.constant)
        self.image_shape_ = X.shape[1:]
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Compute the features of images.

        Parameters
        ----------
        X : array-like of shape (n_samples, h, w) or (n_samples, c, h, w)
            Images.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Channel by channel (in each: row by row); the channels image channel by image
            channel, in each by order, scale and orientation.
        """
        X = self._images(X)
        shape = getattr(self, "image_shape_", X.shape[1:])
        if X.shape[1:] != shape:
            raise ValueError(
                f"X has images of shape {X.shape[1:]}, but {type(self).__name__} was fitted on "
                f"images of shape {shape}; fit again, or resize the images"
            )
        features = map_rows(self._transform_of(X), X, self.batch_size, self.device)
        if self.constant:
            features = np.hstack([features, np.ones((len(X), 1), features.dtype)])
        return features

    def _images(self, X: ArrayLike) -> NDArray[Any]:
        X = check_array(
            X, dtype=[np.float32, np.float64], allow_nd=True, estimator=self, input_name="X"
        )
        if X.ndim not in (3, 4):
            raise ValueError(
                f"X must have shape (n, h, w) or (n, c, h, w); got {X.shape}: reshape the rows "
                "to images"
            )
        return X

    def _transform_of(self, X: NDArray[Any]) -> _Transform:
        for name in ("J", "L", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("groups", "pool"):
            check_count(name, getattr(self, name), optional=True)
        return _checked_transform(
            (self.J, self.L, self.groups, self.pool),
            X.shape[1:],
            torch_dtype(X),
            torch.device(self.device),
            self.batch_size,
            torch.get_num_threads(),
        )

    def __sklearn_tags__(self) -> Tags:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        return tags


@lru_cache(maxsize=8)
def _checked_transform(
    parameters: tuple[int, int, int | None, int | None],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int,
    n_threads: int,
) -> _Transform:
    """Return the transform after a probe of its batch-invariance.

    The number of threads is not used, but kernels may depend on it: a new one, a new probe.
    """
    transform = _Transform(*parameters, shape, dtype, device)
    image = public_row(shape, dtype).to(device)
    transform.n_features = probe_rows(transform, image, batch_size)
    return transform


class _Transform:
    """Filters for one shape of images, and the map from images (n, ...) to features (n, d)."""

    n_features: int

    def __init__(
        self,
        J: int,
        L: int,
        groups: int | None,
        pool: int | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        *_, h, w = shape
        if min(h, w) < 2**J:
            raise ValueError(f"images of {h} x {w} pixels are smaller than 2^J for J = {J}")
        n_channels = (1 + J * L + J * (J - 1) // 2 * L**2) * (shape[0] if len(shape) == 3 else 1)
        if groups is not None and n_channels % groups:
            raise ValueError(f"groups={groups} does not divide the {n_channels} channels")
        side = -(-min(h, w) // 2**J)
        if pool is not None and pool > side:
            raise ValueError(f"pool={pool} is more than the {side} values on a side of a channel")
        self.J, self.groups, self.pool = J, groups, pool
        self.rows, self.columns = (torch.as_tensor(reflection(n, J), device=device) for n in (h, w))
        H, W = len(self.rows), len(self.columns)
        angles = (int(L / 2 - 1) - np.arange(L)) * np.pi / L

        def folding(bank: NDArray[np.float64], level: int, coarser: int) -> torch.Tensor:
            return torch.as_tensor(_aliases(bank, level, coarser), dtype=dtype, device=device)

        wavelets = [np.stack([morlet(H, W, j, angle, L) for angle in angles]) for j in range(J)]
        # [j][level]: the filter as it acts on every 2^level-th place
        self._wavelets = [[folding(wavelets[j], m, j) for m in range(j + 1)] for j in range(J)]
        window = gabor(H, W, _FIRST_WIDTH * 2 ** (J - 1), 0.0, 0.0, 1.0)
        self._window = [folding(window[None], m, J) for m in range(J)]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        planes = images.reshape(-1, *images.shape[-2:])
        channels = self._scatter(planes[:, self.rows[:, None], self.columns])
        channels = channels.reshape(len(images), -1, *channels.shape[-2:])
        if self.groups is not None:
            channels = functional.group_norm(channels, self.groups, eps=_NORMALISATION_EPS)
        if self.pool is not None:
            channels = functional.adaptive_avg_pool2d(channels, self.pool)
        return channels.flatten(1)

    def _scatter(self, x: torch.Tensor) -> torch.Tensor:
        x_hat = torch.fft.fft2(x)
        orders: list[list[torch.Tensor]] = [[self._average(x_hat, 0)[:, None]], [], []]
        for j in range(self.J):
            u_hat = self._wavelet_modulus(x_hat, 0, j)
            orders[1].append(self._average(u_hat, j))
            if j + 1 < self.J:
                coarser = [
                    self._average(self._wavelet_modulus(u_hat, j, k), k)
                    for k in range(j + 1, self.J)
                ]
                orders[2].append(torch.cat(coarser, dim=2).flatten(1, 2))
        return torch.cat([channel for order in orders for channel in order], dim=1)

    def _wavelet_modulus(self, u_hat: torch.Tensor, level: int, j: int) -> torch.Tensor:
        """Spectra of ``|u * psi_j|`` at every 2^j-th place; orientations on a new axis."""
        product = _filter(u_hat.unsqueeze(-3), self._wavelets[j][level], 2 ** (j - level))
        return torch.fft.fft2(torch.fft.ifft2(product).abs())

    def _average(self, u_hat: torch.Tensor, level: int) -> torch.Tensor:
        product = _filter(u_hat, self._window[level], 2 ** (self.J - level))
        return torch.fft.ifft2(product).real[..., 1:-1, 1:-1]


def _filter(u_hat: torch.Tensor, aliases: torch.Tensor, step: int) -> torch.Tensor:
    """Multiply spectra (..., h, w) by filters, as seen at every step-th place along each axis.

    Leaving out places sums the aliases of the product, which `_aliases` laid out in blocks.
    """
    *lead, h, w = u_hat.shape
    blocks = torch.view_as_real(u_hat).reshape(*lead, step, h // step, step, 2 * w // step)
    total = None
    for alias, filters in enumerate(aliases):
        block = blocks[..., alias // step, :, alias % step, :].contiguous()
        total = block * filters if total is None else total.addcmul_(block, filters)
    return torch.view_as_complex(total.reshape(*total.shape[:-1], w // step, 2))


def reflection(n: int, J: int) -> NDArray[np.intp]:
    """Extend the indices 0 .. n - 1 by reflection to a multiple of 2^J, and by 2^J at either end.

    Examples
    --------
    >>> reflection(5, 1)
    array([2, 1, 0, 1, 2, 3, 4, 3, 2, 1])
    """
    total = (-(-n // 2**J) + 2) * 2**J
    before = (total - n) // 2
    return np.pad(np.arange(n), (before, total - n - before), mode="reflect")


def gabor(
    h: int, w: int, width: float, angle: float, frequency: float, slant: float
) -> NDArray[np.float64]:
    """Fourier transform, at the h x w grid of the discrete one, of a sampled Gabor function.

    The function is a plane wave of `frequency` along `angle` (from the first axis) under a
    Gaussian of mass 1 and standard deviation `width` along it and ``width / slant`` across. Its
    transform is a Gaussian, summed over the aliases that sampling makes.
    """
    down = 2 * np.pi * np.fft.fftfreq(h)[:, None]
    right = 2 * np.pi * np.fft.fftfreq(w)
    cos, sin = np.cos(angle), np.sin(angle)
    # the first alias left out lies 9 standard deviations away: exp(-40)
    reach = int(np.ceil((9 * max(1.0, slant) / width + np.pi + frequency) / (2 * np.pi)))
    total = np.zeros((h, w))
    for a in 2 * np.pi * np.arange(-reach, reach + 1):
        for b in 2 * np.pi * np.arange(-reach, reach + 1):
            along = cos * (down + a) + sin * (right + b) - frequency
            across = cos * (right + b) - sin * (down + a)
            total += np.exp(-0.5 * width**2 * (along**2 + (across / slant) ** 2))
    return total


def morlet(h: int, w: int, j: int, angle: float, L: int) -> NDArray[np.float64]:
    """Fourier transform of the Morlet wavelet of scale j: a Gabor function made to have mean 0."""
    width, slant = _FIRST_WIDTH * 2**j, 4 / L
    wave = gabor(h, w, width, angle, _FIRST_FREQUENCY / 2**j, slant)
    envelope = gabor(h, w, width, angle, 0.0, slant)
    return wave - wave[0, 0] / envelope[0, 0] * envelope


def _band(n: int, level: int) -> NDArray[np.intp]:
    """Which of n frequencies remain when 2^level places become one."""
    half = (n >> level) // 2
    return np.r_[:half, n - half : n]


def _aliases(bank: NDArray[np.float64], level: int, coarser: int) -> NDArray[np.float64]:
    """Cut filters (L, H, W) to the band of `level`, in the blocks that fold at level `coarser`.

    Returns shape (4^(coarser - level), L, h, 2 w): each value twice, for the real and the
    imaginary part of what it multiplies.
    """
    _, H, W = bank.shape
    bank = bank[:, _band(H, level)][:, :, _band(W, level)]
    step, h, w = 2 ** (coarser - level), H >> coarser, W >> coarser
    blocks = bank.reshape(-1, step, h, step, w).transpose(1, 3, 0, 2, 4) / step**2
    return np.repeat(blocks.reshape(step**2, -1, h, w), 2, axis=-1)
