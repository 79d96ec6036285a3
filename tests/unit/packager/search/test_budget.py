"""A budget in a metric: what keeps it, what misses it, and which layers it sends back to float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import packager.search.trying
from packager.data import Samples
from packager.errors import BudgetMissed, UsageError
from packager.recipe import Compression, Drop
from packager.search.choose import choose
from packager.search.mixed import sets_to_try
from packager.search.sensitivity import LayerSensitivity
from packager.search.setting import SearchData
from packager.search.trying import MOST_EVALUATIONS
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from packager.model import Model
    from packager.search.outcome import Outcome


@pytest.fixture(autouse=True)
def on_an_x86_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is timed for another architecture: the outcome must not depend on where tests run.
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def touchy(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Model:
    """A classifier one of whose layers reads one channel a thousand times larger than the rest."""
    d = drawing()
    spread = np.ones(64, np.float32)
    spread[0] = 1000.0
    hidden = d.add("Relu", d.add("MatMul", "x", d.weight(64, 256)))
    wide = d.add("Mul", d.add("MatMul", hidden, d.weight(256, 64)), d.constant(spread))
    weight = d.random.standard_normal((64, 256)).astype(np.float32) / 8
    weight[0] /= 1e6
    hidden = d.add("Relu", d.add("MatMul", wide, d.constant(weight)))
    for _ in range(3):
        hidden = d.add("Relu", d.add("MatMul", hidden, d.weight(256, 256)))
    d.add("MatMul", hidden, d.weight(256, 10), out="y")
    return d.save(
        tmp_path / "touchy.onnx",
        (make_spec("x", "float32", batch, 64),),
        make_spec("y", "float32", batch, 10),
    )


def labelled(model: Model, count: int, *, seed: int, wrong: int = 0) -> Samples:
    """Return samples with the class that the model itself gives, but for the first `wrong`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.path)
    xs = np.random.default_rng(seed).standard_normal((count, 1, 64)).astype(np.float32)
    labels = [session.run(None, {"x": x})[0].argmax(1).astype(np.int64) for x in xs]
    labels = [(label + 1) % 10 if i < wrong else label for i, label in enumerate(labels)]
    return Samples(
        [lambda x=x: {"x": x} for x in xs],
        digest=f"{seed}-{count}", origin=f"{count} rows", kind="npy",
        names=tuple(f"row {i}" for i in range(count)), labels=tuple(labels),
    )  # fmt: skip


@pytest.fixture
def search(tmp_path: Path, notes: Any) -> Callable[..., Outcome]:
    def call(
        model: Model, *, evaluation: Samples | None, locked: Mapping[str, Any] | None = None,
        folder: str = "search", calibration: Samples | None = None, **compression: Any,
    ) -> Outcome:  # fmt: skip
        workdir = tmp_path / folder
        workdir.mkdir()
        calibration = calibration or labelled(model, 40, seed=1)
        data = SearchData(calibration=calibration, evaluation=evaluation)
        return choose(
            model, find_target("cpu-arm64"), data, Compression(**compression),
            locked=locked, threads=1, workdir=workdir, reporter=notes,
        )  # fmt: skip

    return call


def int8_weights(path: Path | None) -> int:
    assert path is not None
    tensors = onnx.load(path).graph.initializer
    return sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2 for t in tensors)


def test_the_layer_that_costs_the_budget_goes_back_to_float(
    touchy: Model, search: Callable
) -> None:
    evaluation = labelled(touchy, 200, seed=2)
    found = search(
        touchy, evaluation=evaluation, metric="top1", max_drop=Drop(value=0.03),
        precision="int8-static", min_agreement=0.5,
    )  # fmt: skip
    static = next(c for c in found.candidates if c.name == "int8-static")
    assert static.verdict == "drifted"
    assert "top1 falls by" in static.reason
    chosen = found.chosen
    assert chosen.name.startswith("int8-static")
    assert chosen.name != "int8-static"
    assert chosen.score is not None
    assert chosen.score.drop <= 0.03
    assert chosen.confirmed is not None
    assert chosen.confirmed.drop <= 0.03
    assert chosen.confirmed.rows == chosen.score.rows == 100
    floating = [layer for layer in chosen.layers if layer.precision == "fp32"]
    assert 1 <= len(floating) < len(chosen.layers)
    assert all("in sensitivity" in layer.reason for layer in floating)
    assert 0 < int8_weights(chosen.path) < 7
    assert found.record["evaluations"] <= MOST_EVALUATIONS
    assert found.record["sensitivity"][0]["name"] in {layer.name for layer in floating}


def test_what_was_mixed_is_repeated_by_its_lock(touchy: Model, search: Callable) -> None:
    told = {"metric": "top1", "max_drop": Drop(value=0.03), "precision": "int8-static",
            "min_agreement": 0.5}  # fmt: skip
    evaluation = labelled(touchy, 200, seed=2)
    first = search(touchy, evaluation=evaluation, **told)
    again = search(touchy, evaluation=evaluation, **told, locked=first.lock, folder="locked")
    assert [c.name for c in again.candidates] == [first.chosen.name]
    assert again.chosen.path.read_bytes() == first.chosen.path.read_bytes()


def test_the_wide_budget_is_kept_by_the_first_form(touchy: Model, search: Callable) -> None:
    found = search(
        touchy, evaluation=labelled(touchy, 100, seed=2), metric="top1",
        max_drop=Drop(value=1.0), min_agreement=0.0,
    )  # fmt: skip
    assert found.chosen.name == "int8-static"
    assert found.record["budget"] == {"value": 1.0, "relative": False}


def test_a_relative_budget_is_a_share_of_the_originals_metric(
    touchy: Model, search: Callable
) -> None:
    evaluation = labelled(touchy, 100, seed=2, wrong=60)
    wide = {"metric": "top1", "min_agreement": 0.0, "precision": "int8-static"}
    absolute = search(touchy, evaluation=evaluation, max_drop=Drop(value=0.38), **wide)
    assert absolute.chosen.score.original == pytest.approx(0.4, abs=0.05)
    with pytest.raises(BudgetMissed) as caught:
        search(
            touchy, evaluation=evaluation, max_drop=Drop(value=0.0, relative=True), folder="none",
            **wide,
        )  # fmt: skip
    assert caught.value.exit_code == 7
    assert "candidate" in caught.value.message
    assert "fp32 *" in caught.value.message


def test_a_budget_finer_than_one_sample_is_refused_with_the_number_needed(
    touchy: Model, search: Callable
) -> None:
    with pytest.raises(UsageError) as caught:
        search(
            touchy, evaluation=labelled(touchy, 60, seed=2), metric="top1",
            max_drop=Drop(value=0.005),
        )  # fmt: skip
    assert "finer than one answer" in caught.value.message
    assert "200" in f"{caught.value.accepted} {caught.value.hint}"


def test_a_metric_that_reads_labels_needs_them(touchy: Model, search: Callable) -> None:
    with pytest.raises(UsageError, match="needs labelled data") as caught:
        search(touchy, evaluation=None, metric="top1")
    assert "--eval" in caught.value.hint


def test_the_time_budget_ends_the_search_with_what_there_is(
    touchy: Model, search: Callable, notes: Any
) -> None:
    found = search(touchy, evaluation=None, time_budget_s=1e-3)
    assert found.chosen.name == "fp32"
    assert any("budget of time" in text for text in notes.said)


def test_the_record_tells_data_sizes_and_differences(touchy: Model, search: Callable) -> None:
    evaluation = labelled(touchy, 100, seed=2)
    record = search(
        touchy, evaluation=evaluation, metric="top1", max_drop=Drop(value=1.0), min_agreement=0.0
    ).to_record()
    assert record["metric"] == "top1"
    assert record["data"]["calibration"]["samples"] == 40
    assert record["data"]["comparison"]["samples"] == 50
    layers = {entry["layer"]: entry for entry in record["sizes"]}
    assert sum(e["bytes_after"] for e in layers.values()) < sum(
        e["bytes_before"] for e in layers.values()
    )
    assert record["disagreements"]
    assert record["disagreements"][0]["sample"].startswith("row ")
    assert record["front"]
    assert record["original"]["score"] == 1.0


def test_the_sets_double_and_stop_at_half_of_the_layers() -> None:
    ranking = [
        LayerSensitivity(name=f"l{i}", op_type="Conv", weights=1, sqnr_db=float(i))
        for i in range(20)
    ]
    in_order = [f"l{i}" for i in (7, 0, 3, *range(8, 20))]
    found = list(sets_to_try(ranking, in_order))
    assert [called for called, _ in found] == ["first", "first", "mixed", "mixed", "mixed", "mixed"]
    assert [len(names) for _, names in found] == [1, 2, 1, 2, 4, 8]
    assert found[1] == ("first", ("l7", "l0"))
    assert list(sets_to_try(ranking[:1], ["l0"])) == [("first", ("l0",))]


@pytest.mark.parametrize("name", ["int8-static", "int8-static-corrected", "fp32"])
def test_the_layers_told_of_are_those_of_the_form_that_was_chosen(
    name: str, search: Callable, make_cnn: Callable, make_samples: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = make_cnn(layers=4, channels=48)
    made = make_samples(model, 60)
    data = Samples(
        [lambda feeds=feeds: feeds for feeds in made], digest="", origin="60 rows", kind="npy",
        names=tuple(map(str, range(60))), labels=tuple(np.zeros(1, np.int64) for _ in made),
    )  # fmt: skip
    monkeypatch.setattr(
        packager.search.trying, "pick", lambda may, *_, **__: next(c for c in may if c.name == name)
    )
    outcome = search(
        model, evaluation=data, calibration=data, metric="top1", max_drop=Drop(value=0.5)
    )
    kind = "" if name == "fp32" else "int8"
    assert [layer["precision"] for layer in outcome.record["sensitivity"]] == [kind] * 5
    assert [layer.precision for layer in outcome.chosen.layers] == [kind] * 5 * (name != "fp32")
