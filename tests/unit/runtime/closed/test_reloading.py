"""Files that change are read again, once they are quiet; bad ones change nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.closed.reloading import Reloading
from runtime.errors import UsageFault
from runtime.logs import SENTENCES

if TYPE_CHECKING:
    from pathlib import Path


class World:
    """Two files that belong together, as certificate and key do."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "a", folder / "b"]
        self.used: list[str] = []
        self.said: list[str] = []
        self.loads = 0
        self.write(0, "1")
        self.write(1, "1")
        self.reloading = Reloading(
            "pair", [str(path) for path in self.paths], self.load, self.used.append,
            self.say,
        )  # fmt: skip

    def say(self, name: str, **fields: str) -> None:
        self.said.append(SENTENCES[name] % fields)

    def write(self, index: int, text: str) -> None:
        """Put a new file in place, as those who renew certificates do."""
        fresh = self.paths[index].with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.paths[index])

    def load(self) -> str:
        self.loads += 1
        first, second = (path.read_text() for path in self.paths)
        if first != second:
            raise UsageFault("they do not fit")
        return first


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def look(world: World, times: int = 3) -> None:
    for _ in range(times):
        world.reloading.look()


def test_files_that_stay_are_read_once(world: World) -> None:
    look(world, 5)
    assert (world.loads, world.used, world.said) == (1, [], [])
    assert world.reloading.value == "1"


def test_what_changed_is_used_and_told(world: World) -> None:
    world.write(0, "2")
    world.write(1, "2")
    look(world)
    assert (world.used, world.said) == (["2"], ["reloaded pair"])
    assert world.reloading.value == "2"


def test_half_a_change_is_waited_for(world: World) -> None:
    world.write(0, "2")
    look(world, 1)
    world.write(1, "2")
    look(world, 3)
    assert (world.used, world.said) == (["2"], ["reloaded pair"])


def test_a_bad_file_keeps_the_old_and_is_told_once(world: World) -> None:
    world.write(0, "bad")
    look(world, 5)
    assert (world.used, world.said) == ([], ["kept the old pair: they do not fit"])
    assert world.reloading.value == "1"
    world.write(0, "3")
    world.write(1, "3")
    look(world)
    assert world.used == ["3"]


def test_a_signal_reads_at_once_and_tries_bad_files_again(world: World) -> None:
    world.reloading.reload()
    assert (world.used, world.loads) == (["1"], 2)
    world.write(0, "bad")
    world.reloading.reload()
    world.reloading.reload()
    assert world.said[-2:] == ["kept the old pair: they do not fit"] * 2
    look(world)
    assert world.loads == 4


def test_a_file_whose_mode_is_mended_is_read_again(world: World) -> None:
    for mode in (0o666, 0o600):
        loads = world.loads
        world.paths[1].chmod(mode)
        world.reloading.look()
        world.reloading.look()
        assert world.loads == loads + 1


def test_a_link_that_is_switched_is_a_change(tmp_path: Path, world: World) -> None:
    # as Kubernetes renews a mounted secret
    other = tmp_path / "other"
    other.write_text("2")
    os.utime(other, ns=(1, world.paths[0].stat().st_mtime_ns))
    for path in world.paths:
        path.unlink()
        path.symlink_to(other)
    look(world)
    assert world.used == ["2"]


def test_a_first_file_that_is_bad_is_a_fault(tmp_path: Path) -> None:
    def load() -> str:
        raise UsageFault("no good")

    with pytest.raises(UsageFault, match="no good"):
        Reloading("pair", [str(tmp_path / "none")], load, print, print)
