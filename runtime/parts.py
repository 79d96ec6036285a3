"""Runs a model that was cut into head, core and tail as if it were one."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .engine import Engine, OnnxRuntimeEngine
from .errors import BadRequest, ModelFault
from .signature import Signature
from .tensor import Tensor

# Clients choose outputs, so the plans for them are counted.
MAX_PLANS = 64

Wrap = Callable[[Engine], Engine]


class Interface(NamedTuple):
    """The names that an engine takes and gives, in its own order."""

    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


class _Step(NamedTuple):
    """One part's share of a call: the part's number, what it reads, and what it has to give."""

    part: int
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


class ChainEngine:
    """An engine that runs head → core → tail; whatever a part does not read passes it by.

    What it says of itself is what the core says at that moment, so a core that switches engines
    needs nothing from here: a call asks the core once.

    Args:
        head: Runs first; None where the core takes the model's inputs itself.
        core: Runs between; one that has no `interface` needs `core_interface`.
        tail: Runs last; None where the core gives the model's outputs itself.
        whole: The names of the whole in its order; None for all inputs that no part makes and all
            outputs that no later part reads.
        core_interface: The core's names.
        own: Whether `close` closes head and tail as well.

    Raises:
        ModelFault: the parts do not fit together.
    """

    def __init__(
        self,
        head: Optional[Engine],
        core: Engine,
        tail: Optional[Engine],
        *,
        whole: Optional[Interface] = None,
        core_interface: Optional[Interface] = None,
        own: bool = True,
    ) -> None:
        self.core = core
        self._head = head
        self._tail = tail
        self._own = own
        self._core_interface = core_interface or _interface(core)
        chain = ((head, None), (core, self._core_interface), (tail, None))
        parts = [(part, names or _interface(part)) for part, names in chain if part is not None]
        self._parts = tuple(part for part, _ in parts)
        self._interfaces = tuple(names for _, names in parts)
        self.interface = _join(self._interfaces, whole)
        self._plans: Dict[Tuple[str, ...], Tuple[_Step, ...]] = {}
        self._inputs = frozenset(self.interface.inputs)
        self._outputs = frozenset(self.interface.outputs)

    def __getattr__(self, name: str) -> Any:
        # the state and reason of a switching core are those of the whole
        if name.startswith("_") or name == "core":
            raise AttributeError(name)
        return getattr(self.core, name)

    @property
    def name(self) -> str:
        """The core's name."""
        return self.core.name

    @property
    def version(self) -> str:
        """The core's version."""
        return self.core.version

    @property
    def provider(self) -> str:
        """What runs the parts, the core's provider first."""
        parts = (self.core, self._head, self._tail)
        return ", ".join(dict.fromkeys(part.provider for part in parts if part is not None))

    @property
    def precision(self) -> str:
        """The core's precision."""
        return self.core.precision

    @property
    def threads(self) -> int:
        """The core's intra-op threads."""
        return self.core.threads

    @property
    def core_signature(self) -> Optional[Signature]:
        """What the core takes and gives, as it declares it; None where it does not tell.

        What crosses the cuts is in no manifest, and another core has to give it in these types.
        """
        return getattr(self.core, "signature", None)

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Tensor]:
        """Return the outputs by name; a part that no wanted output needs is not run.

        Args:
            feeds: A tensor for every input of the whole.
            outputs: The names wanted, None for all in the model's order.

        Raises:
            BadRequest: an input is missing or unknown, a part refuses one, or an output is unknown.
            ModelFault: a part failed.
        """
        if feeds.keys() != self._inputs:
            raise BadRequest(self._wrong_inputs(feeds))
        wanted = self.interface.outputs if outputs is None else tuple(outputs)
        values = dict(feeds)
        for part, inputs, names in self._plans.get(wanted) or self._plan(wanted):
            # by reference: a tensor that passes a part by is never touched
            values.update(self._parts[part].run({name: values[name] for name in inputs}, names))
        return {name: values[name] for name in wanted}

    def close(self) -> None:
        """Wait for the calls under way and free the parts."""
        for part in self._parts:
            if part is self.core or self._own:
                part.close()

    def with_core(self, core: Engine) -> ChainEngine:
        """Return the same chain around another core, for it to be checked or switched to.

        Head and tail stay this chain's: closing the new one closes its core alone.
        """
        return ChainEngine(
            self._head,
            core,
            self._tail,
            whole=self.interface,
            core_interface=self._core_interface,
            own=False,
        )

    def _plan(self, wanted: Tuple[str, ...]) -> Tuple[_Step, ...]:
        """Return the parts that some outputs need, and what each has to give."""
        for name in wanted:
            if name not in self._outputs:
                raise BadRequest("the model has no output `%s`" % name)
        needed = set(wanted)
        steps: List[_Step] = []
        for number in reversed(range(len(self._parts))):
            inputs, outputs = self._interfaces[number]
            given = tuple(name for name in outputs if name in needed)
            if given:
                steps.append(_Step(number, inputs, given))
                needed.difference_update(given)
                needed.update(inputs)
        plan = tuple(reversed(steps))
        if len(self._plans) < MAX_PLANS:
            self._plans[wanted] = plan
        return plan

    def _wrong_inputs(self, feeds: Mapping[str, Tensor]) -> str:
        for name in self.interface.inputs:
            if name not in feeds:
                return "missing input `%s`" % name
        extra = next(name for name in feeds if name not in self._inputs)
        return "the model has no input `%s`" % extra


def open_parts(release: Any, threads: Optional[int] = None, wrap: Optional[Wrap] = None) -> Engine:
    """Return the engine of a release whose model was cut into parts.

    Every part is a session of its own in the release's one ONNX Runtime.

    Args:
        release: Has `.folder` and `.manifest`, with `engine.parts` in it.
        threads: As for `open_engine`; the parts run one after another, so each may have all.
        wrap: What makes the engine that serves out of the core's, its fallback.

    Raises:
        ModelFault: a part does not load, or the parts do not fit together.
        TargetMismatch: the engine's library does not fit this machine.
    """
    files: Mapping[str, Any] = release.manifest["engine"]["parts"]
    signature: Mapping[str, Any] = release.manifest["model"]["signature"]
    kinds = [tuple(spec["name"] for spec in signature[kind]) for kind in ("inputs", "outputs")]
    opened: Dict[str, Engine] = {}
    try:
        for key in ("head", "core", "tail"):
            if files.get(key) is not None:
                opened[key] = OnnxRuntimeEngine(release, threads, artifact=files[key])
        names = _interface(opened["core"])
        if wrap is not None:
            opened["core"] = wrap(opened["core"])
        return ChainEngine(
            opened.get("head"),
            opened["core"],
            opened.get("tail"),
            whole=Interface(*kinds),
            core_interface=names,
        )
    except BaseException:
        for engine in opened.values():
            engine.close()
        raise


def _interface(part: Any) -> Interface:
    """Return what a part says of its own names."""
    names = getattr(part, "interface", None)
    if names is None:
        raise ModelFault("the engine of a part does not tell its inputs and outputs")
    return Interface(*names)


def _join(parts: Sequence[Interface], whole: Optional[Interface]) -> Interface:
    """Return the names of the whole, and see that each part finds what it reads."""
    inputs: List[str] = []
    read: Dict[str, bool] = {}
    for part in parts:
        for name in part.inputs:
            if name in read:
                read[name] = True
            elif name not in inputs:
                inputs.append(name)
        for name in part.outputs:
            if name in inputs:
                raise ModelFault("a part of the model reads `%s`, which a later one makes" % name)
            if name in read:
                raise ModelFault("two parts of the model make `%s`" % name)
            read[name] = False
    if whole is None:
        return Interface(tuple(inputs), tuple(name for name, used in read.items() if not used))
    for name in inputs:
        if name not in whole.inputs:
            raise ModelFault("a part of the model reads `%s`, which nothing gives it" % name)
    for name in whole.outputs:
        if name not in read and name not in whole.inputs:
            raise ModelFault("no part of the model makes its output `%s`" % name)
    return whole
