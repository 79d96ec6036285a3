"""Calls end in the engine that they began in, and no engine is closed under a call."""

from __future__ import annotations

import threading

import pytest

from runtime.errors import BadRequest, DeviceError
from runtime.nvidia.switching import STATES, Progress, SwitchingEngine, describe
from tests.unit.runtime.nvidia.simulated_maker import (
    CudaFault,
    SimulatedEngine,
    answer,
    one,
    refusing,
    until,
)


def fallback() -> SimulatedEngine:
    return SimulatedEngine(name="onnxruntime", provider="CPUExecutionProvider", precision="fp32")


def test_everything_told_is_of_the_engine_that_answers() -> None:
    slow, fast = fallback(), SimulatedEngine(version="10.3.0.30", threads=4)
    switch = SwitchingEngine(slow)
    assert (switch.name, switch.provider, switch.precision, switch.state) == (
        "onnxruntime", "CPUExecutionProvider", "fp32", "missing",
    )  # fmt: skip
    assert switch.golden_level is None
    switch.switch(fast, "live", ["a note"])
    assert (switch.name, switch.version, switch.provider, switch.precision, switch.threads) == (
        "tensorrt", "10.3.0.30", "TensorRT", "fp16", 4,
    )  # fmt: skip
    assert switch.golden_level == "gpu"
    assert switch.status() == {
        "wanted": "tensorrt", "state": "live", "fallback": False, "reason": None,
        "notes": ["a note"], "faults": 0, "rescued": 0,
        "engine": {
            "name": "tensorrt", "version": "10.3.0.30", "provider": "TensorRT", "precision": "fp16",
        },
    }  # fmt: skip
    switch.close()
    assert (slow.closed, fast.closed) == (True, True)


def test_a_state_that_is_none_is_refused() -> None:
    switch = SwitchingEngine(fallback())
    for state in STATES:
        switch.tell(state, "why", progress=Progress(0.5, 2.0, "step"))
        assert switch.state == state
    with pytest.raises(ValueError, match="lively"):
        switch.tell("lively")


def test_an_engine_is_closed_only_after_its_last_call() -> None:
    gate = threading.Event()
    old, new = SimulatedEngine(held=gate), SimulatedEngine()
    switch = SwitchingEngine(fallback())
    switch.switch(old, "live")
    answers: list[list[float]] = []
    callers = [threading.Thread(target=lambda: answers.append(answer(switch))) for _ in range(4)]
    for caller in callers:
        caller.start()
    until(lambda: old.inside == 4)
    switch.switch(new, "live")
    closer = threading.Thread(target=switch.close_retired)
    closer.start()
    # new calls go to the new engine while the old ones are still inside
    assert answer(switch) == [3.0, -3.0]
    assert (new.calls, old.inside, old.closed) == (1, 4, False)
    gate.set()
    for thread in (*callers, closer):
        thread.join(60)
    assert answers == [[3.0, -3.0]] * 4
    assert old.closed
    assert old.misuse == []
    switch.close()


def test_many_calls_that_fail_at_once_are_all_answered_and_retire_the_engine_once() -> None:
    retired: list[Exception] = []
    gate = threading.Event()
    broken = SimulatedEngine(held=gate, fault=[CudaFault("lost") for _ in range(8)])
    switch = SwitchingEngine(fallback())
    switch.attach(retired.append, lambda: None)
    switch.switch(broken, "live")
    answers: list[list[float]] = []
    callers = [threading.Thread(target=lambda: answers.append(answer(switch))) for _ in range(8)]
    for caller in callers:
        caller.start()
    until(lambda: broken.inside == 8)
    gate.set()
    for caller in callers:
        caller.join(60)
    assert answers == [[3.0, -3.0]] * 8
    assert [str(fault) for fault in retired] == ["lost"]
    told = switch.status()
    assert (told["state"], told["faults"], told["rescued"]) == ("refused", 8, 8)
    assert told["reason"] == "it failed while it served: lost"
    switch.close()
    assert broken.misuse == []


def test_a_late_failure_of_an_old_engine_does_not_retire_the_new_one() -> None:
    gate = threading.Event()
    old, new = SimulatedEngine(held=gate, fault=[CudaFault("lost")]), SimulatedEngine()
    switch = SwitchingEngine(fallback())
    switch.switch(old, "live")
    answers: list[list[float]] = []
    caller = threading.Thread(target=lambda: answers.append(answer(switch)))
    caller.start()
    until(lambda: old.inside == 1)
    switch.switch(new, "live")
    gate.set()
    caller.join(60)
    assert answers == [[3.0, -3.0]]
    assert (switch.state, switch.name) == ("live", "tensorrt")
    switch.close()


def test_a_request_that_the_engine_refuses_is_not_sent_to_the_fallback() -> None:
    slow = fallback()
    switch = SwitchingEngine(slow)
    switch.switch(SimulatedEngine(fault=[BadRequest("no profile covers x [64, 2]")]), "live")
    with pytest.raises(BadRequest, match="no profile covers"):
        switch.run(one())
    assert (slow.calls, switch.state) == (0, "live")
    switch.close()


def test_a_fallback_that_fails_is_told_as_it_is() -> None:
    slow = fallback()
    slow.fault.append(refusing("no such thing"))
    switch = SwitchingEngine(slow)
    with pytest.raises(DeviceError, match="no such thing"):
        switch.run(one())
    assert switch.faults == 0
    switch.close()


def test_an_engine_that_comes_after_the_close_is_closed_and_not_used() -> None:
    ended: list[int] = []
    switch = SwitchingEngine(fallback())
    switch.attach(lambda _: None, lambda: ended.append(1))
    switch.close()
    late = SimulatedEngine()
    switch.switch(late, "live")
    assert late.closed
    assert switch.name == "onnxruntime"
    switch.close()
    assert ended == [1, 1]


def test_a_call_that_hangs_in_a_gpu_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.nvidia.switching.CLOSE_S", 0.01)
    gate = threading.Event()
    hung, slow = SimulatedEngine(held=gate), fallback()
    switch = SwitchingEngine(slow)
    switch.switch(hung, "live")
    caller = threading.Thread(target=switch.run, args=(one(),))
    caller.start()
    until(lambda: hung.inside == 1)
    switch.close()
    assert (hung.closed, slow.closed) == (False, True)
    gate.set()
    caller.join(60)


def test_a_failure_is_told_with_what_helps() -> None:
    assert describe(DeviceError("out of memory", hint="close others")) == (
        "out of memory (close others)"
    )
    assert describe(RuntimeError("odd")) == "RuntimeError: odd"
