"""Static and dynamic int8: the target's scheme, what is left float, and no files left behind."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.checks.parity import compare
from packager.errors import UsageError
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, run_model
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.int8_static import Int8Static
from packager.passes.round_weights import RoundWeights
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def weights_of(model: Any, dtype: type) -> list[Any]:
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [array for array in arrays if array.dtype == dtype and array.ndim > 1]


def test_the_scheme_is_the_targets(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    for name, largest in (("cpu-x86_64-vnni", 127), ("cpu-x86_64", 64)):
        context = make_context(make_samples(model), target=name)
        after, (_, report) = apply((CleanUp(), Int8Static()), onnx.load(model.path), context)
        assert report.status == "applied"
        found = weights_of(after, np.int8)
        assert len(found) == 4
        assert max(int(np.abs(w.astype(int)).max()) for w in found) == largest
        scales = [len(t.dims) for t in after.graph.initializer if t.name.endswith("_scale")]
        assert 1 in scales, "a weight has one scale per channel"


def test_the_scheme_is_said_in_words() -> None:
    words = [find_target(n).quantization.in_words() for n in ("cpu-x86_64", "cpu-arm64")]
    assert words == ["U8S8 per channel, 7-bit weights", "U8S8 per channel"]


def test_static_int8_stays_near_the_original_and_keeps_its_activations(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    after, _ = apply((Int8Static(),), base, context)
    parity = compare(run_model(base, context), run_model(after, context))
    assert parity.cosine > 0.99
    assert [n.op_type for n in after.graph.node].count("Relu") == 3


def test_the_first_layers_stay_float_where_asked(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(layers=12)
    context = make_context(make_samples(model))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    after, (report,) = apply((Int8Static(float_layers=2),), base, context)
    assert len(report.notes) == 2
    floats = [w for w in weights_of(after, np.float32) if w.ndim == 4]
    assert len(floats) == 2
    assert sorted(w.shape[1] for w in floats) == [3, 16]


def test_layers_that_hold_too_much_do_not_stay_float(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(layers=1)
    context = make_context(make_samples(model))
    _, (report,) = apply((Int8Static(float_layers=2),), onnx.load(model.path), context)
    assert report.reason == "the first 2 layers hold 592 weights, too many for float"


def test_only_the_operators_asked_for_are_quantized(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    after, _ = apply((Int8Static(operators=("Gemm",)),), base, context)
    assert [w.ndim for w in weights_of(after, np.int8)] == [2]


def test_an_operator_that_the_model_lacks_is_refused(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    with pytest.raises(
        UsageError, match=r"none of the operators that `compress.op_types` names"
    ) as caught:
        Int8Static(operators=("Conv",)).run(
            onnx.load(model.path), make_context(make_samples(model))
        )
    assert caught.value.accepted == "MatMul, Relu"


def test_quantizing_leaves_no_file_outside_its_folder(
    make_cnn: Callable, make_samples: Callable, make_context: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    model = make_cnn()
    context = make_context(make_samples(model))
    apply((Int8Static(), Int8Dynamic()), onnx.load(model.path), context)
    assert list(here.iterdir()) == []
    assert list(temporary.iterdir()) == []
    assert all(path.name.startswith("ranges-") for path in context.workdir.iterdir())


def test_two_forms_of_a_model_are_calibrated_once_and_come_out_as_if_alone(
    make_cnn: Callable, make_samples: Callable, make_context: Callable, notes: Any
) -> None:
    model = make_cnn(layers=6)
    context = make_context(make_samples(model))
    proto = onnx.load(model.path)
    apply((Int8Static(),), proto, context)
    (ranges,) = context.workdir.iterdir()
    second, _ = apply((Int8Static(float_layers=1),), proto, context)
    assert list(context.workdir.iterdir()) == [ranges]
    ranges.unlink()
    alone, _ = apply((Int8Static(float_layers=1),), proto, context)
    assert alone.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_a_bias_of_two_layers_does_not_take_the_name_of_a_tensor(
    *, drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_samples: Callable,
    make_context: Callable,
) -> None:  # fmt: skip
    d = drawing()
    bias = d.weight(8)
    first = d.add("Conv", "x", d.weight(8, 3, 1, 1), bias, out=f"{bias}0")
    d.add("Conv", first, d.weight(8, 8, 1, 1), bias, out="y")
    model = d.save(tmp_path / "shared.onnx", (make_spec("x", "float32", batch, 3, 4, 4),),
                   make_spec("y", "float32", batch, 8, 4, 4))  # fmt: skip
    context = make_context(make_samples(model))
    base = onnx.load(model.path)
    after, (report,) = apply((Int8Static(),), base, context)
    assert (report.status, report.reason) == ("applied", "")
    assert compare(run_model(base, context), run_model(after, context)).cosine > 0.999


def test_a_weight_in_a_node_is_quantized_like_any_other(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    plain, _ = apply((Int8Static(),), base, context)
    tensors = {t.name: t for t in base.graph.initializer}
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=tensor)
        for name, tensor in tensors.items()
    ]
    del base.graph.initializer[:]
    for node in reversed(nodes):
        base.graph.node.insert(0, node)
    after, _ = apply((Int8Static(),), base, context)
    assert len(weights_of(after, np.int8)) == len(weights_of(plain, np.int8)) == 4


def test_for_engines_that_want_it_biases_stay_float_and_zero_points_are_zero(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model))
    scheme = dataclasses.replace(
        context.target.quantization, activation="int8", symmetric=True, bias="float"
    )
    target = dataclasses.replace(context.target, quantization=scheme)
    context = dataclasses.replace(context, target=target)
    base, _ = apply((CleanUp(),), onnx.load(model.path), context)
    for step in (Int8Static(), RoundWeights()):
        after, (report,) = apply((step,), base, context)
        assert report.status == "applied"
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
        linear = [
            n for n in after.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")
        ]
        assert all(not constants[n.input[2]].any() for n in linear)
        assert {constants[n.input[2]].dtype.name for n in linear} == {"int8"}
        layers = [n for n in after.graph.node if n.op_type in ("Conv", "Gemm")]
        assert {constants[n.input[2]].dtype.name for n in layers} == {"float32"}
        made = {name: n.op_type for n in after.graph.node for name in n.output}
        assert {made[n.input[1]] for n in layers} == {"DequantizeLinear"}
        parity = compare(run_model(base, context), run_model(after, context))
        assert parity.cosine > 0.99


def test_dynamic_int8_takes_matrix_products_and_embeddings_and_no_convolution(
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_context: Callable
) -> None:
    d = drawing()
    table = d.weight(100, 16)
    words = d.add("Gather", table, "ids")
    mixed = d.add("Conv", d.add("Transpose", words, perm=[0, 2, 1]), d.weight(16, 16, 1))
    flat = d.add("ReduceMean", mixed, axes=[2], keepdims=0)
    d.add("Gemm", d.add("MatMul", flat, d.weight(16, 32)), d.weight(32, 8), out="y")
    ids = make_spec("ids", "int64", batch, 6)
    model = d.save(tmp_path / "text.onnx", (ids,), make_spec("y", "float32", batch, 8))
    context = make_context(_Ids())
    after, (report,) = apply((Int8Dynamic(),), onnx.load(model.path), context)
    assert report.status == "applied"
    found = {node.op_type for node in after.graph.node}
    assert "MatMulInteger" in found
    assert "ConvInteger" not in found
    assert sorted(w.shape for w in weights_of(after, np.int8)) == [(16, 32), (32, 8), (100, 16)]
    assert sorted(w.shape for w in weights_of(after, np.float32)) == [(16, 16, 1), (100, 1)]


class _Ids:
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"ids": np.full((1, 6), index, np.int64)}


@pytest.mark.parametrize(
    ("fixture", "reason"),
    [
        ("make_cnn", "most weights are in convolutions, which run slower this way"),
        ("no_weights", "no matrix product has constant weights"),
    ],
)
def test_dynamic_int8_says_where_it_does_not_apply(
    fixture: str, reason: str, request: pytest.FixtureRequest, make_samples: Callable,
    make_context: Callable,
) -> None:  # fmt: skip
    model = request.getfixturevalue(fixture)()
    context = make_context(make_samples(model))
    _, (report,) = apply((Int8Dynamic(),), onnx.load(model.path), context)
    assert (report.status, report.reason) == ("skipped", reason)


@pytest.fixture
def no_weights(drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path) -> Callable:
    def make() -> Any:
        d = drawing()
        d.add("Relu", "x", out="y")
        shape = (batch, 4)
        return d.save(
            tmp_path / "relu.onnx",
            (make_spec("x", "float32", *shape),),
            make_spec("y", "float32", *shape),
        )

    return make
