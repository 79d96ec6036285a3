"""Templates: strict, quoted by their filters, the same as the golden files, and they run."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest

from packager.bundle import render as render_module
from packager.bundle.assemble import target_fields
from packager.bundle.render import UNBOUNDED_BYTES, render, render_server
from packager.target import all_targets
from runtime.app import UNBOUNDED_BYTES as RUNTIME_UNBOUNDED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.target import Target

BATCH = {"name": "batch", "min": 1, "max": 32, "opt": 1}
X = {"name": "x", "dtype": "float32", "shape": [BATCH, 2, 2]}
TEXT = {"name": 'te"xt', "dtype": "string", "shape": [BATCH, 1]}
Y = {"name": "y", "dtype": "float32", "shape": [BATCH, 3]}
KEPT = {"name": "kept", "dtype": "bool", "shape": [{**BATCH, "name": None, "max": None}]}
NASTY = "a\"b'c\\d\n{{ x }} ü </script>"


def manifest(inputs: list[Any], outputs: list[Any], **server: Any) -> dict[str, Any]:
    return {
        "name": "net",
        "version": "1.0.0",
        "edgepack": "0.1.0",
        "target": {"name": "cpu-x86_64", "python": "3.8", "memory_mib": 1024},
        "engine": {"name": "onnxruntime", "precision": "fp32"},
        "model": {"signature": {"inputs": inputs, "outputs": outputs}},
        "server": {"max_json_kb": 256, "plain": True, "metrics": True, "openapi": True, **server},
    }


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(render_module, "data_dir", lambda _: tmp_path)
    render_module._environment.cache_clear()
    yield tmp_path
    render_module._environment.cache_clear()


def test_a_value_that_is_missing_is_an_error(templates: Path) -> None:
    (templates / "t").write_text("{{ absent | py }}")
    with pytest.raises((jinja2.UndefinedError, TypeError)):
        render("t")


def test_a_value_without_a_filter_is_an_error(templates: Path) -> None:
    (templates / "t").write_text("{{ name }}")
    with pytest.raises(TypeError, match="without `py`, `json` or `sh`"):
        render("t", name="x")


def test_each_filter_keeps_a_nasty_value_one_value(templates: Path) -> None:
    (templates / "t").write_text("{{ v | py }}")
    assert ast.literal_eval(render("t", v=NASTY)) == NASTY
    assert render("t", v=NASTY).isascii()
    for value in (None, True, 1.5, (), (1,), (1, "a"), "it's", 'say "x"', "\\", "ü\U0001f600"):
        assert ast.literal_eval(render("t", v=value)) == value
    (templates / "u").write_text("{{ v | json }}")
    assert json.loads(render("u", v=NASTY)) == NASTY
    (templates / "s").write_text("{{ v | sh }}")
    nasty = NASTY.replace("\n", "; rm -rf $HOME `id`")
    assert shlex.split(render("s", v=nasty)) == [nasty]
    with pytest.raises(TypeError, match="one line"):
        render("s", v=NASTY)


def test_an_object_has_no_literal(templates: Path) -> None:
    (templates / "t").write_text("{{ v | py }}")
    with pytest.raises(TypeError, match="no literal for object"):
        render("t", v=object())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("one-input", manifest([X], [Y])),
        ("several", manifest([TEXT, X], [Y, KEPT], plain=False, metrics=False)),
    ],
)
def test_rendered_files_are_the_golden_ones(
    golden: Callable[[str, str], None], name: str, fields: dict[str, Any]
) -> None:
    for path, data in render_server(fields).items():
        golden(f"render/{name}/{path}", data.decode())


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_every_target_gets_files_that_parse(target: Target) -> None:
    fields = manifest([X], [Y])
    fields["target"] = target_fields(target)
    files = render_server(fields)
    for path in ("__main__.py", "server/app.py"):
        ast.parse(files[path], feature_version=(3, 8))
    assert json.loads(files["server/openapi.json"])["openapi"] == "3.1.0"


def test_without_openapi_there_is_no_such_file() -> None:
    files = render_server(manifest([X], [Y], openapi=False))
    assert set(files) == {"__main__.py", "server/app.py"}
    assert b"openapi" not in files["server/app.py"]


def test_limits_come_from_the_signature() -> None:
    text = render_server(manifest([X], [Y]))["server/app.py"].decode()
    assert f"Limits(json_bytes={256 * 1024}, binary_bytes={32 * 4 * 4})" in text
    text = render_server(manifest([TEXT], [Y]))["server/app.py"].decode()
    assert f"binary_bytes={UNBOUNDED_BYTES})" in text


def test_a_batch_of_photos_may_not_take_the_memory_of_the_device() -> None:
    side = {"name": "height", "min": 4, "max": 8192, "opt": 256}
    photo = {"name": "photo", "dtype": "uint8", "shape": [32, side, side, 3]}
    fields = manifest([photo], [Y])
    fields["target"]["memory_mib"] = 2048
    text = render_server(fields)["server/app.py"].decode()
    assert f"binary_bytes={128 << 20})" in text


def test_host_and_device_agree_on_the_limit_of_the_unbounded() -> None:
    assert UNBOUNDED_BYTES == RUNTIME_UNBOUNDED_BYTES


def schema_of(fields: dict[str, Any], name: str) -> Any:
    return json.loads(render_server(fields)["server/openapi.json"])["components"]["schemas"][name]


def test_the_description_has_the_models_names_types_and_sizes() -> None:
    inputs = schema_of(manifest([X, TEXT], [Y]), "InferRequest")["properties"]["inputs"]
    tensors = inputs["items"]["oneOf"]
    assert tensors[0]["properties"]["name"] == {"const": "x"}
    assert tensors[0]["properties"]["datatype"] == {"const": "FP32"}
    sizes = tensors[0]["properties"]["shape"]["prefixItems"]
    assert sizes[0] == {"type": "integer", "minimum": 1, "maximum": 32, "title": "batch"}
    assert sizes[1:] == [{"const": 2}, {"const": 2}]


def test_examples_are_requests_that_the_signature_takes() -> None:
    document = json.loads(render_server(manifest([X], [Y]))["server/openapi.json"])
    predict = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert predict["example"] == {"data": [[[0.5, 0.5], [0.5, 0.5]]]}
    infer = document["paths"]["/v2/models/net/infer"]["post"]["requestBody"]["content"]
    (item,) = infer["application/json"]["example"]["inputs"]
    assert item == {"name": "x", "shape": [1, 2, 2], "datatype": "FP32", "data": [0.5] * 4}


def test_a_large_input_has_no_example() -> None:
    photo = {"name": "x", "dtype": "uint8", "shape": [BATCH, 224, 224, 3]}
    assert b'"example"' not in render_server(manifest([photo], [Y]))["server/openapi.json"]


def start(python: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as devices have it
    return subprocess.run(
        [python, folder, "serve", "a b"], capture_output=True, text=True, timeout=60, check=False,
        env=environment,
    )  # fmt: skip


@pytest.fixture
def stub_bundle(tmp_path: Path) -> Path:
    """Return a release whose runtime only shows how it was called."""
    for path, data in render_server(manifest([X], [Y])).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("")
    (tmp_path / "runtime" / "codecache.py").write_text("def install(root, loader):\n    pass\n")
    (tmp_path / "runtime" / "main.py").write_text(
        "def main(argv, root):\n    print(argv, root)\n    return 7\n"
    )
    return tmp_path


def test_a_release_starts_its_own_runtime_and_keeps_no_module_compiled(stub_bundle: Path) -> None:
    done = start(sys.executable, stub_bundle)
    assert done.returncode == 7
    assert done.stdout == f"['serve', 'a b'] {stub_bundle}\n"
    # CPython keeps `__main__` before any code of ours runs; the real runtime removes it
    assert all(path.name.startswith("__main__.") for path in stub_bundle.rglob("*.pyc"))


def old_interpreters() -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return [
        found
        for version in ("2.7", "3.6", "3.7")
        for found in pyenv.glob(f"{version}.*/bin/python")
    ]


@pytest.mark.parametrize("python", old_interpreters(), ids=lambda path: path.parts[-3])
def test_an_interpreter_that_is_too_old_is_told_so_in_one_line(
    stub_bundle: Path, python: Path
) -> None:
    done = start(python, stub_bundle)
    assert done.returncode == 3
    first, empty, hint = done.stderr.splitlines()
    assert first.startswith("error: this bundle needs CPython 3.8 or later, and this is ")
    assert (empty, hint[:6]) == ("", "hint: ")
    assert "Traceback" not in done.stderr
