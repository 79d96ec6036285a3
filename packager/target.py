"""A target: one class of device, read from a TOML file in `targets/`."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeVar

from packager.errors import TargetError
from packager.resources import data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 1
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class EngineLibrary:
    """The engine's shared library inside a package of the index, bound by digests.

    Attributes:
        platform: The wheel's platform tag, for `pip download --platform`.
        python_tag: The wheel's interpreter tag; the library itself needs no Python.
        wheel_sha256: Digest of the whole wheel file.
        member: Path of the library inside the wheel.
        member_sha256: Digest of the library.
        licenses: Paths inside the wheel of the texts that must travel along.
    """

    package: str
    version: str
    python_tag: str
    platform: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_size: int
    licenses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What loads the artifact on the device.

    Attributes:
        name: `onnxruntime`.
        max_opset: The highest opset of the default domain that the engine reads.
        max_ir_version: The highest ONNX IR version that it reads.
        library: Where the shared library comes from.
    """

    name: str
    version: str
    max_opset: int
    max_ir_version: int
    library: EngineLibrary


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The int8 scheme that the target's kernels want.

    Attributes:
        activation: `uint8` or `int8`.
        weight: `uint8` or `int8`.
        reduce_range: Weights use seven bits, so that 16-bit partial sums never saturate.
        per_channel: One weight scale per output channel.
        why: The reason, shown in the plan.
        symmetric: Zero points of activations are zero.
        bias: `int32`, or `float` where the engine takes no quantized biases (TensorRT).
    """

    activation: str
    weight: str
    reduce_range: bool
    per_channel: bool
    why: str
    symmetric: bool = False
    bias: str = "int32"

    def in_words(self) -> str:
        """Return the scheme as `U8S8 per channel, 7-bit weights`."""
        kinds = (self.activation, self.weight)
        letters = "".join("U8" if kind == "uint8" else "S8" for kind in kinds)
        channels = "per channel" if self.per_channel else "per tensor"
        return f"{letters} {channels}{', 7-bit weights' if self.reduce_range else ''}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One class of device.

    Attributes:
        arch: `x86_64` or `aarch64`, as `platform.machine()` says it.
        libc: Lowest C library, as `glibc 2.28`.
        python: Lowest CPython on the device, as `3.8`.
        cpu_features_all: Flags of /proc/cpuinfo that the device must have.
        cpu_features_any: Of these it must have at least one; empty for no such demand.
        memory_mib: Memory of the whole device.
        threads: Intra-op threads of the engine; 0 for one per core of the device.
        precisions: What the target runs fast, best first.
        sparsity: Patterns of zero weights that the target's kernels gain from, as `2:4`.
        emulators: CPU models of `qemu-<arch>` under which artifacts are checked as well.
        verified: How this target was tried, in a sentence.
    """

    name: str
    title: str
    family: str
    arch: str
    os: str
    libc: str
    python: str
    memory_mib: int
    threads: int
    precisions: tuple[str, ...]
    engine: Engine
    quantization: Quantization
    cpu_features_all: tuple[str, ...] = ()
    cpu_features_any: tuple[str, ...] = ()
    sparsity: tuple[str, ...] = ()
    emulators: tuple[str, ...] = ()
    verified: str = "not run"
    board: str | None = None

    @classmethod
    def from_toml(cls, table: Mapping[str, Any], *, origin: str) -> Self:
        """Read a table whose parent is already merged in.

        Raises:
            TargetError: an unknown or missing key, or a value of the wrong type.
        """
        table = dict(table)
        schema = table.pop("schema", None)
        if schema != SCHEMA:
            raise TargetError(f"`{origin}` has schema {schema!r}", accepted=f"schema = {SCHEMA}")
        return _read(cls, table, origin=origin, where="")


_NESTED: dict[str, type] = {
    "engine": Engine,
    "library": EngineLibrary,
    "quantization": Quantization,
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


def read_target(path: Path) -> Target:
    """Read one target file, merging the parent that its `inherits` names (one level).

    Raises:
        TargetError: not TOML, an unknown key, a missing key, or a parent that inherits itself.
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
    return Target.from_toml(table, origin=path.name)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as fault:
        raise TargetError(f"`{path.name}` is not valid TOML: {fault}") from fault


@cache
def all_targets() -> tuple[Target, ...]:
    """Return every target that edgepack ships, by name."""
    files = {path.stem: path for path in data_dir("targets").glob("*.toml")}
    return tuple(read_target(files[name]) for name in sorted(files))


def find_target(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        TargetError: there is none; the hint names the nearest.
    """
    targets = {target.name: target for target in all_targets()}
    if name in targets:
        return targets[name]
    close = difflib.get_close_matches(name, targets, 1, 0.5)
    raise TargetError(
        f"there is no target `{name}`",
        accepted="one of " + ", ".join(targets),
        hint=f"did you mean `{close[0]}`?" if close else "edgepack targets list",
    )
