"""The real maker: a child process builds, the real adapter runs, over a simulated TensorRT."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from runtime.engine import describe_choice, open_engine
from runtime.errors import BadRequest, TargetMismatch
from runtime.logs import Log
from runtime.nvidia import acceptance
from runtime.nvidia import maker as maker_module
from runtime.nvidia.cudaerrors import OUT_OF_MEMORY
from runtime.nvidia.fingerprint import hard_facts
from runtime.nvidia.making import Policy
from runtime.nvidia.request import from_manifest
from runtime.tensor import Tensor
from runtime.verify import run_samples
from tests.standin.simulated_tensorrt import make_plan, simulated_vendor
from tests.unit.runtime.nvidia.simulated_builder import DEVICE, VERSION
from tests.unit.runtime.nvidia.simulated_maker import answer, double_release, one, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.nvidia.switching import SwitchingEngine
    from tests.standin.gpu import StandinGpu

ROOT = Path(__file__).resolve().parents[4]
BUILDER = Path(__file__).with_name("simulated_builder.py")
RIGHT = [3.0, -3.0]
ILLEGAL_ADDRESS = 700


@dataclass
class Release:
    folder: str
    manifest: dict[str, Any]
    digest: str = "d" * 64


@dataclass
class Device:
    """A machine with a simulated GPU, on which releases are opened."""

    release: Release
    gpu: StandinGpu
    facts: dict[str, Any]
    opened: list[Any]

    def open(self, **options: Any) -> SwitchingEngine:
        """Open the release; what was opened before is closed, as a process's end would."""
        self.close()
        self.opened.append(open_engine(self.release, **options))
        return self.opened[-1]

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    @property
    def store(self) -> Path:
        """The folder of the one fingerprint."""
        base = Path(os.environ["XDG_CACHE_HOME"]) / "edgepack" / "engines" / self.release.digest
        (found,) = (path for path in base.iterdir() if path.is_dir())
        return found


@pytest.fixture
def device(
    tmp_path: Path, engine_library: Path, gpu: StandinGpu, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Device]:
    (tmp_path / "release" / "model").mkdir(parents=True)
    small = double_release(tmp_path / "release", engine_library)
    model = tmp_path / "release" / "double.onnx"
    small.manifest["tensorrt"] = {
        "module": "tensorrt", "version": VERSION, "cuda": "12.6", "compute_capabilities": ["9.0"],
        "platform": "linux-x86_64", "artifact": "double.onnx",
        "artifact_sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "precision": "fp32",
        "strongly_typed": True, "flags": [],
        "profiles": [{"x": {"min": [1, 2], "opt": [1, 2], "max": [32, 2]}}],
        "workspace_mib": 256, "sparse": False, "dla_core": None, "gpu_fallback": True,
        "version_compatible": False, "needs": [], "engines": [],
    }  # fmt: skip
    small.manifest["files"] = []
    facts = dict(DEVICE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("runtime.nvidia.device.gpu_facts", lambda: dict(facts))
    monkeypatch.setattr(
        "runtime.nvidia.vendor.load_vendor", lambda module, wanted: simulated_vendor(gpu.trt)
    )
    monkeypatch.setattr("runtime.nvidia.cudart.load_cudart", lambda: gpu.cudart)
    plain = maker_module.DeviceMaker
    monkeypatch.setattr(
        maker_module,
        "DeviceMaker",
        lambda *args, **more: plain(*args, **more, command=[sys.executable, str(BUILDER)]),
    )
    lifecycle = maker_module.Lifecycle
    quick = Policy(build_pauses_s=(0.0,), load_pauses_s=(0.0, 0.0), look_s=3600.0)
    clock = iter(range(10**9))
    monkeypatch.setattr(
        maker_module,
        "Lifecycle",
        # every call takes as long as any other: the simulated GPU need not be the faster one
        lambda *args, **more: lifecycle(*args, **more, policy=quick, clock=lambda: next(clock)),
    )
    found = Device(Release(small.folder, small.manifest), gpu, facts, [])
    yield found
    found.close()


def test_an_engine_is_built_by_a_child_checked_and_kept(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = os.pipe()
    source, sink = os.fdopen(ends[0], "rb", buffering=0), os.fdopen(ends[1], "wb", buffering=0)
    monkeypatch.setattr(maker_module, "log", Log(lambda: None if sink.closed else sink.fileno()))
    switch = device.open(serving=True)
    assert answer(switch) == RIGHT
    until(lambda: switch.state == "live", describe_choice(switch) or "")
    assert describe_choice(switch) == "tensorrt 10.3.0.30, TensorRT, fp32; tensorrt is live"
    assert answer(switch) == RIGHT
    kept = sorted(path.name for path in (device.store / "build").iterdir())
    assert {"build.log", "reproduce.sh", "request.json", "report.json"} <= set(kept)
    assert "engine" not in kept
    # never silently: every change of who answers is a line on standard error
    said: list[str] = []
    with source, sink:
        while not said or ": live" not in said[-1]:
            said.append(source.readline().decode().rstrip())
    assert said == [
        "tensorrt: building, answers come from onnxruntime: there is no engine for this device yet",
        "tensorrt: checking, answers come from onnxruntime",
        "tensorrt: live, answers come from tensorrt",
    ]


def test_a_fallback_that_does_not_answer_as_recorded_on_this_processor_is_told(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = "output `y`: has a cosine of 0.812 with the recorded output where 0.99 is needed"
    monkeypatch.setattr(acceptance, "fallback_fault", lambda *_: fallback)
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    (note,) = switch.status()["notes"]
    assert note.startswith("until the engine is there, answers on this processor are not as ")
    assert fallback in note


def test_the_fallback_is_held_to_the_golden_samples_on_this_processor(device: Device) -> None:
    engine = device.open(serving=False).fallback
    assert acceptance.fallback_fault(device.release, engine) is None
    run = engine.run
    engine.run = lambda feeds, names=None: {
        name: Tensor(y.dtype, y.shape, bytes(len(y.data))) for name, y in run(feeds, names).items()
    }
    fault = acceptance.fallback_fault(device.release, engine)
    assert fault is not None
    assert fault.startswith("golden sample 0, output `y`: ")


def test_the_next_start_loads_the_kept_engine(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    monkeypatch.setenv("SIMULATED_BUILD", "crash")
    again = device.open(serving=True)
    until(lambda: again.state == "live")
    # what measures, answers once or verifies uses it as well, and says so
    once = device.open()
    assert (once.state, once.name) == ("live", "tensorrt")
    assert answer(once) == RIGHT
    told = run_samples(device.release)
    assert told["accelerator"] == "tensorrt 10.3.0.30, TensorRT, fp32; tensorrt is live"
    assert told["engine"].startswith("tensorrt 10.3.0.30")


def test_without_an_engine_one_run_uses_onnxruntime_and_says_why(device: Device) -> None:
    once = device.open()
    choice = describe_choice(once)
    assert choice is not None
    assert choice.startswith("onnxruntime ")
    assert choice.endswith(
        "tensorrt is missing: no engine was built for this device; `serve` builds it"
    )
    assert "onnxruntime" in run_samples(device.release)["engine"]


@pytest.mark.parametrize("asked", [False, True])
def test_host_code_inside_an_engine_runs_only_where_the_bundle_asks_for_it(
    device: Device, gpu: StandinGpu, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    device.release.manifest["tensorrt"]["version_compatible"] = asked
    allowed: list[bool] = []
    plain = gpu.trt.Runtime.deserialize_cuda_engine

    def watched(runtime: Any, plan: Any) -> Any:
        allowed.append(runtime.engine_host_code_allowed)
        return plain(runtime, plan)

    monkeypatch.setattr(gpu.trt.Runtime, "deserialize_cuda_engine", watched)
    switch = device.open(serving=True)
    until(lambda: switch.state == "live", describe_choice(switch) or "")
    assert allowed == [asked]


@pytest.mark.parametrize("asked", [False, True])
def test_cuda_graphs_are_recorded_where_the_bundle_asks_for_them(
    device: Device, gpu: StandinGpu, asked: bool
) -> None:
    device.release.manifest["tensorrt"]["cuda_graphs"] = asked
    gpu.trt.faults.capturable = False
    switch = device.open(serving=True)
    until(lambda: switch.state == "live", describe_choice(switch) or "")
    refused = "this engine cannot be captured as a CUDA graph: it runs without"
    assert switch.status()["notes"] == [refused] * asked


def test_the_kind_of_memory_is_measured_once(device: Device, gpu: StandinGpu) -> None:
    gpu.configure(integrated=True)
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    measured = (device.store / "memory.json").read_text()
    assert '"own_us"' in measured
    again = device.open(serving=True)
    until(lambda: again.state == "live")
    assert "own_us" not in again._slot.engine.memory
    asked = device.open(serving=True, retune=True)
    until(lambda: (device.store / "memory.json").exists() and asked.state == "live")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("crash", "2 tries failed, the last one: the build crashed (SIGSEGV)"),
        ("killed", "2 tries failed, the last one: the build was killed (SIGKILL)"),
        ("refused", "2 tries failed, the last one: TensorRT cannot parse `Mystery`"),
        (
            "elsewhere",
            "2 tries failed, the last one: the build saw another device: the engine is for compute",
        ),
        ("wrong", "the engine is not used: it answers otherwise than recorded: golden sample 0"),
    ],
)
def test_a_build_that_goes_wrong_leaves_the_server_answering(
    device: Device, monkeypatch: pytest.MonkeyPatch, fault: str, sentence: str
) -> None:
    monkeypatch.setenv("SIMULATED_BUILD", fault)
    switch = device.open(serving=True)
    until(lambda: switch.state == "refused")
    assert (switch.reason or "").startswith(sentence)
    assert answer(switch) == RIGHT
    assert switch.name == "onnxruntime"


def test_a_shutdown_during_a_build_ends_the_child(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_BUILD", "hang")
    switch = device.open(serving=True)
    until(lambda: switch.progress)
    assert switch.progress == (0.5, 9.0, "Timing")
    started = device.store / "build" / "started"
    until(lambda: started.exists() and started.read_text())
    pid = int(started.read_text())
    device.close()
    assert not Path(f"/proc/{pid}").exists()
    # the next start begins again
    monkeypatch.delenv("SIMULATED_BUILD")
    again = device.open(serving=True)
    until(lambda: again.state == "live")


def test_a_gpu_that_fails_under_way_is_left_and_tried_again(
    device: Device, gpu: StandinGpu
) -> None:
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    gpu.fail("cudaStreamSynchronize", OUT_OF_MEMORY)
    first = switch._slot
    assert answer(switch) == RIGHT
    assert (switch.faults, switch.rescued) == (1, 1)
    until(lambda: switch.state == "live" and switch._slot is not first)
    assert answer(switch) == RIGHT
    assert switch.name == "tensorrt"


def test_a_gpu_that_is_lost_to_the_process_is_not_tried_again(
    device: Device, gpu: StandinGpu
) -> None:
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    gpu.fail("cudaStreamSynchronize", ILLEGAL_ADDRESS, times=-1)
    assert answer(switch) == RIGHT
    until(lambda: "start the server again" in (switch.reason or ""))
    assert (switch.state, switch.name) == ("refused", "onnxruntime")
    gpu.heal()
    device.close()
    again = device.open(serving=True)
    until(lambda: again.state == "live")


def test_no_memory_on_the_gpu_is_told_and_costs_no_answer(device: Device, gpu: StandinGpu) -> None:
    gpu.fail("cudaMalloc", OUT_OF_MEMORY, times=-1)
    switch = device.open(serving=True)
    until(lambda: switch.state == "refused")
    assert "OutOfMemory" in (switch.reason or "")
    assert "free memory of the GPU" in (switch.reason or "")
    assert answer(switch) == RIGHT
    gpu.heal()


def test_a_request_that_no_profile_covers_is_refused(device: Device) -> None:
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    with pytest.raises(BadRequest, match="x"):
        switch.run({"x": Tensor("float32", (33, 2), bytes(33 * 8))})
    assert (switch.state, switch.faults) == ("live", 0)


def test_a_device_that_does_not_fit_says_why(device: Device) -> None:
    device.facts["tensorrt"] = []
    switch = device.open(serving=True)
    until(lambda: switch.reason)
    assert switch.state == "missing"
    assert "TensorRT 10.3.0.30 is not installed" in (switch.reason or "")
    assert answer(switch) == RIGHT


def test_a_gpu_of_another_kind_gets_an_engine_of_its_own(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(device)
    (entry,) = device.release.manifest["tensorrt"]["engines"]
    request = from_manifest(device.release.manifest, device.release.folder)
    entry["facts"] = hard_facts(request, VERSION, DEVICE)
    device.facts["gpus"] = [{"name": "A10", "compute_capability": "8.6", "memory_mib": 24576}]
    monkeypatch.setenv("SIMULATED_BUILD", "elsewhere")
    reasons: list[str] = []
    monkeypatch.setattr(maker_module, "_announce", reasons.append)
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    assert answer(switch) == RIGHT
    assert (device.store / "build" / "started").exists()
    (told,) = (reason.partition("onnxruntime: ")[2] for reason in reasons if "building" in reason)
    assert told == "the engine is for compute capability 9.0, and this GPU has 8.6"


def carry(device: Device, scale: float = 2.0) -> Path:
    """Put an engine for this device into the release, as a reference device would have built it."""
    switch = device.open(serving=True)
    until(lambda: switch.state in ("live", "refused"))
    fingerprint = device.store.name
    device.close()
    plan = make_plan(
        inputs={"x": ("float32", [-1, 2])},
        outputs={"y": {"dtype": "float32", "of": "x", "scale": scale}},
        profiles=[{"x": ([1, 2], [1, 2], [32, 2])}],
        version=VERSION,
    )
    path = Path(device.release.folder) / "engines" / f"{fingerprint}.engine"
    path.parent.mkdir()
    path.write_bytes(plan)
    name = f"engines/{path.name}"
    device.release.manifest["tensorrt"]["engines"] = [{"path": name, "fingerprint": fingerprint}]
    device.release.manifest["files"] = [
        {"path": name, "sha256": hashlib.sha256(plan).hexdigest(), "size": len(plan)}
    ]
    # another device of the class: nothing is kept there yet
    device.release.digest = "e" * 64
    return path


def test_an_engine_of_the_bundle_is_used_at_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(device)
    monkeypatch.setenv("SIMULATED_BUILD", "crash")
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    assert answer(switch) == RIGHT
    once = device.open()
    assert (once.state, once.name) == ("live", "tensorrt")


def test_a_carried_engine_of_another_fingerprint_is_left_for_an_own_one(device: Device) -> None:
    carry(device)
    (entry,) = device.release.manifest["tensorrt"]["engines"]
    entry["fingerprint"] = "0" * 64
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    assert (device.store / "build" / "started").exists()


def test_what_cannot_be_prepared_raises_what_helps(device: Device) -> None:
    device.facts["tensorrt"] = []
    found = maker_module.DeviceMaker(device.release, None, None)
    with pytest.raises(TargetMismatch, match=r"TensorRT 10\.3\.0\.30 is not installed"):
        found.prepare()


def test_tensorrt_rtx_builds_for_the_gpu_that_its_list_does_not_name() -> None:
    @dataclass
    class Asked:
        module: str
        compute_capabilities: tuple[str, ...]

        def _replace(self, **changes: Any) -> Any:
            return Asked(**{**self.__dict__, **changes})

    choose: Callable[..., Any] = maker_module._for_this_gpu
    listed = Asked("tensorrt_rtx", ("8.6", "8.9"))
    gpu = {"gpus": [{"compute_capability": "12.0"}]}
    assert choose(listed, gpu).compute_capabilities == ("12.0",)
    assert choose(listed, {"gpus": [{"compute_capability": "8.9"}]}) is listed
    assert choose(listed, {}) is listed
    assert choose(Asked("tensorrt", ("8.7",)), gpu).compute_capabilities == ("8.7",)


def test_a_model_in_parts_is_checked_and_answered_as_a_whole(
    device: Device, gpu: StandinGpu
) -> None:
    """Head and tail change the sign in ONNX Runtime; the core doubles on the GPU."""
    folder = Path(device.release.folder)
    names = {"head": ("x", "a"), "core": ("a", "b"), "tail": ("b", "y")}
    for part, (taken, given) in names.items():
        node = (
            helper.make_node("Add", [taken, taken], [given])
            if part == "core"
            else helper.make_node("Neg", [taken], [given])
        )
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
            for name in (taken, given)
        ]
        graph = helper.make_graph([node], part, values[:1], values[1:])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=8), folder / f"{part}.onnx"
        )
    engine = device.release.manifest["engine"]
    engine["artifact"] = "core.onnx"
    engine["parts"] = {part: f"{part}.onnx" for part in names}
    table = device.release.manifest["tensorrt"]
    table["artifact"] = "core.onnx"
    table["artifact_sha256"] = hashlib.sha256((folder / "core.onnx").read_bytes()).hexdigest()
    table["profiles"] = [{"a": {"min": [1, 2], "opt": [1, 2], "max": [32, 2]}}]
    switch = device.open(serving=True)
    assert answer(switch) == RIGHT
    until(lambda: switch.state == "live")
    assert switch.provider == "TensorRT, CPUExecutionProvider"
    assert answer(switch) == RIGHT
    # the core fails: the whole is answered by the fallback, whose head and tail are the same
    gpu.fail("cudaStreamSynchronize", OUT_OF_MEMORY)
    first = switch._slot
    assert answer(switch) == RIGHT
    until(lambda: switch.state == "live" and switch._slot is not first)
    assert answer(switch) == RIGHT
    assert switch.rescued == 1


def test_a_model_of_one_part_has_no_chain_around_its_engine(device: Device) -> None:
    switch = device.open(serving=True)
    until(lambda: switch.state == "live")
    assert type(switch._slot.engine).__name__ == "TensorRTEngine"
    assert list(switch.run(one(), ["y"])) == ["y"]
