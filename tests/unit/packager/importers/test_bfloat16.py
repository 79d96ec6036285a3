"""Models with bfloat16: at the edges they import, inside they are refused with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from packager.errors import ModelUnsupported
from tests.unit.packager.importers.onnx_models import constant, model, save, value

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.packager.importers.conftest import Importing

BFLOAT16 = TensorProto.BFLOAT16
MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.{to}).to(torch.bfloat16)

def make_model():
    torch.manual_seed(0)
    return Net(){cast}.eval(), {{"x": torch.randn(2, 4).to(torch.bfloat16)}}
"""


def test_an_operator_without_a_kernel_says_where_to_cast(
    tmp_path: Path, importing: Importing
) -> None:
    weights = constant("w", np.ones((2, 2), ml_dtypes.bfloat16))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    io = [value("x", ["N", 2], BFLOAT16)], [value("y", ["N", 2], BFLOAT16)]
    file = save(model([node], *io, [weights]), tmp_path / "m.onnx")
    with pytest.raises(ModelUnsupported, match="implementation for MatMul") as refused:
        importing(file)
    assert "compute in float32, and cast at the inputs and outputs" in (refused.value.hint or "")


def test_strings_and_bfloat16_answers_are_refused_with_the_call_that_cannot(
    tmp_path: Path, importing: Importing
) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=BFLOAT16)
    io = [value("x", ["N"], TensorProto.STRING)], [value("y", ["N"], BFLOAT16)]
    file = save(model([node], *io), tmp_path / "m.onnx")
    with pytest.raises(ModelUnsupported, match="`run_with_ort_values`, which takes no strings"):
        importing(file)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
def test_torchs_bfloat16_becomes_numpys_bit_for_bit(shape: tuple[int, ...]) -> None:
    import torch

    from packager.importers.export_check import _numpy

    tensor = torch.randn(shape).to(torch.bfloat16).T if shape else torch.tensor(1.1).bfloat16()
    array = _numpy(tensor)
    assert array.dtype == ml_dtypes.bfloat16
    assert array.shape == tuple(tensor.shape)
    assert array.astype(np.float32).tolist() == tensor.float().tolist()


@pytest.mark.slow
@pytest.mark.torch
def test_a_module_that_casts_at_its_edges_imports(tmp_path: Path, importing: Importing) -> None:
    (tmp_path / "net.py").write_text(MODULE.format(to="float()", cast=""))
    found = importing(f"{tmp_path / 'net.py'}:make_model")
    assert found.signature.inputs[0].dtype == found.signature.outputs[0].dtype == "bfloat16"
    assert found.provenance.exporter == "torch.export"


@pytest.mark.slow
@pytest.mark.torch
def test_a_module_that_computes_in_bfloat16_says_where_to_cast(
    tmp_path: Path, importing: Importing
) -> None:
    (tmp_path / "net.py").write_text(MODULE.format(to="contiguous()", cast=".to(torch.bfloat16)"))
    with pytest.raises(ModelUnsupported, match="implementation for Gemm") as refused:
        importing(f"{tmp_path / 'net.py'}:make_model")
    assert "cast at the inputs and outputs" in (refused.value.hint or "")
