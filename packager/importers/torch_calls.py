"""Calls a torch module with named inputs and names its outputs, however nested they are."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Final

import torch

from packager.errors import ModelUnsupported
from packager.importers.blame import is_user_file, place, user_frame
from packager.model import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CARRIED: Final = tuple(name for name in DTYPES if name != "string")


class Callee:
    """A module with its example inputs and named, flat outputs.

    Attributes:
        module: The user's module, in evaluation mode.
        examples: By input name, in the order in which the wrapper takes them.
        output_names: In the wrapper's order.
        scripted: It was compiled by torch.jit, so it has no Python code.
        branches: The user's lines that turn tensor values into Python values.

    Raises:
        ModelUnsupported: the module fails on its own examples, returns something other than
            tensors, or gives different answers for the same input.
    """

    def __init__(self, module: torch.nn.Module, examples: Mapping[str, torch.Tensor]) -> None:
        self.module = module
        self.examples = dict(examples)
        self._keywords = _are_keywords(module, list(examples))
        self.scripted = isinstance(module, torch.jit.ScriptModule)
        if self.scripted:
            self._keywords = False
        with _ValueWatch() as watch:
            first = self._call(self.examples)
        self.branches = tuple(dict.fromkeys(watch.places))
        named = flatten(first)
        if not named:
            raise ModelUnsupported("the module returns no tensors")
        for name, value in (*self.examples.items(), *named):
            if str(value.dtype).removeprefix("torch.") not in _CARRIED or value.is_sparse:
                raise ModelUnsupported(
                    f"`{name}` is of type {value.dtype}, which no request or answer carries",
                    accepted=", ".join(_CARRIED),
                )
        self.output_names = unique_names([name for name, _ in named], set(self.examples))
        again = flatten(self._call(self.examples))
        for (name, a), (_, b) in zip(named, again, strict=True):
            if not _alike(a, b):
                raise ModelUnsupported(
                    f"the module gives different answers for the same input (`{name}`)",
                    hint="remove the randomness from `forward`, or seed it there",
                )

    def wrapper(self, module: torch.nn.Module | None = None) -> torch.nn.Module:
        """Return a module that takes the inputs by position and returns a flat tuple.

        Args:
            module: Another one that is called the same way; None for this one.
        """
        chosen = self.module if module is None else module
        return _Flat(chosen, list(self.examples), keywords=self._keywords)

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the module on inputs and return its outputs by name."""
        values = [value for _, value in flatten(self._call(inputs))]
        if len(values) != len(self.output_names):
            raise ModelUnsupported(
                f"the module returned {len(self.output_names)} tensors, then {len(values)}"
            )
        return dict(zip(self.output_names, values, strict=True))

    def _call(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        copies = {name: value.clone() for name, value in inputs.items()}
        try:
            with torch.no_grad():
                if self._keywords:
                    return self.module(**copies)
                return self.module(*copies.values())
        except Exception as fault:  # the user's own forward may raise anything
            where = user_frame(fault)
            sizes = ", ".join(f"{n} {list(v.shape)}" for n, v in inputs.items())
            raise ModelUnsupported(
                f"the module fails on its inputs ({sizes})"
                + (f" at {where}" if where else "")
                + f"\n  {type(fault).__name__}: {str(fault)[:1000]}",
                hint=self._size_hint(inputs),
            ) from fault

    def _size_hint(self, inputs: Mapping[str, torch.Tensor]) -> str | None:
        for name, value in inputs.items():
            example = self.examples[name]
            if example.ndim and value.shape[0] != example.shape[0]:
                size = int(example.shape[0])
                return (
                    f"the example has {size} rows; if they need not vary, say so: "
                    f"`--dim batch={size}`, or take the size from `{name}.shape[0]` in the code"
                )
        return None


class _Flat(torch.nn.Module):  # type: ignore[misc]
    """Takes the inputs by position and returns a flat tuple of tensors."""

    def __init__(self, module: torch.nn.Module, names: list[str], *, keywords: bool) -> None:
        super().__init__()
        self.module = module
        self._names = names
        self._keywords = keywords

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._keywords:
            result = self.module(**dict(zip(self._names, tensors, strict=True)))
        else:
            result = self.module(*tensors)
        return tuple(value for _, value in flatten(result))


class _ValueWatch(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """Notes every place where eager code turns a tensor's values into Python values.

    In eager mode sizes are Python integers already, so what is noted depends on data.
    """

    _WATCHED = frozenset({"__bool__", "__int__", "__float__", "__index__", "item", "tolist"})

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._WATCHED:
            frame = inspect.currentframe()
            while frame is not None and not is_user_file(frame.f_code.co_filename):
                frame = frame.f_back
            if frame is not None:
                self.places.append(place(frame.f_code.co_filename, frame.f_lineno))
        return func(*args, **(kwargs or {}))


def flatten(result: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a module's result with their names.

    A lone tensor is `output`, a tuple's are `output_0`…, a dictionary's keep their keys; None is
    left out.

    Raises:
        ModelUnsupported: something that is no tensor.
    """
    if isinstance(result, torch.Tensor):
        return [(name or "output", result)]
    if result is None:
        return []
    if isinstance(result, dict):
        items = [(str(key), value) for key, value in result.items()]
    elif hasattr(result, "_fields"):
        items = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (tuple, list)):
        stem = name or "output"
        return [e for i, value in enumerate(result) for e in flatten(value, f"{stem}_{i}")]
    elif dataclasses.is_dataclass(result):
        items = [(f.name, getattr(result, f.name)) for f in dataclasses.fields(result)]
    else:
        raise ModelUnsupported(
            f"the module returns a {type(result).__name__}" + (f" as `{name}`" if name else ""),
            accepted="tensors, and tuples, lists or dictionaries of them",
        )
    prefix = f"{name}_" if name else ""
    return [entry for key, value in items for entry in flatten(value, f"{prefix}{key}")]


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two answers differ by no more than the order of their sums may make."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    slack = 1e-3 * float(a.abs().nan_to_num(posinf=0.0).max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=slack + 1e-6, equal_nan=True))


def _are_keywords(module: torch.nn.Module, names: Sequence[str]) -> bool:
    """Return whether the inputs are named like `forward`'s parameters."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (ValueError, TypeError):
        return False  # a scripted module's forward tells no names to Python
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = {p.name for p in parameters if p.kind in kinds}
    if set(names) <= accepted:
        return True
    positional = [p for p in parameters if p.kind != inspect.Parameter.KEYWORD_ONLY]
    takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in positional)
    if not takes_any and len(names) > len(positional):
        raise ModelUnsupported(
            f"`forward` takes {len(positional)} inputs, but there are {len(names)} examples",
            accepted=", ".join(f"`{p.name}`" for p in parameters),
        )
    return False


def positional_names(module: torch.nn.Module, count: int) -> list[str]:
    """Return names for so many inputs given in order, those of `forward`'s parameters first."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
    else:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(module.forward).parameters.values()
        names = [p.name for p in parameters if p.kind in kinds]
    return [*names[:count], *(f"input_{n}" for n in range(len(names), count))]


def unique_names(names: list[str], taken: set[str]) -> tuple[str, ...]:
    """Return the names, each told apart from those before it and from the taken ones."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken or candidate in found:
            number += 1
            candidate = f"{name}_{number}"
        found.append(candidate)
    return tuple(found)
