"""The shape of ResNet-50 in plain torch with weights drawn from a seed: for sizes and times."""

from __future__ import annotations

import torch
from torch import nn

# Channels inside, blocks, stride of the first block: of each of the four stages.
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
WIDENING = 4
CLASSES = 1000
SIZE = 224


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, which has one of its own where the shape changes."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * WIDENING
        self.inside = nn.Sequential(
            *_convolution(inputs, inner, 1, 1), nn.ReLU(),
            *_convolution(inner, inner, 3, stride), nn.ReLU(),
            *_convolution(inner, outputs, 1, 1),
        )  # fmt: skip
        # As trained networks have it: a block adds little to what passes it by.
        nn.init.constant_(self.inside[-1].weight, 0.25)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*(() if same else _convolution(inputs, outputs, 1, stride)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inside(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """Photos [batch, 3, 224, 224] → logits [batch, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for inner, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(Bottleneck(inputs, inner, stride if block == 0 else 1))
                inputs = inner * WIDENING
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def make_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the network, and one photo of noise."""
    torch.manual_seed(0)
    return ResNet50().eval(), {"x": torch.randn(1, 3, SIZE, SIZE)}


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(outputs)
