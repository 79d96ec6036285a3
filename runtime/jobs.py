"""One request on its way through a server: what is done with it, and how long that takes."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Tuple, Union

Body = Union[bytes, bytearray, memoryview]

# Handing a request to a thread costs 0.1 ms, so only longer work is handed over.
INLINE_S = 0.001
_NEVER = float("inf")


class Task(NamedTuple):
    """What is done with one kind of request; its functions run in the loop or in a thread.

    Attributes:
        decode: Returns the request that a body holds, with `.feeds`, `.outputs`, `.timeout_s` and
            `.sequence`.
        run: Returns the results of a request and its caller.
        encode: Returns the protocol's answer.
        fail: Returns the protocol's answer for whatever was raised; raises nothing.
        aside: Always done in a thread: a few bytes of body can be long work.
    """

    decode: Callable[[Any], Any]
    run: Callable[[Any, str], Any]
    encode: Callable[[Any, Any], Any]
    fail: Callable[[Exception], Any]
    aside: bool = False


def perform(task: Task, body: Body, caller: str = "") -> Any:
    """Return the answer here and now; what goes wrong is raised, not told."""
    request = task.decode(body)
    return task.encode(request, task.run(request, caller))


class Job:
    """One request on its way; `cancel` it when its client has gone.

    Attributes:
        queued: It takes a place in the queue that others may want.
    """

    __slots__ = (
        "_dropped", "body", "caller", "cancelled", "deadline", "done", "queued", "route", "since",
        "task", "waited_s",
    )  # fmt: skip

    def __init__(
        self,
        task: Task,
        body: Body,
        *,
        route: str,
        done: Callable[[Any], None],
        deadline: float,
        caller: str,
        since: float,
        dropped: Callable[[], None],
    ) -> None:
        self.task = task
        self.body = body
        self.route = route
        self.done = done
        self.deadline = deadline
        self.caller = caller
        self.since = since
        self.waited_s = 0.0
        self.cancelled = False
        self.queued = True
        self._dropped = dropped

    def cancel(self) -> None:
        """Drop it if it has not begun; its `done` is not called any more."""
        if not self.cancelled:
            self.cancelled = True
            if self.queued:
                self._dropped()


class Pace:
    """Expects the time of a request from earlier ones of its route and size."""

    def __init__(self) -> None:
        self._expected_s: Dict[Tuple[str, int], float] = {}

    def is_inline(self, route: str, size: int) -> bool:
        """Say whether an answer is expected so soon that the loop can wait for it."""
        return self._expected_s.get((route, size.bit_length()), _NEVER) < INLINE_S

    def observe(self, route: str, size: int, seconds: float) -> None:
        """Learn from one answer's CPU seconds; one slow answer among quick ones changes little."""
        seconds = min(seconds, 2 * INLINE_S)
        key = (route, size.bit_length())
        expected = self._expected_s.get(key)
        if expected is None:
            self._expected_s[key] = seconds
        else:
            self._expected_s[key] = expected + 0.2 * (seconds - expected)
