"""Models whose declared shapes lie: the true signature is found by running them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from packager.errors import ModelUnsupported, UsageError
from packager.recipe import DimRange
from tests.unit.packager.importers.onnx_models import (
    BOOL,
    FLOAT,
    INT64,
    constant,
    dense,
    model,
    save,
    value,
)

if TYPE_CHECKING:
    from pathlib import Path

    from packager.model import Model
    from tests.unit.packager.importers.conftest import Importing


def signature_text(found: Model) -> list[str]:
    return [str(spec) for spec in (*found.signature.inputs, *found.signature.outputs)]


def answers(found: Model, **feeds: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def relu(shape: Any, declared_out: Any = None, kind: int = FLOAT) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    return model([node], [value("x", shape, kind)], [value("y", declared_out, kind)])


def test_a_first_axis_fixed_to_one_that_runs_with_more_is_the_batch(
    tmp_path: Path, importing: Importing
) -> None:
    found = importing(save(dense(rows=1), tmp_path / "m.onnx"))
    assert signature_text(found) == ["x: float32[batch=1..32, 4]", "y: float32[batch=1..32, 3]"]
    assert any("fixes the first dimension to 1" in note for note in found.provenance.notes)
    assert answers(found, x=np.ones((5, 4), np.float32))[0].shape == (5, 3)


def test_a_first_axis_of_one_whose_rows_mix_stays_one(tmp_path: Path, importing: Importing) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    proto = model(nodes, [value("x", [1, 4])], [value("y", [1, 4])])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == ["x: float32[1, 4]", "y: float32[1, 4]"]


def test_a_first_axis_of_one_that_a_reshape_fixes_stays_one(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    proto = model(nodes, [value("x", [1, 4])], [value("y", [2, 2])], [constant("s", [2, 2])])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == ["x: float32[1, 4]", "y: float32[2, 2]"]


def test_an_open_axis_that_runs_at_one_size_only_is_fixed(
    tmp_path: Path, importing: Importing
) -> None:
    proto = dense()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found)[0] == "x: float32[batch=1..32, 4]"
    assert any("`features` is declared open" in note for note in found.provenance.notes)


def test_an_output_declared_static_that_follows_the_batch_is_tied_to_it(
    tmp_path: Path, importing: Importing
) -> None:
    found = importing(save(relu(["N", 2], [1, 2]), tmp_path / "m.onnx"))
    assert signature_text(found)[1] == "y: float32[batch=1..32, 2]"


def test_an_output_declared_with_the_wrong_rank_gets_the_true_one(
    tmp_path: Path, importing: Importing
) -> None:
    found = importing(save(relu(["N", 2, 3], ["N"]), tmp_path / "m.onnx"))
    assert signature_text(found)[1] == "y: float32[batch=1..32, 2, 3]"


def test_formulas_as_dimension_names_are_replaced(tmp_path: Path, importing: Importing) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["y"], kernel_shape=[3], strides=[2], pads=[1, 1])
    ]
    weight = constant("W", np.ones((1, 1, 3), np.float32))
    shapes = value("x", ["N", 1, "2*w + 1"]), value("y", ["N", 1, "floor((2*w)/2) + 1"])
    proto = model(nodes, [shapes[0]], [shapes[1]], [weight])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "x: float32[batch=1..32, 1, d_2_w_1=1..]",
        "y: float32[batch=1..32, 1, ?=0..]",
    ]
    declared = onnx.load(found.path).graph.output[0].type.tensor_type.shape.dim[2]
    assert not declared.HasField("dim_param")


def test_a_true_scalar_input_keeps_rank_zero(tmp_path: Path, importing: Importing) -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    proto = model(nodes, [value("x", ["N", 2]), value("k", [])], [value("y", None)])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "x: float32[batch=1..32, 2]",
        "k: float32[]",
        "y: float32[batch=1..32, 2]",
    ]


def test_an_input_declared_with_too_low_a_rank_is_corrected(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    weight = constant("W", np.ones((1, 3), np.float32))
    proto = model(nodes, [value("x", [])], [value("y", None)], [weight])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found)[0] in ("x: float32[1]", "x: float32[batch=1..32, 1]")
    assert any("wrong rank" in note for note in found.provenance.notes)


def test_a_model_that_runs_nowhere_is_refused_with_the_option_to_give(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    weight = constant("W", np.ones((5, 3), np.float32))
    proto = model(nodes, [value("x", ["N", 7])], [value("y", None)], [weight])
    with pytest.raises(ModelUnsupported, match="does not run at its declared shapes") as refused:
        importing(save(proto, tmp_path / "m.onnx"))
    assert "--shape 'x=batch,7'" in (refused.value.hint or "")


def test_a_shape_in_the_recipe_overrides_what_the_file_says(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    weight = constant("W", np.ones((5, 3), np.float32))
    proto = model(nodes, [value("x", ["N", 7])], [value("y", None)], [weight])
    path = save(proto, tmp_path / "m.onnx")
    found = importing(path, shapes={"x": ("rows", 5)}, dims={"rows": DimRange(min=2, max=9, opt=4)})
    assert signature_text(found) == ["x: float32[rows=2..9, 5]", "y: float32[rows=2..9, 3]"]


def test_both_ends_of_a_range_in_the_recipe_must_run(tmp_path: Path, importing: Importing) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None)], [constant("s", [-1, 16])])
    path = save(proto, tmp_path / "m.onnx")
    with pytest.raises(
        ModelUnsupported, match="does not run with `N` = 9: operator Reshape"
    ) as refused:
        importing(path, dims={"N": DimRange(min=4, max=9, opt=4)})
    assert "--dim N=" in (refused.value.hint or "")
    found = importing(path, dims={"N": DimRange(min=4, max=16, opt=4)})
    assert signature_text(found) == ["x: float32[N=4..16, 4]", "y: float32[?=0.., 16]"]
    assert "`N` does not run at every size of its range, as 10" in found.provenance.notes


def test_a_dimension_given_one_size_is_static(tmp_path: Path, importing: Importing) -> None:
    one = DimRange(min=1, max=1, opt=1)
    found = importing(save(dense(), tmp_path / "m.onnx"), dims={"batch": one})
    assert signature_text(found) == ["x: float32[1, 4]", "y: float32[1, 3]"]


def test_an_unknown_input_or_dimension_in_the_recipe_is_a_usage_error(
    tmp_path: Path, importing: Importing
) -> None:
    path = save(dense(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="the model has no input `z`"):
        importing(path, shapes={"z": (1, 4)})
    with pytest.raises(UsageError, match="no input has a dimension `h`"):
        importing(path, dims={"h": DimRange(min=1, max=2, opt=1)})


def test_two_inputs_share_their_batch(tmp_path: Path, importing: Importing) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    inputs = [value("a", [None, 3]), value("b", ["unk__5", 3])]
    found = importing(save(model(nodes, inputs, [value("y", None)]), tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "a: float32[batch=1..32, 3]",
        "b: float32[batch=1..32, 3]",
        "y: float32[batch=1..32, 3]",
    ]


def test_open_axes_that_only_vary_together_get_one_name(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("Concat", ["a", "b"], ["y"], axis=1)]
    inputs = [value("a", ["N", 1, None]), value("b", ["N", 1, None])]
    found = importing(save(model(nodes, inputs, [value("y", None)]), tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "a: float32[batch=1..32, 1, a_2=1..]",
        "b: float32[batch=1..32, 1, a_2=1..]",
        "y: float32[batch=1..32, 2, a_2=1..]",
    ]


def test_a_batch_on_the_second_axis_is_found_by_its_name(
    tmp_path: Path, importing: Importing
) -> None:
    found = importing(save(relu(["seq", "batch_size", 3]), tmp_path / "m.onnx"))
    assert signature_text(found)[0] == "x: float32[seq=1.., batch=1..32, 3]"


def test_an_axis_that_depends_on_the_data_has_no_name(tmp_path: Path, importing: Importing) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["p"]),
        helper.make_node("NonZero", ["p"], ["y"]),
    ]
    zero = constant("zero", np.float32(0.5))
    proto = model(nodes, [value("x", [4, 6])], [value("y", [2, None], INT64)], [zero])
    found = importing(save(proto, tmp_path / "m.onnx"))
    spec = found.signature.outputs[0]
    assert str(spec) == "y: int64[2, ?=0..]"
    assert spec.shape[1].min == 0


def test_initializers_listed_as_inputs_are_no_inputs(tmp_path: Path, importing: Importing) -> None:
    proto = dense()
    proto.ir_version = 3
    proto.graph.input.extend([value("W", [4, 3]), value("b", [3])])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert [spec.name for spec in found.signature.inputs] == ["x"]
    assert found.ir_version >= 4


def test_unused_opset_imports_and_texts_with_paths_are_dropped(
    tmp_path: Path, importing: Importing
) -> None:
    proto = dense()
    proto.opset_import.append(helper.make_opsetid("com.example.unused", 3))
    proto.doc_string = "/home/someone/model"
    proto.graph.node[0].doc_string = "/home/someone/net.py:12"
    for holder in (proto, proto.graph, proto.graph.node[0], proto.graph.initializer[0]):
        entry = holder.metadata_props.add()
        entry.key, entry.value = "trace", "/home/someone/net.py"
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert b"someone" not in found.path.read_bytes()
    assert [entry.domain for entry in onnx.load(found.path).opset_import] == [""]


def test_an_output_named_like_json_is_kept(tmp_path: Path, importing: Importing) -> None:
    name = json.dumps({"name": "scores", "unit": "%"})
    node = helper.make_node("Relu", ["x"], [name])
    found = importing(
        save(model([node], [value("x", ["N", 2])], [value(name, ["N", 2])]), tmp_path / "m.onnx")
    )
    assert found.signature.outputs[0].name == name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.DOUBLE, "float64"),
        (INT64, "int64"),
        (BOOL, "bool"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.STRING, "string"),
    ],
)
def test_every_type_that_a_request_carries_is_kept(
    kind: int, dtype: str, tmp_path: Path, importing: Importing
) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    proto = model([node], [value("x", ["N", 2], kind)], [value("y", ["N", 2], kind)])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert {spec.dtype for spec in (*found.signature.inputs, *found.signature.outputs)} == {dtype}


def test_an_unused_input_stays_in_the_signature(tmp_path: Path, importing: Importing) -> None:
    proto = dense()
    proto.graph.input.append(value("ignored", ["N", 2]))
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert [spec.name for spec in found.signature.inputs] == ["x", "ignored"]


def test_control_flow_imports(tmp_path: Path, importing: Importing) -> None:
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])], "then", [], [value("t", None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])], "else", [], [value("e", None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    zero = constant("zero", np.float32(0))
    proto = model(nodes, [value("x", ["N", 2])], [value("y", None)], [zero])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found)[1] == "y: float32[batch=1..32, 2]"
    assert answers(found, x=np.full((1, 2), -2, np.float32))[0].tolist() == [[2.0, 2.0]]


def test_a_counted_loop_imports(tmp_path: Path, importing: Importing) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["cond_out"]),
            helper.make_node("Add", ["v", "v"], ["v_out"]),
            helper.make_node("Identity", ["v"], ["scan"]),
        ],
        "body",
        [value("i", [], INT64), value("cond", [], BOOL), value("v", None)],
        [value("cond_out", [], BOOL), value("v_out", None), value("scan", None)],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y", "steps"], body=body)
    outputs = [value("y", ["N", 2]), value("steps", None)]
    proto = model([node], [value("x", ["N", 2])], outputs, [constant("n", np.array(3))])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found)[1] == "y: float32[batch=1..32, 2]"
    assert answers(found, x=np.ones((1, 2), np.float32))[0].tolist() == [[8.0, 8.0]]


def test_an_lstm_imports_with_its_sequence_open(tmp_path: Path, importing: Importing) -> None:
    rng = np.random.default_rng(0)
    weights = [
        constant("W", rng.standard_normal((1, 16, 3)).astype(np.float32)),
        constant("R", rng.standard_normal((1, 16, 4)).astype(np.float32)),
    ]
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y", "h"], hidden_size=4)
    outputs = [value("y", None), value("h", None)]
    proto = model([node], [value("x", ["time", "batch", 3])], outputs, weights)
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "x: float32[time=1.., batch=1..32, 3]",
        "y: float32[time=1.., 1, batch=1..32, 4]",
        "h: float32[1, batch=1..32, 4]",
    ]


def test_a_quantized_model_is_told_as_such(tmp_path: Path, importing: Importing) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    proto = model(nodes, [value("x", ["N", 2])], [value("y", ["N", 2])])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert found.quantized
    assert any("already quantized" in note for note in found.provenance.notes)


def test_an_import_is_the_same_in_every_folder(
    tmp_path: Path, workdir: Path, importing: Importing
) -> None:
    files = []
    for name in ("one", "two/deep"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        importing(save(dense(), folder / "m.onnx"))
        files.append([(workdir / n).read_bytes() for n in ("model.onnx", "model.json")])
    assert files[0] == files[1]


def test_a_row_fixed_to_one_beside_an_open_batch_stays_one(
    tmp_path: Path, importing: Importing
) -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    inputs = [value("k", [1, 3]), value("x", ["N", 3])]
    found = importing(save(model(nodes, inputs, [value("y", None)]), tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "k: float32[1, 3]",
        "x: float32[batch=1..32, 3]",
        "y: float32[batch=1..32, 3]",
    ]


def test_open_first_axes_of_which_one_cannot_vary(tmp_path: Path, importing: Importing) -> None:
    nodes = [
        helper.make_node("Reshape", ["k", "s"], ["flat"]),
        helper.make_node("Mul", ["x", "flat"], ["y"]),
    ]
    inputs = [value("k", [None, 3]), value("x", [None, 3])]
    proto = model(nodes, inputs, [value("y", None)], [constant("s", [3])])
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert signature_text(found) == [
        "k: float32[1, 3]",
        "x: float32[batch=1..32, 3]",
        "y: float32[batch=1..32, 3]",
    ]
    assert any("only `x` varies along `batch`" in note for note in found.provenance.notes)


def test_a_recurrent_state_shares_the_batch_of_its_signal(
    tmp_path: Path, importing: Importing
) -> None:
    rng = np.random.default_rng(0)
    weights = [
        constant("W", rng.standard_normal((1, 12, 3)).astype(np.float32)),
        constant("R", rng.standard_normal((1, 12, 4)).astype(np.float32)),
    ]
    node = helper.make_node("GRU", ["x", "W", "R", "", "", "state"], ["", "new"], hidden_size=4)
    inputs = [value("x", ["time", "batch", 3]), value("state", [1, None, 4])]
    found = importing(
        save(model([node], inputs, [value("new", None)], weights), tmp_path / "m.onnx")
    )
    assert signature_text(found) == [
        "x: float32[time=1.., batch=1..32, 3]",
        "state: float32[1, batch=1..32, 4]",
        "new: float32[1, batch=1..32, 4]",
    ]


def test_axes_that_need_two_rows_say_so(tmp_path: Path, importing: Importing) -> None:
    nodes = [helper.make_node("Slice", ["x", "one", "end", "zero"], ["y"])]
    constants = [constant("one", [1]), constant("end", [2]), constant("zero", [0])]
    nodes.append(helper.make_node("Reshape", ["y", "shape"], ["z"]))
    constants.append(constant("shape", [1, 3]))
    proto = model(nodes, [value("x", ["N", 3])], [value("z", None)], constants)
    found = importing(save(proto, tmp_path / "m.onnx"))
    assert str(found.signature.inputs[0]) == "x: float32[batch=2..32, 3]"
    assert "`batch` must be at least 2" in found.provenance.notes


def test_an_input_whose_rank_nobody_declares_needs_a_shape(
    tmp_path: Path, importing: Importing
) -> None:
    path = save(relu(None), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="does not declare how many dimensions input `x` has") as e:
        importing(path)
    assert e.value.hint == "give its shape: `--shape x=batch,16`"
    found = importing(path, shapes={"x": ("batch", 16)})
    assert signature_text(found)[0] == "x: float32[batch=1..32, 16]"


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_model_that_makes_noise_is_refused_unless_nothing_of_it_is_heard(
    scale: float, tmp_path: Path, importing: Importing
) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Mul", ["noise", "scale"], ["heard"]),
        helper.make_node("Add", ["x", "heard"], ["y"]),
    ]
    weights = [constant("scale", np.array(scale, np.float32))]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    path = save(proto, tmp_path / "m.onnx")
    if scale:
        with pytest.raises(ModelUnsupported, match=r"differently each time.*`RandomNormalLike`"):
            importing(path)
    else:
        assert signature_text(importing(path))[1] == "y: float32[batch=1..32, 4]"


def test_a_model_of_another_domain_alone_gets_an_opset_that_passes_can_work_with(
    tmp_path: Path, importing: Importing
) -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    graph = helper.make_graph([node], "g", [value("x", ["N", 3])], [value("y", ["N", 3])])
    only = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)])
    found = importing(save(only, tmp_path / "m.onnx"))
    opsets = {entry.domain: entry.version for entry in onnx.load(found.path).opset_import}
    assert opsets == {"ai.onnx.ml": 1, "": 13}
    (y,) = answers(found, x=np.full((2, 3), 4, np.float32))
    assert (y == 6).all()
