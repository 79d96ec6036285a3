"""Lines of text, rendered as pictures from a seed, and how many characters a reader got right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

HEIGHT: Final = 48
LEAST_WIDTH: Final = 320
_WORDS: Final = (
    "account airport answer balance battery Berlin camera caution charger closed credit "
    "current customer danger delivery doctor elevator emergency engine entrance exit floor "
    "Friday garden gravity hospital humidity hundred interest invoice January kilometre "
    "level library London market Monday number October open orange package Paris payment "
    "percent platform pressure purple question receipt savings service seven silver stairs "
    "station street student teacher temperature ticket Tokyo total voltage warehouse "
    "warning window yellow"
)


def make_lines(count: int, seed: int) -> tuple[list[str], list[np.ndarray]]:
    """Return texts, and their pictures as the recogniser takes them: float32 [1, 3, 48, width]."""
    random = np.random.default_rng(seed)
    texts = [_make_text(random) for _ in range(count)]
    return texts, [_to_input(_render(text, random)) for text in texts]


def decode(scores: np.ndarray, characters: Sequence[str]) -> str:
    """Return the text of scores [1, steps, 1 + characters]: greedy, the blank first (CTC)."""
    best = scores[0].argmax(axis=-1)
    fresh = np.diff(best, prepend=-1) != 0
    return "".join(characters[index - 1] for index in best[fresh & (best > 0)])


def character_accuracy(texts: Sequence[str], read: Sequence[str]) -> float:
    """Return 1 - edit distance / characters, over all lines."""
    distance = sum(edit_distance(a, b) for a, b in zip(texts, read, strict=True))
    return 1 - distance / sum(map(len, texts))


def edit_distance(first: str, second: str) -> int:
    """Return the least number of characters to insert, delete and replace."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def _make_text(random: np.random.Generator) -> str:
    words = []
    for _ in range(random.integers(2, 5)):
        word = str(random.choice(_WORDS.split()))
        kind = random.integers(0, 6)
        if kind == 0:
            word = str(random.integers(0, 100_000))
        elif kind == 1:
            word = f"{random.integers(1, 1000)}.{random.integers(0, 100):02d}"
        elif kind == 2:
            word = word.upper()
        words.append(word)
    return " ".join(words)


def _render(text: str, random: np.random.Generator) -> np.ndarray:
    """Draw in Pillow's own font: size, colours, slope, blur and noise differ."""
    size = int(random.integers(18, 44))
    font = ImageFont.load_default(size)
    left, top, right, bottom = map(int, font.getbbox(text))
    pad = int(random.integers(2, 9))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    colours = [tuple(map(int, random.integers(*r, 3))) for r in ((165, 256), (0, 90))]
    paper, ink = colours if random.integers(0, 4) else colours[::-1]
    image = Image.new("RGB", (width, height), paper)
    ImageDraw.Draw(image).text((pad - left, pad - top), text, font=font, fill=ink)
    slope = float(random.uniform(-1.5, 1.5))
    image = image.rotate(slope, resample=Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, size / 24))))
    noise = random.normal(0, float(random.uniform(0, 14)), (height, width, 1))
    return np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8)


def _to_input(picture: np.ndarray) -> Any:
    """Scale to the model's height and -1..1, blue first, zeros on the right."""
    height, width = picture.shape[:2]
    width = max(int(np.ceil(HEIGHT * width / height)), 16)
    scaled = Image.fromarray(picture).resize((width, HEIGHT), Image.Resampling.BILINEAR)
    values = (np.asarray(scaled, np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5
    padded = np.zeros((1, 3, HEIGHT, max(LEAST_WIDTH, -(-width // 8) * 8)), np.float32)
    padded[0, :, :, :width] = values.transpose(2, 0, 1)
    return padded
