"""Edgepack: from a trained model to one signed, offline bundle for a device."""

__version__ = "0.1.0"
