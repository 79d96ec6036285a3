"""Edgepack: from a trained model to one signed, offline bundle for a device."""

import os

__version__ = "0.1.0"

# Since 1.32 ONNX Runtime reports home, and begins to when it is imported: see decision 013.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
