"""The engine recipe: what a device is told, and what is refused on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from packager.backends.tensorrt.recipe import engine_recipe, workspace_mib
from packager.errors import TargetError, UsageError
from packager.recipe import TensorRTOptions
from packager.target import Target, TensorRT, find_target

ORIN = TensorRT(
    module="tensorrt", version="10.3.0.30", cuda="12.6", compute_capability="8.7",
    memory="shared", gpu_memory_mib=8192, max_opset=20, max_ir_version=9, dla_cores=2,
)  # fmt: skip
FIXED = [{"x": {"min": [1, 3], "opt": [1, 3], "max": [1, 3]}}]
RANGE = [{"x": {"min": [1, 3], "opt": [1, 3], "max": [8, 3]}}]


def target_with(engine: TensorRT, **changes: Any) -> Target:
    return dataclasses.replace(find_target("cpu-arm64"), name="orin", tensorrt=engine, **changes)


def recipe_of(
    engine: TensorRT = ORIN, precision: str = "int8-static", profiles: Any = FIXED, **options: Any
) -> dict[str, Any]:
    return engine_recipe(
        target=target_with(engine, sparsity=("2:4",)), precision=precision, profiles=profiles,
        options=TensorRTOptions(**options), artifact="model/model.onnx", artifact_sha256="0" * 64,
        needs=["TensorRT 10.3"],
    )  # fmt: skip


def test_precision_lies_in_the_graph_alone_where_it_can() -> None:
    table = recipe_of()
    assert table["strongly_typed"] is True
    assert table["flags"] == []
    assert table["platform"] == "linux-aarch64"
    assert table["compute_capabilities"] == ["8.7"]
    assert table["dla_core"] is None
    assert table["engines"] == []


@pytest.mark.parametrize(
    ("precision", "flags"), [("int8-static", ["int8"]), ("fp16", ["fp16"]), ("fp32", [])]
)
def test_the_flags_of_8_x_allow_what_was_asked_for_and_no_more(
    precision: str, flags: list[str]
) -> None:
    table = recipe_of(dataclasses.replace(ORIN, version="8.5.2.2"), precision)
    assert table["strongly_typed"] is False
    assert table["flags"] == flags


def test_the_workspace_is_a_share_of_the_memory_unless_it_is_named() -> None:
    assert recipe_of()["workspace_mib"] == 1024
    assert recipe_of(workspace_mib=300)["workspace_mib"] == 300
    card = dataclasses.replace(ORIN, memory="own", gpu_memory_mib=81920)
    assert workspace_mib(card) == 4096
    assert workspace_mib(dataclasses.replace(ORIN, gpu_memory_mib=100)) == 64


def test_only_what_was_made_sparse_for_a_target_that_runs_it_is_built_sparse() -> None:
    assert recipe_of(precision="sparse-int8-static")["sparse"] is True
    assert recipe_of()["sparse"] is False


def test_a_dla_takes_fp16_at_one_size() -> None:
    assert recipe_of(precision="fp16", dla_core=1)["dla_core"] == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((ORIN, "fp16", FIXED, 2), "has 2 DLA cores, and the recipe's"),
        ((dataclasses.replace(ORIN, dla_cores=0), "fp16", FIXED, 0), "has no DLA"),
        ((ORIN, "int8-static", FIXED, 0), "takes no int8 Q/DQ graph on the DLA: 11.4.1"),
        ((ORIN, "fp32", FIXED, 0), "computes in fp16 and int8, and the artifact is fp32"),
        ((ORIN, "fp16", RANGE, 0), r"input `x` goes from \[1, 3\] to \[8, 3\]"),
    ],
)
def test_what_a_dla_cannot_do_is_refused_with_the_reason(
    asked: tuple[TensorRT, str, Any, int], message: str
) -> None:
    engine, precision, profiles, core = asked
    with pytest.raises((TargetError, UsageError), match=message) as refused:
        recipe_of(engine, precision, profiles, dla_core=core)
    assert refused.value.hint


def test_int8_on_a_dla_is_taken_from_11_4_1_on() -> None:
    table = recipe_of(dataclasses.replace(ORIN, version="11.4.1"), dla_core=0)
    assert table["dla_core"] == 0


@pytest.mark.parametrize(
    "engine",
    [
        dataclasses.replace(ORIN, version="8.5.2.2"),
        dataclasses.replace(ORIN, module="tensorrt_rtx", version="1.7.1.116"),
    ],
)
def test_an_engine_that_outlives_updates_is_refused_where_there_is_none(engine: TensorRT) -> None:
    with pytest.raises(UsageError, match="builds no version-compatible engines"):
        recipe_of(engine, version_compatible=True)
    assert recipe_of(version_compatible=True)["version_compatible"] is True
