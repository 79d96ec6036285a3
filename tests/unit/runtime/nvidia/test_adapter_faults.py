"""What fails in CUDA or TensorRT becomes a sentence, leaks nothing and spoils no later call."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import BadRequest, DeviceError, ModelFault
from runtime.nvidia.cudart import CudaFault
from runtime.nvidia.loading import EngineFault
from runtime.nvidia.memory import OWN, SHARED
from runtime.tensor import Tensor
from tests.standin.gpu import DOUBLED, ROWS, doubled, floats, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.standin.gpu import StandinGpu

ROOT = Path(__file__).resolve().parents[4]
# Every call of CUDA while an engine is opened and answers twice, with how often it is made.
CALLS = ("cudaMalloc", "cudaHostAlloc", "cudaHostGetDevicePointer", "cudaStreamCreateWithFlags",
         "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaStreamBeginCapture",
         "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphLaunch",
         "cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDeviceGetAttribute")  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("memory", [OWN, SHARED])
def test_any_call_of_cuda_may_fail_at_any_time(gpu: StandinGpu, name: str, memory: str):
    told: list[str] = []
    for skip in range(9):
        gpu.fail(name, 2, skip=skip)
        engine = None
        try:
            engine = gpu.open(memory=memory, cuda_graphs=True, workers=2)
            for start in range(4):
                assert floats(engine.run({"x": rows(3, start)})["y"]) == doubled(rows(3, start))
        except DeviceError as error:
            told.append(error.message)
        gpu.heal()
        if engine is not None:
            for start in range(4):
                assert floats(engine.run({"x": rows(3, start)})["y"]) == doubled(rows(3, start))
            engine.close()

    # where a graph cannot be recorded, the engine goes on without one
    never_told = {"cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"}
    if memory == OWN:
        never_told.add("cudaHostGetDevicePointer")
    else:
        never_told.add("cudaMemcpyAsync")
    assert (told == []) == (name in never_told)
    reasons = ("cudaErrorMemoryAllocation", "OutOfMemory", "Out of memory")
    assert [text for text in told if not any(reason in text for reason in reasons)] == []


def test_an_engine_that_fails_says_what_the_logger_said(gpu: StandinGpu):
    engine = gpu.open()
    for way in ("false", "raise"):
        gpu.trt.faults.execute = way
        with pytest.raises(EngineFault) as failed:
            engine.run({"x": rows(2)})
        assert failed.value.message.startswith("the engine failed: ")
        assert failed.value.message.endswith("Error Code 1: Cask (Cask convolution execution)")
        assert failed.value.log == ["enqueueV3: Error Code 1: Cask (Cask convolution execution)"]
        assert failed.value.exit_code == 5
        gpu.trt.faults.execute = ""
        assert floats(engine.run({"x": rows(2)})["y"]) == doubled(rows(2))
    engine.close()


def test_a_shape_that_tensorrt_refuses_is_no_answer_of_an_earlier_one(gpu: StandinGpu):
    engine = gpu.open()
    engine.run({"x": rows(2)})
    gpu.trt.faults.shape = "Error Code 4: Internal Error"
    with pytest.raises(EngineFault, match=r"refuses the shape \[5, 3\] of `x`: Error Code 4"):
        engine.run({"x": rows(5)})
    gpu.trt.faults.shape = ""
    for count in (2, 5):
        assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
    engine.close()


def test_what_a_failed_run_left_in_flight_reaches_no_later_answer(gpu: StandinGpu):
    engine = gpu.open()
    engine.run({"x": rows(2)})
    gpu.fail("cudaMemcpyAsync", 1, skip=1)  # the copy back
    with pytest.raises(CudaFault, match="running the engine failed: `cudaMemcpyAsync`"):
        engine.run({"x": rows(2, 50)})
    # larger, so that the memory which the copies still in flight refer to is given back
    assert floats(engine.run({"x": rows(32, 7)})["y"]) == doubled(rows(32, 7))
    engine.close()


def test_a_lost_gpu_refuses_all_later_calls_and_says_to_restart(gpu: StandinGpu):
    engine = gpu.open(workers=2)
    engine.run({"x": rows(2)})
    gpu.fail("cudaStreamSynchronize", 700)
    with pytest.raises(CudaFault) as failed:
        engine.run({"x": rows(2)})
    assert failed.value.is_lost
    assert failed.value.name == "cudaErrorIllegalAddress"
    assert failed.value.message == (
        "running the engine failed, and the GPU takes no more work from this process: "
        "`cudaStreamSynchronize` gave cudaErrorIllegalAddress (700), "
        "an illegal memory access was encountered"
    )
    assert failed.value.hint == "restart the server"
    with pytest.raises(ModelFault, match=r"no more work .* since cudaErrorIllegalAddress"):
        engine.run({"x": rows(2)})
    engine.close()


def test_a_lost_gpu_wakes_everyone_who_waits(gpu: StandinGpu):
    engine = gpu.open()
    (lane,) = engine._idle
    queued = threading.Event()
    failures: list[Exception] = []

    def lose_the_gpu(stream: int) -> bool:
        queued.wait(timeout=30)
        gpu.fail("cudaMemcpyAsync", 719)
        return True

    def ask() -> None:
        try:
            engine.run({"x": rows(2)})
        except DeviceError as error:
            failures.append(error)

    lane._execute = lose_the_gpu
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(engine._free._waiters) < 4:  # type: ignore[attr-defined]
        time.sleep(0.001)
    queued.set()
    for thread in threads:
        thread.join(timeout=30)
    assert len(failures) == 5
    engine.close()


def test_too_little_memory_for_the_buffers_says_how_much_is_there(gpu: StandinGpu):
    engine = gpu.open(gpu.plan(profiles=[{"x": ([1, 3], [1, 3], [4_000_000, 3])}]))
    gpu.configure(memory_mib=16)
    data = Tensor("float32", (2_000_000, 3), bytes(24_000_000))
    with pytest.raises(CudaFault) as failed:
        engine.run({"x": data})
    assert failed.value.message == (
        "the GPU has not enough memory for the inputs, 22.9 MiB (15 of 16 MiB are free): "
        "`cudaMalloc` gave cudaErrorMemoryAllocation (2), out of memory"
    )
    assert failed.value.hint == "run fewer workers, or build with smaller largest shapes"
    assert floats(engine.run({"x": rows(1)})["y"]) == doubled(rows(1))
    engine.close()


def test_too_little_memory_for_an_output_that_grows_is_told_as_such(gpu: StandinGpu):
    plan = gpu.plan(
        outputs={"kept": {"dtype": "float32", "nonzero": "x"}},
        profiles=[{"x": ([1, 3], [1, 3], [4_000_000, 3])}],
    )
    engine = gpu.open(plan)
    gpu.fail("cudaMalloc", 2, skip=1)
    with pytest.raises(CudaFault, match="not enough memory for the output `kept`"):
        engine.run({"x": rows(100, 1)})
    assert floats(engine.run({"x": rows(1, 1)})["kept"]) == floats(rows(1, 1))
    engine.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "10.7.0.23"}, "Version tag does not match. Note: Current Version: 10.3.0.30"),
        ({"compute_capability": "8.7"}, "expecting compute 9.0 got compute 8.7"),
    ],
)
def test_an_engine_of_another_build_or_gpu_is_refused(
    gpu: StandinGpu, change: dict[str, Any], message: str
):
    with pytest.raises(EngineFault) as failed:
        gpu.open(gpu.plan(**change))
    assert failed.value.message.startswith("TensorRT 10.3.0.30 does not load the engine: ")
    assert message in failed.value.message
    assert failed.value.hint == "build the engine again on this device"


@pytest.mark.parametrize("plan", [b"\0" * 64, b"simulated-engine\n{" + 80 * b" "])
def test_a_damaged_engine_is_refused(gpu: StandinGpu, plan: bytes):
    with pytest.raises(EngineFault, match=r"does not load the engine: .*Serialization"):
        gpu.open(plan)


@pytest.mark.parametrize("plan", [b"", bytes(63)])
def test_an_engine_that_is_cut_off_never_reaches_tensorrt(gpu: StandinGpu, plan: bytes):
    gpu.trt.faults.crash = "deserialize"
    with pytest.raises(EngineFault, match="the engine's file is cut off"):
        gpu.open(plan)


def test_a_runtime_that_does_not_start_is_not_given_an_engine(gpu: StandinGpu):
    gpu.trt.faults.crash = "deserialize"
    gpu.trt.faults.runtime = (
        "Error Code 6: API Usage Error (CUDA initialization failure with error: 35"
    )
    with pytest.raises(EngineFault) as failed:
        gpu.open()
    assert failed.value.message == (
        "TensorRT 10.3.0.30 does not start: "
        "Error Code 6: API Usage Error (CUDA initialization failure with error: 35"
    )
    assert "nvidia-smi" in str(failed.value.hint)


def test_an_engine_larger_than_the_memory_says_so(gpu: StandinGpu):
    gpu.configure(memory_mib=0)
    with pytest.raises(EngineFault) as failed:
        gpu.open()
    assert "OutOfMemory" in failed.value.message
    assert failed.value.hint == "free memory of the GPU, or build with a smaller engine"


def test_no_context_at_all_is_an_error(gpu: StandinGpu):
    gpu.trt.faults.contexts = 0
    for memory in (OWN, "auto"):
        with pytest.raises(EngineFault, match=r"TensorRT makes no execution context: .*no context"):
            gpu.open(memory=memory)


def test_a_type_that_no_request_carries_is_refused(gpu: StandinGpu, monkeypatch: Any):
    monkeypatch.setattr("tests.standin.simulated_tensorrt.TYPES", {"float32": "FP8"})
    with pytest.raises(EngineFault, match="tensor `x` is of a type that no request carries"):
        gpu.open()


def test_a_shape_tensor_on_the_host_is_refused(gpu: StandinGpu):
    with pytest.raises(EngineFault) as failed:
        gpu.open(gpu.plan(host_inputs=["x"]))
    assert "tensor `x` is a shape that the engine reads or writes on the host" in str(failed.value)
    assert failed.value.hint is not None


def test_a_plan_that_needs_the_plug_ins_library_is_loaded_with_it(
    gpu: StandinGpu, monkeypatch: Any
):
    asked: list[str] = []

    def load_plugins(logger: Any, namespace: str) -> bool:
        asked.append(namespace)
        gpu.trt.faults.deserialize = ""
        return True

    monkeypatch.setattr(gpu.trt, "init_libnvinfer_plugins", load_plugins)
    gpu.open().close()
    assert asked == []
    gpu.trt.faults.deserialize = "Plugin InstanceNormalization_TRT is not found"
    gpu.open().close()
    assert asked == [""]


def test_a_word_for_memory_that_does_not_exist_is_refused(gpu: StandinGpu):
    with pytest.raises(ModelFault, match="there is no kind of memory `mapped`"):
        gpu.open(memory="mapped")


@pytest.mark.parametrize(
    ("machine", "message", "hint"),
    [
        (
            {"devices": 0},
            "CUDA 12.6 (driver for CUDA 12.6) finds no GPU: `cudaGetDeviceCount` gave cudaErrorNo",
            "--gpus all",
        ),
        (
            {"driver": 0},
            (
                "CUDA 12.6 needs an NVIDIA driver for CUDA 12 or later, and this machine has none, "
                "or does not show it to this process: `cudaGetDeviceCount` gave cudaErrorInsuffi"
            ),
            "nvidia-smi",
        ),
    ],
)
def test_a_machine_without_a_gpu_or_driver_is_told_before_tensorrt_is_asked(
    gpu: StandinGpu, machine: dict[str, int], message: str, hint: str
):
    gpu.configure(**machine)
    gpu.trt.faults.deserialize = "TensorRT was asked"
    with pytest.raises(CudaFault) as failed:
        gpu.open()
    assert failed.value.message.startswith(message)
    assert failed.value.hint is not None
    assert hint in failed.value.hint


def test_a_fault_while_memory_is_timed_that_stays_is_told(gpu: StandinGpu):
    gpu.fail("cudaMemcpyAsync", 700)
    with pytest.raises(CudaFault, match="cudaErrorIllegalAddress"):
        gpu.open(memory="auto")
    gpu.heal()


@pytest.mark.parametrize("crash", ["deserialize", "execute"])
def test_a_crash_of_the_library_ends_only_its_process(
    cudart_file: Path, tmp_path: Path, crash: str
):
    library = tmp_path / "libcudart.so"
    library.write_bytes(cudart_file.read_bytes())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.standin.gpu import StandinGpu, rows\n"
        "gpu = StandinGpu(Path(sys.argv[2]))\n"
        "gpu.trt.faults.crash = sys.argv[3]\n"
        "gpu.open().run({'x': rows(1)})\n"
        "print('answered')\n"
    )
    done = subprocess.run(
        [sys.executable, "-Ic", program, ROOT, library, crash],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-6, "")


def test_the_environment_makes_calls_fail_in_a_child(cudart_file: Path, tmp_path: Path):
    library = tmp_path / "libcudart.so"
    library.write_bytes(cudart_file.read_bytes())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from runtime.nvidia.cudart import CudaFault, Cudart\n"
        "cudart = Cudart(sys.argv[2])\n"
        "cudart.malloc(8, 'a'); print(cudart.driver_version, cudart.is_integrated())\n"
        "try: cudart.malloc(8, 'weights')\n"
        "except CudaFault as fault: print(fault.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-Ic", program, ROOT, library],
        capture_output=True, text=True, check=True, timeout=60,
        env={"STANDIN_CUDA_FAULTS": "cudaMalloc:2:1:1,cudaFree:1:0:1",
             "STANDIN_CUDA_DRIVER": "13000", "STANDIN_CUDA_INTEGRATED": "1"},
    )  # fmt: skip
    assert done.stdout == "13.0 True\ncudaErrorMemoryAllocation\n"


def test_a_wrong_request_among_good_ones_leaves_the_lanes_whole(gpu: StandinGpu):
    engine = gpu.open(gpu.plan(outputs=DOUBLED, profiles=[{"x": ROWS}]), cuda_graphs=True)
    for start in range(6):
        with pytest.raises(BadRequest):
            engine.run({"x": Tensor("float32", (4, 3), bytes(4))})
        assert floats(engine.run({"x": rows(4, start)})["y"]) == doubled(rows(4, start))
    engine.close()


def test_many_shapes_take_no_more_memory_than_few(
    make_gpu: Callable[..., StandinGpu], monkeypatch: Any
):
    monkeypatch.setattr("runtime.nvidia.adapter.MAX_LAYOUTS", 4)
    engine = make_gpu().open()
    for count in range(1, 33):
        assert floats(engine.run({"x": rows(count)})["y"]) == doubled(rows(count))
        assert len(engine._layouts) <= 4
    engine.close()
