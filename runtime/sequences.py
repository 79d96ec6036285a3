"""Keeps a model's state from request to request: a sequence per id, bounded in number and age.

The parameters are those of Triton Inference Server's sequence extension: `sequence_id`,
`sequence_start`, `sequence_end`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .dtypes import BY_NAME
from .errors import BadRequest, Busy, ModelFault
from .signature import Signature
from .tensor import Tensor

MAX_ID_CHARACTERS = 128
_MAX_ID = 2**64 - 1

Run = Callable[[Mapping[str, Tensor], Optional[Sequence[str]]], Dict[str, Tensor]]
Control = Tuple[str, bool, bool]


class StateTensor(NamedTuple):
    """An input of the model that an output of its previous run feeds.

    Attributes:
        input: Its name.
        output: The name of that output.
        dtype: Of both.
        shape: Of both, for one sequence.
    """

    input: str
    output: str
    dtype: str
    shape: Tuple[int, ...]


class _Entry:
    """What is kept of one sequence; `state` is None until its first run has succeeded."""

    __slots__ = ("busy", "state", "used_at")

    def __init__(self) -> None:
        self.state: Optional[Dict[str, Tensor]] = None
        self.busy = True
        self.used_at = 0.0


class Sequences:
    """The sequences of one model; may be used by several threads at once.

    Args:
        wire: `manifest["sequences"]`.
        run: The engine's.
        clock: Seconds that only grow.

    Attributes:
        signature: What clients see: the model's without its state.
        counted: Called with the number of sequences, by whichever thread may have changed it.

    Raises:
        ModelFault: the manifest's table is not of the documented form.
    """

    def __init__(
        self, wire: Mapping[str, Any], run: Run, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            self.signature = Signature(wire["signature"])
            states = [
                StateTensor(each["input"], each["output"], each["dtype"], tuple(each["shape"]))
                for each in wire["state"]
            ]
            self._max = int(wire["max_sequences"])
            self._idle_s = float(wire["idle_s"])
            sizes = [BY_NAME[each.dtype].itemsize * math.prod(each.shape) for each in states]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFault("the manifest's `sequences` cannot be read: %s" % error) from error
        self.counted: Callable[[int], None] = lambda _: None
        self._states = states
        self._zeros = {
            each.input: Tensor(each.dtype, each.shape, bytes(size))
            for each, size in zip(states, sizes)  # noqa: B905 - not in CPython 3.8
        }
        self._bytes = sum(sizes)
        self._run = run
        self._clock = clock
        self._lock = threading.Lock()
        # the one that was not used for longest comes first
        self._live: OrderedDict[Tuple[str, str], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    @property
    def max_state_bytes(self) -> int:
        """The most bytes that all kept states can have."""
        return self._bytes * self._max

    def run(self, request: Any, caller: str = "") -> Dict[str, Tensor]:
        """Run one request of a sequence, or one outside of any, from zeros.

        A run that fails leaves the state as it was.

        Args:
            request: Has `.feeds`, `.outputs` and `.sequence`: what `read_control` returned, or the
                lease of a stream, which its owner leaves.
            caller: Whose sequence it is: nobody else's request goes on with it.

        Raises:
            BadRequest: no such sequence, or its previous request is still being answered (409).
            Busy: there are too many sequences.
        """
        if isinstance(request.sequence, Lease):
            return request.sequence.run(request.feeds, request.outputs)
        lease = self.enter(request.sequence, caller)
        try:
            return lease.run(request.feeds, request.outputs)
        finally:
            lease.leave()

    def enter(self, control: Optional[Control], caller: str = "") -> Lease:
        """Take hold of a sequence, until the lease is left.

        Args:
            control: The sequence's id, and whether the request begins and ends it; None for one
                run or stream outside of any sequence.
            caller: As for `run`.

        Raises:
            BadRequest, Busy: as for `run`.
        """
        if control is None:
            return Lease(self, None, None, dict(self._zeros), end=True)
        name, start, end = control
        key = (caller, name)
        with self._lock:
            self._forget_idle()
            entry = self._live.get(key)
            if entry is not None and entry.busy:
                raise BadRequest(
                    "the previous request of this sequence is still being answered",
                    409,
                    hint="send the next one when its answer has come",
                )
            if entry is None:
                if not start:
                    raise BadRequest(
                        "there is no sequence of this id: it was not started, has ended, or was "
                        "idle for more than %g s" % self._idle_s,
                        hint="begin it with `sequence_start`",
                    )
                if len(self._live) >= self._max:
                    raise Busy(
                        "%d sequences are kept, and no more can be" % self._max,
                        retry_after_s=self._wait_s(),
                    )
                entry = self._live[key] = _Entry()
            entry.busy = True
            state = self._zeros if start or entry.state is None else entry.state
            self.counted(len(self._live))
        return Lease(self, key, entry, dict(state), end=end)

    def sweep(self) -> None:
        """Forget what nobody has used for too long."""
        with self._lock:
            self._forget_idle()
            self.counted(len(self._live))

    def step(
        self,
        feeds: Mapping[str, Tensor],
        outputs: Optional[Sequence[str]],
        state: Dict[str, Tensor],
    ) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """Run the model once; return the outputs that clients see, and the next state."""
        names: List[str] = list(self.signature.outputs) if outputs is None else list(outputs)
        found = self._run({**feeds, **state}, [*names, *(each.output for each in self._states)])
        following = {}
        for each in self._states:
            tensor = found[each.output]
            if tensor.dtype != each.dtype or tuple(tensor.shape) != each.shape:
                raise ModelFault(
                    "the state `%s` came out as %r where it went in as %s %s"
                    % (each.output, tensor, each.dtype, list(each.shape)),
                    hint="build the bundle again",
                )
            following[each.input] = tensor
        return {name: found[name] for name in names}, following

    def leave(self, key: Tuple[str, str], entry: _Entry, *, end: bool) -> None:
        """Give a sequence back, or free it; called by its lease."""
        with self._lock:
            if end or entry.state is None:
                del self._live[key]
            else:
                entry.busy = False
                entry.used_at = self._clock()
                self._live.move_to_end(key)
            self.counted(len(self._live))

    def _forget_idle(self) -> None:
        """Drop what is past its time; the lock is held."""
        oldest = self._clock() - self._idle_s
        past = []
        for key, entry in self._live.items():
            if entry.busy:
                continue  # it moves to the end when it is left
            if entry.used_at > oldest:
                break
            past.append(key)
        for key in past:
            del self._live[key]

    def _wait_s(self) -> float:
        """Return when the next sequence may have been idle for too long; the lock is held."""
        now = self._clock()
        oldest = (entry.used_at for entry in self._live.values() if not entry.busy)
        return next(oldest, now) + self._idle_s - now


class Lease:
    """The right to run one sequence; only one thread may use it at a time."""

    __slots__ = ("_end", "_entry", "_failed", "_key", "_owner", "_state")

    def __init__(
        self,
        owner: Sequences,
        key: Optional[Tuple[str, str]],
        entry: Optional[_Entry],
        state: Dict[str, Tensor],
        *,
        end: bool,
    ) -> None:
        self._owner = owner
        self._key = key
        self._entry = entry
        self._state = state
        self._end = end
        self._failed = True  # until a run has succeeded

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]]
    ) -> Dict[str, Tensor]:
        """Run the model from the sequence's state and keep the state that comes out."""
        self._failed = True
        results, self._state = self._owner.step(feeds, outputs, self._state)
        self._failed = False
        if self._entry is not None:
            self._entry.state = self._state
        return results

    def leave(self, *, early: bool = False) -> None:
        """Give the sequence back; it ends here if it was to end and its last run succeeded.

        Args:
            early: What was to be run is not all done, so that the sequence does not end.
        """
        if self._key is not None and self._entry is not None:
            end = self._end and not self._failed and not early
            self._owner.leave(self._key, self._entry, end=end)
            self._entry = None


def from_zeros(wire: Mapping[str, Any], run: Run) -> Run:
    """Return what runs a model with state for one request, without what clients do not see.

    Args:
        wire: `manifest["sequences"]`.
        run: The engine's.
    """
    sequences = Sequences(wire, run)
    return lambda feeds, outputs: sequences.enter(None).run(feeds, outputs)


def keep_sequences(app: Any, wire: Mapping[str, Any]) -> None:
    """Have an app's model run with state, and its metrics tell of it.

    Args:
        app: Has `.inference` and `.metrics`.
        wire: `manifest["sequences"]`.
    """
    inference, metrics = app.inference, app.metrics

    def run(feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]]) -> Dict[str, Tensor]:
        # looked up at each run: the engine that answers may have been switched
        results: Dict[str, Tensor] = inference.engine.run(feeds, outputs)
        return results

    kept = Sequences(wire, run)
    kept.counted = partial(setattr, metrics, "sequences")
    kept.counted(0)
    inference.sequences = kept


def read_control(parameters: Mapping[str, Any]) -> Optional[Control]:
    """Return the sequence that a request's parameters name; None where it is in none.

    Args:
        parameters: Of the request, as JSON or gRPC gave them. An id of 0 or an empty one is none,
            as Triton's clients send it.

    Raises:
        BadRequest: an id or a flag of another type.
    """
    name = parameters.get("sequence_id")
    flags = []
    for key in ("sequence_start", "sequence_end"):
        flag = parameters.get(key, False)
        if type(flag) is not bool:
            raise BadRequest("`%s` has to be true or false" % key)
        flags.append(flag)
    if name is None or name == "" or (type(name) is int and name == 0):
        if any(flags):
            raise BadRequest("`sequence_start` and `sequence_end` need a `sequence_id` beside them")
        return None
    if type(name) is int and 0 < name <= _MAX_ID:
        return str(name), flags[0], flags[1]
    if type(name) is not str or len(name) > MAX_ID_CHARACTERS:
        raise BadRequest(
            "`sequence_id` has to be a whole number up to 2^64 - 1, or a text of up to %d "
            "characters" % MAX_ID_CHARACTERS
        )
    return name, flags[0], flags[1]
