"""Compression that trains: pruning, quantization-aware training, distillation, with a user's hook.

`session.py` has what a hook is given; only torch modules from a factory can be trained.
"""

from packager.training.run import train_variants
from packager.training.session import Session
from packager.training.wire import Variant, training_digest

__all__ = ["Session", "Variant", "train_variants", "training_digest"]
