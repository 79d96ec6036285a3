"""Pages of text, rendered from a seed turned by quarters: what a model of orientation takes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE: Final = 224
_RESIZE: Final = 256
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_LETTERS: Final = list("aaabcdeeeeefghiiijklmnnnooopqrsssttttuvwxyzABDEHMRST")


def make_pages(count: int, seed: int) -> tuple[list[int], list[np.ndarray]]:
    """Return how often each page is turned by 90 degrees, and pages: float32 [1, 3, 224, 224]."""
    random = np.random.default_rng(seed)
    turns = [int(turn) for turn in random.integers(0, 4, count)]
    return turns, [_to_input(_render(random).rotate(-90 * turn, expand=True)) for turn in turns]


def _render(random: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in random.integers(380, 720, 2))
    paper, ink = (tuple(map(int, random.integers(*r, 3))) for r in ((185, 256), (0, 100)))
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    size = int(random.integers(16, 30))
    font = ImageFont.load_default(size)
    top, margin = int(random.integers(10, 40)), int(random.integers(10, 50))
    while top < height - size - 10:
        # A last line of a paragraph is shorter, and a gap follows it.
        ends = random.random() < 0.2
        room = (width - 2 * margin) * (float(random.uniform(0.2, 0.8)) if ends else 1.0)
        draw.text((margin, top), _line(random, font, room), font=font, fill=ink)
        top += int(size * (2.2 if ends else 1.35))
    page = page.rotate(float(random.uniform(-4, 4)), Image.Resampling.BICUBIC, fillcolor=paper)
    return page.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))


def _line(random: np.random.Generator, font: Any, room: float) -> str:
    letters = [_LETTERS[i] for i in random.integers(0, len(_LETTERS), 120)]
    for at in np.cumsum(random.integers(3, 11, 30)):
        if at < len(letters):
            letters[at] = " "
    line = "".join(letters)
    return line[: int(len(line) * room / font.getlength(line))].strip()


def _to_input(page: Image.Image) -> np.ndarray:
    scale = _RESIZE / min(page.size)
    width, height = (round(side * scale) for side in page.size)
    page = page.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    pixels = np.asarray(page.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    values = (pixels - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])
