"""A manifest is read strictly: what a hostile one says never escapes the release's folder."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import IntegrityFault
from runtime.manifest import is_safe_path, parse_manifest
from tests.unit.runtime.small_manifest import MANIFEST

DIGEST = "0" * 64
PLAIN: dict[str, Any] = {
    **MANIFEST,
    "files": [
        {"path": "__main__.py", "sha256": DIGEST, "size": 1, "mode": 420},
        {"path": "lib/e.so", "sha256": DIGEST, "size": 9, "mode": 493,
         "encoding": "xz", "stored_sha256": DIGEST, "stored_size": 3},
        {"path": "model/m.onnx", "sha256": DIGEST, "size": 1, "mode": 420},
    ],
}  # fmt: skip


def encode(fields: Any) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def changed(path: str, value: object) -> bytes:
    """Return the manifest with the value at a dotted path replaced; `...` deletes it."""
    fields = copy.deepcopy(PLAIN)
    *parents, last = path.split(".")
    table: Any = fields
    for key in parents:
        table = table[int(key) if isinstance(table, list) else key]
    key: Any = int(last) if isinstance(table, list) else last
    if value is ...:
        del table[key]
    else:
        table[key] = value
    return encode(fields)


def test_the_plain_manifest_is_read() -> None:
    manifest = parse_manifest(encode(PLAIN))
    assert [record.stored_path for record in manifest.files] == [
        "__main__.py", "lib/e.so.xz", "model/m.onnx",
    ]  # fmt: skip
    assert manifest.files[1].stored_size == 3


def test_unknown_keys_are_kept() -> None:
    manifest = parse_manifest(changed("later", {"more": [1, 2.5, None]}))
    assert manifest.fields["later"] == {"more": [1, 2.5, None]}
    assert parse_manifest(changed("engine.later", "x")).fields["engine"]["later"] == "x"


def test_a_newer_format_is_refused_with_the_version_that_made_it() -> None:
    with pytest.raises(IntegrityFault, match=r"has format 2, made by edgepack 0\.1\.0") as caught:
        parse_manifest(changed("format", 2))
    assert "edgepack 0.1.0 or later" in str(caught.value.hint)
    assert caught.value.exit_code == 8


def test_a_newer_format_is_told_even_where_nothing_else_is_understood() -> None:
    with pytest.raises(IntegrityFault, match="has format 7"):
        parse_manifest(encode({"format": 7, "edgepack": "9.0"}))


def test_a_requirement_that_is_not_understood_is_refused() -> None:
    with pytest.raises(IntegrityFault, match="requires 'zstd', which this runtime does not"):
        parse_manifest(changed("requires", ["xz", "zstd"]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 0), ("format", True), ("format", "1"), ("requires", "xz"), ("requires", [1]),
        ("name", "../x"), ("name", "a\n"), ("name", 3), ("version", "1.0-rc"), ("sequence", -1),
        ("sequence", 1.0), ("sequence", True), ("target", []), ("target.arch", None),
        ("target.cpu_features_all", [1]), ("engine", ...), ("engine.threads", -1),
        ("engine.library", "/etc/passwd"), ("engine.library", "lib/other.so"),
        ("engine.artifact", "../../m.onnx"), ("model.signature", []), ("model.labels", ["x"]),
        ("model.labels", {"y": "/etc/passwd"}), ("model.labels", {"y": 1}),
        ("golden.samples", 1), ("golden.samples", 10**18), ("golden.samples", -1),
        ("files", {}), ("files", []), ("files.0", "x"), ("files.0.path", 1),
        ("files.0.path", "other.py"), ("files.0.mode", 0o777), ("files.0.mode", 0o4755),
        ("files.0.size", -1), ("files.0.size", 1 << 63), ("files.0.size", 1.0),
        ("files.0.sha256", "0" * 63), ("files.0.sha256", "0" * 64 + "\n"),
        ("files.0.sha256", "G" * 64), ("files.1.encoding", "gz"), ("files.1.encoding", None),
        ("files.1.stored_size", ...), ("files.1.stored_sha256", "x"),
        ("files.1.path", "zzz"), ("files.1.path", "MODEL/m.onnx"), ("files.1.path", "model"),
        ("files.2.path", "lib/e.so"), ("files.2.path", "lib/e.so.xz"),
        ("files.2.path", "manifest.json"), ("files.2.path", "manifest.sig"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(path: str, value: object) -> None:
    with pytest.raises(IntegrityFault):
        parse_manifest(changed(path, value))


def test_the_parts_of_a_model_are_files_of_the_bundle() -> None:
    core = "model/m.onnx"
    for parts in (None, {"core": core}, {"head": None, "core": core, "tail": None, "later": 1}):
        assert parse_manifest(changed("engine.parts", parts)).fields["engine"]["parts"] == parts
    assert parse_manifest(changed("engine.parts", {"core": core, "head": "lib/e.so"}))
    for parts in ("x", [], {}, {"core": "lib/e.so"}, {"core": None}):
        with pytest.raises(IntegrityFault, match=r"`engine\.parts` .* does not fit `engine\.artif"):
            parse_manifest(changed("engine.parts", parts))
    for path in ("model/other.onnx", "../../etc/passwd", "/etc/passwd", "", 3, ["model/m.onnx"]):
        for key in ("head", "tail"):
            with pytest.raises(IntegrityFault, match="which is not in `files`"):
                parse_manifest(changed("engine.parts", {"core": core, key: path}))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"[]\n", b"1\n", b"\xff\xfe", encode(PLAIN)[:-1], encode(PLAIN) + b"\n",
        b" " + encode(PLAIN), encode(PLAIN).replace(b'"m"', b'"m" ', 1),
        encode(PLAIN).replace(b'{"edgepack":"0.1.0",', b'{"edgepack":"9","edgepack":"0.1.0",'),
        json.dumps(PLAIN, indent=1).encode(), b"[" * 100_000, b'{"format":1e999}\n',
        changed("x", "\ud800"), encode(PLAIN).replace(b'"1.0.0"', b'"\\u0031.0.0"'),
    ],
)  # fmt: skip
def test_what_is_not_canonical_json_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityFault):
        parse_manifest(data)


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/", "/a", "a/", "a//b", "a/./b", "a/../b", "../a", "a\\b", "C:\\a", "a\0b",
     "a\nb", "a\x7f", "a\u202eb", "a\x85b", "n" * 256, "a/" * 600 + "b"],
)  # fmt: skip
def test_a_path_that_leaves_or_lies_is_unsafe(path: str) -> None:
    assert not is_safe_path(path)


@given(st.text(max_size=40))
def test_a_safe_path_never_leaves_a_folder(path: str) -> None:
    import os.path

    try:
        safe = is_safe_path(path)
    except UnicodeEncodeError:
        pytest.fail("a path that cannot be encoded must be unsafe")
    if safe:
        joined = os.path.normpath("/folder/" + path)
        assert joined == "/folder/" + path


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_anywhere_is_read_or_refused(value: object) -> None:
    for path in ("format", "target", "target.arch", "engine.library", "files", "files.0.path",
                 "files.0.size", "model.labels", "golden.samples"):  # fmt: skip
        with contextlib.suppress(IntegrityFault):
            parse_manifest(changed(path, value))
