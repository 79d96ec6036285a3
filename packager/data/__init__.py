"""Samples: inputs and labels from files, tables or a generator, or made from a signature."""

from packager.data._arrays import TEXT_KEY
from packager.data._divide import overlap_note, shared_samples, split_halves
from packager.data._folder import read_npz
from packager.data._load import load_samples
from packager.data._photos import PHOTO_SUFFIXES, decode_image, is_photo
from packager.data._request import read_request
from packager.data._samples import Samples
from packager.data._sounds import window_of
from packager.data._synthetic import synthetic

__all__ = [
    "PHOTO_SUFFIXES",
    "TEXT_KEY",
    "Samples",
    "decode_image",
    "is_photo",
    "load_samples",
    "overlap_note",
    "read_npz",
    "read_request",
    "shared_samples",
    "split_halves",
    "synthetic",
    "window_of",
]
