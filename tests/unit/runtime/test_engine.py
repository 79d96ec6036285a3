"""The engine that a release names is opened and says what it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from runtime.engine import available_cores, open_engine
from runtime.errors import InputOutputFault, ModelFault
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Release:
    folder: str
    manifest: dict[str, Any]


@pytest.fixture
def release(tmp_path: Path, small_models: Any, engine_library: Path) -> Release:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libonnxruntime.so").symlink_to(engine_library)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(small_models["mlp"].path.read_bytes())
    engine = {
        "name": "onnxruntime",
        "version": "0.0.0",
        "library": "lib/libonnxruntime.so",
        "artifact": "model/model.onnx",
        "threads": 1,
        "precision": "int8-static",
        "scheme": "",
    }
    return Release(str(tmp_path), {"engine": engine})


def test_an_engine_says_what_really_runs(release: Release) -> None:
    engine = open_engine(release)
    assert engine.name == "onnxruntime"
    # what the library says, not what the manifest says
    assert engine.version == onnxruntime.__version__
    assert engine.provider == "CPUExecutionProvider"
    assert engine.precision == "int8-static"
    answer = engine.run({"x": Tensor("float32", (2, 64), bytes(512))})
    assert answer["logits"].shape == (2, 10)
    assert list(engine.run({"x": Tensor("float32", (1, 64), bytes(256))}, ["logits"])) == ["logits"]
    engine.close()
    with pytest.raises(ModelFault, match="the session is closed"):
        engine.run({"x": Tensor("float32", (1, 64), bytes(256))})


@pytest.mark.parametrize("asked", [None, 0, 1, 2])
def test_threads_are_the_callers_or_the_manifests_or_every_core(
    asked: int | None, release: Release
) -> None:
    engine = open_engine(release, asked)
    assert engine.threads == {None: 1, 0: available_cores()}.get(asked, asked)
    engine.close()


def test_cores_are_those_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


def test_an_unknown_engine_is_named(release: Release) -> None:
    release.manifest["engine"]["name"] = "tensorrt"
    with pytest.raises(ModelFault, match="needs the engine `tensorrt`, and this runtime has `onnx"):
        open_engine(release)


def test_a_release_without_its_files_is_told(release: Release) -> None:
    release.manifest["engine"]["artifact"] = "model/absent.onnx"
    with pytest.raises(InputOutputFault, match=r"there is no model file `absent.onnx`"):
        open_engine(release)
