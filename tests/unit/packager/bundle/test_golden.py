"""Golden samples depend on their inputs alone, and say what a device must compute."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.artifact import Parts
from packager.bundle import golden as module
from packager.bundle.golden import make_golden, pack_npz
from packager.data import Samples
from packager.errors import BudgetMissed, ModelUnsupported
from runtime.golden import self_test
from runtime.npz import read_npz

if TYPE_CHECKING:
    from pathlib import Path

    from packager.artifact import Artifact


def contents(golden: module.Golden) -> dict[str, Any]:
    return {entry.path: entry.source for entry in golden.entries}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    def make(seed: int) -> module.Golden:
        return make_golden(
            small_artifact, samples=None, seed=seed, min_cosine=0.99, workdir=tmp_path
        )

    assert make(1) == make(1)
    assert contents(make(1)) != contents(make(2))


def test_the_table_tells_origin_seed_level_and_tolerances(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    golden = make_golden(
        small_artifact, samples=None, seed=7, min_cosine=0.98, workdir=tmp_path, cpu="avx2"
    )
    assert golden.table == {
        "samples": 4, "origin": "synthetic", "seed": 7, "cpu": "avx2",
        "same_cpu": {"atol": 1e-5, "rtol": 1e-4}, "other_cpu": {"min_cosine": 0.9999},
        "original": {"min_cosine": 0.98},
    }  # fmt: skip
    assert sorted(contents(golden)) == sorted(
        f"golden/{n:03}.{part}.npz" for n in range(4) for part in ("inputs", "artifact", "original")
    )


def test_the_runtime_reads_what_the_host_wrote(small_artifact: Artifact, tmp_path: Path) -> None:
    golden = make_golden(small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    (tmp_path / "golden").mkdir()
    for path, data in contents(golden).items():
        (tmp_path / path).write_bytes(data)
    inputs = read_npz(str(tmp_path / "golden/000.inputs.npz"))
    assert {name: (t.dtype, t.shape) for name, t in inputs.items()} == {"i0": ("float32", (1, 8))}
    assert callable(self_test)


def test_real_samples_are_carried_and_their_origin_is_told(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    x = np.arange(16, dtype=np.float32).reshape(2, 8) / 16
    samples = Samples([lambda: {"x": x}], digest="d", origin="1 file", kind="npz")
    golden = make_golden(small_artifact, samples=samples, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert golden.table["origin"] == "1 file"
    with np.load(io.BytesIO(contents(golden)["golden/000.inputs.npz"])) as file:
        np.testing.assert_array_equal(file["i0"], x)


def test_samples_stop_at_the_size_bound_but_one_is_always_kept(
    small_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COMPRESSED_BYTES", 10)
    golden = make_golden(small_artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert golden.table["samples"] == 1
    assert len(golden.entries) == 3


def _negated(artifact: Artifact, folder: Path) -> Artifact:
    import onnx

    model = onnx.load(artifact.path)
    model.graph.node[1].op_type = "Cos"
    onnx.save(model, folder / "other.onnx")
    return replace(artifact, path=folder / "other.onnx", precision="int8-static")


def test_a_real_sample_past_the_budget_is_a_miss(small_artifact: Artifact, tmp_path: Path) -> None:
    other = _negated(small_artifact, tmp_path)
    samples = Samples(
        [lambda: {"x": np.ones((1, 8), np.float32)}], digest="d", origin="1 file", kind="npz"
    )
    with pytest.raises(BudgetMissed, match=r"a cosine of .* with the original") as caught:
        make_golden(other, samples=samples, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert caught.value.exit_code == 7


def test_a_bundle_in_parts_is_held_to_what_its_parts_compute(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    core = _negated(small_artifact, tmp_path)
    parts = replace(small_artifact, parts=Parts(head=None, core=core.path, tail=None))
    golden, wanted = (
        make_golden(artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
        for artifact in (parts, core)
    )
    assert contents(golden) == contents(wanted)
    assert golden.table["original"] == wanted.table["original"]


def test_noise_past_the_budget_lowers_the_recorded_bound(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    other = _negated(small_artifact, tmp_path)
    golden = make_golden(other, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert golden.table["original"]["min_cosine"] < 0.99
    assert golden.table["other_cpu"] == {"min_cosine": 0.99}


def test_a_model_that_does_not_run_is_refused(small_artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"rubbish")
    with pytest.raises(ModelUnsupported, match=r"`bad\.onnx` does not run") as caught:
        make_golden(
            replace(small_artifact, path=tmp_path / "bad.onnx"),
            samples=None, seed=0, min_cosine=0.99, workdir=tmp_path,
        )  # fmt: skip
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "array",
    [np.float32(3).reshape(()), np.zeros((0, 3), np.int64), np.array([True]),
     np.arange(6, dtype=np.uint8).reshape(2, 3).T, np.float16([1.5])],
)  # fmt: skip
def test_any_array_comes_back_from_an_npz(array: Any) -> None:
    data = pack_npz("i", [array, array])
    assert data == pack_npz("i", [array, array])
    with np.load(io.BytesIO(data)) as file:
        assert file.files == ["i0", "i1"]
        np.testing.assert_array_equal(file["i1"], array)
        assert file["i1"].dtype == array.dtype


def test_strings_are_written_without_objects() -> None:
    data = pack_npz("o", [np.array([["a", "grün"], ["", "x" * 20]], dtype=object)])
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert file["o0"].tolist() == [["a", "grün"], ["", "x" * 20]]
    assert read_npz(data)["o0"].data == [b"a", "grün".encode(), b"", b"x" * 20]


def test_outputs_in_bfloat16_are_compared_as_floats_and_may_be_rounded_to_a_neighbour(
    small_artifact: Artifact, tmp_path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(small_artifact.path)
    (value,) = model.graph.output
    model.graph.node.append(
        helper.make_node("Cast", [value.name], ["half"], to=TensorProto.BFLOAT16)
    )
    value.name, value.type.tensor_type.elem_type = "half", TensorProto.BFLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    (spec,) = small_artifact.signature.outputs
    signature = replace(
        small_artifact.signature, outputs=(replace(spec, name="half", dtype="bfloat16"),)
    )
    source = replace(small_artifact.model, path=tmp_path / "half.onnx", signature=signature)
    artifact = replace(small_artifact, path=source.path, signature=signature, model=source)
    golden = make_golden(artifact, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert golden.table["same_cpu"]["rtol"] == 2**-7
    assert golden.table["original"]["min_cosine"] == 0.99
    (tmp_path / "out.npz").write_bytes(contents(golden)["golden/000.artifact.npz"])
    assert read_npz(str(tmp_path / "out.npz"))["o0"].dtype == "bfloat16"

    other = _negated(artifact, tmp_path)
    lowered = make_golden(other, samples=None, seed=0, min_cosine=0.99, workdir=tmp_path)
    assert lowered.table["original"]["min_cosine"] < 0.99
