"""Imports for these tests: one call, in a folder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from packager.importers.load import import_model
from packager.importers.request import ImportLimits
from packager.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from packager.model import Model


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        pass


class Importing(Protocol):
    def __call__(self, word: str | Path, **recipe: Any) -> Model: ...


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def importing(workdir: Path) -> Importing:
    """Return a function that imports a word with recipe keys, under short time limits."""

    def call(word: str | Path, *, limits: ImportLimits | None = None, **recipe: Any) -> Model:
        return import_model(
            Recipe(model=str(word), name="tested", **recipe),
            workdir=workdir,
            reporter=Notes(),
            limits=limits or ImportLimits(probe_s=20, onnx_wall_s=120, torch_wall_s=280),
        )

    return call
