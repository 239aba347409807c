"""Reference data sets, read from a local folder or fetched from OpenML.

Each loader looks in ``data_home`` (or, where that is None, in the folder that the environment
variable ``SK_UNLEARN_DATA`` names), then asks OpenML. Images are float32 of shape
(n, channels, height, width), divided by the constant 255 and by nothing that depends on the
data; labels are int64 from 0. ``sample_ids`` number the rows in the published order, training
part first, so that an id means the same row however the rows are split or shuffled later.
"""

from __future__ import annotations

from ._adult import load_adult
from ._adult_encoding import encode_adult
from ._images import load_cifar10, load_mnist, load_svhn

__all__ = ["encode_adult", "load_adult", "load_cifar10", "load_mnist", "load_svhn"]
