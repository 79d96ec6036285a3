"""Engines behind the adapter: what goes in comes out, whatever the type, shape or memory."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.dtypes import BY_NAME, pack, unpack
from runtime.errors import BadRequest, ModelFault
from runtime.nvidia.cudart import CudaFault
from runtime.nvidia.lane import Lane
from runtime.nvidia.loading import EngineFault
from runtime.nvidia.memory import OWN, SHARED
from runtime.signature import Signature
from runtime.tensor import Tensor
from tests.standin.gpu import DOUBLED, ROWS, doubled, floats, rows, wire_profiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.standin.gpu import StandinGpu

ROOT = Path(__file__).resolve().parents[4]
WIDE = {"x": ([33, 3], [64, 3], [128, 3])}


def wire(dtype_in: str, dtype_out: str) -> Signature:
    batch = {"name": "n", "min": 1, "max": 32, "opt": 4}
    return Signature(
        {
            "inputs": [{"name": "x", "dtype": dtype_in, "shape": [batch, 3]}],
            "outputs": [{"name": "y", "dtype": dtype_out, "shape": [batch, 3]}],
        }
    )


@pytest.mark.parametrize("memory", [OWN, SHARED, "auto"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_every_request_gets_its_own_answer(gpu: StandinGpu, memory: str, cuda_graphs: bool):
    engine = gpu.open(memory=memory, cuda_graphs=cuda_graphs)
    for start, count in enumerate((2, 2, 2, 2, 7, 7, 7, 7, 2, 2, 32, 1)):
        answer = engine.run({"x": rows(count, start)})
        assert floats(answer["y"]) == doubled(rows(count, start))
        assert answer["y"].shape == (count, 3)
    engine.close()


def test_an_answer_stays_as_it_is_when_the_next_one_comes(gpu: StandinGpu):
    engine = gpu.open()
    first = engine.run({"x": rows(2)})["y"]
    engine.run({"x": rows(2, 100)})
    assert floats(first) == doubled(rows(2))
    engine.close()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [1.5, -2.0, 3.25]),
        ("float16", [1.5, -2.0, 3.25]),
        ("bfloat16", [1.5, -2.0, 3.25]),
        ("int8", [-100, 0, 27]),
        ("uint8", [0, 100, 255]),
        ("int32", [-(2**31), 5, 2**31 - 1]),
        ("int64", [-(2**62), 5, 2**53]),
        ("bool", [True, False, True]),
    ],
)
def test_every_type_that_tensorrt_has_comes_back_as_it_went(
    gpu: StandinGpu, dtype: str, values: list[Any]
):
    plan = gpu.plan(
        inputs={"x": (dtype, [-1])},
        outputs={"y": {"dtype": dtype, "of": "x"}},
        profiles=[{"x": ([1], [3], [8])}],
    )
    engine = gpu.open(plan)
    answer = engine.run({"x": Tensor(dtype, (3,), pack(dtype, values))})["y"]
    assert (answer.dtype, answer.shape) == (dtype, (3,))
    assert unpack(dtype, answer.data) == values
    engine.close()


def test_integers_of_64_bits_pass_through_an_engine_of_32(make_gpu: Callable[..., StandinGpu]):
    gpu = make_gpu(version="8.5.2.2")
    plan = gpu.plan(
        inputs={"x": ("int32", [-1, 3])}, outputs={"y": {"dtype": "int32", "of": "x", "scale": 2}}
    )
    engine = gpu.open(plan, signature=wire("int64", "int64"))
    for values in ([1, 2, 3], [-1, 0, 2**30 - 1], [-(2**30), 7, 0]):
        fed = Tensor("int64", (1, 3), pack("int64", values))
        answer = engine.run({"x": fed})["y"]
        assert answer == Tensor("int64", (1, 3), pack("int64", [2 * value for value in values]))
    engine.close()


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**32, 2**63 - 1, -(2**63)])
def test_an_integer_that_the_engine_cannot_hold_is_refused(gpu: StandinGpu, value: int):
    plan = gpu.plan(inputs={"x": ("int32", [-1, 3])}, outputs={"y": {"dtype": "int32", "of": "x"}})
    engine = gpu.open(plan, signature=wire("int64", "int64"))
    with pytest.raises(BadRequest, match="input `x` holds a number out of the range of int32"):
        engine.run({"x": Tensor("int64", (1, 3), pack("int64", [0, value, 0]))})
    assert unpack(
        "int64", engine.run({"x": Tensor("int64", (1, 3), pack("int64", [4, 5, 6]))})["y"].data
    ) == [4, 5, 6]
    engine.close()


def test_an_engine_whose_types_are_not_the_models_is_refused(gpu: StandinGpu):
    with pytest.raises(ModelFault, match="`x` is int8 in the model's signature and float32 in"):
        gpu.open(signature=wire("int8", "float32"))


def test_several_inputs_and_outputs_keep_apart(gpu: StandinGpu):
    plan = gpu.plan(
        inputs={"a": ("float32", [-1, 3]), "flag": ("bool", [1]), "b": ("float32", [-1, 3])},
        outputs={
            "twice": {"dtype": "float32", "of": "a", "scale": 2},
            "same": {"dtype": "bool", "of": "flag"},
            "total": {"dtype": "float32", "sum": "b"},
        },
        profiles=[{"a": ROWS, "b": ROWS, "flag": ([1], [1], [1])}],
    )
    engine = gpu.open(plan)
    feeds = {"a": rows(5), "flag": Tensor("bool", (1,), b"\1"), "b": rows(2, 10)}
    answer = engine.run(feeds)
    assert floats(answer["twice"]) == [2 * value for value in floats(feeds["a"])]
    assert bytes(answer["same"].data) == b"\1"
    assert floats(answer["total"]) == [10 + 11 + 12, 13 + 14 + 15]
    assert list(engine.run(feeds, ["total"])) == ["total"]
    assert engine.interface == (("a", "flag", "b"), ("twice", "same", "total"))
    engine.close()


def test_an_engine_of_fixed_shapes_needs_no_profile(gpu: StandinGpu):
    engine = gpu.open(gpu.plan(inputs={"x": ("float32", [2, 3])}, profiles=()), workers=2)
    assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
    with pytest.raises(BadRequest, match=r"`x` has the shape \[1, 3\], .* built for \[2, 3\]"):
        engine.run({"x": rows(1)})
    engine.close()


@pytest.mark.parametrize("memory", [OWN, SHARED])
def test_an_output_whose_size_depends_on_the_data_grows(gpu: StandinGpu, memory: str):
    plan = gpu.plan(
        outputs={"kept": {"dtype": "float32", "nonzero": "x"}, **DOUBLED}, profiles=[{"x": ROWS}]
    )
    engine = gpu.open(plan, memory=memory, cuda_graphs=True)
    for values in ([0, 0, 1], [0, 0, 0], [4, 5, 6], [0, 7, 0], [1, 2, 3]):
        answer = engine.run({"x": Tensor("float32", (1, 3), pack("float32", values))})
        kept = [float(value) for value in values if value]
        assert (answer["kept"].shape, floats(answer["kept"])) == ((len(kept),), kept)
        assert floats(answer["y"]) == [2 * value + 1 for value in values]
    big = engine.run({"x": rows(32, 1)})["kept"]
    assert floats(big) == floats(rows(32, 1))
    assert engine.notes == [], "graphs are not even tried"
    engine.close()


def test_the_profile_tuned_nearest_is_taken(gpu: StandinGpu):
    plan = gpu.plan(profiles=[{"x": ROWS}, WIDE, {"x": ([1, 3], [1, 3], [128, 3])}])
    engine = gpu.open(plan)
    chosen = []
    for count in (4, 60, 1, 100, 32, 128):
        assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
        chosen.append(engine._idle[0]._context.active_optimization_profile)
    assert chosen == [0, 1, 2, 1, 0, 1]
    engine.close()


def test_a_shape_that_no_profile_covers_never_reaches_the_engine(gpu: StandinGpu):
    engine = gpu.open(gpu.plan(profiles=[{"x": ROWS}, {"x": ([64, 3], [64, 3], [128, 3])}]))
    gpu.trt.faults.shape = "the engine saw it"
    with pytest.raises(BadRequest) as refused:
        engine.run({"x": rows(40)})
    assert refused.value.message == (
        "input `x` has the shape [40, 3], and the engine was built for [1..32, 3] or [64..128, 3]"
    )
    assert refused.value.status == 400
    with pytest.raises(BadRequest, match=r"the shape \[3\]"):
        engine.run({"x": Tensor("float32", (3,), bytes(12))})
    engine.close()


def test_shapes_that_no_profile_covers_together_are_told_together(gpu: StandinGpu):
    small, large = ([1], [1], [4]), ([5], [5], [9])
    plan = gpu.plan(
        inputs={"a": ("float32", [-1]), "b": ("float32", [-1])},
        outputs={"y": {"dtype": "float32", "of": "a"}},
        profiles=[{"a": small, "b": small}, {"a": large, "b": large}],
    )
    engine = gpu.open(plan)
    feeds = {name: Tensor("float32", (n,), bytes(4 * n)) for name, n in (("a", 2), ("b", 7))}
    with pytest.raises(BadRequest) as refused:
        engine.run(feeds)
    assert refused.value.message == (
        "the engine was built for no such shapes together: `a` [2], `b` [7]; "
        "it takes `a` [1..4], `b` [1..4] or `a` [5..9], `b` [5..9]"
    )
    engine.close()


def test_an_engine_of_other_profiles_than_the_bundles_is_refused(gpu: StandinGpu):
    other = wire_profiles({"x": ([1, 3], [4, 3], [64, 3])})
    with pytest.raises(ModelFault, match=r"takes \[1..32, 3\] for input `x` .* \[1..64, 3\]"):
        gpu.open(profiles=other)
    with pytest.raises(ModelFault, match="has 1 optimization profiles where the bundle asks for 2"):
        gpu.open(profiles=wire_profiles({"x": ROWS}, WIDE))
    with pytest.raises(ModelFault, match="the manifest's profiles cannot be read"):
        gpu.open(profiles=[{"x": {"min": [1, 3]}}])
    gpu.open(profiles=wire_profiles({"x": ROWS})).close()


@pytest.mark.parametrize(
    ("feeds", "outputs", "message"),
    [
        ({}, None, "missing input `x`"),
        ({"x": rows(1), "z": rows(1)}, None, "the model has no input `z`"),
        ({"x": rows(1)}, ["w"], "the model has no output `w`"),
        (
            {"x": Tensor("float16", (1, 3), bytes(6))},
            None,
            "input `x` is float16 where the model takes float32",
        ),
        (
            {"x": Tensor("float32", (2, 3), bytes(23))},
            None,
            r"input `x` has 23 bytes where its shape \[2, 3\] needs 24",
        ),
    ],
)
def test_a_wrong_request_is_refused_and_harms_nothing(
    gpu: StandinGpu, feeds: dict[str, Tensor], outputs: list[str] | None, message: str
):
    engine = gpu.open()
    with pytest.raises(BadRequest, match=message):
        engine.run(feeds, outputs)
    assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
    engine.close()


def test_data_of_any_item_format_is_taken(gpu: StandinGpu):
    engine = gpu.open()
    view = memoryview(bytes(rows(1).data)).cast("f")
    assert floats(engine.run({"x": Tensor("float32", (1, 3), view)})["y"]) == doubled(rows(1))
    engine.close()


@pytest.mark.parametrize("memory", [OWN, SHARED])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_get_their_own_answers(gpu: StandinGpu, memory: str, cuda_graphs: bool):
    engine = gpu.open(workers=3, memory=memory, cuda_graphs=cuda_graphs)
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(40):
            fed = rows(1 + (number + turn) % 5, 10 * number + turn)
            try:
                if floats(engine.run({"x": fed})["y"]) != doubled(fed):
                    wrong.append(fed)
            except Exception as error:  # noqa: BLE001 - told below
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert wrong == []


def test_closing_waits_for_the_calls_under_way_and_refuses_later_ones(gpu: StandinGpu):
    engine = gpu.open(workers=2)
    gpu.trt.faults.execute_s = 0.1
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(engine.run({"x": rows(1)})["y"]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while engine._active < 2:
        pass
    engine.close()
    for thread in threads:
        thread.join()
    assert [floats(answer) for answer in answers] == [doubled(rows(1))] * 2
    for feeds in ({"x": rows(1)}, {"x": rows(9)}):
        with pytest.raises(ModelFault, match="the engine is closed"):
            engine.run(feeds)
    engine.close()


def test_memory_grows_by_need_and_not_past_the_largest_request(gpu: StandinGpu):
    engine = gpu.open(gpu.plan(profiles=[{"x": ([1, 3], [4, 3], [1000, 3])}]))
    sizes = []
    for count in (1, 30, 40, 500, 900, 1000, 1):
        engine.run({"x": rows(count)})
        sizes.append(engine._idle[0]._in.size)
    assert sizes[0] < sizes[1] < sizes[3]
    assert sizes[1] <= 2 * 512
    assert max(sizes) == engine._limits.inputs == 12032  # 12,000 bytes, in steps of 256
    assert sizes[-1] == sizes[-2]
    engine.close()


def test_the_faster_memory_is_found_by_timing_both(gpu: StandinGpu):
    engine = gpu.open(memory="auto")
    taken = {SHARED: engine.memory["shared_us"], OWN: engine.memory["own_us"]}
    assert engine.memory["memory"] == min(taken, key=lambda kind: taken[kind])
    assert min(taken.values()) > 0
    engine.close()


def test_each_kind_of_memory_is_timed_with_its_own_addresses(gpu: StandinGpu, monkeypatch: Any):
    seen: list[tuple[bool, bool]] = []
    run = Lane.run

    def watched(lane: Lane, *arguments: Any) -> dict[str, Tensor]:
        answer = run(lane, *arguments)
        seen.append((lane._shared, lane._context.get_tensor_address("x") == lane._in.device))
        return answer

    monkeypatch.setattr(Lane, "run", watched)
    gpu.open(memory="auto").close()
    assert set(seen) == {(True, True), (False, True)}


def test_answers_come_in_the_order_of_the_signature(gpu: StandinGpu):
    outputs = {
        "first": {"dtype": "float32", "of": "x"},
        "second": {"dtype": "float32", "sum": "x"},
    }
    wire = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 3]}],
        "outputs": [
            {"name": "second", "dtype": "float32", "shape": [2]},
            {"name": "first", "dtype": "float32", "shape": [2, 3]},
        ],
    }
    engine = gpu.open(gpu.plan(outputs=outputs), signature=Signature(wire))
    assert list(engine.run({"x": rows(2)})) == ["second", "first"]
    assert engine.interface == (("x",), ("second", "first"))
    engine.close()


def test_a_gpu_that_cannot_reach_the_hosts_memory_is_not_timed(gpu: StandinGpu):
    gpu.configure(can_map=False)
    for memory in ("auto", SHARED):
        engine = gpu.open(memory=memory)
        assert engine.memory == {"memory": OWN}
        assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
        engine.close()


def test_memory_that_says_it_maps_and_does_not_is_copied(gpu: StandinGpu):
    gpu.fail("cudaHostGetDevicePointer", 1, times=-1)
    engine = gpu.open(memory="auto")
    assert engine.memory["memory"] == OWN
    assert "cudaErrorInvalidValue" in engine.notes[0]
    assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
    engine.close()


def test_graphs_are_replayed_from_the_third_run_on_and_few_are_kept(gpu: StandinGpu):
    engine = gpu.open(cuda_graphs=True)
    gpu.trt.faults.execute = "false"
    gpu.trt.faults.execute_after = 3  # twice to warm up, once to be recorded
    for start in range(6):
        assert floats(engine.run({"x": rows(4, start)})["y"]) == doubled(rows(4, start))
    gpu.trt.faults.execute = ""
    for count in range(1, 33):
        for _ in range(4):
            assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
    assert sum(lane._graph != 0 for lane in engine._lanes) == 5
    engine.close()


def test_an_engine_that_cannot_be_captured_runs_without(gpu: StandinGpu):
    gpu.trt.faults.capturable = False
    engine = gpu.open(cuda_graphs=True)
    for start in range(5):
        assert floats(engine.run({"x": rows(4, start)})["y"]) == doubled(rows(4, start))
    assert engine.notes == ["this engine cannot be captured as a CUDA graph: it runs without"]
    engine.close()


def test_a_context_too_many_for_the_memory_leaves_fewer_graphs(gpu: StandinGpu):
    engine = gpu.open(cuda_graphs=True)
    gpu.trt.faults.contexts = 2
    for count in (1, 2, 3, 1, 2, 3):
        assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
    assert len(engine._lanes) == 2
    engine.close()


def test_workers_that_do_not_fit_are_left_out_and_told(gpu: StandinGpu):
    gpu.trt.faults.contexts = 2
    engine = gpu.open(workers=4)
    assert engine.threads == 2
    (note,) = engine.notes
    assert note == (
        "only 2 of 4 workers fit: TensorRT makes no execution context: "
        "IExecutionContext: Error Code 2: Out of memory (no context)"
    )
    assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
    engine.close()


def test_a_release_that_gives_a_profile_to_one_context_only_has_one_worker(
    make_gpu: Callable[..., StandinGpu],
):
    gpu = make_gpu(version="8.5.2.2")
    gpu.trt.faults.profile_sharing = False
    engine = gpu.open(gpu.plan(profiles=[{"x": ROWS}, WIDE]), workers=2)
    assert engine.threads == 1
    assert "profile 0 is in use" in engine.notes[0]
    for count in (2, 60, 2):
        assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
    engine.close()


def test_compiled_kernels_are_kept_beside_the_engine(
    make_gpu: Callable[..., StandinGpu], tmp_path: Path
):
    gpu = make_gpu(version="1.7.1.116", rtx=True)
    kept = tmp_path / "engine.cache"
    engine = gpu.open(runtime_cache=str(kept), cuda_graphs=True)
    assert (engine.name, engine.provider) == ("tensorrt_rtx", "TensorRT-RTX")
    for start in range(4):
        assert floats(engine.run({"x": rows(4, start)})["y"]) == doubled(rows(4, start))
    # TensorRT-RTX captures graphs by itself
    assert engine._contexts._config.cuda_graph_strategy == 1
    assert [lane._graph for lane in engine._lanes] == [0]
    engine.close()
    assert kept.read_bytes() == b"cache:kernels"
    written = kept.stat().st_mtime_ns
    engine = gpu.open(runtime_cache=str(kept))
    assert engine.notes == []
    engine.run({"x": rows(1)})
    engine.close()
    assert kept.stat().st_mtime_ns == written
    assert list(tmp_path.glob(".cache-*")) == []


def test_kept_kernels_of_another_machine_are_replaced(
    make_gpu: Callable[..., StandinGpu], tmp_path: Path
):
    gpu = make_gpu(version="1.7.1.116", rtx=True)
    kept = tmp_path / "engine.cache"
    kept.write_bytes(b"damaged")
    engine = gpu.open(runtime_cache=str(kept))
    assert engine.notes == ["the compiled kernels that were kept do not fit this machine any more"]
    engine.run({"x": rows(1)})
    engine.close()
    assert kept.read_bytes() == b"cache:kernels"


def test_kernels_that_cannot_be_kept_stop_nothing(
    make_gpu: Callable[..., StandinGpu], tmp_path: Path
):
    gpu = make_gpu(version="1.7.1.116", rtx=True)
    engine = gpu.open(runtime_cache=str(tmp_path / "gone" / "engine.cache"))
    engine.run({"x": rows(1)})
    engine.save_runtime_cache()
    assert "the compiled kernels could not be kept" in engine.notes[0]
    engine.close()


def test_the_adapter_says_what_runs_the_model(gpu: StandinGpu):
    engine = gpu.open(workers=2)
    assert (engine.name, engine.version, engine.provider) == ("tensorrt", "10.3.0.30", "TensorRT")
    assert (engine.precision, engine.threads, engine.device) == ("fp32", 2, "Stand-in GPU")
    engine.close()


def test_every_python_of_a_device_runs_the_adapter(
    old_python: Path, cudart_file: Path, tmp_path: Path
):
    library = tmp_path / "libcudart.so"
    library.write_bytes(cudart_file.read_bytes())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.standin.gpu import StandinGpu, doubled, floats, rows\n"
        "gpu = StandinGpu(Path(sys.argv[2]))\n"
        "for memory in ('own', 'shared', 'auto'):\n"
        "    engine = gpu.open(memory=memory, cuda_graphs=True)\n"
        "    for start in range(5):\n"
        "        fed = rows(2, start)\n"
        "        assert floats(engine.run({'x': fed})['y']) == doubled(fed)\n"
        "    engine.close()\n"
        "print(gpu.live)\n"
    )
    done = subprocess.run(
        [old_python, "-Wdefault", "-Ic", program, ROOT, library],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_sizes_of_types_are_those_of_the_table():
    from runtime.nvidia.loading import TYPES

    assert set(TYPES.values()) <= set(BY_NAME)


def test_faults_are_model_faults_to_whoever_serves():
    assert issubclass(CudaFault, ModelFault)
    assert issubclass(EngineFault, ModelFault)
