"""The digits network under an accuracy budget: from labelled data to a served, labelled answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.torch, pytest.mark.network]

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEARCH = {
    "objective", "metric", "budget", "limits", "original", "candidates", "front", "evaluations",
    "probes", "took_s", "sensitivity", "coverage", "data", "disagreements", "sizes",
    "latencies_ms", "command",
}  # fmt: skip


@pytest.fixture(scope="module")
def labelled(digits_cnn: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the images held out of training with their labels, as numbers and as words."""
    folder = tmp_path_factory.mktemp("labelled")
    np.savez(folder / "numbers.npz", x=digits_cnn.test_x, label=digits_cnn.test_y)
    words = np.array([NAMES[label] for label in digits_cnn.test_y])
    np.savez(folder / "words.npz", x=digits_cnn.test_x, label=words)
    (folder / "digits.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return folder


@pytest.fixture(scope="module")
def searched(
    build: Callable[..., dict[str, Any]], digits_cnn: Any, labelled: Path
) -> dict[str, Any]:
    """Build within a drop of one point of top1 for any x86-64 CPU."""
    return build(
        digits_cnn.factory, "-t", "cpu-x86_64", "-c", digits_cnn.calibration,
        "--eval", labelled / "numbers.npz", "--metric", "top1", "--max-drop", "1%",
        "--time-budget", "180s",
    )  # fmt: skip


@pytest.fixture(scope="module")
def compressed(
    edgepack_session: Any, digits_cnn: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Compress for another architecture, in float: what comes out is the network as ONNX."""
    done = edgepack_session(
        "compress", digits_cnn.factory, "-t", "cpu-arm64", "--precision", "fp32",
        "-o", tmp_path_factory.mktemp("compressed"), "--json", check=True,
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def _search(found: dict[str, Any]) -> dict[str, Any]:
    record = json.loads(Path(found["path"]).with_suffix(".record.json").read_text("utf-8"))
    search = record["search"]
    assert isinstance(search, dict)
    return search


def test_what_is_chosen_keeps_the_budget_and_gains_or_is_the_original(
    searched: dict[str, Any], digits_cnn: Any
) -> None:
    (chosen,) = (c for c in searched["candidates"] if c["verdict"] == "chosen")
    assert chosen["score"]["drop"] <= 0.01
    assert chosen["confirmed"]["drop"] <= 0.01
    assert chosen["score"]["rows"] + chosen["confirmed"]["rows"] == len(digits_cnn.test_x)
    mean = (chosen["score"]["original"] + chosen["confirmed"]["original"]) / 2
    assert mean == pytest.approx(digits_cnn.accuracy, abs=0.005)
    if chosen["name"].startswith("fp32"):
        assert chosen["reason"].startswith("nothing compressed is better: ")
    else:
        assert chosen["latency"]["speedup"] > 1
        assert chosen["latency"]["confidence"] >= 0.95


def test_the_record_holds_the_whole_search(searched: dict[str, Any]) -> None:
    search = _search(searched)
    assert set(search) >= SEARCH
    assert search["metric"] == "top1"
    assert search["budget"] == {"value": 0.01, "relative": False}
    assert {"fp32", "int8-dynamic", "int8-static"} <= {c["name"] for c in search["candidates"]}
    for candidate in search["candidates"]:
        assert candidate["verdict"] == "chosen" or candidate["reason"]
        if candidate["parity"] is not None:
            assert candidate["latency"]["speedup"] > 0
            assert candidate["score"]["metric"] == "top1"
    assert set(search["front"]) <= {c["name"] for c in search["candidates"]}
    assert 0 < search["evaluations"] <= 20
    assert {layer["op_type"] for layer in search["sensitivity"]} >= {"Conv"}
    assert sum(entry["bytes_before"] for entry in search["sizes"]) > 50_000
    assert len(search["latencies_ms"]["original"]) == len(search["latencies_ms"]["artifact"]) > 10
    assert search["data"]["calibration"]["kind"] == "npz"


def test_the_report_tells_of_the_search(
    searched: dict[str, Any], edgepack_session: Any, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    done = edgepack_session("report", searched["path"], "-o", page, "--json", check=True)
    unknown = json.loads(done.stdout)["unknown"]
    # A float network has no layer in a higher precision, and no range to leave.
    assert set(unknown) <= (
        {"kept", "coverage"} if searched["precision"].startswith("fp32") else set()
    )
    text = page.read_text("utf-8")
    for candidate in searched["candidates"]:
        assert candidate["name"] in text
    for word in ("top1", "--max-drop 1%", "Conv", "--eval"):
        assert word in text


def test_what_compress_writes_is_a_file_that_the_engine_loads(
    compressed: dict[str, Any], digits_cnn: Any
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(compressed["path"])
    (scores,) = session.run(None, {"x": digits_cnn.test_x})
    accuracy = float((scores.argmax(axis=1) == digits_cnn.test_y).mean())
    assert accuracy == pytest.approx(digits_cnn.accuracy)


def test_served_answers_carry_the_post_processing_of_a_compressed_model(  # noqa: PLR0917 - fixtures
    compressed: dict[str, Any], build: Callable[..., dict[str, Any]], digits_cnn: Any,
    labelled: Path, serve: Any, tmp_path: Path,
) -> None:  # fmt: skip
    import onnxruntime

    (output,) = onnxruntime.InferenceSession(compressed["path"]).get_outputs()
    (tmp_path / "edgepack.toml").write_text(
        f'model = "{compressed["path"]}"\n'
        'name = "digits"\n'
        f'calibration = "{digits_cnn.calibration}"\n'
        f'evaluation = "{labelled / "words.npz"}"\n'
        "[compress]\n"
        'precision = "int8-static"\nmetric = "top1"\nmax_drop = "2%"\n'
        f"[output.{output.name}]\n"
        f'activation = "softmax"\ntop_k = 3\nlabels = "{labelled / "digits.txt"}"\n'
    )
    built = build("-r", tmp_path / "edgepack.toml", "-t", "cpu-x86_64")
    assert built["precision"].startswith("int8-static")
    (chosen,) = (c for c in built["candidates"] if c["verdict"] == "chosen")
    assert chosen["score"]["drop"] <= 0.02
    with serve(Path(built["path"])) as server:
        answer = server.post("/predict", {"data": digits_cnn.test_x[:32].tolist()})["result"]
    scores = np.array(answer[output.name])
    assert scores.shape == (32, 3)
    assert ((scores > 0) & (scores <= 1)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    said = [row[0] for row in answer[f"{output.name}_labels"]]
    assert said == [NAMES[row[0]] for row in answer[f"{output.name}_classes"]]
    right = [word == NAMES[label] for word, label in zip(said, digits_cnn.test_y, strict=False)]
    assert np.mean(right) >= 0.95
