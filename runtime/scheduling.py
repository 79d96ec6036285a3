"""Decides where and when a request is worked on: in the loop, in a thread, in a batch, or not."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Deque, List, Optional, Tuple

from .errors import Busy, TooLate
from .jobs import INLINE_S, Body, Job, Pace, Task
from .loop import Loop, Workers

if TYPE_CHECKING:
    from .batching import Batching
    from .metrics import Metrics

# Requests that are taken through decoding, running and encoding together, before the loop looks
# for others again.
MAX_TOGETHER = 8
# A body that is decoded while the loop waits, so that its rows can join a batch.
MAX_BATCHED_BYTES = 1 << 16
_NEVER = float("inf")
_TOO_LATE = "the request waited longer than its time limit"


class Scheduler:
    """Works on requests, in order, within bounds; used by its loop only.

    Args:
        loop: Where answers are heard.
        workers: Threads for what takes longer than the loop may wait.
        queue: Requests that may wait for a thread; further ones are turned away.
        metrics: Told of waiting, computing and turning away.
        batching: Joins requests that wait; None where the model gains nothing from it.
        deadline_s: A request that waited longer is not begun; None for no limit.

    Attributes:
        times: Seconds in the queue and in the model, -1 where it did not run, of the request
            whose `done` is being called.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        workers: int,
        queue: int,
        metrics: Metrics,
        batching: Optional[Batching] = None,
        deadline_s: Optional[float] = None,
    ) -> None:
        self._loop = loop
        self._workers = Workers(loop, workers)
        self._count = workers
        self._queue = queue
        self._metrics = metrics
        self._batching = batching
        self._deadline_s = deadline_s
        self._pace = Pace()
        self._work_s = INLINE_S  # a running mean of what a thread takes, for `Retry-After`
        self._gathered: Deque[Tuple[Job, Any, Any]] = deque()  # decoded, waiting for a batch
        self._batches = 0  # under way
        self._dropped = 0  # jobs that nobody waits for, and that still stand in a queue
        self.times = (0.0, -1.0)
        self._summoned = False
        self._line: Deque[Job] = deque()  # quick ones of this round

    @property
    def pending(self) -> int:
        """Requests that wait and whose clients wait for them."""
        return max(0, self._workers.waiting + len(self._gathered) - self._dropped)

    def submit(
        self,
        task: Task,
        body: Body,
        *,
        route: str,
        done: Callable[[Any], None],
        deadline: Optional[float] = None,
        caller: str = "",
    ) -> Optional[Job]:
        """Answer a request, now or later.

        Args:
            task: What is done with it.
            body: Its bytes.
            route: The name that metrics and the expectation of its time go by.
            done: Called in the loop with the answer, perhaps before this returns.
            deadline: In the loop's time; work that has not begun by then is not begun.
            caller: Who asks.

        Returns:
            The job, None where it is done already.
        """
        if self._batching is not None and len(body) <= MAX_BATCHED_BYTES and not task.aside:
            return self._gather(self._job(task, body, route, done, deadline, caller))
        if self._pace.is_inline(route, len(body)) and not task.aside:
            if self._loop.crowd > 1 or self._line:  # who comes later must not overtake
                return self._line_up(self._job(task, body, route, done, deadline, caller))
            if deadline is not None and self._loop.time() >= deadline:
                self.times = (0.0, -1.0)
                done(task.fail(TooLate(_TOO_LATE)))
                return None
            self._run_inline(task, body, route, done, caller)
            return None
        if self.pending >= self._queue:
            done(task.fail(self._refusal()))
            return None
        job = self._job(task, body, route, done, deadline, caller)
        self._metrics.in_flight += 1
        self._workers.submit(partial(self._work, job), partial(self._finish, job))
        return job

    def close(self, timeout_s: float) -> None:
        """End the threads once they are idle."""
        self._workers.close(timeout_s)

    def _job(  # noqa: PLR0917 - what `submit` was given, in its order
        self,
        task: Task,
        body: Body,
        route: str,
        done: Callable[[Any], None],
        deadline: Optional[float],
        caller: str,
    ) -> Job:
        now = self._loop.time()
        latest = _NEVER if deadline is None else deadline
        if self._deadline_s is not None:
            latest = min(latest, now + self._deadline_s)
        return Job(
            task, body, route=route, done=done, deadline=latest, caller=caller, since=now,
            dropped=self._drop,
        )  # fmt: skip

    def _drop(self) -> None:
        self._dropped += 1

    def _refusal(self) -> Busy:
        self._metrics.count("rejected", reason="queue")
        self.times = (0.0, -1.0)
        wait_s = self._work_s * self.pending / max(self._count, 1)
        return Busy("too many requests are waiting", retry_after_s=wait_s)

    def _run_inline(
        self, task: Task, body: Body, route: str, done: Callable[[Any], None], caller: str
    ) -> None:
        metrics, clock = self._metrics, time.perf_counter
        metrics.in_flight += 1
        started = clock()
        self.times = (0.0, -1.0)
        try:
            request = task.decode(body)
            before = clock()
            if request.timeout_s is not None:
                _check_time(before - started, request.timeout_s)
            results = task.run(request, caller)
            after = clock()
            answer = task.encode(request, results)
            metrics.observe_compute(after - before)
            metrics.observe_queue(0.0)
            self.times = (0.0, after - before)
        except Exception as error:  # noqa: BLE001 - one request must not stop the server
            answer = task.fail(error)
        metrics.in_flight -= 1
        self._pace.observe(route, len(body), clock() - started)
        done(answer)

    def _line_up(self, job: Job) -> Job:
        """Let a quick request wait for those that other clients send in this round.

        Between two runs of the model a request's bytes, objects and system calls push the model's
        weights out of the processor's cache. Run after run they stay: an MLP with 2.2 MB of them
        took 90 us so instead of 140.
        """
        if not self._line:
            self._loop.soon(self._work_line)
        job.queued = False
        self._line.append(job)
        self._metrics.in_flight += 1
        return job

    def _work_line(self) -> None:
        """Decode, then run, then answer the next few of those that lined up."""
        line, clock, metrics = self._line, time.perf_counter, self._metrics
        decoded: List[Tuple[Job, Any, float, float]] = []
        for _ in range(min(len(line), MAX_TOGETHER)):
            job = line.popleft()
            if job.cancelled:
                metrics.in_flight -= 1
                continue
            now, began = self._loop.time(), clock()
            job.waited_s = now - job.since
            try:
                _check_time(now, job.deadline)
                request = job.task.decode(job.body)
                if request.timeout_s is not None:
                    _check_time(job.waited_s, request.timeout_s)
            except Exception as error:  # noqa: BLE001 - one request must not stop the server
                request = error
            decoded.append((job, request, job.waited_s, clock() - began))
        if line:
            self._loop.soon(self._work_line)
        worked = []
        for job, request, waited_s, spent_s in decoded:
            result, compute_s, began = request, -1.0, clock()
            if not isinstance(request, Exception):
                try:
                    result = job.task.run(request, job.caller)
                    compute_s = clock() - began
                except Exception as error:  # noqa: BLE001 - as above
                    result = error
            worked.append((job, request, result, (waited_s, compute_s), spent_s + clock() - began))
        for job, request, result, times, spent_s in worked:
            began = clock()
            answer = _encoded(job.task, request, result)
            metrics.in_flight -= 1
            metrics.observe_queue(times[0])
            if times[1] >= 0:
                metrics.observe_compute(times[1])
            self._pace.observe(job.route, len(job.body), spent_s + clock() - began)
            self.times = times
            if not job.cancelled:
                job.done(answer)

    def _work(self, job: Job) -> Optional[Tuple[Any, float, float, float]]:
        """In a thread: return the answer, and the seconds of waiting, computing and CPU."""
        if job.cancelled:
            return None
        task, began = job.task, self._loop.time()
        waited_s, compute_s = began - job.since, -1.0
        # CPU time, as wall time would count waiting for the interpreter's lock as work
        cpu = time.thread_time()
        try:
            _check_time(began, job.deadline)
            request = task.decode(job.body)
            if request.timeout_s is not None:
                _check_time(self._loop.time() - job.since, request.timeout_s)
            before = time.perf_counter()
            results = task.run(request, job.caller)
            compute_s = time.perf_counter() - before
            answer = task.encode(request, results)
        except Exception as error:  # noqa: BLE001 - one request must not stop the server
            answer = task.fail(error)
        return answer, waited_s, compute_s, time.thread_time() - cpu

    def _finish(self, job: Job, result: Optional[Tuple[Any, float, float, float]]) -> None:
        metrics = self._metrics
        metrics.in_flight -= 1
        if job.cancelled:
            self._dropped -= 1
        if result is None:
            return
        answer, waited_s, compute_s, cpu_s = result
        self.times = (waited_s, compute_s)
        metrics.observe_queue(waited_s)
        if compute_s >= 0:
            metrics.observe_compute(compute_s)
            self._work_s += 0.2 * (compute_s - self._work_s)
        self._pace.observe(job.route, len(job.body), cpu_s)
        if not job.cancelled:
            job.done(answer)

    def _gather(self, job: Job) -> Optional[Job]:
        """Decode a request here and let its rows wait for others."""
        task = job.task
        if self.pending >= self._queue:
            job.done(task.fail(self._refusal()))
            return None
        try:
            request = task.decode(job.body)
        except Exception as error:  # noqa: BLE001 - one request must not stop the server
            job.done(task.fail(error))
            return None
        job.body = b""
        if request.timeout_s is not None:
            job.deadline = min(job.deadline, job.since + request.timeout_s)
        assert self._batching is not None  # noqa: S101 - for the type checker: the caller looked
        self._gathered.append((job, request, self._batching.key(request)))
        self._metrics.in_flight += 1
        if not self._summoned:
            # after this round: whoever asks at the same time goes along
            self._summoned = True
            self._loop.soon(self._dispatch)
        return job

    def _dispatch(self) -> None:
        """Send batches off while there are threads for them."""
        self._summoned = False
        while self._gathered and self._batches < self._count:
            jobs = self._next_batch()
            if jobs:
                self._batches += 1
                self._workers.submit(partial(self._work_batch, jobs), self._finish_batch)

    def _next_batch(self) -> List[Tuple[Job, Any]]:
        """Take the request that waits longest, and others that fit with it."""
        now = self._loop.time()
        batching = self._batching
        assert batching is not None  # noqa: S101 - for the type checker
        taken: List[Tuple[Job, Any]] = []
        left: Deque[Tuple[Job, Any, Any]] = deque()
        wanted: Any = None
        rows = 0
        for job, request, key in self._gathered:
            if job.cancelled:
                self._dropped -= 1
                self._metrics.in_flight -= 1
            elif now >= job.deadline:
                self._metrics.in_flight -= 1
                job.done(job.task.fail(TooLate(_TOO_LATE)))
            elif not taken:
                taken.append((job, request))
                wanted, rows = key, batching.rows_of(request)
            elif (
                key is not None
                and key == wanted
                and (rows + batching.rows_of(request) <= batching.max_rows)
            ):
                taken.append((job, request))
                rows += batching.rows_of(request)
            else:
                left.append((job, request, key))
        self._gathered = left
        for job, _ in taken:
            job.waited_s = now - job.since
            self._metrics.observe_queue(job.waited_s)
        if taken:
            self._metrics.observe_batch(rows)
        return taken

    def _work_batch(self, jobs: List[Tuple[Job, Any]]) -> Tuple[List[Tuple[Job, Any, Any]], float]:
        """In a thread: return each job with its request and its results or what was raised."""
        assert self._batching is not None  # noqa: S101 - for the type checker
        before = time.perf_counter()
        found = self._batching.run([(job.task, request, job.caller) for job, request in jobs])
        compute_s = time.perf_counter() - before
        return [
            (job, request, result)
            for (job, request), result in zip(jobs, found)  # noqa: B905 - not in CPython 3.8
        ], compute_s

    def _finish_batch(self, worked: Tuple[List[Tuple[Job, Any, Any]], float]) -> None:
        found, compute_s = worked
        self._batches -= 1
        self._metrics.observe_compute(compute_s)
        self._work_s += 0.2 * (compute_s - self._work_s)
        if self._gathered and not self._summoned:
            self._dispatch()  # first, so that the engine works while answers are written
        for job, request, result in found:
            self._metrics.in_flight -= 1
            if job.cancelled:
                self._dropped -= 1
                continue
            self.times = (job.waited_s, compute_s)
            job.done(_encoded(job.task, request, result))


def _encoded(task: Task, request: Any, result: Any) -> Any:
    """Return the answer with the results of a request, or with what its run raised."""
    if isinstance(result, Exception):
        return task.fail(result)
    try:
        return task.encode(request, result)
    except Exception as error:  # noqa: BLE001 - one request must not stop the server
        return task.fail(error)


def _check_time(now_s: float, latest_s: float) -> None:
    if now_s >= latest_s:
        raise TooLate(_TOO_LATE)
