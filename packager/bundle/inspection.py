"""Tells what is inside a bundle: what its engine depends on, and where each operator runs."""

from __future__ import annotations

import hashlib
import lzma
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from packager.backends.tensorrt.nodes import Accelerator, counts_by_precision, layer_table
from packager.errors import EdgepackError, IntegrityError
from packager.importers.lint import lint_onnx
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from packager.backends.tensorrt.nodes import NodeRow

_CHUNK_BYTES: Final = 1 << 20
# As on a device, for streams that `bundle.archive` writes need 9 MiB.
_XZ_MEMORY_BYTES: Final = 80 << 20

Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What `manifest["tensorrt"]` says, read strictly.

    Attributes:
        flags: What a weakly typed network may compute in besides what the graph says.
        needs: Sentences.
        engines: Path and fingerprint of each that was built ahead.
    """

    module: str
    version: str
    cuda: str
    compute_capabilities: tuple[str, ...]
    platform: str
    precision: str
    strongly_typed: bool
    flags: tuple[str, ...]
    profiles: int
    dla_core: int | None
    version_compatible: bool
    needs: tuple[str, ...]
    engines: tuple[tuple[str, str], ...]

    def to_text(self) -> Iterator[str]:
        """Yield the lines that a person reads."""
        builds = ", ".join(self.compute_capabilities) or "its default"
        yield (
            f"{self.module}: {self.version}, CUDA {self.cuda or 'any'}, "
            f"compute capability {builds}, {self.platform}"
        )
        typed = "precision as the graph is typed"
        if not self.strongly_typed:
            allowed = ", ".join(self.flags) or "nothing narrower"
            typed = f"weakly typed: TensorRT may compute in {allowed} as well"
        count = f"{self.profiles} profile" + ("" if self.profiles == 1 else "s")
        more = ["version-compatible"] if self.version_compatible else []
        more += [f"DLA core {self.dla_core}"] if self.dla_core is not None else []
        yield f"  {', '.join([self.precision, typed, count, *more])}"
        for need in self.needs:
            yield f"  needs: {need}"
        for path, fingerprint in self.engines:
            yield f"  built ahead: {path}, fingerprint {fingerprint}"
        if self.engines:
            yield "  on a device with another fingerprint the engine is built there"
        else:
            yield "  built ahead: none, the device builds its engine"


def engine_facts(manifest: Mapping[str, Any]) -> EngineFacts | None:
    """Return what the manifest says of its TensorRT engine, None where it has none.

    Raises:
        IntegrityError: a value is missing or of the wrong type.
    """
    table = manifest.get("tensorrt")
    if table is None:
        return None
    try:
        facts = _read(table)
    except (KeyError, TypeError, AttributeError) as fault:
        raise IntegrityError(f"`tensorrt` in the manifest cannot be read: {fault}") from fault
    return facts


def bundle_layers(
    bundle: Path, manifest: Mapping[str, Any], *, workdir: Path
) -> tuple[NodeRow, ...]:
    """Return where each operator of a bundle's model runs, and in which precision.

    Args:
        bundle: The file or unpacked release, already verified.
        manifest: Its.
        workdir: An empty folder that compressed graphs are unpacked into.

    Raises:
        IntegrityError: a graph is not what the manifest says.
        ModelUnsupported: a graph is no sound ONNX model.
        InputOutputError: something cannot be read or written.
    """
    parts = manifest["engine"].get("parts") or {"core": manifest["engine"]["artifact"]}
    facts = engine_facts(manifest)
    if facts is not None:
        # An engine in bf16 has a graph of its own.
        parts = {**parts, "core": manifest["tensorrt"].get("artifact", parts["core"])}
    paths = {
        part: _graph(bundle, manifest, path, workdir / f"{part}.onnx")
        for part, path in parts.items()
        if part in ("head", "core", "tail") and path is not None
    }
    for path in paths.values():
        lint_onnx(path)
    accelerator = None
    if facts is not None:
        accelerator = Accelerator(
            compute_capability=(*facts.compute_capabilities, "")[0],
            has_dla=facts.dla_core is not None or _has_dla(manifest["target"]["name"]),
            uses_dla=facts.dla_core is not None,
        )
    core = paths.pop("core")
    return layer_table(core, paths, accelerator=accelerator)


def layers_json(rows: Sequence[NodeRow], *, every: bool) -> dict[str, Any]:
    """Return the wire form of a table: counts, and with `every` each operator."""
    places: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = places.setdefault(f"{row.runs_on} {row.part}", {})
        counts[row.operator] = counts.get(row.operator, 0) + 1
    return {
        "places": places,
        "precisions": counts_by_precision(rows),
        **({"layers": [row.to_json() for row in rows]} if every else {}),
    }


def _has_dla(target_name: str) -> bool:
    """Tell whether a target's device has a DLA, as far as this edgepack knows the target."""
    try:
        engine = find_target(target_name).tensorrt
    except EdgepackError:
        return False
    return engine is not None and engine.dla_cores > 0


def _read(table: Any) -> EngineFacts:
    def text(key: str) -> str:
        return _typed(table[key], str, key)

    def texts(key: str) -> tuple[str, ...]:
        return tuple(_typed(entry, str, key) for entry in _typed(table[key], list, key))

    core = table.get("dla_core")
    return EngineFacts(
        module=text("module"),
        version=text("version"),
        cuda=text("cuda"),
        compute_capabilities=texts("compute_capabilities"),
        platform=text("platform"),
        precision=text("precision"),
        strongly_typed=_typed(table["strongly_typed"], bool, "strongly_typed"),
        flags=texts("flags"),
        profiles=len(_typed(table["profiles"], list, "profiles")),
        dla_core=None if core is None else _typed(core, int, "dla_core"),
        version_compatible=_typed(table["version_compatible"], bool, "version_compatible"),
        needs=texts("needs"),
        engines=tuple(
            (
                _typed(entry["path"], str, "engines.path"),
                _typed(entry["fingerprint"], str, "engines.fingerprint"),
            )
            for entry in _typed(table["engines"], list, "engines")
        ),
    )


def _typed(value: Any, kind: type[Kind], key: str) -> Kind:
    # exact: a boolean is an int to Python, but not to a manifest
    if type(value) is not kind:
        raise TypeError(f"`{key}` is no {kind.__name__}")
    return value


def _graph(bundle: Path, manifest: Mapping[str, Any], path: str, out: Path) -> Path:
    """Return a graph of the bundle as a file, unpacked where it is compressed."""
    record = next((file for file in manifest["files"] if file["path"] == path), None)
    if record is None:
        raise IntegrityError(f"the manifest names `{path}`, which is not in `files`")
    if bundle.is_dir():
        return bundle / path
    digest, left = hashlib.sha256(), int(record["size"])
    packed = "encoding" in record
    try:
        with (
            zipfile.ZipFile(bundle) as archive,
            archive.open(f"{path}.xz" if packed else path) as stored,
            out.open("wb") as target,
        ):
            plain = iter(lambda: stored.read(_CHUNK_BYTES), b"")
            for chunk in _unpacked(stored) if packed else plain:
                left -= len(chunk)
                if left < 0:
                    break  # no more than the manifest promises, whatever it would expand to
                digest.update(chunk)
                target.write(chunk)
    except (KeyError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as fault:
        raise IntegrityError(f"`{path}` cannot be unpacked: {fault}") from fault
    if left or digest.hexdigest() != record["sha256"]:
        raise IntegrityError(f"`{path}` is not what the manifest says")
    return out


def _unpacked(stored: IO[bytes]) -> Iterator[bytes]:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    while not stream.eof:
        data = stored.read(_CHUNK_BYTES) if stream.needs_input else b""
        if stream.needs_input and not data:
            raise EOFError("it is cut off")
        yield stream.decompress(data, _CHUNK_BYTES)
