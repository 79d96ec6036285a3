"""Golden samples tell the same computation from another one."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime import cpu, golden
from runtime.errors import IntegrityFault
from runtime.golden import Difference, compare, read_sample, self_test
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEVEL = cpu.cpu_level()
ODD_NAME = '{"out": "a/b"}'


def tensor(values: Any, dtype: str = "float32") -> Tensor:
    array = np.asarray(values, dtype)
    return Tensor(dtype, array.shape, array.tobytes())


@dataclass
class Release:
    folder: str
    manifest: dict[str, Any]


@dataclass
class FixedEngine:
    """Answers with given arrays: a device whose arithmetic is known."""

    answer: dict[str, Tensor]

    def run(self, feeds: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        assert list(feeds) == ["x"]
        return {name: self.answer[name] for name in outputs}


SCORES = np.array([[0.1, 2.0, -3.0]], np.float32)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    (tmp_path / "golden").mkdir()
    files = {
        "inputs": {"i0": np.ones((1, 2), np.float32)},
        "artifact": {"o0": SCORES, "o1": np.array([1], np.int64), "o2": np.array(["cat"])},
        "original": {"o0": SCORES * 1.02, "o1": np.array([2], np.int64), "o2": np.array(["cat"])},
    }
    for part, arrays in files.items():
        np.savez_compressed(tmp_path / "golden" / f"000.{part}.npz", **arrays)
    wire = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 2]}],
        "outputs": [
            {"name": ODD_NAME, "dtype": "float32", "shape": [1, 3]},
            {"name": "best", "dtype": "int64", "shape": [1]},
            {"name": "label", "dtype": "string", "shape": [1]},
        ],
    }
    return Release(
        str(tmp_path),
        {
            "engine": {"precision": "int8-static"},
            "model": {"signature": wire},
            "golden": {
                "samples": 1, "origin": "synthetic", "seed": 0, "cpu": "avx2",
                "same_cpu": {"atol": 1e-5, "rtol": 1e-4}, "other_cpu": {"min_cosine": 0.999},
                "original": {"min_cosine": 0.99},
            },
        },
    )  # fmt: skip


def answer(scores: Any = SCORES, best: int = 1, label: bytes = b"cat") -> FixedEngine:
    return FixedEngine(
        {
            ODD_NAME: tensor(scores),
            "best": tensor([best], "int64"),
            "label": Tensor("string", (1,), [label]),
        }
    )


def test_the_recorded_answer_passes_and_the_difference_to_the_original_is_told(
    release: Release,
) -> None:
    result = self_test(release, answer(), cpu_level="avx2")
    assert result.passed
    assert (result.cpu, result.expected_cpu, result.failures) == ("avx2", "avx2", [])
    scores, best, label = result.samples[0].outputs
    assert scores.name == ODD_NAME
    assert scores.artifact.exact
    assert scores.original.max_abs == pytest.approx(0.06, rel=1e-3)
    assert not best.original.exact
    assert label.original.exact


def test_the_same_level_has_the_tight_tolerance_and_another_one_the_direction(
    release: Release,
) -> None:
    engine = answer(SCORES * 1.01)
    same = self_test(release, engine, cpu_level="avx2")
    (failure,) = same.failures
    assert failure.startswith(f"golden sample 0, output `{ODD_NAME}`: differs by 0.03 where ")
    assert failure.endswith("1e-05 + 0.0001 × the value is allowed")
    assert not same.passed
    assert self_test(release, engine, cpu_level="avx512_vnni").passed


def test_another_direction_fails_at_every_level(release: Release) -> None:
    engine = answer(SCORES[:, ::-1])
    other = self_test(release, engine, cpu_level="avx512_vnni")
    assert "has a cosine of" in other.failures[0]
    assert "with the recorded output where 0.999000 is needed" in other.failures[0]


def test_a_release_far_from_its_original_fails_although_it_repeats_itself(
    release: Release,
) -> None:
    np.savez(
        Path(release.folder) / "golden" / "000.original.npz",
        o0=SCORES * [1, 1, -1], o1=[1], o2=["cat"],
    )  # fmt: skip
    (failure,) = self_test(release, answer(), cpu_level="avx2").failures
    assert failure.endswith("with the original model where 0.990000 is needed")


def test_whole_numbers_and_labels_have_to_be_equal(release: Release) -> None:
    for level in ("avx2", "avx512_vnni"):
        failures = self_test(release, answer(best=2, label=b"dog"), cpu_level=level).failures
        assert [failure.split(": ")[-1] for failure in failures] == [
            "differs from the recorded int64",
            "differs from the recorded string",
        ]


def test_an_unquantized_release_has_to_give_the_originals_whole_numbers(release: Release) -> None:
    release.manifest["engine"]["precision"] = "fp32"
    (failure,) = self_test(release, answer(), cpu_level="avx2").failures
    assert failure == "golden sample 0, output `best`: differs from the original model's int64"


def test_what_turns_on_a_last_digit_has_to_be_equal_on_the_same_kernels_alone(
    release: Release,
) -> None:
    release.manifest["golden"]["decided"] = ["best"]
    release.manifest["engine"]["precision"] = "fp32"  # and still may differ from the original
    assert self_test(release, answer(), cpu_level="avx2").passed
    (failure,) = self_test(release, answer(best=2), cpu_level="avx2").failures
    assert failure == "golden sample 0, output `best`: differs from the recorded int64"
    assert self_test(release, answer(best=2), cpu_level="avx512_vnni").passed
    engine = answer()
    engine.answer["best"] = tensor([[1]], "int64")
    (failure,) = self_test(release, engine, cpu_level="avx512_vnni").failures
    assert failure.endswith("is not the recorded int64 of 1 dimensions")


def test_another_shape_is_a_failure(release: Release) -> None:
    failures = self_test(release, answer(SCORES[:, :2]), cpu_level="avx2").failures
    assert "differs by inf" in failures[0]


def test_a_sample_without_an_array_is_an_integrity_fault(release: Release) -> None:
    with pytest.raises(IntegrityFault, match=r"`golden/000.inputs.npz` lacks array `i1`"):
        read_sample(release.folder, 0, "inputs", ["x", "y"])


def test_a_real_engine_passes_its_own_samples(
    small_models: Any, engine_library: Path, tmp_path: Path
) -> None:
    from runtime.engine import open_engine
    from runtime.onnxruntime import Session

    model = small_models["several"]
    session = Session(str(engine_library), str(model.path))
    (tmp_path / "golden").mkdir()
    for index, feeds in enumerate(model.feeds):
        arrays = {f"i{at}": values for at, values in enumerate(feeds.values())}
        np.savez(tmp_path / "golden" / f"{index:03}.inputs.npz", **arrays)
        got = session.run({k: tensor(v, str(v.dtype)) for k, v in feeds.items()})
        outputs = {
            f"o{at}": np.frombuffer(out.data, out.dtype).reshape(out.shape)
            for at, out in enumerate(got.values())
        }
        for part in ("artifact", "original"):
            np.savez(tmp_path / "golden" / f"{index:03}.{part}.npz", **outputs)
    session.close()
    signature = {
        kind: [{"name": i.name, "dtype": i.dtype, "shape": []} for i in infos]
        for kind, infos in (("inputs", session.inputs), ("outputs", session.outputs))
    }
    engine = {
        "name": "onnxruntime", "library": str(engine_library), "artifact": str(model.path),
        "precision": "fp32", "threads": 1,
    }  # fmt: skip
    release = Release(
        str(tmp_path),
        {
            "engine": engine,
            "model": {"signature": signature},
            "golden": {"samples": len(model.feeds), "cpu": LEVEL},
        },
    )
    opened = open_engine(release)
    result = self_test(release, opened)
    opened.close()
    assert result.passed
    assert result.cpu == LEVEL
    assert all(out.artifact.exact for sample in result.samples for out in sample.outputs)


FLOATS = hnp.arrays("f4", 8, elements=st.floats(-1e6, 1e6, width=32))


@given(FLOATS, FLOATS, st.floats(0, 1), st.floats(0, 1))
def test_comparing_is_what_numpy_computes(
    left: np.ndarray, right: np.ndarray, atol: float, rtol: float
) -> None:
    got = compare(tensor(left), tensor(right), atol=atol, rtol=rtol)
    a, b = left.astype(float), right.astype(float)
    assert got.max_abs == np.abs(a - b).max()
    assert got.exact == np.array_equal(left, right)
    assert got.within == np.allclose(b, a, rtol=rtol, atol=atol)
    if a.any() and b.any():
        # scaled first, as ours is: a square of the smallest float32 is nothing in float64
        a, b = a / np.abs(a).max(), b / np.abs(b).max()
        assert got.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], Difference(0.0, 1.0, True, True)),
        ([0.0, 0.0], [-0.0, 0.0], Difference(0.0, 1.0, True, True)),
        ([0.0, 0.0], [1.0, 0.0], Difference(1.0, 0.0, False, False)),
        ([math.inf, 1.0], [math.inf, 1.0], Difference(0.0, 1.0, True, True)),
        ([math.nan, 1.0], [math.nan, 2.0], Difference(1.0, 1.0, False, False)),
        ([math.inf, 1.0], [-math.inf, 1.0], Difference(math.inf, 0.0, False, False)),
        ([1.0, 1.0], [math.nan, 1.0], Difference(math.inf, 0.0, False, False)),
        ([math.nan, 1.0], [1.0, 1.0], Difference(math.inf, 0.0, False, False)),
    ],
)
def test_zeros_infinities_and_nans_have_their_rule(
    left: list[float], right: list[float], expected: Difference
) -> None:
    assert compare(tensor(left), tensor(right)) == expected


def test_large_doubles_do_not_overflow() -> None:
    huge = tensor([1e308, 1e308], "float64")
    assert compare(huge, tensor([1e308, 9e307], "float64")).cosine == pytest.approx(0.9986178)


def test_another_type_or_text_is_no_match() -> None:
    nothing = Difference(math.inf, 0.0, False, False)
    assert compare(tensor([1]), tensor([1], "float64")) == nothing
    assert compare(Tensor("string", (1,), [b"a"]), Tensor("string", (1,), [b"b"])) == nothing
    assert compare(Tensor("string", (1,), [b"a"]), Tensor("string", (1,), [b"a"])).exact


def test_the_level_is_one_of_the_known_ones() -> None:
    assert LEVEL in cpu.LEVELS
    assert golden.detect_cpu_level() == LEVEL


@pytest.mark.emulator
def test_an_emulated_processor_is_known_for_what_it_is() -> None:
    emulator = shutil.which("qemu-x86_64")
    assert emulator is not None
    program = "from runtime.cpu import cpu_level; print(cpu_level())"
    run = subprocess.run(
        [emulator, "-cpu", "Haswell", sys.executable, "-c", program],
        capture_output=True, text=True, check=True, timeout=120,
        cwd=Path(golden.__file__).resolve().parent.parent,
    )  # fmt: skip
    assert run.stdout == "avx2\n"
