"""Puts a bundle together: artifact, runtime, rendered server, golden samples, licences."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import packager
from packager.bundle.archive import Entry, write_archive
from packager.bundle.render import render_server
from packager.errors import InputOutputError, UsageError
from packager.manifest import FORMAT
from packager.recipe import check_name, check_version, default_sequence
from packager.resources import data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.artifact import Artifact
    from packager.bundle.golden import Golden
    from packager.bundle.library import FetchedLibrary
    from packager.model import Signature
    from packager.recipe import Recipe
    from packager.target import Target

_LIBRARY: Final = "lib/libonnxruntime.so"
_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KINDS: Final = ("model", "lib", "runtime", "golden", "licenses", "labels", "server")


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
    sequence: int | None = None,
) -> Bundle:
    """Write `NAME-VERSION-TARGET.edgepack`; the same arguments give the same bytes.

    Nothing of this host goes in: no folder, no date, no name.

    Args:
        artifact: What the engine loads.
        target: What it was built for.
        recipe: Name, version, images, labels and server options.
        golden: The golden samples and their table.
        library: The engine's shared library.
        out_dir: Where the bundle is written.
        sequence: The integer that decides downgrades; None derives it from the version.

    Raises:
        UsageError: a name, version or labels file that cannot be.
        InputOutputError: something cannot be read or written.
    """
    name, version = check_name(recipe.name), check_version(recipe.version)
    model_path = f"model/model{artifact.path.suffix}"
    labels = _labels(recipe, artifact.signature)
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
            "precision": artifact.precision,
            "scheme": artifact.scheme,
        },
        "model": {
            "source": artifact.model.provenance.source,
            "source_sha256": artifact.model.provenance.source_sha256,
            "exporter": artifact.model.provenance.exporter,
            "signature": artifact.signature.to_json(),
            "images": {key: {"size": list(image.size)} for key, image in recipe.images.items()},
            "labels": {output: entry.path for output, entry in labels.items()},
        },
        "golden": golden.table,
        "server": {
            "max_json_kb": recipe.server.max_json_kb,
            "metrics": recipe.server.metrics,
            "openapi": recipe.server.openapi,
            "plain": recipe.server.plain,
        },
    }
    entries = [
        Entry(path=model_path, source=artifact.path, compress=True),
        Entry(path=_LIBRARY, source=library.path, xz_source=library.xz_path),
        *(Entry(path=path, source=data) for path, data in render_server(manifest).items()),
        *_runtime(),
        *golden.entries,
        *labels.values(),
        *_licenses(target, library),
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
    """Return the stored bytes of a bundle by kind; they add up to its size."""
    parts = dict.fromkeys((*_KINDS, "archive"), 0)
    with zipfile.ZipFile(bundle) as archive:
        for info in archive.infolist():
            kind, slash, _ = info.filename.partition("/")
            key = kind if slash else "server" if kind == "__main__.py" else "archive"
            parts[key] += info.compress_size
    parts["archive"] += bundle.stat().st_size - sum(parts.values())
    return parts


def _runtime() -> list[Entry]:
    return [
        Entry(path=f"runtime/{path.name}", source=path)
        for path in sorted(data_dir("runtime").glob("*.py"))
    ]


def _labels(recipe: Recipe, signature: Signature) -> dict[str, Entry]:
    """Return the labels of the first output, which the first image input with labels names."""
    files = [image.labels for image in recipe.images.values() if image.labels is not None]
    if not files:
        return {}
    output = signature.outputs[0]
    try:
        lines = files[0].read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise InputOutputError(f"`{files[0]}` cannot be read as text: {fault}") from fault
    names = [line.strip() for line in lines]
    classes = output.shape[-1].size if output.shape else None
    if classes is not None and len(names) != classes:
        raise UsageError(
            f"`{files[0].name}` has {len(names)} lines for {classes} classes of `{output.name}`",
            accepted="one class name per line",
        )
    stem = output.name if _SAFE.fullmatch(output.name) else "output"
    text = "".join(f"{name}\n" for name in names)
    return {output.name: Entry(path=f"labels/{stem}.txt", source=text.encode(), compress=True)}


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
