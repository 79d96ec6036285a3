"""Engines of RTX targets, really built on this host without a GPU, and every way that fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.backends.tensorrt import ahead
from packager.backends.tensorrt.ahead import build_ahead, check_installed, ingredients
from packager.backends.tensorrt.recipe import engine_recipe
from packager.console import Silent
from packager.errors import (
    BackendMissing,
    ExternalToolError,
    InputOutputError,
    IntegrityError,
    ModelUnsupported,
)
from packager.manifest import sha256_file
from packager.pipeline.cache import StageCache
from packager.process import run
from packager.recipe import TensorRTOptions
from packager.target import TensorRT, find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.artifact import Prebuilt

    Build = Callable[..., tuple[Prebuilt, dict[str, Any]]]

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (extra `rtx`)",
)


class Heard(Silent):
    """Keeps what it is told of the progress."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, text: str) -> None:
        self.steps.append((done, total, text))


def graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    weights = np.random.default_rng(7).standard_normal((32, 32)).astype(np.float32)
    made = helper.make_graph(
        list(nodes)
        or [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Relu", ["h"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensorrt_of(name: str) -> TensorRT:
    found = find_target(name).tensorrt
    assert found is not None
    return found


def recipe_of(core: Path, target: str = "rtx-ada", *profiles: tuple[int, int]) -> dict[str, Any]:
    return engine_recipe(
        target=find_target(target),
        precision="fp32",
        profiles=[
            {"x": {"min": [low, 32], "opt": [low, 32], "max": [high, 32]}}
            for low, high in profiles or [(1, 8)]
        ],
        options=TensorRTOptions(),
        artifact="model/model.onnx",
        artifact_sha256=sha256_file(core),
        needs=[],
    )


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "core.onnx"
    onnx.save(graph(), path)
    return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build in an empty working folder, by default with one cache."""
    count = iter(range(100))

    def call(
        recipe: dict[str, Any], core: Path, *, target: str = "rtx-ada", cache: str = "cache",
        **options: Any,
    ) -> tuple[Prebuilt, dict[str, Any]]:  # fmt: skip
        workdir = tmp_path / f"work-{next(count)}"
        workdir.mkdir()
        options.setdefault("reporter", Silent())
        return build_ahead(
            recipe, core, tensorrt_of(target), cache=StageCache(tmp_path / cache),
            workdir=workdir, **options,
        )  # fmt: skip

    return call


@needs_rtx
def test_the_same_graph_gives_the_same_bytes_and_another_gives_others(
    build: Build, core: Path, tmp_path: Path
) -> None:
    heard = Heard()
    engine, measured = build(recipe_of(core), core, cache="one", reporter=heard)
    again, _ = build(recipe_of(core), core, cache="two")
    assert engine.path != again.path
    assert engine.path.read_bytes() == again.path.read_bytes()
    assert engine.fingerprint == again.fingerprint
    assert sha256_file(engine.path) == measured["sha256"]
    assert measured["size_bytes"] == engine.path.stat().st_size > 4096
    assert measured["version"] == "1.7.1.116" == engine.facts["version"]
    assert measured["peak_memory_mib"] < 1024
    assert "no GPU was there to look" in measured["not_inspected"]
    assert engine.facts["capabilities"] == ["8.9"]
    assert engine.facts["platform"] == "linux-x86_64"
    assert heard.steps[-1] == (100, 100, "done")
    assert [done for done, _, _ in heard.steps] == sorted(done for done, _, _ in heard.steps)

    other, _ = build(recipe_of(core, "rtx-ada", (1, 8), (9, 16)), core)
    assert other.fingerprint != engine.fingerprint
    assert other.path.read_bytes() != engine.path.read_bytes()
    for_blackwell, _ = build(recipe_of(core, "rtx-blackwell"), core, target="rtx-blackwell")
    assert for_blackwell.fingerprint != engine.fingerprint


@needs_rtx
def test_the_fingerprint_is_the_one_that_the_device_computes(build: Build, core: Path) -> None:
    from runtime.nvidia.fingerprint import digest, hard_facts
    from runtime.nvidia.request import from_manifest

    recipe = recipe_of(core)
    engine, _ = build(recipe, core)
    facts = hard_facts(from_manifest({"tensorrt": recipe}, "/release"), "1.7.1.116", None)
    assert engine.facts == facts
    assert engine.fingerprint == digest(facts)


@needs_rtx
def test_weights_beside_the_graph_are_found(build: Build, core: Path, tmp_path: Path) -> None:
    beside = tmp_path / "large.onnx"
    onnx.save(graph(), beside, save_as_external_data=True, location="large.onnx.data",
              size_threshold=16)  # fmt: skip
    assert (tmp_path / "large.onnx.data").stat().st_size >= 4096
    engine, _ = build(recipe_of(beside), beside)
    inside, _ = build(recipe_of(core), core)
    assert engine.path.stat().st_size == inside.path.stat().st_size


@needs_rtx
def test_a_finished_engine_is_not_built_again_unless_it_is_damaged(
    build: Build, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, measured = build(recipe_of(core), core)
    whole = engine.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(ahead, "run", None)
        assert build(recipe_of(core), core) == (engine, measured)
    engine.path.write_bytes(whole[:-1])
    mended, _ = build(recipe_of(core), core)
    assert mended.path.read_bytes() == whole
    (engine.path.parent / "report.json").write_text("{")
    assert build(recipe_of(core), core)[0].path.read_bytes() == whole


@needs_rtx
def test_a_build_is_repeated_byte_for_byte_by_the_script_that_it_leaves(
    build: Build, core: Path, tmp_path: Path
) -> None:
    engine, _ = build(recipe_of(core), core)
    core.unlink()
    kept = engine.path.parent
    done = run(["sh", kept / "reproduce.sh", tmp_path / "again"], timeout_s=120)
    assert json.loads(done.stdout.splitlines()[0])["progress"] >= 0
    assert (tmp_path / "again" / "engine").read_bytes() == engine.path.read_bytes()
    assert (kept / "build.log").read_text(encoding="utf-8").startswith("$ ")


@needs_rtx
def test_a_failed_build_leaves_its_log_and_a_script_that_fails_likewise(
    build: Build, core: Path
) -> None:
    onnx.save(graph(helper.make_node("Det", ["x"], ["y"], name="odd")), core)
    with pytest.raises(ModelUnsupported) as caught:
        build(recipe_of(core), core)
    said = dict(line.strip().split(": ", 1) for line in caught.value.message.splitlines()[-2:])
    assert "`odd` (Det)" in Path(said["log"]).read_text(encoding="utf-8")
    done = run(said["again"].split(" "), timeout_s=120, check=False)
    assert done.returncode == ModelUnsupported.exit_code
    assert "`odd` (Det)" in done.stderr


def test_a_key_depends_on_the_recipe_and_the_builder_and_not_on_sentences(core: Path) -> None:
    recipe = recipe_of(core)
    key = ingredients(recipe)
    assert ingredients({**recipe, "needs": ["another sentence"], "engines": [{}]}) == key
    assert ingredients({**recipe, "artifact_sha256": "0" * 64}) != key
    assert ingredients({**recipe, "workspace_mib": 1}) != key
    assert "builder.py" in key["builder"]
    json.dumps(key)


def test_another_release_of_tensorrt_rtx_is_refused_before_any_work(
    build: Build, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(ahead.metadata, "version", lambda _: "1.6.1.120")
    monkeypatch.setattr(ahead, "run", None)
    with pytest.raises(BackendMissing) as caught:
        build(recipe_of(core), core)
    assert caught.value.message == (
        "this host has TensorRT-RTX 1.6.1.120, and the target's engines run only in 1.7.1.116"
    )
    assert caught.value.hint == "pip install 'tensorrt-rtx-cu13==1.7.1.116'"


@needs_rtx
def test_another_release_is_noticed_where_the_packages_have_other_names(
    build: Build, core: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ahead, "_PACKAGES", ())
    tensorrt = dataclasses.replace(tensorrt_of("rtx-ada"), version="1.7.2.1")
    work = tmp_path / "work"
    work.mkdir()
    cache = StageCache(tmp_path / "cache")
    with pytest.raises(BackendMissing, match=r"this host has TensorRT-RTX 1\.7\.1\.116"):
        build_ahead(recipe_of(core), core, tensorrt, cache=cache, workdir=work, reporter=Silent())
    assert not (tmp_path / "cache" / "stages").exists()


def test_a_host_without_tensorrt_rtx_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendMissing) as caught:
        check_installed(tensorrt_of("rtx-ada"))
    assert "TensorRT-RTX 1.7.1.116, which is not installed" in caught.value.message
    assert caught.value.hint == "pip install 'edgepack[rtx]'"
    assert caught.value.exit_code == 4


@needs_rtx
def test_a_node_that_cannot_be_built_is_named(build: Build, core: Path) -> None:
    onnx.save(graph(helper.make_node("Det", ["x"], ["y"], name="odd")), core)
    with pytest.raises(ModelUnsupported) as caught:
        build(recipe_of(core), core)
    assert "`odd` (Det)" in caught.value.message


@needs_rtx
def test_a_graph_that_is_not_the_recipe_s_is_refused(build: Build, core: Path) -> None:
    recipe = recipe_of(core)
    core.write_bytes(core.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match=r"is not the file that the recipe names"):
        build(recipe, core)


@needs_rtx
def test_memory_for_less_than_the_library_is_told_and_nothing_is_kept(
    build: Build, core: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputOutputError) as caught:
        build(recipe_of(core), core, memory_mib=20, timeout_s=60)
    assert caught.value.message.splitlines()[0] == (
        "building this engine needs about 300 MiB of memory, and 20 MiB are allowed"
    )
    assert not (tmp_path / "cache" / "stages").exists()


CRASH = f"import os\nos.kill(os.getpid(), {int(signal.SIGSEGV)})\n"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (CRASH, "the builder of engines was ended by signal 11 on this host"),
        ("raise SystemExit(9)", "the builder of engines failed (exit 9) on this host"),
        ("import time\ntime.sleep(60)", "took longer than 1 s"),
        ("print('no engine')", "the builder left no engine"),
    ],
)
def test_a_builder_that_ends_badly_is_one_error(
    build: Build, core: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    monkeypatch.setattr(ahead, "check_installed", lambda _: None)
    monkeypatch.setattr(ahead, "_PROGRAM", program)
    with pytest.raises(ExternalToolError) as caught:
        build(recipe_of(core), core, timeout_s=1 if "sleep" in program else 60)
    assert says in caught.value.message
