"""Tabular and text models from scikit-learn: several outputs, int64, strings, ZipMap removed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.network

TEXTS = ("the match ended with a late goal", "the market fell after the bank report")


@pytest.fixture(scope="module")
def cancer(
    build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Any, Any]:
    """Build a breast-cancer classifier whose ONNX file ends in a ZipMap."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x[:400], y[:400])
    file = tmp_path_factory.mktemp("cancer") / "cancer.onnx"
    file.write_bytes(to_onnx(model, x[:1]).SerializeToString())
    return build(file, "-t", "cpu-x86_64"), model, x[400:]


@pytest.fixture(scope="module")
def texts(
    build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Any]:
    """Build a text classifier that takes strings."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = ["goal match team", "team won the match", "bank market fell", "shares and bank rates"]
    model = make_pipeline(
        CountVectorizer(lowercase=False, token_pattern="[a-z]+"),  # noqa: S106 - no password
        LogisticRegression(),
    ).fit(rows, ["sport", "sport", "money", "money"])
    file = tmp_path_factory.mktemp("texts") / "texts.onnx"
    onnx_model = to_onnx(model, initial_types=[("text", StringTensorType([None, 1]))])
    file.write_bytes(onnx_model.SerializeToString())
    return build(file, "-t", "cpu-x86_64"), model


def test_labels_and_probabilities_of_a_tabular_model_are_served(
    cancer: tuple[dict[str, Any], Any, Any], serve: Any
) -> None:
    built, model, rows = cancer
    with serve(Path(built["path"])) as server:
        answer = server.post("/predict", {"data": rows[:20].tolist()})["result"]
    label, probability = answer.values()
    assert label == model.predict(rows[:20]).tolist()
    np.testing.assert_allclose(probability, model.predict_proba(rows[:20]), atol=1e-5)


def test_the_binary_protocol_serves_the_same_with_tritonclient(
    cancer: tuple[dict[str, Any], Any, Any], serve: Any
) -> None:
    import tritonclient.http as triton

    built, model, rows = cancer
    with serve(Path(built["path"])) as server:
        client = triton.InferenceServerClient(server.address)
        assert client.is_server_ready()
        metadata = client.get_model_metadata("cancer")
        (input_,) = metadata["inputs"]
        tensor = triton.InferInput(input_["name"], list(rows[:8].shape), input_["datatype"])
        tensor.set_data_from_numpy(rows[:8])
        names = [output["name"] for output in metadata["outputs"]]
        wanted = [triton.InferRequestedOutput(name, binary_data=True) for name in names]
        answer = client.infer("cancer", [tensor], outputs=wanted)
        label, probability = (answer.as_numpy(name) for name in names)
        client.close()
    assert label.tolist() == model.predict(rows[:8]).tolist()
    np.testing.assert_allclose(probability, model.predict_proba(rows[:8]), atol=1e-5)


def test_strings_go_in_and_come_out(texts: tuple[dict[str, Any], Any], serve: Any) -> None:
    built, model = texts
    with serve(Path(built["path"])) as server:
        answer = server.post("/predict", {"data": [[text] for text in TEXTS]})["result"]
    label, probability = answer.values()
    assert label == model.predict(TEXTS).tolist()
    np.testing.assert_allclose(probability, model.predict_proba(TEXTS), atol=1e-5)


def test_without_calibration_data_nothing_is_quantized_statically_and_the_message_says_what_to_give(
    cancer: tuple[dict[str, Any], Any, Any],
) -> None:
    built, _, _ = cancer
    (static,) = (c for c in built["candidates"] if c["name"] == "int8-static")
    assert static["verdict"] == "skipped"
    assert "-c" in static["reason"]
