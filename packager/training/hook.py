"""Runs the user's hook on a module, within its time, and refuses what it must not do."""

from __future__ import annotations

import contextlib
import faulthandler
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from packager.errors import EdgepackError, ModelUnsupported
from packager.importers.blame import user_frame
from packager.importers.request import ImportRequest
from packager.importers.torch_calls import flatten
from packager.importers.torch_module import load_code
from packager.training.wire import HANG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from packager.importers.torch_calls import Callee
    from packager.training.session import Session

_CONTRACT: Final = (
    "`def function(module, session):` that trains `module` in place and returns nothing"
)


class _OutOfTime(BaseException):  # a hook's own `except Exception` must not swallow it
    """The hook went past its limit and the grace."""


def grace_s(time_limit_s: float) -> float:
    """Return how long a hook may overrun its limit before it is ended."""
    return max(5.0, 0.1 * time_limit_s)


def load_hook(word: str) -> Callable[[Any, Session], Any]:
    """Return the function that `file.py:function` names.

    Raises:
        ModelUnsupported: the file cannot be run, or has no such function.
    """
    path, _, name = word.rpartition(":")
    file = Path(path)
    source = f"{file.name}:{name}"
    loaded: Any = sys.modules.get(file.stem)
    if getattr(loaded, "__file__", None) != str(file):  # else the factory lies in the same file
        loaded = load_code(ImportRequest(kind="torch", source=source, path=str(file), factory=name))
    hook = getattr(loaded, name, None)
    if not callable(hook):
        offered = [n for n, v in vars(loaded).items() if callable(v) and n[0] != "_"]
        raise ModelUnsupported(
            f"`{source}`: there is no function `{name}`",
            accepted=", ".join(f"`{name}`" for name in offered[:8]) or None,
        )
    return hook  # type: ignore[no-any-return]


def train(
    hook: Callable[[Any, Session], Any],
    module: nn.Module,
    session: Session,
    *,
    callee: Callee,
    examples: Mapping[str, torch.Tensor],
    source: str,
    time_limit_s: float,
    folder: Path,
) -> None:
    """Have the hook train the module, and leave it in evaluation mode on the CPU.

    Args:
        hook: The user's function.
        module: It is changed in place; its parameters require gradients.
        session: What the hook is given.
        callee: Tells how the module is called.
        examples: Inputs on which its outputs keep their names, shapes and types.
        source: The hook as messages name it.
        time_limit_s: See `grace_s` for what happens after it.
        folder: Gets `hang.txt` where the hook had to be killed.

    Raises:
        ModelUnsupported: the hook fails, goes past its limit, or leaves something behind that is
            not the module it was given with other, finite weights.
    """
    before = _form(module)
    outputs = _outputs(module, callee, examples)
    _seed(session.seed)
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=parameter.is_floating_point())
    try:
        with _limited(time_limit_s, folder), torch.enable_grad():
            returned: Any = hook(module, session)
    except _OutOfTime as fault:
        where = user_frame(fault)
        raise ModelUnsupported(
            f"`{source}` went on after its {time_limit_s:g} s were over"
            + (f", at {where}" if where else ""),
            hint="end the loop when `session.time_left_s()` is 0, or raise `train.time_limit`",
        ) from fault
    except EdgepackError as fault:
        raise type(fault)(
            f"`{source}`: {fault.message}", accepted=fault.accepted, hint=fault.hint
        ) from fault
    except (Exception, SystemExit) as fault:  # the user's code may raise anything
        where = user_frame(fault)
        text = f"{type(fault).__name__}: {fault}".rstrip(": ")
        raise ModelUnsupported(
            f"`{source}` failed" + (f" at {where}" if where else "") + f"\n  {text[:2000]}"
        ) from fault
    if returned is not None:
        raise ModelUnsupported(
            f"`{source}` returned a {type(returned).__name__}",
            accepted=_CONTRACT,
            hint="load the trained weights into `module` and return nothing",
        )
    module.cpu().eval()
    _check_form(before, _form(module), source)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelUnsupported(
                f"`{source}` left values in `{name}` that are infinite or not a number",
                hint="train with a smaller learning rate",
            )
    if _outputs(module, callee, examples) != outputs:
        raise ModelUnsupported(
            f"`{source}` changed the names, shapes or types of the outputs", accepted=_CONTRACT
        )


def _form(module: nn.Module) -> dict[str, Any]:
    """Return what training must not change: classes, and the parameters' names and shapes."""
    return {
        "class": type(module),
        "layers": {name: type(layer) for name, layer in module.named_modules()},
        "weights": {name: tuple(t.shape) for name, t in module.state_dict().items()},
    }


def _check_form(before: dict[str, Any], after: dict[str, Any], source: str) -> None:
    if before["class"] is not after["class"]:
        raise ModelUnsupported(
            f"`{source}` changed the module's class to `{after['class'].__name__}`",
            accepted=_CONTRACT,
        )
    for part, word in (("layers", "layer"), ("weights", "weight")):
        changed = sorted(
            name
            for name in {*before[part], *after[part]}
            if before[part].get(name) != after[part].get(name)
        )
        if changed:
            raise ModelUnsupported(
                f"`{source}` added, removed or replaced the {word} `{changed[0]}`",
                accepted=_CONTRACT,
            )


def _outputs(
    module: nn.Module, callee: Callee, examples: Mapping[str, torch.Tensor]
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    with torch.no_grad():
        answers = callee.wrapper(module)(*(examples[name].clone() for name in callee.examples))
    return [(tuple(value.shape), value.dtype) for _, value in flatten(tuple(answers))]


def _seed(seed: int) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _limited(time_limit_s: float, folder: Path) -> Iterator[None]:
    """End the block after the limit and a grace; kill the process where even that is ignored.

    A signal ends Python code; what hangs outside the interpreter is ended by a thread of
    faulthandler, which writes down where it hung.
    """

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTime

    slack = grace_s(time_limit_s)
    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, time_limit_s + slack)
    with (folder / HANG_FILE).open("w", encoding="utf-8") as stream:
        faulthandler.dump_traceback_later(time_limit_s + 2 * slack, file=stream, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)
    (folder / HANG_FILE).unlink()
