"""The choice among candidates: limits, data, locks, precisions asked for by name."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from packager.artifact import Candidate, Latency, Parity
from packager.checks.latency import open_session
from packager.errors import BudgetMissed, UsageError
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply
from packager.passes.int8_static import WEIGHTED, Int8Static
from packager.recipe import Compression
from packager.search.choose import choose
from packager.search.fit import holder_of_weights, is_attention, is_this_machine
from packager.search.forms import PLAIN, Form, table
from packager.search.front import allowed, pick, rivals, with_front
from packager.search.setting import SearchData
from packager.search.table import as_table
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from packager.model import Model

ELSEWHERE, HERE = "cpu-arm64", "cpu-x86_64"


@pytest.fixture
def run(tmp_path: Path, notes: Any) -> Callable[..., dict[str, Candidate]]:
    def call(
        model: Model, samples: Any = None, *, target: str = ELSEWHERE, locked: Any = None,
        folder: str = "search", **compression: Any,
    ) -> dict[str, Candidate]:  # fmt: skip
        workdir = tmp_path / folder
        workdir.mkdir(exist_ok=True)
        outcome = choose(
            model, find_target(target), SearchData(calibration=samples), Compression(**compression),
            locked=locked, threads=1, workdir=workdir, reporter=notes,
        )  # fmt: skip
        call.lock = outcome.lock
        found = outcome.candidates
        assert [c.verdict for c in found].count("chosen") == 1
        return {c.name: c for c in found}

    return call


@pytest.fixture(autouse=True)
def on_an_x86_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # Nothing is timed for another architecture: the outcome must not depend on where tests run.
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def verdicts(found: dict[str, Candidate]) -> dict[str, str]:
    return {name: candidate.verdict for name, candidate in found.items()}


def digest(candidate: Candidate) -> str:
    assert candidate.path is not None
    return hashlib.sha256(candidate.path.read_bytes()).hexdigest()


def test_for_another_machine_the_targets_order_decides_unmeasured(
    run: Callable, make_cnn: Callable, make_samples: Callable
) -> None:
    model = make_cnn(layers=6, channels=48)
    found = run(model, make_samples(model, 30))
    told = verdicts(found)
    assert told["fp32"] == "passed"
    assert told["int8-dynamic"] == "skipped"
    static = {name: verdict for name, verdict in told.items() if name.startswith("int8-static")}
    assert {"int8-static", "int8-static-corrected", "int8-static-first-2"} == set(static)
    assert sorted(static.values()) == ["chosen", "passed", "passed"]
    best = next(c for c in found.values() if c.verdict == "chosen")
    assert best.latency is None
    assert "latency: unmeasured" in best.reason
    assert best.scheme == "U8S8 per channel"
    assert best.parity is not None
    assert best.parity.samples == 9
    assert best.size_bytes < found["fp32"].size_bytes / 2


def test_every_candidate_loads_and_answers(
    run: Callable, make_mlp: Callable, make_samples: Callable
) -> None:
    model = make_mlp(width=512)
    found = run(model, make_samples(model, 20))
    for candidate in found.values():
        if candidate.path is not None:
            (y,) = open_session(candidate.path, 1).run(None, make_samples(model)[0])
            assert y.shape == (1, 8)


def test_without_data_nothing_is_quantized_statically_and_the_reason_says_what_to_give(
    run: Callable, make_mlp: Callable, notes: Any
) -> None:
    found = run(make_mlp(width=512))
    assert verdicts(found) == {
        "fp32": "passed", "int8-dynamic": "chosen", "int8-static": "skipped",
    }  # fmt: skip
    assert found["int8-static"].reason == (
        "there is no calibration data: give a folder with `-c FOLDER`"
    )
    assert found["int8-dynamic"].reason.startswith("compared on made-up inputs")
    assert notes.said[0] == "there is no data: candidates are compared on made-up inputs"


def test_a_candidate_that_drifts_is_not_chosen(
    run: Callable, make_mlp: Callable, make_samples: Callable
) -> None:
    model = make_mlp(width=512)
    found = run(model, make_samples(model, 20), min_cosine=0.9999999)
    assert verdicts(found)["fp32"] == "chosen"
    assert verdicts(found)["int8-static"] == "drifted"
    assert "is below 1" in found["int8-static"].reason


def test_agreement_decides_only_over_enough_rows(
    run: Callable, make_mlp: Callable, make_samples: Callable
) -> None:
    model = make_mlp(width=512)
    few = run(model, make_samples(model, 20), folder="few", min_agreement=1.01)
    many = run(model, make_samples(model, 80), folder="many", min_agreement=1.01)
    assert few["int8-static"].verdict in {"passed", "chosen"}
    assert many["int8-static"].verdict == "drifted"
    assert "top-1 agreement" in many["int8-static"].reason


def test_a_tiny_model_is_not_quantized_unmeasured(
    run: Callable, make_cnn: Callable, make_samples: Callable
) -> None:
    model = make_cnn()
    found = run(model, make_samples(model))
    assert verdicts(found)["fp32"] == "chosen"
    assert "weights are too few to gain unmeasured" in found["int8-static"].reason


def test_on_this_machine_candidates_are_timed(
    run: Callable, make_cnn: Callable, make_samples: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.search.choose.is_this_machine", lambda target: True)
    model = make_cnn()
    found = run(model, make_samples(model), target=HERE)
    static = found["int8-static"]
    assert static.latency is not None
    assert static.latency.threads == 1
    slower = static.latency.speedup <= 1.0 or static.latency.confidence < 0.95
    assert (static.verdict == "slower") == slower


def test_a_precision_asked_for_is_taken_alone(
    run: Callable, make_cnn: Callable, make_samples: Callable
) -> None:
    model = make_cnn(layers=3)
    found = run(model, make_samples(model), precision="int8-static")
    told = verdicts(found)
    assert told.pop("fp32") == "passed"
    assert set(told) == {"int8-static", "int8-static-corrected"}
    assert sorted(told.values()) == ["chosen", "passed"]


def test_plain_is_taken_where_asked(
    run: Callable, make_mlp: Callable, make_samples: Callable
) -> None:
    model = make_mlp(width=512)
    assert verdicts(run(model, make_samples(model), precision="fp32")) == {"fp32": "chosen"}


def test_a_precision_asked_for_that_drifts_misses_the_budget_with_the_table(
    run: Callable, make_mlp: Callable, make_samples: Callable
) -> None:
    model = make_mlp(width=512)
    with pytest.raises(BudgetMissed) as caught:
        run(model, make_samples(model), precision="int8-static", min_cosine=0.9999999)
    assert caught.value.exit_code == 7
    assert "`int8-static` does not keep the budget" in caught.value.message
    assert "drifted" in caught.value.message
    assert "candidate" in caught.value.message


def test_static_int8_without_data_is_a_usage_error(run: Callable, make_cnn: Callable) -> None:
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        run(make_cnn(), precision="int8-static")
    assert caught.value.hint == "give a folder with `-c FOLDER`"


def test_int8_without_data_takes_the_dynamic_form(run: Callable, make_mlp: Callable) -> None:
    found = run(make_mlp(width=512), precision="int8")
    assert verdicts(found)["int8-dynamic"] == "chosen"


def test_a_lock_repeats_the_choice_and_its_bytes(
    run: Callable, make_cnn: Callable, make_samples: Callable
) -> None:
    model = make_cnn(layers=6, channels=48)
    first = run(model, make_samples(model, 30))
    best = next(c for c in first.values() if c.verdict == "chosen")
    lock = run.lock
    again = run(model, make_samples(model, 30), locked=lock, folder="again", target=HERE)
    assert list(again) == [best.name]
    assert again[best.name].latency is None
    same_target = run(model, make_samples(model, 30), locked=lock, folder="same")
    assert digest(same_target[best.name]) == digest(best)


def test_a_lock_repeats_the_layers_that_stay_float(
    run: Callable, make_cnn: Callable, make_samples: Callable
) -> None:
    model = make_cnn(layers=6, channels=48)
    plain = next(f for f in table(Compression()) if f.name == "int8-static")
    plain = dataclasses.replace(plain, shapes=("cleaned",))
    cleaned = run(model, make_samples(model, 30), precision="fp32")["fp32"].path
    layers = tuple(n.name for n in onnx.load(cleaned).graph.node if n.op_type == "Conv")[:2]
    lock = plain.with_float(layers).to_lock()
    first = run(model, make_samples(model, 30), locked=lock, folder="a")
    second = run(model, make_samples(model, 30), locked=lock, folder="b")
    (name,) = first
    assert name == "int8-static-mixed-2"
    assert digest(first[name]) == digest(second[name])
    weights = [t for t in onnx.load(first[name].path).graph.initializer if len(t.dims) > 1]
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in weights) == len(weights) - 2


def test_an_unknown_lock_is_refused(run: Callable, make_cnn: Callable) -> None:
    with pytest.raises(UsageError, match="there is no candidate `int3`"):
        run(make_cnn(), locked={"precision": "int3", "form": "int3", "shape": "cleaned"})


def test_an_interrupted_search_goes_on_where_it_stopped(
    run: Callable, make_mlp: Callable, make_samples: Callable, notes: Any
) -> None:
    model = make_mlp(width=512)
    first = run(model, make_samples(model, 30))
    folder = first["fp32"].path.parent
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    # A cut in the middle of a line, and a file that is no longer what was judged.
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    first["fp32"].path.write_bytes(b"damaged")
    notes.said.clear()
    again = run(model, make_samples(model, 30))
    assert verdicts(again) == verdicts(first)
    assert {n: digest(c) for n, c in again.items() if c.path} == {
        n: digest(c) for n, c in first.items() if c.path
    }
    resumed = [text.partition(":")[0] for text in notes.said if "earlier run" in text]
    assert resumed == ["int8-dynamic", "int8-static"]


def test_a_quantized_model_passes_through_as_it_came(
    run: Callable, make_cnn: Callable, make_samples: Callable, notes: Any
) -> None:
    model = dataclasses.replace(make_cnn(), quantized=True)
    found = run(model, make_samples(model))
    assert list(found) == ["quantized"]
    assert found["quantized"].path.read_bytes() == model.path.read_bytes()
    assert notes.said == ["the model came in quantized: it passes through as it came"]


@pytest.mark.parametrize(
    ("made_for", "target", "told"),
    [
        ("cpu-x86_64-vnni", "cpu-x86_64", True),
        ("cpu-x86_64-vnni", "server-l4", True),
        ("cpu-x86_64-vnni", "cpu-x86_64-vnni", False),
        ("cpu-x86_64-vnni", "cpu-arm64", False),
        ("cpu-x86_64", "cpu-x86_64", False),
    ],
)
def test_a_quantized_model_that_runs_in_float_without_vnni_is_told_of(  # noqa: PLR0917 - fixtures
    made_for: str, target: str, told: bool, run: Callable, make_cnn: Callable,
    make_samples: Callable, make_context: Callable, notes: Any,
) -> None:  # fmt: skip
    model = make_cnn()
    context = make_context(make_samples(model), target=made_for)
    quantized, _ = apply(
        (CleanUp(), Int8Static(operators=WEIGHTED)), onnx.load(model.path), context
    )
    onnx.save(quantized, model.path)
    run(dataclasses.replace(model, quantized=True), target=target)
    assert any("at float's speed" in text for text in notes.said) is told


def test_a_model_of_integers_must_not_change_an_answer(
    run: Callable, drawing: Any, make_spec: Callable, batch: Any, make_samples: Callable
) -> None:
    d = drawing()
    hidden = d.add("MatMul", "x", d.weight(32, 256))
    d.add("ArgMax", d.add("MatMul", hidden, d.weight(256, 4000)), out="y", axis=1, keepdims=0)
    model = d.save(
        Path("arg.onnx").absolute(),
        (make_spec("x", "float32", batch, 32),),
        make_spec("y", "int64", batch),
    )
    found = run(model, make_samples(model, 100))
    assert found["int8-dynamic"].verdict == "drifted"
    assert found["int8-dynamic"].reason == "an integer or string output changed"
    (chosen,) = (c for c in found.values() if c.verdict == "chosen")
    assert chosen.parity.exact


def test_attention_is_not_quantized_statically(
    run: Callable, drawing: Any, make_spec: Callable, batch: Any, make_samples: Callable
) -> None:
    d = drawing()
    q = d.add("MatMul", "x", d.weight(256, 256))
    k = d.add("Transpose", d.add("MatMul", "x", d.weight(256, 256)), perm=[0, 2, 1])
    scores = d.add("Softmax", d.add("MatMul", q, k), axis=-1)
    d.add("MatMul", scores, q, out="y")
    shape = (batch, 6, 256)
    model = d.save(
        Path("attention.onnx").absolute(),
        (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )
    assert is_attention(onnx.load(model.path))
    found = run(model, make_samples(model))
    assert found["int8-static"].verdict == "skipped"
    assert "see int8-dynamic" in found["int8-static"].reason
    assert "int8-static-mixed" not in found


def test_the_files_do_not_depend_on_the_folder(
    run: Callable, make_mlp: Callable, make_samples: Callable, tmp_path: Path
) -> None:
    model = make_mlp(width=512)
    moved = tmp_path / "elsewhere" / "other.onnx"
    moved.parent.mkdir()
    proto = onnx.load(model.path)
    proto.doc_string = "made in /home/somebody"
    onnx.save(proto, moved)
    first = run(model, make_samples(model), folder="a")
    second = run(
        dataclasses.replace(model, path=moved, name="other"), make_samples(model), folder="b"
    )
    assert {n: digest(c) for n, c in first.items() if c.path} == {
        n: digest(c) for n, c in second.items() if c.path
    }


def made(name: str, verdict: str, speedup: float | None, cosine: float = 0.995) -> Candidate:
    latency = None
    if speedup is not None:
        latency = Latency(
            p50_ms=1.0, p90_ms=1.1, original_p50_ms=speedup, speedup=speedup, confidence=1.0,
            threads=1, runs=12,
        )  # fmt: skip
    parity = Parity(samples=9, max_abs=0.1, cosine=cosine, top1_agreement=1.0, exact=True)
    return Candidate(
        name=name, path=None, size_bytes=1, verdict=verdict, reason="", parity=parity,
        latency=latency,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("candidates", "asked", "best"),
    [
        ([made("fp32", "passed", 1.0), made("int8-static", "passed", 2.0)], "auto", "int8-static"),
        ([made("fp32", "passed", 1.0), made("int8-static", "slower", 0.9)], "auto", "fp32"),
        (
            [made("int8-static", "passed", 2.0, 0.991), made("int8-static-mixed", "passed", 1.9)],
            "auto",
            "int8-static-mixed",
        ),
        (
            [made("int8-static", "passed", 2.0, 0.991), made("int8-static-mixed", "passed", 1.5)],
            "auto",
            "int8-static",
        ),
        ([made("fp32", "passed", 1.0), made("int8-static", "slower", 0.9)], "int8", "int8-static"),
        ([made("fp32", "passed", 1.0), made("int8-static", "drifted", None)], "int8", None),
        ([made("fp32", "passed", 1.0), made("int8-static", "passed", 2.0)], "fp32", "fp32"),
    ],
)
def test_the_fastest_wins_and_among_equals_the_nearest(
    candidates: Sequence[Candidate], asked: str, best: str | None
) -> None:
    known = {
        c.name: Form(name=c.name, precision="fp32" if c.name == PLAIN else "int8-static")
        for c in candidates
    }
    may = allowed(asked, candidates, known)
    found = pick(may, known, find_target(HERE), objective="latency", original_bytes=9)
    assert (found.name if found else None) == best


def test_the_table_shows_every_figure() -> None:
    lines = as_table([made("fp32", "passed", 1.0), made("int8-static", "drifted", None)])
    assert lines[0].split() == [
        "candidate", "size", "cosine", "agreement", "speed-up", "verdict", "reason",
    ]  # fmt: skip
    assert lines[1].split() == ["fp32", "1", "B", "0.9950", "100.0%", "1.00", "×", "passed"]


def test_a_machine_is_the_target_only_with_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"avx2", "fma"}
    monkeypatch.setattr("packager.search.fit.processor_flags", lambda: flags)
    assert is_this_machine(find_target("cpu-x86_64"))
    assert not is_this_machine(find_target("cpu-x86_64-vnni"))
    assert not is_this_machine(find_target("cpu-arm64"))
    flags.add("avx_vnni")
    assert is_this_machine(find_target("cpu-x86_64-vnni"))


@pytest.mark.parametrize("name", ["server-l4", "rtx-ada", "jetson-orin-nano-8gb", "dgx-spark"])
def test_no_machine_is_a_target_whose_time_is_the_gpus(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find_target(name)
    monkeypatch.setattr("packager.search.fit.platform.machine", lambda: target.arch)
    monkeypatch.setattr("packager.search.fit.processor_flags", lambda: set(target.cpu_features_all))
    assert is_this_machine(dataclasses.replace(target, tensorrt=None))
    assert not is_this_machine(target)


def test_a_candidate_that_gives_no_number_has_failed(
    run: Callable, make_mlp: Callable, make_samples: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packager.passes import int8_dynamic

    def damage(model: Any, context: Any, **options: Any) -> Any:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        tensor = broken.graph.initializer[0]
        values = np.full(list(tensor.dims), np.nan, np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return broken

    monkeypatch.setattr(int8_dynamic, "quantize_dynamically", damage)
    model = make_mlp(width=512)
    found = run(model, make_samples(model))
    assert found["int8-dynamic"].verdict == "failed"
    assert "holds NaN" in found["int8-dynamic"].reason
    assert found["int8-dynamic"].path is None


@pytest.mark.parametrize(
    ("objective", "best"), [("latency", "fast"), ("size", "small"), ("balanced", "even")]
)
def test_each_objective_has_its_own_best(objective: str, best: str) -> None:
    candidates = [
        dataclasses.replace(made("fast", "passed", 2.0), size_bytes=90),
        dataclasses.replace(made("small", "passed", 0.8), size_bytes=20),
        dataclasses.replace(made("even", "passed", 1.7), size_bytes=30),
    ]
    known = {c.name: Form(name=c.name, precision="int8-static") for c in candidates}
    found = pick(candidates, known, find_target(HERE), objective=objective, original_bytes=100)
    assert found is not None
    assert found.name == best


def test_only_those_near_the_fastest_are_timed_again() -> None:
    known = [made("a", "passed", 2.0), made("b", "passed", 1.6), made("c", "passed", 1.4),
             made("untimed", "passed", None)]  # fmt: skip
    assert [c.name for c in rivals(known, "latency", 1)] == ["a", "b"]
    assert rivals(known, "size", 1) == ()
    assert rivals([known[0], known[2]], "latency", 1) == ()


def test_side_by_side_a_small_gap_counts() -> None:
    fast, near = made("fast", "passed", 2.0, 0.99), made("near", "passed", 1.9, 0.999)
    known = {c.name: Form(name=c.name, precision="int8-static") for c in (fast, near)}
    for raced, best in ((False, near), (True, fast)):
        found = pick([fast, near], known, find_target(HERE), objective="latency",
                     original_bytes=1, raced=raced)  # fmt: skip
        assert found is best


def test_the_front_leaves_out_what_another_beats_in_everything(tmp_path: Path) -> None:
    def at(name: str, size: int, speedup: float, cosine: float) -> Candidate:
        found = made(name, "passed", speedup, cosine)
        return dataclasses.replace(found, path=tmp_path / name, size_bytes=size)

    found = with_front((
        at("original", 100, 1.0, 1.0), at("better", 25, 2.0, 0.99), at("beaten", 30, 1.9, 0.98),
        at("small", 10, 0.5, 0.9), made("failed", "failed", None),
    ))  # fmt: skip
    assert [c.name for c in found if c.on_front] == ["original", "better", "small"]


def test_numbers_in_attributes_count_as_weights() -> None:
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=[0.5, 0.0, 0.0],
        target_weights=[1.0, 2.0],
    )  # fmt: skip
    scaled = helper.make_node("Mul", ["y", "k"], ["z"])
    constant = numpy_helper.from_array(np.ones(4, np.float32), "k")
    graph = helper.make_graph([tree, scaled], "trees", [], [], [constant])
    assert holder_of_weights(helper.make_model(graph)) == "TreeEnsembleRegressor"
