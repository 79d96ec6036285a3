"""Small torch networks whose channels and heads can or cannot be cut."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ConvNet(nn.Module):
    """Scores [batch, 5] of [batch, 3, 12, 12]: residual, depthwise, squeeze and grouped parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(32, 96, 1, bias=False), nn.BatchNorm2d(96), nn.SiLU())
        self.depth = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.squeeze = nn.Linear(96, 12)
        self.excite = nn.Linear(12, 96)
        self.project = nn.Conv2d(96, 32, 1)
        self.left = nn.Conv2d(32, 16, 3, padding=1)
        self.right = nn.Conv2d(32, 16, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3))))))
        x = x + self.project(y * gate[:, :, None, None])
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self.head(self.grouped(x).relu().mean((2, 3)))


class Attention(nn.Module):
    """Self-attention; `fused` takes torch's one operator, `rigid` writes the width down."""

    def __init__(self, width: int, heads: int, *, fused: bool, rigid: bool) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.head_size = width // heads
        self.all_head_size = width
        self.fused, self.rigid = fused, rigid
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1], self.num_attention_heads, self.head_size)
        return x.view(shape).transpose(1, 2)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            mixed = (q @ k.transpose(-1, -2) / self.head_size**0.5 + bias).softmax(-1) @ v
        width = x.shape[-1] if self.rigid else self.all_head_size
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], width))


class Layer(nn.Module):
    """Attention and a feed-forward part, each added to its input and normalized."""

    def __init__(self, width: int, heads: int, inner: int, *, fused: bool, rigid: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, fused=fused, rigid=rigid)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """Scores [batch, 3] of tokens [batch, sequence] with a mask of the same shape."""

    def __init__(self, *, fused: bool = False, rigid: bool = False) -> None:
        super().__init__()
        width, heads, inner = 48, 6, 64
        self.tokens, self.places = nn.Embedding(50, width), nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            Layer(width, heads, inner, fused=fused, rigid=rigid) for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.tokens(ids) + self.places(torch.arange(ids.shape[1])))
        bias = (1.0 - mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(x.mean(1))


class Fixed(nn.Module):
    """Its code writes the number of channels down, so that none can go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().reshape(-1, 8, 16).flatten(1))


def settle(module: nn.Module) -> nn.Module:
    """Return the module in evaluation mode with batch statistics that differ from the start."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return module.eval()
