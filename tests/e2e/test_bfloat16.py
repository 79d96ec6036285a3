"""A model whose input and output are bfloat16, computing in float32, from file to answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
# The last ones lie between two numbers of bfloat16.
ROWS = np.array([[1, 2, 3, 4], [0.5, -0.25, 1.2345678, 100.1]], np.float32)


def save_model(path: Path) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["wide", "w"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.BFLOAT16),
        ],
        "g",
        [value("x", TensorProto.BFLOAT16, ["n", 4])],
        [value("y", TensorProto.BFLOAT16, ["n", 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def asked_with_triton(client: Any, kind: Any, rows: np.ndarray) -> np.ndarray:
    tensor = kind.InferInput("x", list(rows.shape), "BF16")
    tensor.set_data_from_numpy(rows)
    answer = client.infer("halves", [tensor]).as_numpy("y")
    client.close()
    return answer.astype(np.float32)


def test_bfloat16_at_the_edges_is_built_verified_and_served_over_every_way(
    build: Callable[..., dict[str, Any]], serve: Any, tmp_path: Path
) -> None:
    import tritonclient.grpc
    import tritonclient.http

    np.savez(tmp_path / "rows.npz", x=ROWS)
    built = build(
        save_model(tmp_path / "halves.onnx"), "-t", "cpu-x86_64", "--precision", "fp32",
        "-c", tmp_path / "rows.npz",
    )  # fmt: skip
    rounded = ROWS.astype(BFLOAT16)
    expected = (rounded.astype(np.float32) @ WEIGHTS).astype(BFLOAT16).astype(np.float32)

    out = tmp_path / "out.npz"
    command = [sys.executable, built["path"], "predict", "-i", tmp_path / "rows.npz", "-o", out]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    with np.load(out) as answers:
        assert answers["y"].view(BFLOAT16).astype(np.float32).tolist() == expected.tolist()

    with serve(Path(built["path"])) as server:
        (described,) = server.get("/v2/models/halves")["inputs"]
        assert described == {"name": "x", "datatype": "BF16", "shape": [-1, 4]}
        plain = server.post("/predict", {"data": ROWS.tolist()})["result"]
        np.testing.assert_allclose(plain, expected, rtol=1e-3)
        for kind in (tritonclient.http, tritonclient.grpc):
            client = kind.InferenceServerClient(server.address)
            assert asked_with_triton(client, kind, rounded).tolist() == expected.tolist()
