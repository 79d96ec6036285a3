"""What an engine depends on: hard facts mean another engine, soft facts a sentence."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from runtime.nvidia.fingerprint import (
    HARD,
    differences,
    digest,
    hard_facts,
    soft_differences,
    soft_facts,
)
from runtime.nvidia.request import BuildRequest, from_manifest

TABLE: dict[str, Any] = {
    "module": "tensorrt", "version": "10.3.0.30", "cuda": "12.6", "compute_capabilities": ["8.7"],
    "platform": "linux-aarch64", "artifact": "model/model.onnx", "artifact_sha256": "ab" * 32,
    "precision": "int8-static", "strongly_typed": True, "flags": [],
    "profiles": [{"x": {"min": [1, 3], "opt": [1, 3], "max": [32, 3]}}],
    "workspace_mib": 1024, "sparse": False, "dla_core": None, "gpu_fallback": True,
    "version_compatible": False, "needs": [], "engines": [],
}  # fmt: skip
DEVICE = {
    "driver": "540.4.0", "cuda": "12.6.68", "power_mode": "15W",
    "gpus": [{"name": "Orin", "compute_capability": "8.7", "memory_mib": 7620}],
}  # fmt: skip

SHAPES = '[{"x":{"max":[32,3],"min":[1,3],"opt":[1,3]}}]'


def request(**changes: Any) -> BuildRequest:
    return from_manifest({"tensorrt": {**TABLE, **changes}}, "/release")


def test_the_facts_are_those_of_the_device_and_of_the_request() -> None:
    facts = hard_facts(request(), "10.3.0.26", DEVICE)
    assert tuple(facts) == HARD
    # what is installed, not what was asked for
    assert facts["version"] == "10.3.0.26"
    assert facts["capabilities"] == ["8.7"]
    system = os.uname()
    assert facts["platform"] == f"{system.sysname.lower()}-{system.machine}"
    assert json.loads(json.dumps(facts)) == facts


def test_the_gpu_at_hand_counts_and_not_the_one_asked_for() -> None:
    other = {"gpus": [{"name": "A10", "compute_capability": "8.6"}]}
    assert hard_facts(request(), "10.3.0.30", other)["capabilities"] == ["8.6"]


def test_an_engine_made_ahead_of_time_is_for_every_gpu_on_its_list() -> None:
    ahead = request(
        module="tensorrt_rtx", version="1.7.1.116", compute_capabilities=["8.9", "8.6"],
        platform="linux-x86_64",
    )  # fmt: skip
    on_host = hard_facts(ahead, "1.7.1.116")
    assert on_host["capabilities"] == ["8.6", "8.9"]
    on_device = hard_facts(ahead, "1.7.1.116", {"gpus": [{"compute_capability": "8.9"}]})
    assert digest(on_host) == digest(on_device)
    assert on_device["platform"] == "linux-x86_64"
    other = hard_facts(ahead, "1.7.1.116", {"gpus": [{"compute_capability": "12.0"}]})
    assert other["capabilities"] == ["12.0"]


def test_the_fingerprint_does_not_depend_on_order_or_on_the_folder() -> None:
    facts = hard_facts(request(), "10.3.0.30", DEVICE)
    backwards = dict(reversed(list(facts.items())))
    assert digest(facts) == digest(backwards) == digest({**facts, "unknown": 1})
    elsewhere = from_manifest({"tensorrt": TABLE}, "/elsewhere")
    assert digest(hard_facts(elsewhere, "10.3.0.30", DEVICE)) == digest(facts)
    # a fixed value: engines that devices keep must be found again by later versions
    fixed = {**facts, "platform": "linux-aarch64"}
    assert digest(fixed)[:16] == "930d12918c5ae507"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"version": "10.7.0.23"},
            "the engine was built with TensorRT 10.3.0.30, and this device has TensorRT 10.7.0.23",
        ),
        (
            {"module": "tensorrt_rtx", "version": "1.7.1"},
            "the engine was built with TensorRT 10.3.0.30, and this device has TensorRT-RTX 1.7.1",
        ),
        (
            {"capabilities": ["7.2"]},
            "the engine is for compute capability 8.7, and this GPU has 7.2",
        ),
        (
            {"platform": "linux-riscv64"},
            "the engine is for linux-aarch64, and this machine is linux-riscv64",
        ),
        (
            {"artifact": "c" * 9},
            "the engine was built from the model abababababab…, and the bundle carries ccccccccc",
        ),
        (
            {"profiles": []},
            f"the engine covers the shapes {SHAPES}, and the bundle asks for none",
        ),
        (
            {"precision": "fp16"},
            "the engine was built for int8-static, and the bundle asks for fp16",
        ),
        (
            {"typed": False},
            "the engine's network is strongly typed: yes, and the bundle asks for: no",
        ),
        (
            {"flags": ["fp16"]},
            "the engine was built with the flags none, and the bundle asks for fp16",
        ),
        ({"sparse": True}, "the engine uses sparse weights: no, and the bundle asks for: yes"),
        ({"dla_core": 0}, "the engine runs on DLA core none, and the bundle asks for 0"),
        (
            {"gpu_fallback": False},
            "the engine moves layers from DLA to the GPU: yes, and the bundle asks for: no",
        ),
        (
            {"workspace_mib": 256},
            "the engine was built with 1024 MiB of workspace, and the bundle asks for 256",
        ),
        (
            {"version_compatible": True},
            "the engine is version-compatible: no, and the bundle asks for: yes",
        ),
    ],
)
def test_every_hard_fact_changes_the_fingerprint_and_is_one_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    found = {**hard_facts(request(), "10.3.0.30", DEVICE), "platform": "linux-aarch64"}
    wanted = {**found, **change}
    assert digest(wanted) != digest(found)
    assert differences(wanted, found) == [sentence]
    assert differences(found, found) == []


def test_soft_facts_are_told_by_name_and_unknown_ones_are_no_difference() -> None:
    tuned = soft_facts(DEVICE)
    assert tuned == {"gpu": "Orin", "driver": "540.4.0", "cuda": "12.6.68", "power_mode": "15W"}
    assert soft_facts({}) == dict.fromkeys(tuned)
    assert soft_differences(tuned, soft_facts({})) == []
    assert soft_differences({}, tuned) == []
    here = {"gpu": "AGX", "driver": "1", "cuda": "2", "power_mode": "MAXN"}
    assert soft_differences(tuned, here) == [
        "the engine was tuned on `Orin`, and this GPU is `AGX`",
        "the engine was tuned under driver 540.4.0, and this is 1",
        "the engine was tuned under CUDA 12.6.68, and this is 2",
        "the engine was tuned in power mode `15W`, and the device is in `MAXN`",
    ]
