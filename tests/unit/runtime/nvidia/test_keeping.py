"""Compiled kernels are written soon after new shapes came, and never beside a running call."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from runtime.nvidia import adapter
from runtime.nvidia.keeping import Keeper
from tests.unit.runtime.nvidia.test_adapter import doubled, floats, rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.runtime.nvidia.conftest import StandinGpu

QUICK = (0.01, 0.01)


class Counted:
    """Counts calls; `after(n)` waits for the nth."""

    def __init__(self) -> None:
        self.calls = 0
        self.changed = threading.Condition()

    def __call__(self) -> None:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()

    def after(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.calls >= count, 60)


def test_news_are_saved_once_soon_and_once_later() -> None:
    save = Counted()
    keeper = Keeper(save, QUICK)
    keeper.note()
    assert save.after(2)
    keeper.note()
    assert save.after(4)
    keeper.close()
    assert save.calls == 4


def test_without_news_nothing_is_saved_and_no_thread_started() -> None:
    before = threading.active_count()
    keeper = Keeper(Counted(), QUICK)
    assert threading.active_count() == before
    keeper.close()
    keeper.note()
    assert threading.active_count() == before


def test_news_that_never_end_do_not_keep_it_from_saving() -> None:
    save = Counted()
    keeper = Keeper(save, (0.01, 3600.0))
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(0.001):
            keeper.note()

    teller = threading.Thread(target=tell)
    teller.start()
    assert save.after(5)
    stop.set()
    teller.join()
    keeper.close()


def test_closing_ends_a_long_pause_at_once() -> None:
    save = Counted()
    keeper = Keeper(save, (0.0, 3600.0))
    keeper.note()
    assert save.after(1)
    keeper.close()
    assert save.calls == 1


def test_what_fails_to_be_saved_ends_the_keeper_and_nothing_else() -> None:
    def fail() -> None:
        raise RuntimeError("the vendor's library")

    keeper = Keeper(fail, QUICK)
    keeper.note()
    keeper.close()


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Let engines save at once, and tell when they did."""
    told = Counted()

    class Told(Keeper):
        def __init__(self, save: Callable[[], None]) -> None:
            super().__init__(lambda: (save(), told())[1], QUICK)

    monkeypatch.setattr(adapter, "Keeper", Told)
    return told


def test_an_engine_writes_its_kernels_while_it_serves(
    make_gpu: Callable[..., StandinGpu], tmp_path: Path, saved: Counted
) -> None:
    kept = tmp_path / "engine.cache"
    engine = make_gpu(version="1.7.1.116", rtx=True).open(runtime_cache=str(kept))
    assert not kept.exists()
    assert floats(engine.run({"x": rows(4, 1)})["y"]) == doubled(rows(4, 1))
    assert saved.after(2)
    # As if the process were killed now: nothing has been closed.
    assert kept.read_bytes() == b"cache:kernels"
    assert not list(tmp_path.glob(".cache-*"))
    engine.close()


def test_kernels_are_read_while_no_call_runs_and_calls_go_on_after(
    make_gpu: Callable[..., StandinGpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_gpu(version="1.7.1.116", rtx=True).open(
        runtime_cache=str(tmp_path / "engine.cache"), workers=2
    )
    inside: list[int] = []
    reading, go_on = threading.Event(), threading.Event()
    kernels = engine._contexts.kernels

    def slowly() -> bytes:
        inside.append(engine._active)
        reading.set()
        assert go_on.wait(60)
        return kernels()

    monkeypatch.setattr(engine._contexts, "kernels", slowly)
    saver = threading.Thread(target=engine.save_runtime_cache)
    saver.start()
    assert reading.wait(60)
    answers: list[object] = []
    callers = [
        threading.Thread(target=lambda: answers.append(engine.run({"x": rows(1)})))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    assert answers == []
    go_on.set()
    for thread in (saver, *callers):
        thread.join(60)
    assert len(answers) == 3
    assert inside == [0]
    engine.close()


def test_plain_tensorrt_has_no_kernels_to_keep(make_gpu: Callable[..., StandinGpu]) -> None:
    engine = make_gpu().open()
    assert engine._keeper is None
    engine.save_runtime_cache()
    engine.close()
