"""Samples: inputs from a folder of photos or `.npz` files, or made from a signature and a seed."""

from packager.data._folder import PHOTO_SUFFIXES, decode_image, is_photo, read_npz
from packager.data._load import load_samples
from packager.data._samples import Samples
from packager.data._synthetic import synthetic

__all__ = [
    "PHOTO_SUFFIXES",
    "Samples",
    "decode_image",
    "is_photo",
    "load_samples",
    "read_npz",
    "synthetic",
]
