"""Build requests: read back as written, refused where anything in them cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.nvidia.request import (
    BadRecipe,
    BuildRequest,
    from_manifest,
    model_bytes,
    read_request,
    reason_against_dla,
)
from tests.unit.runtime.nvidia.graphs import make_request, one_range

REQUEST = make_request(
    Path("/release"), "ab" * 32, dla_core=1, flags=("fp16",), strongly_typed=False
)
FIELDS: dict[str, Any] = json.loads(REQUEST.to_json())


def read(**changes: Any) -> BuildRequest:
    return BuildRequest.from_json(json.dumps({**FIELDS, **changes}))


def test_a_request_is_read_as_it_was_written():
    assert BuildRequest.from_json(REQUEST.to_json()) == REQUEST
    assert REQUEST.to_json() == BuildRequest.from_json(REQUEST.to_json()).to_json()
    assert REQUEST.path == "/release/model.onnx"


def test_names_and_folders_of_any_bytes_survive():
    odd = REQUEST._replace(
        folder="/r\udcff", profiles=(one_range("größe\ud800", (1,), (1,), (2,)),)
    )
    assert BuildRequest.from_json(odd.to_json()) == odd
    assert odd.to_json().isascii()


def test_a_manifest_gives_the_same_request_and_may_say_more():
    table = {**FIELDS, "needs": ["a driver"], "engines": [], "cuda": "12.6", "cuda_graphs": True}
    del table["folder"]
    assert from_manifest({"tensorrt": table}, "/release") == REQUEST


def test_a_manifest_without_a_recipe_is_refused():
    with pytest.raises(BadRecipe, match="no recipe for a TensorRT engine"):
        from_manifest({"tensorrt": None}, "/release")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("module", "os", "`module` in the engine recipe must be one of"),
        ("module", ["tensorrt"], "`module` in the engine recipe must be one of"),
        ("version", "10", "`version`"),
        ("version", "10.3.0.30\n", "`version`"),
        ("compute_capabilities", "8.7", "must be a list of words"),
        ("compute_capabilities", ["8.7; rm"], "`compute_capabilities`"),
        ("platform", "linux/../x", "`platform`"),
        ("folder", "relative", "must be an absolute path"),
        ("folder", None, "must be an absolute path"),
        ("artifact", "../model.onnx", "leaves the release's folder"),
        ("artifact", "/etc/passwd", "leaves the release's folder"),
        ("artifact", "model/./m.onnx", "leaves the release's folder"),
        ("artifact", "a\\b", "leaves the release's folder"),
        ("artifact", "m\x00.onnx", "leaves the release's folder"),
        ("artifact", "", "must be a path"),
        ("artifact_sha256", "AB" * 32, "`artifact_sha256`"),
        ("precision", "$(x)", "`precision`"),
        ("strongly_typed", 1, "must be true or false"),
        ("strongly_typed", True, "takes no precision `flags`"),
        ("products", "conv", "must be a list of words"),
        ("products", [1], "must be a list of words"),
        ("flags", ["best"], "cannot hold `best`"),
        ("flags", ["fp16", "int8", "fp16"], "must be a list of words"),
        ("profiles", {}, "must be a list of at most 64"),
        ("profiles", [{}] * 65, "must be a list of at most 64"),
        ("profiles", [[]], "must map at most 256 inputs"),
        ("profiles", [{"x": {"min": [1], "max": [2]}}], "must give min, opt and max"),
        ("profiles", [one_range("x", [2], [1], [3])], "is not min <= opt <= max"),
        ("profiles", [one_range("x", [1], [1, 1], [1])], "is not min <= opt <= max"),
        ("profiles", [one_range("x", [-1], [1], [1])], "a size that cannot be"),
        ("profiles", [one_range("x", [True], [1], [1])], "a size that cannot be"),
        ("profiles", [one_range("x", [1.0], [1], [1])], "a size that cannot be"),
        ("profiles", [one_range("x", [1], [1], [1 << 31])], "a size that cannot be"),
        ("profiles", [one_range("x", [1] * 9, [1] * 9, [1] * 9)], "at most 8 sizes"),
        ("workspace_mib", 0, "must be 1 to"),
        ("workspace_mib", "64", "must be 1 to"),
        ("sparse", None, "must be true or false"),
        ("dla_core", -1, "must be 0 to 15, or null"),
        ("dla_core", False, "must be 0 to 15, or null"),
        ("gpu_fallback", 0, "must be true or false"),
        ("version_compatible", "yes", "must be true or false"),
        ("argv", ["sh"], "unknown key: `argv`"),
    ],
)  # fmt: skip
def test_a_hostile_value_is_refused_by_its_name(key: str, value: Any, message: str):
    with pytest.raises(BadRecipe, match=message) as caught:
        read(**{key: value})
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("key", [key for key in FIELDS if key not in ("folder", "products")])
def test_a_missing_value_is_refused_by_its_name(key: str):
    fields = {name: value for name, value in FIELDS.items() if name != key}
    with pytest.raises(BadRecipe, match=f"lacks `{key}`"):
        BuildRequest.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"workspace_mib": NaN}',
        '{"a": 1, "a": 2}',
        "\ufeff{}",
    ],
)
def test_text_that_is_no_request_is_refused(text: str):
    with pytest.raises(BadRecipe):
        BuildRequest.from_json(text)


def test_a_request_file_of_any_size_or_coding_is_refused_without_reading_it_all(tmp_path: Path):
    path = tmp_path / "request.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadRecipe, match="not UTF-8"):
        read_request(str(path))
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BadRecipe, match="more than 4 MiB"):
        read_request(str(path))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(FIELDS)), _JSON)
def test_whatever_stands_in_a_request_it_is_read_or_refused(key: str, value: Any):
    try:
        request = read(**{key: value})
    except BadRecipe:
        return
    assert BuildRequest.from_json(request.to_json()) == request


def test_a_link_out_of_the_release_is_not_followed(tmp_path: Path):
    (tmp_path / "release").mkdir()
    (tmp_path / "secret").write_bytes(b"12345")
    request = make_request(tmp_path / "release", "0" * 64)
    with pytest.raises(BadRecipe, match=r"there is no `model\.onnx`"):
        model_bytes(request)
    (tmp_path / "release" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRecipe, match=r"`model\.onnx` leaves the release's folder"):
        model_bytes(request)


def test_weights_beside_the_graph_count_as_its_size(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"123")
    (tmp_path / "model.onnx.data").write_bytes(b"1234567")
    assert model_bytes(make_request(tmp_path, "0" * 64)) == 10


FIXED = one_range("x", (4, 64), (4, 64), (4, 64))
DLA = make_request(
    Path("/r"), "0" * 64, module="tensorrt", precision="fp16", dla_core=0, profiles=(FIXED,)
)


@pytest.mark.parametrize(
    ("changes", "version", "reason"),
    [
        ({}, (10, 3, 0, 30), None),
        ({}, (8, 5, 2, 2), None),
        ({}, (11, 4, 1), None),
        ({"dla_core": None, "precision": "fp32"}, (10, 3), None),
        ({"precision": "int8-static"}, (11, 4, 1), None),
        ({"precision": "int8-static"}, (10, 3, 0, 30), "takes int8 on the DLA only by calibration"),
        ({"precision": "int8-static"}, (8, 5, 2, 2), "11.4.1 is the first"),
        ({"precision": "fp32"}, (10, 3), "the DLA computes in fp16, and the model is fp32"),
        ({"precision": "bf16"}, (10, 3), "the DLA computes in fp16, and the model is bf16"),
        ({}, (11, 3, 0), "TensorRT X has no DLA: 11.4.1 brought it back"),
        ({"module": "tensorrt_rtx"}, (1, 7), "TensorRT-RTX has no DLA"),
        (
            {"profiles": (one_range("x", (1, 64), (4, 64), (4, 64)),)},
            (10, 3),
            "the DLA needs a fixed batch and size, and input `x` has a range",
        ),
    ],
)
def test_the_accelerator_is_refused_with_the_reason(
    changes: dict[str, Any], version: tuple[int, ...], reason: str | None
):
    said = reason_against_dla(DLA._replace(**changes), version, "TensorRT X")
    assert said is None if reason is None else said is not None and reason in said
