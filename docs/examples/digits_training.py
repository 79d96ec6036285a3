"""The worked example of compression that trains: a small network that reads handwritten digits.

    pip install 'edgepack[train]' scikit-learn
    edgepack build docs/examples/digits_training.py:make_model

The recipe beside this file, `digits_training.toml`, asks for half of the parameters to go.
`fine_tune` is the hook: it trains what is left. The data are the 1,797 digits that come with
scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCHS = 8
BATCH = 64


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
        """Return the scores."""
        return self.head(self.features(x).flatten(1))


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 1,437 images and labels to train on, and 360 that are held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return tuple(torch.from_numpy(part) for part in (train_x, train_y, test_x, test_y))


def make_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Train the network, which takes two seconds, and return it with an example input.

    A factory has to make the same model each time: here the seed does it, elsewhere a file of
    weights.
    """
    torch.manual_seed(0)
    model = DigitsCNN()
    images, labels, _, _ = load_data()
    for _ in epochs(model, images, labels, count=EPOCHS, peak=1e-2):
        pass
    return model.eval(), {"x": torch.zeros(1, 1, 8, 8)}


def fine_tune(module: nn.Module, session: Any) -> None:
    """Train the module in place: this is the hook of the recipe.

    The labels say what is right, and the teacher (the original) how near the other digits are.
    """
    images, labels, _, _ = load_data()
    peak = 1e-3 if "qat" in session.variant else 5e-3
    total = 3 * EPOCHS
    for done, loss in epochs(module, images, labels, count=total, peak=peak, session=session):
        session.step(loss, done=done, total=total)
        if session.time_left_s() == 0:
            session.log(f"stopped after {done} epochs")
            break


def epochs(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    count: int,
    peak: float,
    session: Any = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Train epoch by epoch; yield how many are done and the last loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers lose time between threads, and sums keep their order
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=count * -(-len(images) // BATCH)
    )
    for done in range(1, count + 1):
        module.train()
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            scores = module(images[rows])
            loss = nn.functional.cross_entropy(scores, labels[rows])
            if session is not None and session.teacher is not None:
                loss = loss + session.distill_loss(scores, session.teacher(images[rows]))
            loss.backward()
            optimizer.step()
            schedule.step()
        yield done, loss
    torch.set_num_threads(threads)


def make_student() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return another, smaller network that has learned nothing yet."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 10)), {"x": torch.zeros(1, 1, 8, 8)}


def calibration() -> Iterator[dict[str, Any]]:
    """Yield 128 of the images that were trained on."""
    images, _, _, _ = load_data()
    for image in images[:128]:
        yield {"x": image[None].numpy()}


def held_out() -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the images that were held out, each with its label."""
    _, _, images, labels = load_data()
    for image, label in zip(images, labels, strict=True):
        yield {"x": image[None].numpy()}, int(label)
