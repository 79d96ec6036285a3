"""What TensorRT's logger says, as sentences with a fix; progress read from phases and lines."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from runtime.nvidia.messages import Journal, explain, make_logger, parser_sentences
from runtime.nvidia.onnxnodes import name_node
from runtime.nvidia.progress import LogLines, Pace, Phases, Step, make_monitor
from tests.unit.runtime.nvidia.graphs import mlp, model, value

if TYPE_CHECKING:
    from pathlib import Path

NAME = "TensorRT 10.3.0.30"
LACKING = "it has no such operator, or not with these attributes"


def journal(*errors: str, warnings: tuple[str, ...] = ()) -> Journal:
    found = Journal()
    for text in warnings:
        found.add("WARNING", text)
    for text in errors:
        found.add("ERROR", text)
    return found


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "CUDA initialization failure with error: 35. Please check your CUDA installation",
            "TensorRT 10.3.0.30 cannot start: there is no NVIDIA driver here",
            "--runtime nvidia",
        ),
        ("Cuda Runtime (cudaError 100)", "no NVIDIA GPU is visible here", "nvidia-smi"),
        ("CUDA error: 803", "the driver's parts are of different versions", "restart"),
        ("CUDA error: 719", "CUDA failed with error 719", "dmesg"),
        (
            "[engine.cpp] Target GPU SM 87 is not supported by this TensorRT release.",
            "lacks kernels for this GPU (compute capability SM87)",
            "sudo apt install python3-libnvinfer",
        ),
        (
            "Requested amount of GPU memory (4096 bytes) could not be allocated: OutOfMemory",
            "memory ran out while the engine was built",
            "tensorrt.workspace_mib",
        ),
        ("CUDA initialization failure with error: 2", "memory ran out", "stop what else uses"),
        ("std::bad_alloc", "memory ran out", "stop what else uses"),
        (
            "Myelin (Unexpected exception Resource temporarily unavailable)",  # of a thread
            "memory ran out", "stop what else uses",
        ),
        (
            "Unable to load library: libnvinfer_builder_resource.so.8.5.3: cannot open",
            "cannot load its library `libnvinfer_builder_resource.so.8.5.3`",
            "reinstall TensorRT",
        ),
        ("write: No space left on device", "the disk is full", "XDG_CACHE_HOME"),
        (
            "Cannot compile operation 'node_linear' for Turing (SM75): FP32 GEMM is not supported",
            "no fp32 matrix products for compute capability 7.5",
            "--precision fp16",
        ),
        (
            "Error Code 10: Could not find any implementation for node /stem/Conv.",
            "found no kernel for `/stem/Conv`",
            "workspace_mib",
        ),
        ("nms_0 has no runners that implement it", "no kernel for `nms_0`", "moved to the CPU"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("severity", ["ERROR", "WARNING"])
def test_a_known_cause_has_a_sentence_and_a_fix(line: str, message: str, hint: str, severity: str):
    found = journal()
    found.add(severity, "some other trouble")
    found.add(severity, line)
    said, fix = explain(found, NAME)
    assert message in said
    assert fix is not None
    assert hint in fix


def test_a_driver_that_is_there_is_too_old():
    said, fix = explain(journal("cudaError 35"), NAME, driver="470.57.02")
    assert said == "the NVIDIA driver 470.57.02 is too old for TensorRT 10.3.0.30"
    assert fix is not None
    assert fix.startswith("update the driver")


def test_an_unknown_error_is_told_in_tensorrts_words_without_its_source_files():
    said, fix = explain(
        journal("Internal Error (shapes differ In evaluate at /src/shape.cpp:12)."), NAME
    )
    assert said == f"{NAME} built no engine: Internal Error (shapes differ"
    assert fix is None
    assert explain(journal(), NAME)[0] == f"{NAME} built no engine, and did not say why"


def test_the_journal_keeps_the_last_lines_without_the_most_verbose():
    seen: list[str] = []
    written: list[str] = []
    found = Journal(write=written.append, watch=seen.append)
    for index in range(100):
        found.add("VERBOSE", f"tactic {index}")
        found.add("INFO", f"line {index} " + "x" * 1000)
    found.add("INFO", "-" * 64)
    assert len(seen) == 201
    assert len(written) == 100
    assert len(found.lines) == 40
    assert found.lines[-1].startswith("[I] line 99 ")
    assert max(map(len, found.lines)) < 700


def test_a_listener_that_fails_does_not_reach_the_library(capsys: pytest.CaptureFixture[str]):
    def fail(_: str) -> None:
        raise RuntimeError("full")

    logger = make_logger(SimpleNamespace(ILogger=type("ILogger", (), {})), Journal(write=fail))
    logger.log(SimpleNamespace(name="INFO"), "text")
    assert "a line of the log was lost: full" in capsys.readouterr().err


class _Parser:
    def __init__(self, *errors: dict[str, Any]) -> None:
        self._errors = errors
        self.num_errors = len(errors)

    def get_error(self, index: int) -> Any:
        fields = self._errors[index]
        return SimpleNamespace(**{key: (lambda made=made: made) for key, made in fields.items()})


def _error(desc: str, node: int, code: str = "UNSUPPORTED_NODE", **more: Any) -> dict[str, Any]:
    return {"desc": desc, "node": node, "code": SimpleNamespace(name=code), **more}


def test_parser_errors_name_each_node_once(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    parser = _Parser(
        _error("Assertion failed: rank < 3: the input must have a rank of 2 or less.", 2),
        _error("Assertion failed: rank < 3: the input must have a rank of 2 or less.", 2),
        _error("false", 1, node_name="clamp", node_operator="Relu"),
        _error("what", 99),
        _error("truncated", -1),
    )
    assert parser_sentences(parser, str(path), NAME) == [
        f"{NAME} cannot take node `second` (MatMul): the input must have a rank of 2 or less",
        f"{NAME} cannot take node `clamp` (Relu): {LACKING}",
        f"{NAME} cannot take node `number 99`: what",
        f"{NAME} cannot read `model.onnx`: truncated",
    ]


def test_a_node_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    assert [name_node(str(path), index) for index in range(4)] == [
        ("first", "MatMul"), ("clamp", "Relu"), ("second", "MatMul"), None,
    ]  # fmt: skip
    nameless = model(
        [helper.make_node("Det", ["x"], ["y"])], [value("x", [2, 2])], [value("y", [])]
    )
    onnx.save(nameless, path)
    assert name_node(str(path), 0) == ("y", "Det")
    assert name_node(str(tmp_path / "absent"), 0) is None


@given(st.binary(max_size=200), st.integers(0, 3))
def test_bytes_that_are_no_graph_name_nothing_and_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, number: int
):
    path = tmp_path_factory.getbasetemp() / "bytes.onnx"
    path.write_bytes(content)
    found = name_node(str(path), number)
    assert found is None or isinstance(found[0], str)


def test_a_graph_cut_short_is_read_to_where_it_is_whole(tmp_path: Path):
    path = tmp_path / "model.onnx"
    whole = mlp().SerializeToString()
    for end in range(0, len(whole), 997):
        path.write_bytes(whole[:end])
        assert name_node(str(path), 2) in (None, ("second", "MatMul"))


# As TensorRT-RTX 1.7 calls its monitor for one product: name, parent, steps; None ends a phase.
_CALLS: list[Any] = [
    ("Building engine", None, 6),
    ("Cloning network graph", "Building engine", 4), 0, 1, 2, 3, None,
    0, 1,
    ("Preparing graph for optimization", "Building engine", 4), 0, 1, 2, 3, None,
    2, 3,
    ("Building engine from subgraph", "Building engine", 1),
    ("Optimizing graph", "Building engine from subgraph", 30), *range(30), None,
    ("Computing profile costs", "Building engine from subgraph", 5),
    ("Timing tactics", "Computing profile costs", 3),
    ("Timing graph nodes", "Timing tactics", 3), 0, 1, 2, None, 0, 1, None,
    0, 1, 2,
    ("Determining refit engines", "Computing profile costs", 1), 0, None,
    3, 4, None,
    0, None,
    4, 5, None,
]  # fmt: skip


@pytest.mark.parametrize("timed", [True, False])
def test_phases_give_a_fraction_that_grows_to_one(timed: bool):
    phases, names, fractions = Phases(1, timed=timed), [], []
    for call in _CALLS:
        if call is None:
            fractions.append(phases.fraction())
            phases.finish(names.pop())
        elif isinstance(call, int):
            phases.step(names[-1], call)
            fractions.append(phases.fraction())
        else:
            phases.start(*call)
            names.append(call[0])
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.05
    assert 0.9 < fractions[-1] <= 1.0
    assert phases.fraction() == 0.0
    # Before the phase that takes the time, little counts as done.
    assert fractions[41] < 0.2


def test_strange_phases_are_counted_by_their_steps():
    phases = Phases(3, timed=True)
    phases.step("never begun", 0)
    phases.finish("never begun")
    phases.start("Doing it otherwise", "no such parent", 4)
    phases.step("Doing it otherwise", 1)
    assert phases.fraction() == 0.5
    phases.step("Doing it otherwise", 99)
    assert phases.fraction() == 1.0


def test_lines_of_the_log_give_a_fraction_for_each_layer_and_profile():
    lines = LogLines(profiles=2)
    assert lines.read("After Myelin optimization: 9 layers") is None
    assert lines.read("After final dead-layer removal: 2 layers") is None
    told = [lines.read("=============== Computing costs for") for _ in range(5)]
    assert told == sorted(told, key=float)  # type: ignore[arg-type]
    assert all(0 < fraction < 1 for fraction in told if fraction is not None)
    assert lines.read("some tactic") is None
    assert lines.read("Engine generation completed in 1 seconds.") == 1.0


def test_the_time_left_follows_the_pace():
    steps: list[Step] = []
    pace = Pace(steps.append, since=time.monotonic() - 30)
    pace.tell(0.25, "timing")
    assert steps[-1].seconds_left == pytest.approx(90, rel=0.05)
    pace.tell(0.1, "going back")
    assert [step.fraction for step in steps] in ([0.25], [0.25, 0.25])
    pace.tell(1.0, "done")
    assert steps[-1].seconds_left == 0
    early: list[Step] = []
    Pace(early.append).tell(0.5, "just begun")
    assert early[-1].seconds_left is None


def test_two_builds_share_one_fraction():
    steps: list[Step] = []
    Pace(steps.append, share=0.8).tell(1.0, "first")
    Pace(steps.append, start=0.8, share=0.2).tell(0.5, "second")
    assert [step.fraction for step in steps] == [0.8, 0.9]


def test_the_monitor_tells_the_pace_and_never_stops_the_build():
    steps: list[Step] = []
    trt = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))
    monitor = make_monitor(trt, Phases(1, timed=True), Pace(steps.append))
    monitor.phase_start("Anything", None, 2)
    assert monitor.step_complete("Anything", 0) is True
    monitor.phase_finish("Anything")
    assert steps == [Step(0.5, None, "Anything")]
