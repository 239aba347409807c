"""Image and network features that no training row has a say in, as scikit-learn transformers."""

from .scattering import Scattering2D
from .torch_features import TorchFeatures

__all__ = ["Scattering2D", "TorchFeatures"]
