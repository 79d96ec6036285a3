"""Puts a bundle together: artifact, runtime, rendered server, golden samples, licences."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import packager
from packager.artifact import ENGINE_GRAPH
from packager.bundle.archive import Entry, write_archive
from packager.bundle.bodies import body_entries, body_fields, body_modules
from packager.bundle.render import render_server
from packager.bundle.results import make_readable
from packager.bundle.sequence import client_signature, sequence_fields
from packager.bundle.serving import runtime_packages, serving_fields
from packager.checks.pairs import kept_pairs
from packager.errors import InputOutputError
from packager.manifest import FORMAT
from packager.recipe import check_name, check_version, default_sequence
from packager.resources import data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.artifact import Artifact, Prebuilt
    from packager.bundle.golden import Golden
    from packager.bundle.image_library import CarriedImageLibrary
    from packager.bundle.library import FetchedLibrary
    from packager.data import Samples
    from packager.recipe import ImageInput, Recipe
    from packager.target import Target

_LIBRARY: Final = "lib/libonnxruntime.so"
_KINDS: Final = (
    "model", "lib", "runtime", "golden", "licenses", "labels", "server", "engines", "vendor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A finished bundle.

    Attributes:
        digest: SHA-256 of its manifest: its identity.
        parts: Bytes by kind of content as stored, the archive's own records under `archive`.
    """

    path: Path
    digest: str
    size_bytes: int
    parts: Mapping[str, int]


def assemble(
    artifact: Artifact,
    *,
    target: Target,
    recipe: Recipe,
    golden: Golden,
    library: FetchedLibrary,
    out_dir: Path,
    calibration: Samples | None = None,
    sequence: int | None = None,
    batch_rows: int = 0,
    image_libraries: Sequence[CarriedImageLibrary] = (),
    vendor: Sequence[Entry] = (),
) -> Bundle:
    """Write `NAME-VERSION-TARGET.edgepack`; the same arguments give the same bytes.

    Nothing of this host goes in: no folder, no date, no name.

    Args:
        artifact: What the engine loads.
        target: What it was built for.
        recipe: Name, version, images, labels and server options.
        batch_rows: The most rows of requests that the server joins; 0: it does not.
        golden: The golden samples and their table.
        library: The engine's shared library.
        out_dir: Where the bundle is written.
        calibration: What the search calibrated on: the manifest tells its kind, `random` above all.
        sequence: The integer that decides downgrades; None derives it from the version.
        image_libraries: What decodes photos that clients send as they are.
        vendor: NVIDIA's files, where the user wants them carried.

    Raises:
        UsageError: a name, version, labels file or state that cannot be.
        ModelUnsupported: the model's state does not go round.
        InputOutputError: something cannot be read or written.
    """
    name, version = check_name(recipe.name), check_version(recipe.version)
    model_path = f"model/model{artifact.path.suffix}"
    parts = _parts(artifact, model_path)
    readable = make_readable(recipe, artifact.model.signature)
    manifest = {
        "format": FORMAT,
        "requires": ["xz"],
        "name": name,
        "version": version,
        "sequence": default_sequence(version) if sequence is None else sequence,
        "edgepack": packager.__version__,
        "target": target_fields(target),
        "engine": {
            "name": target.engine.name,
            "version": target.engine.version,
            "library": _LIBRARY,
            "artifact": model_path,
            "threads": target.threads if recipe.server.threads is None else recipe.server.threads,
            "precision": artifact.precision if _engine_graph(artifact) is None else "fp32",
            "scheme": artifact.scheme,
            **_kept_pairs(artifact.path),
            **({"parts": {part: path for part, (path, _) in parts.items()}} if parts else {}),
        },
        **_tensorrt(artifact),
        "model": {
            "source": artifact.model.provenance.source,
            "source_sha256": artifact.model.provenance.source_sha256,
            "exporter": artifact.model.provenance.exporter,
            "signature": artifact.signature.to_json(),
            "calibration": {"kind": calibration.kind, "samples": len(calibration)}
            if calibration is not None
            else None,
            "images": {key: _image(image) for key, image in recipe.images.items()},
            **readable.fields,
            **_decoding(recipe),
        },
        "golden": golden.table,
        **serving_fields(recipe, batch_rows=batch_rows),
        **_sequences(artifact, recipe, target),
    }
    manifest |= body_fields(recipe, client_signature(manifest), image_libraries)
    entries = [
        *(
            Entry(path=path, source=source, compress=True)
            for path, source in parts.values() or [(model_path, artifact.path)]
        ),
        *(
            Entry(path=ENGINE_GRAPH, source=source, compress=True)
            for source in [_engine_graph(artifact)]
            if source is not None
        ),
        *(Entry(path=engine_path(e), source=e.path, compress=True) for e in artifact.engines),
        Entry(path=_LIBRARY, source=library.path, xz_source=library.xz_path),
        *(Entry(path=path, source=data) for path, data in render_server(manifest).items()),
        *_runtime(runtime_packages(manifest), body_modules(manifest)),
        *body_entries(manifest, image_libraries),
        *golden.entries,
        *readable.entries,
        *_licenses(target, library),
        *vendor,
    ]
    out = out_dir / f"{name}-{version}-{target.name}.edgepack"
    digest = write_archive(out, manifest, entries)
    return Bundle(path=out, digest=digest, size_bytes=out.stat().st_size, parts=measure_parts(out))


def target_fields(target: Target) -> dict[str, Any]:
    """Return `manifest["target"]`: what a device compares itself with."""
    return {
        "name": target.name,
        "family": target.family,
        "arch": target.arch,
        "os": target.os,
        "libc": target.libc,
        "python": target.python,
        "cpu_features_all": list(target.cpu_features_all),
        "cpu_features_any": list(target.cpu_features_any),
        "memory_mib": target.memory_mib,
        "board": target.board,
    }


def measure_parts(bundle: Path) -> dict[str, int]:
    """Return the stored bytes of a bundle by kind that it has; they add up to its size."""
    parts = dict.fromkeys((*_KINDS, "archive"), 0)
    with zipfile.ZipFile(bundle) as archive:
        for info in archive.infolist():
            kind, slash, _ = info.filename.partition("/")
            key = kind if slash else "server" if kind == "__main__.py" else "archive"
            parts[key] += info.compress_size
    parts["archive"] += bundle.stat().st_size - sum(parts.values())
    return {kind: size for kind, size in parts.items() if size}


def engine_path(engine: Prebuilt) -> str:
    """Return where an engine that was built ahead lies in a bundle."""
    return f"engines/{engine.fingerprint}.engine"


def _parts(artifact: Artifact, core: str) -> dict[str, tuple[str, Path]]:
    """Return path and source of each part of a graph for two engines; empty for one."""
    if artifact.parts is None:
        return {}
    found = {"core": (core, artifact.parts.core)}
    for name in ("head", "tail"):
        source = getattr(artifact.parts, name)
        if source is not None:
            found[name] = (f"model/{name}.onnx", source)
    return found


def _engine_graph(artifact: Artifact) -> Path | None:
    """Return the graph that only TensorRT loads; None where ONNX Runtime answers from the same."""
    return artifact.parts.engine if artifact.parts is not None else None


def _sequences(artifact: Artifact, recipe: Recipe, target: Target) -> dict[str, Any]:
    if recipe.sequences is None:
        return {}
    return {
        "sequences": sequence_fields(
            recipe.sequences,
            path=artifact.path,
            signature=artifact.signature,
            memory_mib=target.memory_mib,
        )
    }


def _kept_pairs(artifact: Path) -> dict[str, Any]:
    kept = kept_pairs(artifact)
    return {} if kept is None else {"keep_pairs": kept}


def _tensorrt(artifact: Artifact) -> dict[str, Any]:
    if artifact.tensorrt is None:
        return {}
    engines = [
        {"path": engine_path(e), "fingerprint": e.fingerprint, "facts": e.facts,
         **({"soft": e.soft} if e.soft else {})}
        for e in artifact.engines
    ]  # fmt: skip
    return {"tensorrt": {**artifact.tensorrt, "engines": engines}}


def _runtime(packages: Sequence[str], modules: Sequence[str]) -> list[Entry]:
    """Return the runtime's modules: those that everyone needs, and the packages named."""
    folder = data_dir("runtime")
    found = [path for glob in ("*.py", *(f"{name}/*.py" for name in packages))
             for path in folder.glob(glob)]  # fmt: skip
    found += [folder / module for module in modules]
    return [
        Entry(path=f"runtime/{path.relative_to(folder).as_posix()}", source=path)
        for path in sorted(found)
    ]


def _image(image: ImageInput) -> dict[str, Any]:
    """Return what leads from a place in what the model gets back to the photo."""
    found: dict[str, Any] = {"size": list(image.size)}
    if image.letterbox:
        found["letterbox"] = True
    elif image.resize is not None:
        found["resize"] = image.resize
    return found


def _decoding(recipe: Recipe) -> dict[str, Any]:
    """Return how a host decodes sounds and tables; without the keys where there are none."""
    found: dict[str, Any] = {}
    if recipe.audio:
        found["audio"] = {
            name: {"sample_rate": audio.sample_rate, "window": audio.window}
            for name, audio in recipe.audio.items()
        }
    if recipe.columns:
        found["columns"] = {
            name: {"names": list(columns.names)} for name, columns in recipe.columns.items()
        }
    return found


def _licenses(target: Target, library: FetchedLibrary) -> list[Entry]:
    folder = f"licenses/{target.engine.library.package}"
    entries = [
        Entry(path=f"{folder}/{name}", source=path, compress=True)
        for name, path in library.licenses.items()
    ]
    return [*entries, Entry(path="licenses/edgepack/LICENSE", source=_own_license())]


def _own_license() -> Path:
    checkout = Path(packager.__file__).resolve().parent.parent / "LICENSE"
    if checkout.is_file() and checkout.with_name("pyproject.toml").is_file():
        return checkout
    for file in metadata.files("edgepack") or ():
        if file.name == "LICENSE":
            return Path(str(file.locate()))
    raise InputOutputError("edgepack's own LICENSE is missing", hint="install edgepack again")
