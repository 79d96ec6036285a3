"""Models with external data: read in place, written in a stream, compressed weight by weight."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.checks.parity import compare
from packager.errors import ModelUnsupported
from packager.importers.facts import graph_facts
from packager.passes.contract import PassContext, apply
from packager.passes.external import (
    files_of,
    is_large,
    open_external,
    quantize_large,
    save_external,
    tensor_bytes,
)
from packager.passes.float16 import Float16
from packager.passes.weight_only import WeightOnly
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_products(folder: Path, layers: int, width: int) -> Path:
    """Write `x` float32 [n, width] → `y`, each weight drawn and written on its own."""
    random = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    with (folder / "model.onnx.data").open("wb") as stream:
        for i in range(layers):
            weight = random.standard_normal((width, width), dtype=np.float32)
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "model.onnx.data", "offset": stream.tell()}
            for key, entry in {**place, "length": weight.nbytes}.items():
                tensor.external_data.add(key=key, value=str(entry))
            (weight / np.float32(np.sqrt(width))).tofile(stream)
            tensors.append(tensor)
            made = "y" if i == layers - 1 else f"h{i}"
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Tanh", [f"m{i}"], [made]))
            value = made
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", kinds[:1], kinds[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return write_products(folder, 3, 64)


@pytest.fixture
def context_of(notes: Any) -> Callable[[Path], PassContext]:
    def make(path: Path) -> PassContext:
        width = open_external(path).proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        values = np.random.default_rng(1).standard_normal((2, width)).astype(np.float32)
        return PassContext(
            target=find_target("cpu-x86_64"), samples=None, probes=[{"x": values}],
            workdir=path.parent, reporter=notes,
        )  # fmt: skip

    return make


def run(path: Path, context: PassContext) -> list[dict[str, Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [{"y": session.run(["y"], probe)[0]} for probe in context.probes]


def test_tensors_are_read_where_they_lie(small: Path) -> None:
    model = open_external(small)
    loaded = onnx.load(small)
    for tensor, whole in zip(model.proto.graph.initializer, loaded.graph.initializer, strict=True):
        assert isinstance(model.array(tensor), np.memmap)
        assert np.array_equal(model.array(tensor), numpy_helper.to_array(whole))
    assert model.size_bytes == pytest.approx(3 * 64 * 64 * 4, rel=0.1)
    assert not is_large(small)
    assert files_of(small) == (small, small.with_name("model.onnx.data"))


def test_what_lies_outside_counts_in_the_facts(small: Path) -> None:
    outside, inside = (
        graph_facts(onnx.load(small, load_external_data=load)) for load in (False, True)
    )
    assert outside["parameters"] == inside["parameters"] == 3 * 64 * 64
    for name in ("fp32", "int8"):
        expected = inside["estimated_bytes"][name]
        assert outside["estimated_bytes"][name] == pytest.approx(expected, rel=0.02)
    assert outside["size_bytes"] == pytest.approx(inside["size_bytes"], rel=0.02)


@pytest.mark.parametrize(("code", "expected"), [
    (TensorProto.FLOAT, 60), (TensorProto.INT4, 8), (TensorProto.FLOAT16, 30),
    (TensorProto.BOOL, 15), (TensorProto.INT64, 120),
])  # fmt: skip
def test_sizes_follow_from_type_and_dimensions(code: int, expected: int) -> None:
    assert tensor_bytes(TensorProto(data_type=code, dims=[3, 5])) == expected


@pytest.mark.parametrize("form", ["int8-weights", "int4-weights", "fp16"])
def test_the_form_is_the_same_as_the_pass_makes_in_memory(
    form: str, small: Path, context_of: Callable, tmp_path: Path
) -> None:
    context, out = context_of(small), tmp_path / "out.onnx"
    files, notes = quantize_large(small, out, context, form=form)
    assert files == (out,)
    assert not (tmp_path / "out.onnx.data.part").exists()
    step = {"fp16": Float16(), "int8-weights": WeightOnly(), "int4-weights": WeightOnly(bits=4)}
    whole, (report,) = apply((step[form],), onnx.load(small), context)
    assert report.notes[0].startswith(notes[0])
    found = onnx.load(out)
    assert [numpy_helper.to_array(t).tobytes() for t in found.graph.initializer] == [
        numpy_helper.to_array(t).tobytes() for t in whole.graph.initializer
    ]
    assert [n.SerializeToString() for n in found.graph.node] == [
        n.SerializeToString() for n in whole.graph.node
    ]
    cosine = 0.95 if form == "int4-weights" else 0.999
    assert compare(run(small, context), run(out, context)).cosine > cosine


@pytest.mark.parametrize("form", ["int8-weights", "fp16"])
def test_what_is_too_large_for_one_file_lies_beside_it(
    form: str, small: Path, context_of: Callable, tmp_path: Path
) -> None:
    context, out, inside = context_of(small), tmp_path / "out.onnx", tmp_path / "in.onnx"
    files, _ = quantize_large(small, out, context, form=form, most_bytes=4096)
    assert files == (out, tmp_path / "out.onnx.data") == files_of(out)
    assert out.stat().st_size < 4096
    assert all(
        int(entry.value) % 4096 == 0
        for tensor in open_external(out).proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    )
    quantize_large(small, inside, context, form=form)
    assert compare(run(inside, context), run(out, context)).max_abs == 0.0
    again = tmp_path / "again.onnx"
    quantize_large(small, again, context, form=form, most_bytes=4096)
    assert (tmp_path / "again.onnx.data").read_bytes() == files[1].read_bytes()


def test_an_external_model_can_be_written_as_it_is(small: Path, tmp_path: Path) -> None:
    model = open_external(small)
    files = save_external(model.proto, tmp_path / "copy.onnx", model.array)
    assert len(files) == 1
    copy = onnx.load(files[0])
    for tensor, whole in zip(copy.graph.initializer, onnx.load(small).graph.initializer,
                             strict=True):  # fmt: skip
        assert tensor.raw_data == whole.raw_data


def test_a_form_that_does_not_exist_or_apply_is_refused(
    small: Path, context_of: Callable, tmp_path: Path
) -> None:
    context, out = context_of(small), tmp_path / "out.onnx"
    with pytest.raises(ModelUnsupported, match="has no form `int8-static`") as caught:
        quantize_large(small, out, context, form="int8-static")
    assert caught.value.accepted == "int8-weights, int8-weights-int4-tables, int4-weights, fp16"
    engine = dataclasses.replace(context.target.engine, name="tensorrt")
    target = dataclasses.replace(context.target, engine=engine)
    with pytest.raises(ModelUnsupported, match="tensorrt does not know MatMulNBits"):
        quantize_large(small, out, dataclasses.replace(context, target=target),
                       form="int8-weights")  # fmt: skip
    with (small.parent / "model.onnx.data").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ModelUnsupported, match="cannot be made fp16"):
        quantize_large(small, out, context, form="fp16")
    assert list(tmp_path.glob("*.onnx*")) == []


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from packager.passes.contract import PassContext
from packager.passes.external import peak_memory_bytes, quantize_large
from packager.target import find_target
path, out, form = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
probe = {"x": np.random.default_rng(1).standard_normal((2, 4096)).astype(np.float32)}
context = PassContext(target=find_target("cpu-x86_64"), samples=None, probes=[probe],
                      workdir=path.parent, reporter=None)
files, notes = quantize_large(path, out, context, form=form)
print(peak_memory_bytes(), len(files))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_more_than_two_gigabytes_take_less_than_twice_that_memory(
    tmp_path: Path, context_of: Callable
) -> None:
    path = write_products(tmp_path, 35, 4096)
    assert is_large(path)
    size = open_external(path).size_bytes
    context = context_of(path)
    expected = run(path, context)
    for form, least in (("int8-weights", 0.99), ("fp16", 0.999)):
        out = tmp_path / f"{form}.onnx"
        done = subprocess.run(
            [sys.executable, "-c", _CHILD,
             str(path), str(out), form],
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peak, files = map(int, done.stdout.split())
        assert peak < 2 * size
        assert files == 1
        assert compare(expected, run(out, context)).cosine > least
