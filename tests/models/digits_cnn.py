"""A small convolutional network for scikit-learn's 8×8 digits: the factory, and its training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent


class DigitsCNN(nn.Module):
    """Scores [batch, 10] of images [batch, 1, 8, 8] with values in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def make_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the trained network and an example input."""
    model = DigitsCNN()
    model.load_state_dict(torch.load(HERE / "digits_cnn.pt", weights_only=True))
    return model.eval(), {"x": torch.zeros(1, 1, 8, 8)}


def load_data():
    """Return images and labels to train on, then those held out: 1437 and 360 of them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return train_x, train_y, test_x, test_y


def train(folder: Path) -> float:
    """Save trained weights into a folder; return the accuracy on the images held out."""
    torch.manual_seed(0)
    train_x, train_y, test_x, test_y = load_data()
    x, y = torch.from_numpy(train_x), torch.from_numpy(train_y)
    model = DigitsCNN()
    epochs, batch = 8, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=epochs * -(-len(x) // batch)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    torch.save(model.state_dict(), folder / "digits_cnn.pt")
    with torch.inference_mode():
        right = model(torch.from_numpy(test_x)).argmax(1).numpy() == test_y
    return float(right.mean())
