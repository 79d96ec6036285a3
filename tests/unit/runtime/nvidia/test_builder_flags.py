"""What the builder asks of each release of TensorRT, recorded by a simulated one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime.nvidia import builder as builder_module
from runtime.nvidia import child
from runtime.nvidia.builder import BuildFailed, build_engine
from runtime.nvidia.messages import Journal
from runtime.nvidia.vendor import Vendor
from tests.standin.simulated_builder import simulated_builder
from tests.unit.runtime.nvidia.graphs import BATCHES, make_request, mlp, one_range, save

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.nvidia.progress import Step
    from runtime.nvidia.request import BuildRequest

WEAK = {"module": "tensorrt", "version": "8.5.2.2", "strongly_typed": False}
STRONG = {"module": "tensorrt", "version": "10.3.0.30"}
FIXED = one_range("x", (1, 64), (1, 64), (1, 64))


def vendor(version: str, **options: Any) -> Vendor:
    numbers = tuple(map(int, version.split(".")))
    return Vendor("tensorrt", "TensorRT", version, numbers, simulated_builder(version, **options))


def request(folder: Path, **changes: Any) -> BuildRequest:
    return make_request(folder, save(mlp(), folder), **changes)


def build(found: Vendor, asked: BuildRequest, **options: Any) -> Any:
    result = build_engine(found, asked, progress=lambda _: None, **options)
    return result, json.loads(result.plan)


def _build_in(asked: str, out: str) -> Any:
    """Build in this process as the child does, without its limit of memory."""
    watches: list[Any] = []
    try:
        return child._build(asked, out, lambda _: None, None, watches)
    finally:
        for watch in watches:
            watch.stop()


def test_8_5_gets_flags_an_explicit_batch_and_no_strong_typing(tmp_path: Path):
    found = vendor("8.5.2.2")
    _, plan = build(found, request(tmp_path, **WEAK, flags=("fp16", "int8"), precision="int8"))
    flags = found.trt.BuilderFlag
    assert plan["flags"] == sorted([flags.FP16, flags.INT8])
    assert found.trt.calls[0] == (
        "network",
        1 << found.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
    )


@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.1.9"])
def test_from_10_on_the_graph_alone_gives_the_precision(version: str, tmp_path: Path):
    found = vendor(version)
    _, plan = build(found, request(tmp_path, module="tensorrt", version=version, precision="fp16"))
    assert plan["flags"] == []
    assert found.trt.calls[0] == (
        "network",
        1 << found.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,
    )


@pytest.mark.parametrize(("version", "fields"), [("8.5.2.2", STRONG), ("11.4.1.9", WEAK)])
def test_a_recipe_for_the_other_kind_of_typing_is_refused(
    version: str, fields: dict[str, Any], tmp_path: Path
):
    with pytest.raises(BuildFailed, match=r"typed network, which TensorRT .* does not have"):
        build(vendor(version), request(tmp_path, **fields))


def test_the_engine_that_is_kept_has_no_names_and_was_inspected_before(tmp_path: Path):
    found = vendor("10.3.0.30")
    result, plan = build(found, request(tmp_path, **STRONG, precision="fp16"))
    verbosity = found.trt.ProfilingVerbosity
    builds = [call for call in found.trt.calls if call[0] == "build"]
    assert [call[1] for call in builds] == [verbosity.DETAILED, verbosity.NONE]
    assert plan["verbosity"] == verbosity.NONE
    assert [layer["Name"] for layer in result.layers] == ["a\x1fb"]
    assert result.not_inspected is None
    assert ("shape", "x", (1, 64)) in found.trt.calls
    # One cache for both builds.
    assert result.timing_cache == b"+timed+timed"


def test_a_build_that_is_not_inspected_is_built_once(tmp_path: Path):
    found = vendor("10.3.0.30")
    result, _ = build(found, request(tmp_path, **STRONG), inspect=False)
    assert len([call for call in found.trt.calls if call[0] == "build"]) == 1
    assert result.layers is None
    assert result.not_inspected == "the build was told not to look"


@pytest.mark.parametrize(
    ("kept", "after"),
    [(b"old", b"old+timed"), (b"of another release", b"+timed"), (None, b"+timed")],
)
def test_earlier_timings_are_used_and_foreign_ones_are_as_good_as_none(
    kept: bytes | None, after: bytes, tmp_path: Path
):
    result, _ = build(
        vendor("10.3.0.30"), request(tmp_path, **STRONG), timing_cache=kept, inspect=False
    )
    assert result.timing_cache == after


def test_memory_sparsity_and_profiles_reach_the_configuration(tmp_path: Path):
    _, plan = build(
        vendor("10.3.0.30"),
        request(tmp_path, **STRONG, workspace_mib=512, sparse=True, profiles=(FIXED, BATCHES)),
    )
    assert plan["pools"] == {"0": 512 << 20}
    assert plan["flags"] == [2]
    assert plan["profiles"] == [
        {"x": [[1, 64], [1, 64], [1, 64]]}, {"x": [[1, 64], [1, 64], [32, 64]]},
    ]  # fmt: skip


def test_an_input_that_holds_a_shape_gets_values(tmp_path: Path):
    inputs = (("x", (-1, 64), False), ("sizes", (2,), True))
    profile = {**BATCHES, **one_range("sizes", (1, 1), (2, 2), (4, 4))}
    _, plan = build(
        vendor("10.3.0.30", inputs=inputs), request(tmp_path, **STRONG, profiles=(profile,))
    )
    assert plan["profiles"][0]["sizes"] == ["values", [1, 1], [2, 2], [4, 4]]


@pytest.mark.parametrize(
    ("version", "fields", "allowed"),
    [("10.3.0.30", STRONG, True), ("8.5.2.2", WEAK, False)],
)
def test_version_compatible_only_where_asked_for_and_known(
    version: str, fields: dict[str, Any], tmp_path: Path, *, allowed: bool
):
    found = vendor(version)
    asked = request(tmp_path, **fields, version_compatible=True)
    if not allowed:
        with pytest.raises(BuildFailed, match=r"8\.5\.2\.2 builds no version-compatible engines"):
            build(found, asked)
        return
    _, plan = build(found, asked)
    assert plan["flags"] == [found.trt.BuilderFlag.VERSION_COMPATIBLE]
    assert ("deserialize", True) in found.trt.calls
    plain = vendor(version)
    build(plain, asked._replace(version_compatible=False))
    assert ("deserialize", False) in plain.trt.calls


@pytest.mark.parametrize(
    ("working", "left"), [((), 0b11000), (("CUDNN",), 0b11100), (("CUBLAS", "CUBLAS_LT"), 0b11011)]
)
def test_kernels_of_libraries_that_are_not_there_are_left_out(
    working: tuple[str, ...], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(builder_module, "working_tactic_libraries", lambda: working)
    _, plan = build(vendor("8.5.2.2"), request(tmp_path, **WEAK))
    assert plan["sources"] == left


def test_the_accelerator_is_used_with_the_gpu_behind_it(tmp_path: Path):
    found = vendor("10.3.0.30", dla_cores=2)
    asked = request(tmp_path, **STRONG, precision="fp16", dla_core=1, profiles=(FIXED,))
    _, plan = build(found, asked)
    assert (plan["device"], plan["core"]) == (found.trt.DeviceType.DLA, 1)
    assert plan["flags"] == [found.trt.BuilderFlag.GPU_FALLBACK]
    _, alone = build(found, asked._replace(gpu_fallback=False))
    assert alone["flags"] == []


@pytest.mark.parametrize(("cores", "found"), [(0, "none"), (1, "1 of them")])
def test_an_accelerator_that_is_not_there_is_refused(cores: int, found: str, tmp_path: Path):
    asked = request(tmp_path, **STRONG, precision="fp16", dla_core=1, profiles=(FIXED,))
    with pytest.raises(BuildFailed, match=f"DLA core 1, and .* finds {found} here"):
        build(vendor("10.3.0.30", dla_cores=cores), asked)


def test_progress_comes_from_the_log_where_there_is_no_monitor(tmp_path: Path):
    says = (
        ("VERBOSE", "After final dead-layer removal: 2 layers"),
        ("VERBOSE", "=============== Computing costs for conv1"),
        ("VERBOSE", "=============== Computing costs for conv2"),
        ("INFO", "Engine generation completed in 3.2 seconds."),
    )
    steps: list[Step] = []
    build_engine(
        vendor("8.5.2.2", says=says),
        request(tmp_path, **WEAK),
        progress=steps.append,
        inspect=False,
    )
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert any(0.2 < fraction < 0.9 for fraction in fractions)
    assert fractions[-1] == 1.0


def test_a_build_without_a_plan_ends_in_the_last_error(tmp_path: Path):
    says = (
        ("WARNING", "something small"),
        ("ERROR", "10: Could not find any implementation for node conv_7 + relu_7."),
    )
    journal = Journal()
    with pytest.raises(BuildFailed, match="found no kernel for `conv_7 \\+ relu_7`") as caught:
        build(
            vendor("10.3.0.30", says=says, gives_plan=False), request(tmp_path, **STRONG),
            journal=journal,
        )  # fmt: skip
    assert caught.value.hint is not None
    assert "workspace_mib" in caught.value.hint
    assert caught.value.log == ("[W] something small", f"[E] {says[1][1]}")


def test_8_5_gives_a_node_by_number_and_it_is_named_from_the_file(tmp_path: Path):
    error = {"desc": "Plugin not found, are the plugin name, version, and namespace correct?",
             "node": 1, "code": "INVALID_NODE"}  # fmt: skip
    found = vendor("8.5.2.2", parser_error=error)
    with pytest.raises(BuildFailed, match=r"cannot take node `clamp` \(Relu\): it has no such"):
        build(found, request(tmp_path, **WEAK))


def test_an_inspector_that_answers_otherwise_is_an_error(tmp_path: Path):
    found = vendor("10.3.0.30")
    found.trt.Runtime.deserialize_cuda_engine = lambda *_: None
    with pytest.raises(BuildFailed, match="built no engine, and did not say why"):
        build(found, request(tmp_path, **STRONG))


def layer(word: str, name: str = "conv") -> dict[str, Any]:
    tensors = [{"Name": "x", "Format/Datatype": word}]
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": tensors, "Outputs": tensors}


def run_child(folder: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> dict[str, Any]:
    found = vendor("10.3.0.30", layers=[layer(told)])
    monkeypatch.setattr(child, "load_vendor", lambda *_, **__: found)
    asked = request(folder, **STRONG, precision="fp16")
    (folder / "request.json").write_text(asked.to_json())
    report = _build_in(str(folder / "request.json"), str(folder / "out"))
    return dict(json.loads((folder / report).read_text()))


def test_the_report_tells_each_precision_and_the_timings_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = run_child(tmp_path, monkeypatch, "Half")
    assert report["layers"] == {"fp16": 1}
    assert report["lost_precision"] is None
    assert (tmp_path / "out" / "timing.cache").read_bytes() == b"+timed+timed"
    assert json.loads((tmp_path / "out" / "layers.json").read_text()) == [layer("Half")]
    # The next build starts from it.
    run_child(tmp_path, monkeypatch, "Half")
    assert (tmp_path / "out" / "timing.cache").read_bytes() == b"+timed+timed+timed+timed"


def test_a_silent_loss_of_precision_is_an_error_and_leaves_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(BuildFailed, match="fp16") as caught:
        run_child(tmp_path, monkeypatch, "Float")
    assert caught.value.hint is not None
    assert "--precision fp32" in caught.value.hint
    assert not (tmp_path / "out" / "engine").exists()
    assert (tmp_path / "out" / "layers.json").exists()


def test_one_layer_of_many_that_lost_its_precision_is_an_error_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = vendor("10.3.0.30", layers=[layer("Half", "first"), layer("Float", "second")])
    monkeypatch.setattr(child, "load_vendor", lambda *_, **__: found)
    asked = request(tmp_path, **STRONG, precision="fp16", products=("first", "second"))
    (tmp_path / "request.json").write_text(asked.to_json())
    with pytest.raises(BuildFailed, match=r"1 of 2 layers meant for it .* in fp32: `second`"):
        _build_in(str(tmp_path / "request.json"), str(tmp_path / "out"))
    # Left in float32 on purpose, it is no loss.
    asked = asked._replace(products=("first",))
    (tmp_path / "request.json").write_text(asked.to_json())
    _build_in(str(tmp_path / "request.json"), str(tmp_path / "again"))
