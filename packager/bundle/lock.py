"""Writes and reads the lock (choices, repeatable) and the record (everything measured)."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.archive import sync_folder
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK_FORMAT: Final = 1
_KEYS: Final = {"format", "bundle_sha256", "target", "inputs", "tools", "choices"}


@dataclass(frozen=True, kw_only=True)
class Lock:
    """What a build chose by timing, and everything that the choice rests on.

    Attributes:
        bundle_sha256: Identity of the bundle that the same inputs and tools give again.
        inputs: Digests by name: the model's source, the calibration data, the recipe …
        tools: Versions by name.
        choices: Precision, scheme, exporter …, one value per choice.
    """

    bundle_sha256: str
    target: str
    inputs: Mapping[str, str]
    tools: Mapping[str, str]
    choices: Mapping[str, Any]
    origin: str = "the lock"

    def check(self, *, target: str, inputs: Mapping[str, str]) -> None:
        """Refuse to repeat choices that were made for something else.

        Raises:
            UsageError: naming what differs.
        """
        if target != self.target:
            raise UsageError(
                f"{self.origin} is for target `{self.target}`, not `{target}`",
                hint=f"-t {self.target}, or build without `--lock`",
            )
        names = sorted({*inputs, *self.inputs})
        differing = [name for name in names if inputs.get(name) != self.inputs.get(name)]
        if differing:
            raise UsageError(
                f"{self.origin} was made from other inputs: {', '.join(differing)} changed",
                hint="build without `--lock` to choose anew",
            )

    def changed_tools(self, tools: Mapping[str, str]) -> list[str]:
        """Return the tools whose versions differ, in words; equal bytes need equal versions."""
        return [
            f"{name} {self.tools.get(name, 'absent')} → {tools.get(name, 'absent')}"
            for name in sorted({*tools, *self.tools})
            if tools.get(name) != self.tools.get(name)
        ]


def write_lock(
    path: Path,
    *,
    bundle_sha256: str,
    target: str,
    inputs: Mapping[str, str],
    tools: Mapping[str, str],
    choices: Mapping[str, Any],
) -> None:
    """Write `NAME.lock.json`, whole or not at all.

    Raises:
        InputOutputError: the folder cannot be written.
    """
    lock = Lock(
        bundle_sha256=bundle_sha256, target=target, inputs=inputs, tools=tools, choices=choices
    )
    wire = {"format": LOCK_FORMAT, **asdict(lock)}
    del wire["origin"]
    _write_json(path, wire)


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        InputOutputError: it cannot be read.
        UsageError: it is no lock of this format.
    """
    origin = f"`{path.name}`"
    try:
        wire = json.loads(path.read_bytes())
    except OSError as fault:
        raise InputOutputError(f"{origin} cannot be read: {_reason(fault)}") from fault
    except (ValueError, RecursionError) as fault:
        raise UsageError(
            f"{origin} is no lock", accepted="a NAME.lock.json that a build wrote"
        ) from fault
    if not isinstance(wire, dict) or not isinstance(wire.get("format"), int):
        raise UsageError(f"{origin} is no lock", accepted="a NAME.lock.json that a build wrote")
    if wire["format"] != LOCK_FORMAT:
        raise UsageError(f"{origin} has format {wire['format']}", accepted=f"format {LOCK_FORMAT}")
    for key in sorted(_KEYS ^ set(wire)):
        word = "lacks" if key in _KEYS else "has an unknown"
        raise UsageError(f"{origin} {word} key `{key}`")
    del wire["format"]
    return _checked(wire, origin)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write `NAME.record.json`: times, host and everything measured, none of it promised.

    Raises:
        InputOutputError: the folder cannot be written.
    """
    _write_json(path, record)


def _checked(wire: dict[str, Any], origin: str) -> Lock:
    for key in ("bundle_sha256", "target"):
        if not isinstance(wire[key], str):
            raise UsageError(f"{origin}: `{key}` must be a string")
    for key in ("inputs", "tools"):
        table = wire[key]
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise UsageError(f"{origin}: `{key}` must be an object of strings")
    if not isinstance(wire["choices"], dict):
        raise UsageError(f"{origin}: `choices` must be an object")
    return Lock(**wire, origin=origin)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"
    try:
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:  # Ctrl-C too leaves no half-written file
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be written: {_reason(fault)}") from fault


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    item = getattr(value, "item", None)  # a numpy scalar
    if callable(item):
        return item()
    raise TypeError(f"{type(value).__name__} has no place in a record")


def _reason(fault: OSError) -> str:
    return (fault.strerror or str(fault)).lower()
