"""From missing to live, and what happens where building, loading, checking or running fails."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import DeviceError, InputOutputFault
from runtime.nvidia import fingerprint
from runtime.nvidia.making import Carried
from tests.unit.runtime.nvidia.simulated_maker import (
    FACTS,
    CudaFault,
    Machine,
    SimulatedEngine,
    SimulatedMaker,
    answer,
    double_release,
    make_machine,
    one,
    refusing,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.runtime.live_server import OpenRelease

KEY = fingerprint.digest(FACTS)
RIGHT = [3.0, -3.0]


@pytest.fixture
def release(tmp_path: Path) -> OpenRelease:
    (tmp_path / "release").mkdir()
    return double_release(tmp_path / "release", tmp_path / "no-library.so")


@pytest.fixture
def machine(tmp_path: Path, release: OpenRelease) -> Iterator[Callable[..., Machine]]:
    """Return what starts a machine on the one store of this test; each start closes the last."""
    made: list[Machine] = []

    def make(*, started: bool = True, **options: Any) -> Machine:
        if made:
            made[-1].switch.close()
        maker_fields = {
            name: options.pop(name) for name in list(options) if hasattr(SimulatedMaker(), name)
        }
        found = make_machine(tmp_path / "store", release, SimulatedMaker(**maker_fields), **options)
        made.append(found)
        if started:
            found.life.start()
        return found

    yield make
    for each in made:
        each.switch.close()
        assert [engine.misuse for engine in each.maker.engines if engine.misuse] == []
        assert all(engine.closed for engine in each.maker.engines)


def test_the_fallback_answers_while_an_engine_is_built_and_says_so(
    machine: Callable[..., Machine],
) -> None:
    gate = threading.Event()
    found = machine(gate=gate)
    until(lambda: found.switch.progress)
    told = found.switch.status()
    assert told["state"] == "building"
    assert told["fallback"] is True
    assert told["engine"]["name"] == "onnxruntime"
    assert told["reason"] == "there is no engine for this device yet"
    assert (told["progress"], told["seconds_left"]) == (0.25, 30.0)
    assert answer(found.switch) == RIGHT
    gate.set()
    until(lambda: found.switch.state == "live")
    told = found.switch.status()
    assert (told["engine"]["name"], told["fallback"], told["reason"]) == ("tensorrt", False, None)
    assert "progress" not in told
    before = found.fallback.calls
    assert answer(found.switch) == RIGHT
    assert found.fallback.calls == before


def test_a_kept_engine_is_loaded_and_checked_only_once(machine: Callable[..., Machine]) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    checked = first.store.checked(KEY, first.store.entry(KEY)["sha256"])
    assert checked["min_cosine"] == pytest.approx(1.0)
    assert (checked["engine_ms"], checked["fallback_ms"]) == (1.0, 10.0)
    again = machine()
    until(lambda: again.switch.state == "live")
    assert (again.maker.builds, again.maker.loads) == (0, 1)
    assert again.maker.engines[0].calls == 0
    assert again.fallback.calls == 0


def test_wrong_answers_are_refused_and_the_engine_is_never_built_again(
    machine: Callable[..., Machine],
) -> None:
    found = machine(offset=7.0)
    until(lambda: found.switch.state == "refused")
    assert found.switch.reason.startswith(
        "the engine is not used: it answers otherwise than recorded: golden sample 0, output `y`"
    )
    assert answer(found.switch) == RIGHT
    until(lambda: found.maker.engines[0].closed)
    assert found.store.find(KEY) is None
    again = machine()
    until(lambda: again.switch.state == "refused")
    assert (again.switch.reason, again.maker.builds) == (found.switch.reason, 0)
    # something hard has changed: another engine, another try
    other = machine(hard={**FACTS, "version": "10.7.0.23"})
    until(lambda: other.switch.state == "live")
    # or the user asks
    asked = machine(retune=True)
    until(lambda: asked.switch.state == "live")
    assert asked.maker.builds == 1


def test_an_engine_slower_than_the_fallback_is_refused_with_both_times(
    machine: Callable[..., Machine],
) -> None:
    found = machine(started=False)
    found.maker.make = lambda **fields: SimulatedEngine(takes=found.clock.go(0.02), **fields)
    found.life.start()
    until(lambda: found.switch.state == "refused")
    assert found.switch.reason == (
        "the engine is not used: it takes 20 ms for a call, and onnxruntime takes 10 ms"
    )
    assert found.store.rejected(KEY) == found.switch.reason


def test_a_bundle_without_golden_samples_uses_no_engine(
    machine: Callable[..., Machine], release: OpenRelease
) -> None:
    release.manifest["golden"]["samples"] = 0
    found = machine()
    until(lambda: found.switch.state == "refused")
    assert "carries no golden sample to check an engine with" in found.switch.reason


def test_a_build_that_fails_is_tried_again_a_bounded_number_of_times(
    machine: Callable[..., Machine],
) -> None:
    faults = [refusing(f"the builder ended by SIGKILL ({n})") for n in range(9)]
    found = machine(build_faults=faults)
    until(lambda: found.switch.state == "refused")
    assert found.maker.builds == 3
    assert found.switch.reason == "3 tries failed, the last one: the builder ended by SIGKILL (2)"
    assert answer(found.switch) == RIGHT
    again = machine()
    until(lambda: again.switch.state == "refused")
    assert again.maker.builds == 0


def test_failed_builds_are_counted_over_starts(machine: Callable[..., Machine]) -> None:
    gate = threading.Event()
    found = machine(build_faults=[refusing("out of memory"), refusing("out of memory")])
    until(lambda: found.switch.state == "live")
    assert found.maker.builds == 3
    other = {**FACTS, "precision": "int8-static"}
    # the first process ends during the pause after its first failure
    held = machine(hard=other, build_faults=[refusing("one")], started=False)
    held.life._policy = held.life._policy._replace(build_pauses_s=(3600.0, 3600.0))
    held.life.start()
    until(lambda: held.switch.state == "missing" and held.switch.reason)
    assert held.switch.reason == "the build failed: one; it is tried again in 3600 s"
    last = machine(hard=other, build_faults=[refusing("two"), refusing("three")], gate=gate)
    gate.set()
    until(lambda: last.switch.state == "refused")
    assert last.switch.reason == "3 tries failed, the last one: three"


def test_a_full_disk_says_nothing_against_the_engine(machine: Callable[..., Machine]) -> None:
    full = [InputOutputFault("engines cannot be kept: no space left on device")] * 3
    found = machine(build_faults=full)
    until(lambda: found.switch.state == "refused")
    assert "no space left on device" in found.switch.reason
    assert found.store.rejected(KEY) is None
    again = machine()
    until(lambda: again.switch.state == "live")


@pytest.mark.parametrize(
    "fault", [CudaFault("cudaErrorMemoryAllocation: out of memory"), RuntimeError("vendor")]
)
def test_a_call_that_fails_in_the_engine_is_answered_by_the_fallback(
    machine: Callable[..., Machine], fault: Exception
) -> None:
    found = machine(started=False)
    found.life._policy = found.life._policy._replace(load_pauses_s=(3600.0,))
    found.life.start()
    until(lambda: found.switch.state == "live")
    broken = found.maker.engines[0]
    broken.fault.append(fault)
    assert answer(found.switch) == RIGHT
    until(lambda: broken.closed)
    until(lambda: "tried again" in (found.switch.reason or ""))
    told = found.switch.status()
    assert (told["state"], told["engine"]["name"]) == ("refused", "onnxruntime")
    assert told["reason"].startswith("it failed while it served: ")
    assert str(fault) in told["reason"]
    assert (told["faults"], told["rescued"]) == (1, 1)


def test_a_failed_engine_is_loaded_and_checked_again_a_bounded_number_of_times(
    machine: Callable[..., Machine],
) -> None:
    found = machine()
    for number in range(3):
        until(lambda: found.switch.state == "live")
        engine = found.maker.engines[-1]
        assert len(found.maker.engines) == number + 1
        engine.fault.append(CudaFault("cudaErrorIllegalAddress"))
        assert answer(found.switch) == RIGHT
        until(lambda: engine.closed)  # noqa: B023 - called in this turn
    until(lambda: found.switch.state == "live")
    assert found.maker.engines[-1].calls == 2  # the golden samples, and no timing
    found.maker.engines[-1].fault.append(CudaFault("cudaErrorIllegalAddress"))
    assert answer(found.switch) == RIGHT
    until(lambda: "failed 4 times" in (found.switch.reason or ""))
    assert "start the server again" in found.switch.reason
    assert found.maker.builds == 1
    # the next process begins with none
    again = machine()
    until(lambda: again.switch.state == "live")


def test_an_engine_that_served_for_long_begins_with_no_failures_again(
    machine: Callable[..., Machine],
) -> None:
    found = machine()
    for _ in range(6):
        until(lambda: found.switch.state == "live")
        found.clock.now += 4000.0
        engine = found.maker.engines[-1]
        engine.fault.append(CudaFault("cudaErrorMemoryAllocation"))
        assert answer(found.switch) == RIGHT
        until(lambda: engine.closed)  # noqa: B023 - called in this turn
    until(lambda: found.switch.state == "live")


def test_what_the_fallback_refuses_as_well_is_the_requests_fault(
    machine: Callable[..., Machine],
) -> None:
    found = machine()
    until(lambda: found.switch.state == "live")
    found.maker.engines[0].fault.append(CudaFault("engine"))
    found.fallback.fault.append(refusing("fallback"))
    with pytest.raises(DeviceError, match="fallback"):
        found.switch.run(one())
    assert found.switch.state == "live"
    assert answer(found.switch) == RIGHT


def test_an_accepted_engine_that_does_not_load_is_kept_for_the_next_try(
    machine: Callable[..., Machine],
) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    found = machine(load_faults=[CudaFault("cudaErrorDevicesUnavailable")])
    until(lambda: found.switch.state == "live")
    assert (found.maker.builds, found.maker.loads) == (0, 2)


@pytest.mark.parametrize(("count", "builds"), [(1, 1), (2, 2)])
def test_a_new_engine_that_does_not_load_twice_is_built_again(
    machine: Callable[..., Machine], count: int, builds: int
) -> None:
    found = machine(load_faults=[CudaFault("cudaErrorMemoryAllocation") for _ in range(count)])
    until(lambda: found.switch.state == "live")
    assert (found.maker.builds, found.maker.loads) == (builds, count + 1)


def test_a_golden_sample_that_fails_in_a_new_engine_counts_against_its_build(
    machine: Callable[..., Machine],
) -> None:
    found = machine(started=False)
    found.maker.make = lambda **fields: SimulatedEngine(
        fault=[CudaFault("cudaErrorLaunchFailure")], **fields
    )
    found.life.start()
    until(lambda: found.switch.state == "refused")
    assert found.switch.reason == (
        "3 tries failed, the last one: it fails on a golden sample: cudaErrorLaunchFailure"
    )


def test_another_power_mode_keeps_the_engine_and_is_told(machine: Callable[..., Machine]) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    here = {**first.maker.soft_here, "power_mode": "MAXN", "driver": "550.1"}
    found = machine(soft_here=here)
    until(lambda: found.switch.state == "stale")
    told = found.switch.status()
    assert (told["engine"]["name"], told["fallback"]) == ("tensorrt", False)
    assert told["notes"] == [
        "the engine was tuned under driver 540.4.0, and this is 550.1",
        "the engine was tuned in power mode `15W`, and the device is in `MAXN`",
    ]
    assert found.maker.builds == 0
    assert found.maker.engines[0].calls == 2  # checked under the new driver, not timed
    # that check is remembered, and it stays stale until a new one is asked for
    again = machine(soft_here=here)
    until(lambda: again.switch.state == "stale")
    assert again.maker.engines[0].calls == 0
    asked = machine(soft_here=here, retune=True)
    until(lambda: asked.switch.state == "live")
    assert asked.maker.builds == 1
    assert asked.maker.timing_caches == [None]  # with the old timings nothing would be tuned anew
    until(lambda: asked.maker.engines[0].closed)
    assert asked.switch.status()["notes"] == []


def test_an_engine_that_answers_wrongly_under_a_new_driver_is_built_again(
    machine: Callable[..., Machine],
) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    found = machine(soft_here={**first.maker.soft_here, "driver": "550.1"}, started=False)
    plain = found.maker.make
    found.maker.make = lambda **fields: plain(
        **{**fields, "offset": 0.0 if found.maker.builds else 9.0}
    )
    found.life.start()
    until(lambda: found.switch.state == "live")
    assert (found.maker.builds, found.maker.loads) == (1, 2)


def test_another_tensorrt_is_one_sentence_and_a_rebuild(machine: Callable[..., Machine]) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    gate = threading.Event()
    found = machine(hard={**FACTS, "version": "10.7.0.23"}, gate=gate)
    until(lambda: found.switch.progress)
    assert found.switch.reason == (
        "the engine was built with TensorRT 10.3.0.30, and this device has TensorRT 10.7.0.23"
    )
    assert found.maker.timing_caches == [None]  # of another TensorRT
    gate.set()
    until(lambda: found.switch.state == "live")
    # the way back needs no build
    back = machine()
    until(lambda: back.switch.state == "live")
    assert back.maker.builds == 0


def test_another_build_starts_from_the_timings_of_the_last(machine: Callable[..., Machine]) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    found = machine(hard={**FACTS, "profiles": []})
    until(lambda: found.switch.state == "live")
    assert found.maker.timing_caches[0].endswith(".timing")


def test_an_engine_damaged_on_the_disk_is_removed_and_built_again(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    first = machine()
    until(lambda: first.switch.state == "live")
    first.switch.close()
    (file,) = (tmp_path / "store" / KEY).glob("*.engine")
    file.write_bytes(file.read_bytes()[:-1])
    found = machine()
    until(lambda: found.switch.state == "live")
    assert found.maker.builds == 1
    (note,) = found.switch.status()["notes"]
    assert note.startswith(f"the kept engine {KEY[:12]}… was damaged and is removed: its file has ")


def test_an_engine_of_the_bundle_is_used_without_a_build(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    file = tmp_path / "carried.engine"
    file.write_bytes(b'{"offset": 0.0}')
    found = machine(in_bundle=Carried(str(file), "c" * 64, {}))
    until(lambda: found.switch.state == "live")
    assert (found.maker.builds, found.maker.loads) == (0, 1)
    found = machine(in_bundle=Carried(str(file), "c" * 64, {}))
    until(lambda: found.switch.state == "live")
    assert found.maker.engines[0].calls == 0  # checked before


def test_an_engine_of_the_bundle_that_does_not_load_is_replaced_by_an_own_one(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    file = tmp_path / "carried.engine"
    file.write_bytes(b'{"offset": 0.0}')
    found = machine(
        in_bundle=Carried(str(file), "c" * 64, {}), load_faults=[CudaFault("incompatible device")]
    )
    until(lambda: found.switch.state == "live")
    assert found.maker.builds == 1
    assert found.switch.status()["notes"] == [
        "the bundle's own engine is not used: incompatible device"
    ]


def test_a_device_without_tensorrt_says_why_no_engine_is_built(
    machine: Callable[..., Machine],
) -> None:
    missing = DeviceError("TensorRT is not installed", hint="sudo apt-get install nvidia-tensorrt")
    found = machine(missing=missing)
    until(lambda: found.switch.reason)
    assert found.switch.state == "missing"
    assert found.switch.reason == (
        "TensorRT is not installed (sudo apt-get install nvidia-tensorrt)"
    )
    assert answer(found.switch) == RIGHT


def test_a_shutdown_during_a_build_ends_it(machine: Callable[..., Machine]) -> None:
    found = machine(gate=threading.Event())
    assert found.maker.begun.wait(60)
    found.switch.close()
    assert found.maker.ended.is_set()
    assert found.store.find(KEY) is None
    assert found.fallback.closed
    # nothing is held against the engine
    again = machine()
    until(lambda: again.switch.state == "live")


def test_processes_that_end_while_they_check_an_engine_reject_it(
    machine: Callable[..., Machine],
) -> None:
    store = machine(started=False).store
    for _ in range(2):
        store.count(KEY, "unfinished_starts")
    found = machine()
    until(lambda: found.switch.state == "refused")
    assert found.switch.reason == "2 processes ended while they checked the engine"
    assert found.maker.loads == 0


def test_two_processes_do_not_build_the_same_engine(
    machine: Callable[..., Machine], tmp_path: Path, release: OpenRelease
) -> None:
    gate = threading.Event()
    first = machine(gate=gate)
    assert first.maker.begun.wait(60)
    second = make_machine(tmp_path / "store", release, SimulatedMaker())
    second.life.start()
    until(lambda: second.switch.reason == "another process is building it")
    assert second.switch.state == "building"
    gate.set()
    until(lambda: first.switch.state == "live" and second.switch.state == "live")
    assert (first.maker.builds, second.maker.builds) == (1, 0)
    second.switch.close()


def test_without_serving_a_kept_engine_is_used_and_none_is_built(
    machine: Callable[..., Machine],
) -> None:
    found = machine(started=False)
    found.life.load_kept()
    assert found.switch.state == "missing"
    assert found.switch.reason == "no engine was built for this device; `serve` builds it"
    served = machine()
    until(lambda: served.switch.state == "live")
    again = machine(started=False)
    again.life.load_kept()
    assert (again.switch.state, again.switch.name) == ("live", "tensorrt")
    broken = machine(started=False, load_faults=[CudaFault("cudaErrorNoDevice")])
    broken.life.load_kept()
    assert (broken.switch.state, broken.switch.reason) == ("refused", "cudaErrorNoDevice")
    assert answer(broken.switch) == RIGHT
