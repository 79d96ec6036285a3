"""A torch module trained here, all the way to a served answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.torch, pytest.mark.network]


@pytest.fixture(scope="module")
def digits(build: Callable[..., dict[str, Any]], digits_cnn: Any) -> dict[str, Any]:
    """Build the digits network for any x86-64 CPU."""
    return build(digits_cnn.factory, "-t", "cpu-x86_64", "-c", digits_cnn.calibration)


def test_every_candidate_has_a_verdict_and_exactly_one_is_chosen(digits: dict[str, Any]) -> None:
    verdicts = {c["name"]: c["verdict"] for c in digits["candidates"]}
    assert list(verdicts.values()).count("chosen") == 1
    assert set(verdicts) >= {"fp32", "int8-dynamic", "int8-static"}
    for candidate in digits["candidates"]:
        assert candidate["verdict"] == "chosen" or candidate["reason"]


def test_a_candidate_that_is_not_faster_is_not_shipped(digits: dict[str, Any]) -> None:
    (chosen,) = (c for c in digits["candidates"] if c["verdict"] == "chosen")
    if chosen["name"] != "fp32":
        assert chosen["latency"]["speedup"] > 1
    for candidate in digits["candidates"]:
        if candidate["verdict"] == "slower":
            assert candidate["latency"]["speedup"] <= 1 or candidate["latency"]["confidence"] < 0.95


def test_the_served_answers_are_the_originals(
    digits: dict[str, Any], digits_cnn: Any, serve: Any
) -> None:
    rows = digits_cnn.test_x[:32]
    expected = digits_cnn.answers(rows)
    with serve(Path(digits["path"])) as server:
        answer = server.post("/predict", {"data": rows.tolist()})
    got = np.array(answer["result"], np.float32)
    if digits["precision"] == "fp32":
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.96


def test_the_record_and_the_lock_lie_beside_the_bundle(digits: dict[str, Any]) -> None:
    bundle = Path(digits["path"])
    lock = json.loads(bundle.with_suffix(".lock.json").read_text())
    record = json.loads(bundle.with_suffix(".record.json").read_text())
    assert lock["choices"]["precision"] == digits["precision"]
    assert record["bundle"]["digest"] == digits["digest"]
    assert sorted(p.name for p in bundle.parent.iterdir()) == sorted(
        [
            bundle.name,
            bundle.with_suffix(".lock.json").name,
            bundle.with_suffix(".record.json").name,
        ]
    )


def test_predict_writes_every_output_by_name(
    digits: dict[str, Any], digits_cnn: Any, edgepack_session: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", x=digits_cnn.test_x[:3])
    edgepack_session(
        "predict", digits["path"], "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz", check=True
    )
    with np.load(tmp_path / "out.npz") as out:
        (name,) = out.files
        assert out[name].shape == (3, 10)
        assert (out[name].argmax(1) == digits_cnn.answers(digits_cnn.test_x[:3]).argmax(1)).all()


def test_the_file_runs_under_every_python_with_nothing_installed(
    digits: dict[str, Any], digits_cnn: Any, old_python: Path, tmp_path: Path
) -> None:
    import subprocess

    np.savez(tmp_path / "in.npz", x=digits_cnn.test_x[:2])
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [old_python, "-I", "-S", digits["path"]]
    verified = subprocess.run([*command, "verify"], env=env, capture_output=True, text=True,
                              check=False)  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    out = tmp_path / "out.npz"
    subprocess.run([*command, "predict", "-i", tmp_path / "in.npz", "-o", out], env=env, check=True,
                   capture_output=True)  # fmt: skip
    with np.load(out) as arrays:
        got = arrays[arrays.files[0]]
    assert (got.argmax(1) == digits_cnn.answers(digits_cnn.test_x[:2]).argmax(1)).all()


@pytest.mark.slow
def test_a_module_gives_the_same_bytes_in_two_folders_without_a_lock(
    digits_cnn: Any, edgepack: Any, edgepack_session: Any, tmp_path: Path
) -> None:
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(digits_cnn.folder, moved)
    digests = set()
    for tool, folder in ((edgepack_session, digits_cnn.folder), (edgepack, moved)):
        # A target that is not this machine: without a lock, timing would choose among the forms.
        tool(
            "build", f"{folder / 'digits_cnn.py'}:make_model", "-t", "cpu-arm64",
            "-c", folder / "calibration", "--precision", "int8-static",
            "-o", tmp_path / folder.name / "dist", check=True,
        )  # fmt: skip
        (bundle,) = (tmp_path / folder.name / "dist").glob("*.edgepack")
        digests.add(hashlib.sha256(bundle.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.slow
def test_an_exported_program_answers_like_its_module(
    digits_cnn: Any, build: Callable[..., dict[str, Any]], serve: Any, tmp_path: Path
) -> None:
    import torch

    model, _ = digits_cnn.module.make_model()
    batch = torch.export.Dim("batch", min=1, max=32)
    program = torch.export.export(
        model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, tmp_path / "digits.pt2")
    built = build(tmp_path / "digits.pt2", "-t", "cpu-x86_64", "--precision", "fp32")
    rows = digits_cnn.test_x[:8]
    with serve(Path(built["path"])) as server:
        answer = server.post("/predict", {"data": rows.tolist()})
    np.testing.assert_allclose(answer["result"], digits_cnn.answers(rows), atol=1e-4)
