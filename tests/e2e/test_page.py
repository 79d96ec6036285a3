"""The page of a bundle, in a real browser: from a photo to its labels, with and without keys."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.browser import axe, browser, page, violations

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("axe", "browser", "page")  # fixtures
pytestmark = [pytest.mark.browser, pytest.mark.network]

RECIPE = """
name = "colours"
[input.x.image]
size = [16, 16]
labels = "labels.txt"
"""


@pytest.fixture(scope="module")
def colours(build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a classifier of photos by their colour."""
    folder = tmp_path_factory.mktemp("colours")
    weights = numpy_helper.from_array((np.eye(3) * 8 - 2).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["scaled"]),
            helper.make_node("Softmax", ["scaled"], ["y"], axis=1),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [weights],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "model.onnx")
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "recipe.toml").write_text(RECIPE)
    built = build(
        folder / "model.onnx", "-t", "cpu-x86_64", "-r", folder / "recipe.toml",
        "--precision", "fp32",
    )  # fmt: skip
    return Path(built["path"])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "leaf.png"
    Image.new("RGB", (120, 80), (20, 230, 40)).save(path)
    return path


def until(page: Any, expression: str) -> Any:
    for _ in range(400):
        found = page.ask(expression)
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError((expression, page.ask("document.body.innerText"), page.complaints))


def give_file(page: Any, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    until(page, "!document.querySelector('canvas').hidden")


def run(page: Any) -> str:
    page.ask("document.getElementById('send').click()")
    return str(until(page, "document.getElementById('said').textContent"))


def test_a_photo_gets_the_labels_that_predict_prints(
    colours: Path, serve: Any, page: Any, *, axe: str, photo: Path, edgepack_session: Any
) -> None:
    done = edgepack_session("predict", colours, "-i", photo, "--json", check=True)
    (result,) = json.loads(done.stdout)["results"]
    best = result["outputs"]["y"]["top"][0][0]
    with serve(colours) as server:
        page.open(f"{server.url}/")
        until(page, "document.getElementById('state').className === 'good'")
        assert page.ask("document.title") == "colours"
        give_file(page, photo)
        said = run(page)
        assert said.startswith(f"{best['label']}, ")
        assert float(said.split(", ")[1].split(". ")[0]) == pytest.approx(best["score"], abs=1e-4)
        labels = page.ask("[...document.querySelectorAll('.bars li bdi')].map(e => e.textContent)")
        assert labels[0] == "green"
        assert sorted(labels) == ["blue", "green", "red"]
        assert violations(page, axe) == []
        assert page.complaints == []
        assert {address.removeprefix(server.url).split("/")[1] for address in page.requests} <= {
            "", "page.json", "predict", "v2",
        }  # fmt: skip


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as fault:
        return fault.code


def start(bundle: Path, *options: str | Path) -> tuple[subprocess.Popen[str], str]:
    """Start a bundle as a device does; return the process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-I", bundle, "serve", "--port", "0", *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr or ():
        if " on http" in line:
            return process, line.split(" on ")[1].split()[0]
    raise AssertionError("the server ended")


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=30)


def test_with_keys_the_page_tells_nothing_of_the_model_until_it_has_one(
    colours: Path, page: Any, photo: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    made = subprocess.run(
        [sys.executable, "-I", colours, "new-key", "tester", "--file", keys],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = made.stdout.split()[-1]
    process, url = start(colours, "--keys", keys)
    try:
        assert status(f"{url}/") == 200
        assert status(f"{url}/page.json") == 401
        page.open(f"{url}/")
        until(page, "!document.getElementById('lock').hidden")
        assert "API key" in page.ask("document.getElementById('trouble').textContent")
        assert page.ask("document.activeElement.id") == "key"
        assert "colours" not in page.ask("document.documentElement.outerHTML")
        page.call("Input.insertText", text=key)
        page.press("Enter", 13, "\r")
        until(page, "document.getElementById('state').className === 'good'")
        give_file(page, photo)
        assert run(page).startswith("green, ")
        assert key not in page.ask("document.documentElement.outerHTML")
        assert "$EDGEPACK_KEY" in page.ask("document.getElementById('curl').textContent")
        assert page.ask("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    finally:
        stop(process)


def test_no_page_leaves_it_out(colours: Path) -> None:
    process, url = start(colours, "--no-page")
    try:
        assert status(f"{url}/v2/health/ready") == 200
        assert status(f"{url}/") == 404
        assert status(f"{url}/page.json") == 404
    finally:
        stop(process)
