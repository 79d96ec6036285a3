"""A bidirectional GRU that tells gestures apart: the factory, its data and its training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
CLASSES = ("speeding up", "slowing down", "steady", "still")


class MotionGRU(nn.Module):
    """Scores [batch, 4] of six-axis signals [batch, time, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, len(CLASSES))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(signal)
        return self.head(states.amax(dim=1))


def make_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the trained network and an example input."""
    model = MotionGRU()
    model.load_state_dict(torch.load(HERE / "motion_gru.pt", weights_only=True))
    return model.eval(), {"signal": torch.zeros(1, 40, 6)}


def make_data(count: int, *, time: int, seed: int):
    """Return noisy signals [count, time, 6] whose frequency rises, falls or stays, and labels."""
    import numpy as np

    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    seconds = np.linspace(0, 1, time)
    slow, fast = random.uniform(2, 4, (count, 1)), random.uniform(8, 10, (count, 1))
    first = np.choose(labels[:, None], [slow, fast, (slow + fast) / 2, slow])
    last = np.choose(labels[:, None], [fast, slow, (slow + fast) / 2, slow])
    phase = 2 * np.pi * (first * seconds + (last - first) * seconds**2 / 2)
    offset = random.uniform(0, 2 * np.pi, (count, 1, 6))
    strength = random.uniform(0.6, 1.4, (count, 1, 6)) * (labels != 3)[:, None, None]
    signals = strength * np.sin(phase[:, :, None] + offset)
    signals += random.normal(0, 0.1, signals.shape)
    return signals.astype("float32"), labels


def train(folder: Path) -> float:
    """Save trained weights into a folder; return the accuracy on other signals."""
    torch.manual_seed(0)
    signals, labels = make_data(768, time=40, seed=0)
    x, y = torch.from_numpy(signals), torch.from_numpy(labels)
    model = MotionGRU()
    epochs, batch = 20, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-2, total_steps=epochs * -(-len(x) // batch)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    torch.save(model.state_dict(), folder / "motion_gru.pt")
    other, answers = make_data(200, time=40, seed=1)
    with torch.inference_mode():
        right = model(torch.from_numpy(other)).argmax(1).numpy() == answers
    return float(right.mean())
