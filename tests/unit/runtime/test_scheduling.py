from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import scheduling
from runtime.batching import Batching
from runtime.core import Inference, InferRequest
from runtime.errors import BadRequest, Busy, ModelFault, TooLate
from runtime.jobs import Task, perform
from runtime.loop import Loop
from runtime.metrics import Metrics
from runtime.scheduling import Scheduler
from runtime.signature import Signature
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = {"name": "rows", "min": 1, "max": 64, "opt": 1}
SIGNATURE = Signature(
    {
        "inputs": [{"name": "x", "dtype": "uint8", "shape": [ROWS, 2]}],
        "outputs": [{"name": "y", "dtype": "uint8", "shape": [ROWS, 2]}],
    }
)


class Doubling:
    """Doubles every byte; waits at its gate, and fails where a byte is 13."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def run(self, feeds: Any, outputs: Any = None) -> dict[str, Tensor]:
        del outputs
        assert self.gate.wait(20)
        x = feeds["x"]
        self.batches.append(x.shape[0])
        if 13 in bytes(x.data):
            raise ModelFault("it is 13")
        return {"y": Tensor("uint8", x.shape, bytes(2 * value % 256 for value in bytes(x.data)))}


class Bench:
    """A loop, a scheduler and what came of each request."""

    def __init__(self, engine: Doubling, **options: Any) -> None:
        self.loop = Loop()
        self.metrics = Metrics(dict)
        self.inference = Inference(SIGNATURE, engine, name="double", version="1")
        batching = None
        if options.pop("batched", False):
            batching = Batching(self.inference, options.pop("max_rows", 8))
        settings = {"workers": 1, "queue": 4, **options}
        self.scheduler = Scheduler(self.loop, metrics=self.metrics, batching=batching, **settings)
        self.answers: dict[str, Any] = {}
        self.task = Task(_decode, self.inference.run, _encode, lambda error: error)

    def ask(self, name: str, body: bytes, **options: Any) -> Any:
        def done(answer: Any) -> None:
            self.answers[name] = answer

        return self.scheduler.submit(self.task, body, route="infer", done=done, **options)

    def turn(self, is_over: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 20
        self.loop.run(lambda: is_over() or time.monotonic() > give_up_at, lambda: None, 0.01)
        assert is_over()


def _decode(body: bytes) -> InferRequest:
    if len(body) % 2:
        raise BadRequest("an odd number of bytes")
    return InferRequest({"x": Tensor("uint8", (len(body) // 2, 2), body)})


def _encode(_: InferRequest, results: dict[str, Tensor]) -> bytes:
    return bytes(results["y"].data)


@pytest.fixture
def engine() -> Doubling:
    return Doubling()


@pytest.fixture
def make_bench(engine: Doubling) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(engine, **options))
        return made[-1]

    yield make
    engine.gate.set()
    for bench in made:
        bench.scheduler.close(5)
        bench.loop.close()


def test_an_answer_comes_back_in_the_loop(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.ask("a", b"\1\2")
    bench.turn(lambda: "a" in bench.answers)
    assert bench.answers == {"a": b"\2\4"}
    assert bench.metrics.in_flight == 0


def test_what_turns_out_quick_is_answered_at_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    assert bench.ask("second", b"\3\4") is None
    assert bench.answers["second"] == b"\6\10"


class Steps:
    """Notes what is done with requests, in order."""

    def __init__(self, bench: Bench) -> None:
        self.taken: list[str] = []
        task = bench.task
        self.task = task._replace(
            decode=lambda body: self._note("decode", body[0]) or task.decode(body),
            run=lambda request, caller: (
                self._note("run", request.feeds["x"].data[0]) or task.run(request, caller)
            ),
            encode=lambda request, results: (
                self._note("encode", request.feeds["x"].data[0]) or task.encode(request, results)
            ),
        )

    def _note(self, what: str, number: int) -> None:
        self.taken.append(f"{what} {number}")


def ready_together(bench: Bench, asks: list[Callable[[], Any]]) -> list[Any]:
    """Have requests come in one round of the loop, each on a descriptor of its own."""
    returned = []
    for ask in asks:
        inward, outward = os.pipe()

        def take(_: int, ask: Callable[[], Any] = ask, ends: Any = (inward, outward)) -> None:
            bench.loop.unwatch(ends[0])
            for end in ends:
                os.close(end)
            returned.append(ask())

        bench.loop.watch(inward, select.EPOLLIN, take)
        os.write(outward, b"x")
    bench.turn(lambda: len(returned) == len(asks))
    return returned


def test_quick_requests_of_one_round_go_through_each_step_together(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    steps = Steps(bench)
    bench.task = steps.task
    ready_together(bench, [lambda n=n: bench.ask(str(n), bytes([n, 0])) for n in range(10)])
    bench.turn(lambda: len(bench.answers) == 11)
    together = scheduling.MAX_TOGETHER
    groups = [range(together), range(together, 10)]
    assert steps.taken == [
        f"{what} {n}" for group in groups for what in ("decode", "run", "encode") for n in group
    ]
    assert bench.answers["9"] == b"\22\0"
    assert (bench.metrics.in_flight, bench.scheduler.pending) == (0, 0)


def test_who_comes_later_does_not_overtake_those_that_line_up(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    steps = Steps(bench)
    bench.task = steps.task
    ready_together(bench, [lambda n=n: bench.ask(str(n), bytes([n, 0])) for n in range(10)])
    bench.loop.crowd = 1
    bench.ask("late", b"\13\0")
    bench.turn(lambda: "late" in bench.answers)
    assert [step for step in steps.taken if "run" in step][-1] == "run 11"
    assert len(bench.answers) == 12


def test_quick_requests_take_no_place_from_slow_ones(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench(queue=2)
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    bench.loop.crowd = 2
    quick = [bench.ask(str(n), bytes([n, 0])) for n in range(3)]
    quick[0].cancel()
    engine.gate.clear()
    slow = bytes(2000)
    for name in ("slow", "slow too"):
        bench.ask(name, slow)
    assert "slow too" not in bench.answers
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 5)
    assert bench.answers["slow too"] == slow


def test_a_request_that_comes_alone_does_not_wait_for_others(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    found = []

    def ask() -> None:
        bench.ask("alone", b"\1\1")
        found.append(bench.answers.get("alone"))

    ready_together(bench, [ask])
    assert found == [b"\2\2"]


def test_of_those_that_line_up_each_gets_its_own_end(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench()
    bench.ask("first", b"\1\2")
    bench.turn(lambda: "first" in bench.answers)
    patient = bench.task.decode
    hasty = bench.task._replace(decode=lambda body: patient(body)._replace(timeout_s=1e-9))

    def ask_hastily() -> None:
        bench.scheduler.submit(
            hasty, b"\5\5", route="infer",
            done=lambda answer: bench.answers.update(hasty=answer),
        )  # fmt: skip

    ready_together(bench, [
        lambda: bench.ask("odd", b"\1"),
        lambda: bench.ask("fails", b"\15\0"),
        lambda: bench.ask("late", b"\3\3", deadline=bench.loop.time()),
        ask_hastily,
        lambda: bench.ask("gone", b"\7\7").cancel(),
        lambda: bench.ask("good", b"\4\4"),
    ])  # fmt: skip
    bench.turn(lambda: len(bench.answers) == 6)
    assert isinstance(bench.answers["odd"], BadRequest)
    assert isinstance(bench.answers["fails"], ModelFault)
    assert isinstance(bench.answers["late"], TooLate)
    assert isinstance(bench.answers["hasty"], TooLate)
    assert bench.answers["good"] == b"\10\10"
    assert "gone" not in bench.answers
    assert engine.batches == [1, 1, 1]
    assert (bench.metrics.in_flight, bench.scheduler.pending) == (0, 0)


def test_what_finds_no_place_to_wait_is_told_when_to_come_back(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench(queue=2)
    engine.gate.clear()
    bench.ask("works", b"\1\1")
    bench.turn(lambda: bench.scheduler.pending == 0)
    for name in ("waits", "waits too", "too many"):
        bench.ask(name, b"\1\1")
    refusal = bench.answers.pop("too many")
    assert isinstance(refusal, Busy)
    assert refusal.status == 503
    assert refusal.fields == b"Retry-After: 1\r\n"
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 3)
    assert set(bench.answers.values()) == {b"\2\2"}


@pytest.mark.parametrize("batched", [False, True])
def test_whoever_has_gone_takes_no_place_in_the_queue(
    make_bench: Callable[..., Bench], engine: Doubling, batched: bool
) -> None:
    bench = make_bench(queue=2, batched=batched)
    engine.gate.clear()
    bench.ask("works", b"\1\1")
    bench.turn(lambda: bench.scheduler.pending == 0)
    gone = [bench.ask(name, b"\1\1") for name in ("gone", "gone too")]
    for job in gone:
        job.cancel()
        job.cancel()
    assert bench.scheduler.pending == 0
    bench.ask("stays", b"\1\1")
    assert "stays" not in bench.answers
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 2)
    assert bench.answers["stays"] == b"\2\2"
    bench.turn(lambda: bench.metrics.in_flight == 0)
    assert bench.scheduler.pending == 0


def test_what_waited_past_its_time_is_not_begun(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench()
    engine.gate.clear()
    bench.ask("works", b"\1\1")
    bench.ask("late", b"\2\2", deadline=bench.loop.time() - 1)
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 2)
    assert isinstance(bench.answers["late"], TooLate)
    assert engine.batches == [1]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("limit", ["the call's", "the request's"])
def test_a_limit_that_is_over_holds_for_work_that_would_be_quick(
    make_bench: Callable[..., Bench], engine: Doubling, batched: bool, limit: str
) -> None:
    bench = make_bench(batched=batched)
    bench.ask("quick", b"\1\1")
    bench.turn(lambda: "quick" in bench.answers)
    bench.ask("in time", b"\2\2", deadline=bench.loop.time() + 60)
    bench.turn(lambda: "in time" in bench.answers)
    if limit == "the call's":
        bench.ask("late", b"\3\3", deadline=bench.loop.time())
    else:
        decode = bench.task.decode
        bench.task = bench.task._replace(decode=lambda body: decode(body)._replace(timeout_s=1e-9))
        bench.ask("late", b"\3\3")
    bench.turn(lambda: "late" in bench.answers)
    assert isinstance(bench.answers["late"], TooLate)
    assert bench.answers["in time"] == b"\4\4"
    assert engine.batches == [1, 1]
    assert bench.scheduler.times[1] == -1.0 or batched
    assert bench.metrics.in_flight == 0


def test_the_servers_own_time_limit_holds_without_the_clients(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench(deadline_s=1e-9)
    engine.gate.clear()
    bench.ask("late", b"\2\2")
    engine.gate.set()
    bench.turn(lambda: "late" in bench.answers)
    assert isinstance(bench.answers["late"], TooLate)


@pytest.mark.parametrize("batched", [False, True])
def test_what_nobody_waits_for_any_more_is_not_begun(
    make_bench: Callable[..., Bench], engine: Doubling, batched: bool
) -> None:
    bench = make_bench(batched=batched)
    engine.gate.clear()
    bench.ask("works", b"\1\1")
    bench.turn(lambda: bench.scheduler.pending == 0)
    bench.ask("gone", b"\2\2").cancel()
    bench.ask("stays", b"\3\3")
    engine.gate.set()
    bench.turn(lambda: "stays" in bench.answers)
    assert "gone" not in bench.answers
    assert sum(engine.batches) == 2
    assert bench.metrics.in_flight == 0


@pytest.mark.parametrize("batched", [False, True])
def test_a_request_that_cannot_be_is_told_so(
    make_bench: Callable[..., Bench], batched: bool
) -> None:
    bench = make_bench(batched=batched)
    bench.ask("odd", b"\1")
    bench.turn(lambda: "odd" in bench.answers)
    assert str(bench.answers["odd"]) == "an odd number of bytes"


def test_requests_that_wait_are_run_as_one(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench(batched=True, queue=64, max_rows=5)
    engine.gate.clear()
    bench.ask("first", b"\1\1")
    bench.turn(lambda: bench.scheduler.pending == 0)
    for number in range(2, 8):
        bench.ask(str(number), bytes([number, 0]))
    bench.ask("two rows", b"\11\0\12\0")
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 8)
    assert engine.batches == [1, 5, 3]
    assert bench.answers["7"] == b"\16\0"
    assert bench.answers["two rows"] == b"\22\0\24\0"
    text = bench.metrics.text()
    assert "batch" in text


def test_one_request_that_fails_leaves_the_others_of_its_batch_alone(
    make_bench: Callable[..., Bench], engine: Doubling
) -> None:
    bench = make_bench(batched=True)
    engine.gate.clear()
    bench.ask("first", b"\1\1")
    bench.turn(lambda: bench.scheduler.pending == 0)
    bench.ask("good", b"\2\2")
    bench.ask("bad", b"\15\15")
    engine.gate.set()
    bench.turn(lambda: len(bench.answers) == 3)
    assert bench.answers["good"] == b"\4\4"
    assert isinstance(bench.answers["bad"], ModelFault)


def test_requests_of_sequences_and_of_other_shapes_go_alone() -> None:
    batching = Batching(Inference(SIGNATURE, Doubling(), name="double", version="1"), 8)
    plain = InferRequest({"x": Tensor("uint8", (1, 2), b"\1\1")})
    wide = InferRequest({"x": Tensor("uint8", (1, 3), b"\1\1\1")})
    told = plain._replace(sequence=("7", True, False))
    assert batching.key(plain) == batching.key(plain)
    assert batching.key(plain) != batching.key(wide)
    assert batching.key(told) is None


def test_rows_come_back_to_whom_they_belong() -> None:
    inference = Inference(SIGNATURE, Doubling(), name="double", version="1")
    seen: list[int] = []
    inference.observers.append(lambda request, _: seen.append(request.feeds["x"].shape[0]))
    feeds = [{"x": Tensor("uint8", (rows, 2), bytes(range(2 * rows)))} for rows in (1, 3, 2)]
    found = inference.run_rows([InferRequest(one) for one in feeds])
    assert [one["y"].shape for one in found] == [(1, 2), (3, 2), (2, 2)]
    assert bytes(found[1]["y"].data) == bytes(range(0, 12, 2))
    assert seen == [1, 3, 2]


def test_answers_without_a_row_for_each_row_are_not_shared_out() -> None:
    class Constant:
        def run(self, *_: Any) -> dict[str, Tensor]:
            return {"y": Tensor("uint8", (1, 2), b"\0\0")}

    inference = Inference(SIGNATURE, Constant(), name="constant", version="1")
    feeds = {"x": Tensor("uint8", (1, 2), b"\1\1")}
    with pytest.raises(ModelFault, match="not one row for each"):
        inference.run_rows([InferRequest(feeds), InferRequest(feeds)])


def test_a_task_is_performed_here_and_now_where_that_is_asked() -> None:
    inference = Inference(SIGNATURE, Doubling(), name="double", version="1")
    task = Task(_decode, inference.run, _encode, lambda error: error)
    assert perform(task, b"\1\2") == b"\2\4"
    with pytest.raises(BadRequest):
        perform(task, b"\1")
