"""Reads a target file: the parent and the JetPack merged in, every key checked."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from packager.errors import TargetError
from packager.target._nouns import Engine, EngineLibrary, Flash, Quantization, Target, TensorRT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 1
MODULES = ("tensorrt", "tensorrt_rtx")
MEMORIES = ("shared", "own")
_T = TypeVar("_T")

_NESTED: dict[str, type] = {
    "engine": Engine,
    "library": EngineLibrary,
    "quantization": Quantization,
    "tensorrt": TensorRT,
    "flash": Flash,
}
_SCALARS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool}


def _read(cls: type[_T], table: Mapping[str, Any], *, origin: str, where: str) -> _T:
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise TargetError(
                f"`{origin}` has an unknown key `{where}{key}`",
                accepted="one of " + ", ".join(sorted(known)),
                hint=f"did you mean `{where}{close[0]}`?" if close else None,
            )
    values: dict[str, Any] = {}
    for name, f in known.items():
        if name not in table:
            if f.default is MISSING and f.default_factory is MISSING:
                raise TargetError(f"`{origin}` lacks the key `{where}{name}`")
            continue
        value = table[name]
        kind = str(f.type).split(" | ")[0]
        if name in _NESTED:
            if not isinstance(value, dict):
                raise TargetError(f"`{origin}`: `{where}{name}` must be a table")
            values[name] = _read(_NESTED[name], value, origin=origin, where=f"{where}{name}.")
        elif kind.startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise TargetError(f"`{origin}`: `{where}{name}` must be a list of strings")
            values[name] = tuple(value)
        elif isinstance(value, _SCALARS[kind]) and (kind == "bool") == isinstance(value, bool):
            values[name] = value
        else:
            raise TargetError(f"`{origin}`: `{where}{name}` must be of type {kind}")
    return cls(**values)


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def read_target(path: Path, *, jetpack: str | None = None) -> Target:
    """Read one target file, merging the parent that its `inherits` names (one level).

    Args:
        path: The file, called like the target.
        jetpack: Which `[jetpack."…"]` table is merged in; None for the file's `default_jetpack`.

    Raises:
        TargetError: not TOML, an unknown key, a missing key, a parent that inherits itself, or a
            JetPack that the file does not have.
    """
    table = _toml(path)
    parent_name = table.pop("inherits", None)
    if parent_name is not None:
        parent_path = path.with_name(f"{parent_name}.toml")
        if not parent_path.is_file():
            raise TargetError(f"`{path.name}` inherits from `{parent_name}`, which does not exist")
        parent = _toml(parent_path)
        if "inherits" in parent:
            raise TargetError(
                f"`{path.name}` inherits from `{parent_name}`, which inherits itself",
                accepted="one level of `inherits`",
            )
        table = _merge(parent, table)
    if table.get("name") != path.stem:
        raise TargetError(f"`{path.name}` is named `{table.get('name')}`, not `{path.stem}`")
    schema = table.pop("schema", None)
    if schema != SCHEMA:
        raise TargetError(f"`{path.name}` has schema {schema!r}", accepted=f"schema = {SCHEMA}")
    table = _with_jetpack(table, jetpack, origin=path.name)
    target = _read(Target, table, origin=path.name, where="")
    if target.tensorrt is not None:
        _check(target.tensorrt, origin=path.name)
    return target


def _with_jetpack(table: dict[str, Any], wanted: str | None, *, origin: str) -> dict[str, Any]:
    """Merge one JetPack's table into the rest of the file.

    `jetpacks` may list fewer than there are tables: a child of which an old JetPack does not boot.
    A JetPack's `uncertain` sentences are added to the module's, since both are still open.
    """
    name = table["name"]
    tables = table.pop("jetpack", None)
    default = table.pop("default_jetpack", None)
    if tables is None:
        for key, value in (("default_jetpack", default), ("jetpacks", table.get("jetpacks"))):
            if value is not None:
                raise TargetError(f'`{origin}` has `{key}` and no `[jetpack."…"]` table')
        if wanted is not None:
            raise TargetError(
                f"`{name}` has no JetPacks", accepted=f"`{name}`", hint=f"did you mean `{name}`?"
            )
        return table
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise TargetError(f"`{origin}`: `jetpack` must hold one table for each JetPack")
    offered = table.get("jetpacks", sorted(tables, key=_numbers))
    if not isinstance(offered, list) or not all(word in tables for word in offered):
        raise TargetError(
            f"`{origin}`: `jetpacks` must list tables of the file",
            accepted="of " + ", ".join(sorted(tables, key=_numbers)),
        )
    if default not in offered:
        raise TargetError(
            f"`{origin}`: `default_jetpack` is {default!r}", accepted="one of " + ", ".join(offered)
        )
    chosen = default if wanted is None else wanted
    if chosen not in offered:
        # A patch release, as 6.2.1, has the same TensorRT as its release.
        close = [word for word in offered if chosen.startswith(f"{word}.")]
        raise TargetError(
            f"`{name}` is not built for JetPack `{chosen}`"
            if chosen
            else f"`{name}@` names no JetPack",
            accepted="one of " + ", ".join(offered),
            hint=f"did you mean `{name}@{(close or [default])[0]}`?",
        )
    merged = _merge(table, tables[chosen])
    doubts = [
        part["tensorrt"]["uncertain"]
        for part in (table, tables[chosen])
        if isinstance(part.get("tensorrt"), dict) and "uncertain" in part["tensorrt"]
    ]
    if len(doubts) > 1 and all(isinstance(part, list) for part in doubts):
        merged["tensorrt"]["uncertain"] = [sentence for part in doubts for sentence in part]
    return {**merged, "name": f"{name}@{chosen}", "jetpack": chosen, "jetpacks": offered}


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _check(tensorrt: TensorRT, *, origin: str) -> None:
    for key, value, accepted in (
        ("module", tensorrt.module, MODULES),
        ("memory", tensorrt.memory, MEMORIES),
    ):
        if value not in accepted:
            raise TargetError(
                f"`{origin}`: `tensorrt.{key}` is `{value}`",
                accepted="one of " + ", ".join(accepted),
            )
    if not re.fullmatch(r"\d+(\.\d+){1,3}", tensorrt.version):
        raise TargetError(
            f"`{origin}`: `tensorrt.version` is `{tensorrt.version}`",
            accepted="two to four numbers, as `10.3.0.30`",
        )
    if tensorrt.compute_capability not in tensorrt.compute_capabilities:
        raise TargetError(
            f"`{origin}`: `tensorrt.compute_capabilities` lacks `{tensorrt.compute_capability}`",
            accepted="a list with the GPU's own `compute_capability`",
        )
    if tensorrt.module == "tensorrt" and len(tensorrt.compute_capabilities) > 1:
        raise TargetError(
            f"`{origin}`: an engine of `tensorrt` is for one compute capability",
            accepted="several with `tensorrt_rtx` alone",
        )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as fault:
        raise TargetError(f"`{path.name}` is not valid TOML: {fault}") from fault
