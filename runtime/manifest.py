"""Reads a manifest: format and requirements, every type and every path; unknown keys are kept."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .errors import IntegrityFault

FORMAT = 1
UNDERSTOOD = ("xz",)
MAX_MANIFEST_BYTES = 4 << 20
MODES = (0o644, 0o755)
FIRST = "__main__.py"
RESERVED = ("manifest.json", "manifest.sha256", "manifest.sig")

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}\Z")
_MAX_SIZE = 1 << 62

_TYPES = (
    ("name", str), ("version", str), ("sequence", int), ("edgepack", str),
    ("target", dict), ("target.name", str), ("target.arch", str), ("target.os", str),
    ("target.libc", str), ("target.cpu_features_all", list), ("target.cpu_features_any", list),
    ("engine", dict), ("engine.name", str), ("engine.version", str), ("engine.library", str),
    ("engine.artifact", str), ("engine.threads", int), ("engine.precision", str),
    ("model", dict), ("model.signature", dict), ("model.signature.inputs", list),
    ("model.signature.outputs", list), ("model.labels", dict), ("model.images", dict),
    ("golden", dict), ("golden.samples", int), ("server", dict), ("files", list),
)  # fmt: skip


class FileRecord(NamedTuple):
    """One file of the bundle.

    Attributes:
        path: In the unpacked release.
        stored_path: In the archive; ends with `.xz` where the file is compressed.
    """

    path: str
    size: int
    sha256: str
    mode: int
    encoding: Optional[str]
    stored_path: str
    stored_size: int
    stored_sha256: str


class Manifest(NamedTuple):
    """A checked manifest.

    Attributes:
        fields: The JSON object, unknown keys included.
        digest: SHA-256 of `data`: the bundle's identity.
        data: The bytes of `manifest.json`.
        files: In the order of the archive.
    """

    fields: Dict[str, Any]
    digest: str
    data: bytes
    files: Tuple[FileRecord, ...]


def digest_line(manifest: Manifest) -> bytes:
    """Return the content of `manifest.sha256`."""
    return ("%s  manifest.json\n" % manifest.digest).encode("ascii")


def parse_manifest(data: bytes) -> Manifest:
    """Read and check the bytes of `manifest.json`.

    Raises:
        IntegrityFault: it is not canonical JSON, its format or a requirement is too new for this
            runtime, or a value is of the wrong type or unsafe.
    """
    try:
        fields = json.loads(data.decode("utf-8"))
        again = json.dumps(
            fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        canonical = (again + "\n").encode("utf-8")
    except (ValueError, RecursionError) as fault:
        raise IntegrityFault("`manifest.json` is not valid JSON") from fault
    if not isinstance(fields, dict):
        raise IntegrityFault("`manifest.json` is no JSON object")
    _check_format(fields)
    if canonical != data:
        raise IntegrityFault("`manifest.json` is not in its canonical form")
    _check_types(fields)
    files = _read_files(fields["files"])
    _check_references(fields, files)
    return Manifest(fields, hashlib.sha256(data).hexdigest(), data, files)


def _check_format(fields: Dict[str, Any]) -> None:
    maker = fields.get("edgepack")
    made_by = (
        "edgepack %s" % maker if isinstance(maker, str) and maker.isprintable() else "edgepack"
    )
    number = fields.get("format")
    if type(number) is not int or number < 1:
        raise IntegrityFault("`manifest.json` has no valid `format`")
    if number > FORMAT:
        raise IntegrityFault(
            "this bundle has format %d, made by %s; this runtime reads format %d"
            % (number, made_by, FORMAT),
            "use the runtime of %s or later, which the bundle itself carries" % made_by,
        )
    requires = fields.get("requires")
    if not isinstance(requires, list) or not all(isinstance(word, str) for word in requires):
        raise IntegrityFault("`requires` in `manifest.json` must be a list of strings")
    strange = [word for word in requires if word not in UNDERSTOOD]
    if strange:
        raise IntegrityFault(
            "this bundle, made by %s, requires %s, which this runtime does not understand"
            % (made_by, ", ".join(repr(word) for word in strange)),
            "use the runtime of %s or later, which the bundle itself carries" % made_by,
        )


def _check_types(fields: Dict[str, Any]) -> None:
    for dotted, kind in _TYPES:
        value: Any = fields
        for key in dotted.split("."):
            if key not in value:
                raise IntegrityFault("`manifest.json` lacks `%s`" % dotted)
            value = value[key]
        # A boolean is an int to Python, but not to a manifest.
        if type(value) is not kind:
            raise IntegrityFault("`%s` in `manifest.json` is of the wrong type" % dotted)
    if not _NAME.match(fields["name"]) or not _VERSION.match(fields["version"]):
        raise IntegrityFault("`name` or `version` in `manifest.json` cannot be")
    if fields["sequence"] < 0 or fields["engine"]["threads"] < 0 or fields["golden"]["samples"] < 0:
        raise IntegrityFault("`manifest.json` has a negative number")
    target = fields["target"]
    for key in ("cpu_features_all", "cpu_features_any"):
        if not all(isinstance(flag, str) for flag in target[key]):
            raise IntegrityFault("`target.%s` in `manifest.json` is of the wrong type" % key)


def _read_files(records: List[Any]) -> Tuple[FileRecord, ...]:
    files = tuple(_read_file(record) for record in records)
    order = sorted(files, key=lambda f: (f.path != FIRST, f.path.encode("utf-8")))
    if list(files) != order:
        raise IntegrityFault("`files` in `manifest.json` is not in its canonical order")
    _refuse_collisions([record.path for record in files])
    _refuse_collisions([record.stored_path for record in files])
    return files


def _read_file(record: Any) -> FileRecord:
    if not isinstance(record, dict):
        raise IntegrityFault("`files` in `manifest.json` is of the wrong type")
    path, sha256 = record.get("path"), record.get("sha256")
    size, mode = record.get("size"), record.get("mode")
    if not isinstance(path, str) or not is_safe_path(path):
        raise IntegrityFault("`manifest.json` lists an unsafe path: %r" % (path,))
    if not _is_sha256(sha256) or not _is_size(size) or mode not in MODES:
        raise IntegrityFault("`manifest.json` has a bad record of `%s`" % path)
    encoding = record.get("encoding")
    if encoding is None and "encoding" not in record:
        return FileRecord(path, size, sha256, mode, None, path, size, sha256)  # type: ignore[arg-type]
    stored_size, stored_sha256 = record.get("stored_size"), record.get("stored_sha256")
    if encoding != "xz" or not _is_sha256(stored_sha256) or not _is_size(stored_size):
        raise IntegrityFault("`manifest.json` has a bad record of `%s`" % path)
    return FileRecord(path, size, sha256, mode, "xz", path + ".xz", stored_size, stored_sha256)  # type: ignore[arg-type]


def is_safe_path(path: str) -> bool:
    """Tell whether a path stays inside any folder it is joined to, and prints as it is."""
    if len(path) > 1024 or not path.isprintable() or "\\" in path:
        return False
    parts = path.split("/")
    return all(0 < len(p.encode("utf-8")) <= 255 and p not in (".", "..") for p in parts)


def _refuse_collisions(paths: Sequence[str]) -> None:
    folded = [path.casefold() for path in RESERVED + tuple(paths)]
    seen = set(folded)
    clash = len(seen) != len(folded)
    for path in folded:
        cut = path.find("/")
        while cut >= 0 and not clash:
            clash = path[:cut] in seen
            cut = path.find("/", cut + 1)
    if clash:
        raise IntegrityFault("`files` in `manifest.json` has paths that collide")


def _check_references(fields: Dict[str, Any], files: Tuple[FileRecord, ...]) -> None:
    listed = {record.path for record in files}
    references = [FIRST, fields["engine"]["library"], fields["engine"]["artifact"]]
    references.extend(fields["model"]["labels"].values())
    references.extend(_read_parts(fields["engine"]))
    references.extend(_read_libraries(fields.get("bodies", {})))
    if fields["golden"]["samples"] > len(files):
        raise IntegrityFault("`manifest.json` names more golden samples than it lists files")
    for number in range(fields["golden"]["samples"]):
        references.extend(
            "golden/%03d.%s.npz" % (number, kind) for kind in ("inputs", "artifact", "original")
        )
    for path in references:
        if not isinstance(path, str) or path not in listed:
            raise IntegrityFault("`manifest.json` names %r, which is not in `files`" % (path,))


def _read_parts(engine: Dict[str, Any]) -> List[Any]:
    """Return the files of a model that was cut into parts; none where it is one file."""
    parts = engine.get("parts")
    if parts is None:
        return []
    if type(parts) is not dict or parts.get("core") != engine["artifact"]:
        raise IntegrityFault("`engine.parts` in `manifest.json` does not fit `engine.artifact`")
    return [parts[key] for key in ("head", "tail") if parts.get(key) is not None]


def _read_libraries(bodies: Any) -> List[Any]:
    """Return the libraries that decode bodies."""
    if type(bodies) is not dict or not all(type(entry) is dict for entry in bodies.values()):
        raise IntegrityFault("`bodies` in `manifest.json` is of the wrong type")
    return [entry["library"] for entry in bodies.values() if "library" in entry]


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.match(value) is not None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE
