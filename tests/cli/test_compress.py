"""`edgepack compress` and budgets of `build`: what is chosen, said, written, resumed, repeated."""

from __future__ import annotations

import json
import signal
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

BUDGET = ("--metric", "top1", "--max-drop", "5%")


def _only(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (found,) = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def _search(found: dict[str, Any]) -> dict[str, Any]:
    path = Path(found.get("record") or Path(found["path"]).with_suffix(".record.json"))
    record = json.loads(path.read_text("utf-8"))
    search = record["search"]
    assert isinstance(search, dict)
    return search


def _verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {candidate["name"]: candidate["verdict"] for candidate in found["candidates"]}


def _runs_as_the_original(path: Path, original: Path, rows: Any) -> float:
    """Return how often a file's best class is the original's."""
    import onnxruntime

    got, wanted = (
        onnxruntime.InferenceSession(file).run(None, {"x": rows})[0].argmax(axis=1)
        for file in (path, original)
    )
    return float((got == wanted).mean())


def test_the_budget_sends_layers_back_to_float_and_the_record_tells_all_of_it(
    here: Any, search_options: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    done = here("compress", *search_options("touchy"), *BUDGET, "-o", "out", "--json")
    found = _only(done)
    assert found["precision"].startswith("int8-static-")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "touchy-1.0.0-cpu-arm64.onnx", "touchy-1.0.0-cpu-arm64.record.json",
    ]  # fmt: skip
    with np.load(data / "touchy-eval.npz") as arrays:
        rows = arrays["x"]
    path = tmp_path / found["path"]
    assert _runs_as_the_original(path, data / "touchy.onnx", rows) >= 0.95

    search = _search(found)
    assert (search["metric"], search["objective"]) == ("top1", "latency")
    assert search["budget"] == {"value": 0.05, "relative": False}
    by_name = {candidate["name"]: candidate for candidate in search["candidates"]}
    assert len(by_name) == len(search["candidates"])
    assert search["evaluations"] == sum(c["parity"] is not None for c in by_name.values())
    assert set(search["front"]) == {name for name, c in by_name.items() if c["on_front"]}
    chosen = by_name[found["precision"]]
    assert chosen["verdict"] == "chosen"
    assert (chosen["score"]["rows"], chosen["confirmed"]["rows"]) == (50, 50)
    assert max(chosen["score"]["drop"], chosen["confirmed"]["drop"]) <= 0.05
    floating = [layer for layer in chosen["layers"] if layer["precision"] == "fp32"]
    assert 1 <= len(floating) < len(chosen["layers"])
    assert all("in sensitivity" in layer["reason"] for layer in floating)
    for candidate in by_name.values():
        assert candidate["reason"] or candidate["verdict"] in {"chosen", "passed"}
    kinds = {name: search["data"][name] for name in ("calibration", "comparison", "confirmation")}
    assert [kinds[name]["samples"] for name in kinds] == [40, 50, 50]
    assert search["command"].startswith("edgepack compress ")


def test_a_precision_that_cannot_keep_the_budget_shows_the_front(
    here: Any, search_options: Callable[..., Any], kept: Path
) -> None:
    done = here(
        "compress", *search_options("touchy"), *BUDGET, "--precision", "int8-dynamic", "-o", kept
    )
    assert (done.returncode, done.stdout) == (7, "")
    error = done.stderr[done.stderr.index("error: ") :]
    assert error.startswith("error: `int8-dynamic` does not keep the budget: int8-dynamic: top1 ")
    lines = [line for line in error.splitlines() if " * " in line]
    assert [line.split()[0] for line in lines] == ["fp32", "int8-dynamic"]
    assert "hint: " in error
    assert "Traceback" not in done.stderr
    again = here(
        "compress", *search_options("touchy"), *BUDGET, "--precision", "int8-dynamic", "-o", kept
    )
    assert again.stderr[again.stderr.index("error: ") :] == error


def test_size_takes_the_smallest_that_keeps_the_budget(
    here: Any, search_options: Callable[..., Any]
) -> None:
    found = _only(
        here(
            "compress", *search_options("plain"), "--metric", "top1", "--max-drop", "0",
            "--objective", "size", "--json",
        )
    )  # fmt: skip
    inside = [c for c in found["candidates"] if c["verdict"] in {"chosen", "passed"}]
    assert {"fp16", "int8-weights", "int4-weights"} <= set(_verdicts(found))
    assert len(inside) >= 3
    least = min(c["size_bytes"] for c in inside)
    (chosen,) = (c for c in found["candidates"] if c["verdict"] == "chosen")
    assert chosen["size_bytes"] <= least * 1.02
    assert chosen["score"]["drop"] <= 0
    # int4 is smaller still, and loses more than nothing.
    assert _verdicts(found)["int4-weights"] == "drifted"


def _einsum(sketch: Any, path: Path) -> Path:
    graph = sketch()
    hidden = graph.add("Einsum", "x", graph.weight(64, 1024), equation="bi,ij->bj")
    graph.add("Einsum", hidden, graph.weight(1024, 10), out="y", equation="bi,ij->bj")
    return Path(graph.save(path))


def _loop(sketch: Any, path: Path) -> Path:
    graph, inner = sketch(), sketch()
    hidden = inner.add("MatMul", "h", inner.weight(64, 1024))
    inner.add("MatMul", hidden, inner.weight(1024, 64), out="next_h")
    inner.add("Identity", "go_on", out="next_go_on")

    def state(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64])

    def flag(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.BOOL, [])

    body = helper.make_graph(
        inner.nodes, "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), flag("go_on"), state("h")],
        [flag("next_go_on"), state("next_h")], inner.weights,
    )  # fmt: skip
    looped = graph.add("Loop", graph.constant(np.array(3)), "", "x", body=body)
    ends = [graph.constant(np.array([value])) for value in (0, 10, 1)]
    graph.add("Slice", looped, *ends, out="y")
    return Path(graph.save(path))


@pytest.mark.parametrize(("make", "operator"), [(_einsum, "Einsum"), (_loop, "Loop")])
def test_what_no_pass_supports_comes_out_in_float_with_the_reason(  # noqa: PLR0917 - fixtures
    here: Any, sketch: Any, data: Path, kept: Path, tmp_path: Path, make: Any, operator: str
) -> None:
    model = make(sketch, tmp_path / "odd.onnx")
    search = ("compress", model, "-t", "cpu-arm64", "-c", data / "plain-calibration.npz")
    found = _only(here(*search, "--json", "-o", "out"))
    assert found["precision"] == "fp32"
    by_name = {candidate["name"]: candidate for candidate in found["candidates"]}
    assert by_name["fp32"]["reason"] == (
        f"nothing compressed could be made of it: most of its weights are in `{operator}`, which "
        "no pass supports"
    )
    for name in ("int8-dynamic", "int8-static"):
        assert by_name[name]["verdict"] == "skipped"
        assert "has constant weights" in by_name[name]["reason"]
    with np.load(data / "plain-eval.npz") as arrays:
        assert _runs_as_the_original(tmp_path / found["path"], model, arrays["x"]) == 1
    asked = here(*search, "--precision", "int8", "-o", kept)
    assert (asked.returncode, asked.stdout) == (7, "")
    assert "error: `int8` cannot be made of this model: " in asked.stderr


def test_a_quantized_model_passes_through_with_a_word(
    here: Any, search_options: Callable[..., Any], tmp_path: Path
) -> None:
    asked = ("--precision", "int8-static", "--json")
    made = _only(here("compress", *search_options("plain"), *BUDGET, *asked))
    _, *options = search_options("plain")
    done = here("compress", made["path"], *options, *BUDGET, "--name", "again", "--json")
    found = _only(done)
    assert (tmp_path / found["path"]).read_bytes() == (tmp_path / made["path"]).read_bytes()
    assert "the model came in quantized: it passes through as it came" in done.stderr
    assert _verdicts(found) == {"quantized": "chosen"}
    assert "passes through as it came" in found["candidates"][0]["reason"]


def test_samples_that_both_calibrate_and_evaluate_are_counted(
    here: Any, data: Path, tmp_path: Path
) -> None:
    with np.load(data / "plain-eval.npz") as arrays:
        np.savez(tmp_path / "some.npz", x=arrays["x"][:30])
    done = here(
        "compress", data / "plain.onnx", "-t", "cpu-arm64", "-c", "some.npz",
        "--eval", data / "plain-eval.npz", *BUDGET, "--precision", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "30 of 100 samples of the evaluation data are in the calibration data" in done.stderr


def test_a_search_out_of_time_gives_the_best_so_far_and_says_so(
    here: Any, search_options: Callable[..., Any], kept: Path
) -> None:
    search = ("compress", *search_options("plain"), *BUDGET, "--time-budget", "0.001s", "--json")
    done = here(*search)
    assert _verdicts(_only(done)) == {"fp32": "chosen"}
    assert "the budget of time or evaluations ended the search" in done.stderr
    asked = here(*search, "--precision", "int8-static", "-o", kept)
    assert (asked.returncode, asked.stdout) == (7, "")
    assert "`int8-static` was not found before the search ended" in asked.stderr
    assert "--time-budget" in asked.stderr


def _lines_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if wanted in line:
            return lines
    raise AssertionError("".join(lines))


def test_a_search_that_was_interrupted_leaves_nothing_and_goes_on(
    edgepack: Any, here: Any, search_options: Callable[..., Any], kept: Path, tmp_path: Path
) -> None:
    search = ("compress", *search_options("touchy"), *BUDGET)
    process = edgepack.start(*search, "-o", kept)
    _lines_until(process, "→ try int8-static ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "error: interrupted; nothing half-written was left" in err
    assert "Traceback" not in err
    assert list((edgepack.cache / "work").iterdir()) == []

    resumed = here(*search, "-o", "resumed", "--json", cache=edgepack.cache)
    found = _only(resumed)
    for name in ("fp32", "int8-dynamic"):
        assert f"{name}: judged in an earlier run" in resumed.stderr
    assert not any((edgepack.cache / "unfinished").iterdir())

    whole = _only(here(*search, "-o", "whole", "--json", cache=tmp_path / "cache"))
    assert found["sha256"] == whole["sha256"]
    assert _verdicts(found) == _verdicts(whole)
    assert found["evaluations"] == whole["evaluations"]


def test_the_same_search_in_two_processes_gives_the_same_file_twice(
    edgepack: Any, search_options: Callable[..., Any], tmp_path: Path
) -> None:
    search = ("compress", *search_options("touchy"), *BUDGET, "--json")
    processes = [edgepack.start(*search, "-o", tmp_path / name) for name in ("a", "b")]
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out)[0])
    assert found[0]["sha256"] == found[1]["sha256"]
    assert _verdicts(found[0]) == _verdicts(found[1])
    assert not any((edgepack.cache / "unfinished").iterdir())
    assert not any((edgepack.cache / "work").iterdir())


@pytest.fixture
def with_engines(cli_cache: Path) -> None:
    """Let builds take the engine's library from the cache of this checkout."""
    from tests.conftest import SHARED_CACHE

    shared = SHARED_CACHE / "engines"
    shared.mkdir(parents=True, exist_ok=True)
    if not (cli_cache / "engines").is_symlink():
        (cli_cache / "engines").symlink_to(shared)


@pytest.mark.network
@pytest.mark.usefixtures("with_engines")
def test_a_lock_repeats_a_mixed_choice_without_timing_to_the_byte(
    here: Any, search_options: Callable[..., Any], tmp_path: Path
) -> None:
    build = ("build", *search_options("touchy"), *BUDGET)
    first = _only(here(*build, "-o", "first", "--json"))
    (chosen,) = (c for c in first["candidates"] if c["verdict"] == "chosen")
    assert {layer["precision"] for layer in chosen["layers"]} == {"int8", "fp32"}
    lock = next((tmp_path / "first").glob("*.lock.json"))
    done = here(*build, "--lock", lock, "-o", "second", "--json")
    second = _only(done)
    assert _verdicts(second) == {first["precision"]: "chosen"}
    assert "locked, not timed again" in second["candidates"][0]["reason"]
    assert second["candidates"][0]["latency"] is None
    bundles = [next((tmp_path / name).glob("*.edgepack")) for name in ("first", "second")]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()

    wire = json.loads(lock.read_text())
    for changes, code, word in (
        ({"form": "int3", "precision": "int3"}, 2, "there is no candidate `int3`"),
        ({"form": None}, 2, "there is no candidate"),
        ({"shape": ["folded"]}, 2, "there is no candidate"),
        ({"float_layers": 7}, 2, "there is no candidate"),
        ({"float_layers": [["n"]]}, 2, "there is no candidate"),
        ({"precision": "int8-static/../../../evil"}, 2, "there is no candidate"),
        ({"float_layers": ["no layer"]}, 7, "the graph has no layer `no layer`"),
    ):
        changed = {**wire, "choices": {**wire["choices"], **changes}}
        (tmp_path / "bad.lock.json").write_text(json.dumps(changed))
        bad = here(*build, "--lock", tmp_path / "bad.lock.json", "-o", "bad")
        assert (bad.returncode, bad.stdout) == (code, ""), f"{changes}\n{bad.stderr}"
        assert word in bad.stderr
        assert not (tmp_path / "bad").exists()


@pytest.mark.network
@pytest.mark.usefixtures("with_engines")
def test_random_calibration_is_asked_for_by_name_and_said_everywhere(here: Any, data: Path) -> None:
    build = ("build", data / "plain.onnx", "-t", "cpu-arm64", "--json")
    done = here(*build, "-c", "random:24")
    found = _only(done)
    assert "random numbers stand in for data" in done.stderr
    assert "candidates are compared on made-up inputs" in done.stderr
    told = _search(found)["data"]["calibration"]
    assert (told["kind"], told["origin"]) == ("random", "24 random inputs, seed 0")
    with zipfile.ZipFile(found["path"]) as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
    assert manifest["model"]["calibration"] == {"kind": "random", "samples": 24}
    assert "calibration: random, 24 samples" in here("inspect", found["path"]).stdout

    done = here(*build, "-o", "without")
    none = _only(done)
    with zipfile.ZipFile(none["path"]) as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
    assert manifest["model"]["calibration"] is None
    assert _verdicts(none)["int8-static"] == "skipped"
    assert "made-up inputs" in done.stderr


def test_data_to_compare_on_needs_labels_only_for_a_metric_that_reads_them(
    here: Any, search_options: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    with np.load(data / "touchy-eval.npz") as arrays:
        np.savez(tmp_path / "unlabelled.npz", x=arrays["x"])
    asked = ("compress", *search_options("touchy"), "--eval", tmp_path / "unlabelled.npz")
    search = _search(_only(here(*asked, "-o", "out", "--json")))
    assert search["metric"] == ""
    assert search["data"]["comparison"]["samples"] == 50
    refused = here(*asked, "--metric", "top1", "--max-drop", "5%", "-o", "none")
    assert refused.returncode == 2
    assert "no labels" in refused.stderr
