"""`edgepack report` on a real build, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

# The engine's library is downloaded where no earlier test has.
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def bundle(edgepack_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build one product x [batch, 16] → scores [batch, 4] and measure its top1."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    weights = random.standard_normal((16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "small.onnx")
    rows = random.standard_normal((200, 16)).astype(np.float32)
    labels = (rows @ weights).argmax(axis=1)
    labels[:20] = 0
    np.savez(folder / "eval.npz", x=rows, label=labels)
    done = edgepack_session(
        "build", folder / "small.onnx", "-t", "cpu-x86_64", "--precision", "fp32",
        "--eval", folder / "eval.npz", "--metric", "top1", "-o", folder, "--json", check=True,
    )  # fmt: skip
    return Path(json.loads(done.stdout)[0]["path"])


def test_a_build_is_told_on_one_page(edgepack_session: Any, bundle: Path) -> None:
    page = bundle.with_name("report.html")
    done = edgepack_session("report", bundle, "-o", page, "--json", check=True)
    told = json.loads(done.stdout)
    assert told["report"] == str(page)
    assert told["size_bytes"] == page.stat().st_size
    # What a build of one float form does not measure.
    assert set(told["unknown"]) <= {"sensitivity", "kept", "sizes", "latency", "coverage"}
    content = page.read_text(encoding="utf-8")
    for expected in ("small 1.0.0", "fp32", "top1", "--metric top1", told["bundle"], "product"):
        assert expected in content.replace('<bdi class="name">', "").replace("</bdi>", ""), expected
    text = edgepack_session("report", bundle, "-o", page, check=True).stdout
    assert text.startswith(f"{page}  ")


def test_a_bundle_without_its_record_is_explained(
    edgepack_session: Any, bundle: Path, tmp_path: Path
) -> None:
    alone = tmp_path / bundle.name
    alone.write_bytes(bundle.read_bytes())
    done = edgepack_session("report", alone, "-o", tmp_path / "report.html")
    assert done.returncode == 10
    assert done.stderr.startswith("error: `")
    assert "record.json` does not exist" in done.stderr
    assert "hint: name it with `--record FILE`" in done.stderr
    record = bundle.with_suffix(".record.json")
    edgepack_session(
        "report", alone, "--record", record, "-o", tmp_path / "report.html", check=True
    )


def test_what_is_no_bundle_is_refused(edgepack_session: Any, tmp_path: Path) -> None:
    done = edgepack_session("report", tmp_path / "none.edgepack", "-o", tmp_path / "report.html")
    assert (done.returncode, done.stdout) == (10, "")
    assert "none.edgepack` does not exist" in done.stderr
    (tmp_path / "text.edgepack").write_text("no zip at all")
    (tmp_path / "text.record.json").write_text('{"bundle": {"digest": "x"}}')
    done = edgepack_session("report", tmp_path / "text.edgepack", "-o", tmp_path / "report.html")
    assert done.returncode == 8
    done = edgepack_session("report", tmp_path / "text.edgepack", "-o", tmp_path)
    assert done.returncode == 10
    assert "is a folder" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"text.edgepack", "text.record.json"}
