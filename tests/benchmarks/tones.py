"""Music made up from a seed: notes with overtones that begin, fade and overlap."""

from __future__ import annotations

from typing import Final

import numpy as np

RATE_HZ: Final = 22050
SAMPLES: Final = 43844
_SECONDS: Final = SAMPLES / RATE_HZ


def make_tones(count: int, seed: int) -> list[np.ndarray]:
    """Return windows of two seconds: float32 [1, 43844, 1], within -1..1."""
    random = np.random.default_rng(seed)
    return [_window(random)[None, :, None] for _ in range(count)]


def _window(random: np.random.Generator) -> np.ndarray:
    time = np.arange(SAMPLES) / RATE_HZ
    sound = np.zeros(SAMPLES)
    for _ in range(random.integers(1, 7)):
        frequency = 440.0 * 2 ** ((int(random.integers(36, 85)) - 69) / 12)
        start, length = random.uniform(0, _SECONDS - 0.3), random.uniform(0.2, 1.5)
        age = time - start
        sounding = (age > 0) & (age < length)
        # The attack takes some milliseconds, then the note fades.
        loud = np.where(
            sounding, np.minimum(age / 0.008, 1) * np.exp(-age * random.uniform(1, 5)), 0
        )
        steep = random.uniform(0.8, 2.2)
        for overtone in range(1, 9):
            if frequency * overtone < RATE_HZ / 2:
                phase = random.uniform(0, 2 * np.pi)
                wave = np.sin(2 * np.pi * frequency * overtone * time + phase)
                sound += loud * wave / overtone**steep
    sound += random.normal(0, random.uniform(0, 0.01), SAMPLES)
    return (sound / max(float(np.abs(sound).max()), 1e-6) * random.uniform(0.2, 0.9)).astype(
        np.float32
    )
