"""16-bit floats: what becomes narrow, what stays float32 and why, and that the result runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.checks.latency import open_session
from packager.checks.parity import compare
from packager.passes.contract import PassBroken, PassContext, apply, run_model
from packager.passes.float16 import BFloat16, Float16, convert
from packager.passes.graph import interface_of
from packager.passes.half_graph import BFLOAT16, FLOAT16, HalfGraph, constants_as_initializers
from packager.passes.half_plan import plan
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.raise_opset import RaiseOpset
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

F32, F16, I64, BOOL = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
)  # fmt: skip
random = np.random.default_rng(3)


def dense(*shape: int, scale: float = 1.0) -> Any:
    values = np.random.default_rng(list(shape)).standard_normal(shape) / np.sqrt(shape[0])
    return (values * scale).astype(np.float32)


def model_of(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, Any],
    opset: int = 17,
) -> Any:
    for position, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type.lower()}{position}"
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, *kind) for n, kind in inputs.items()],
        [helper.make_tensor_value_info(n, *kind) for n, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


node = helper.make_node


@pytest.fixture
def context_of(tmp_path: Path, notes: Any) -> Callable[..., PassContext]:
    def make(*probes: dict[str, Any], target: Any = None) -> PassContext:
        return PassContext(
            target=target or find_target("cpu-x86_64-vnni"), samples=None, probes=probes,
            workdir=tmp_path, reporter=notes,
        )  # fmt: skip

    return make


def gpu() -> Any:
    return find_target("server-h100")


def rows(width: int, count: int = 4, scale: float = 1.0) -> Any:
    values = np.random.default_rng(5).standard_normal((count, width)) * scale
    return values.astype(np.float32)


def made_half(model: Any, context: PassContext, step: Any = None) -> tuple[Any, Any]:
    after, (report,) = apply((step or Float16(),), model, context)
    assert report.status == "applied", report.reason
    assert interface_of(model) == interface_of(after)
    onnx.checker.check_model(after, full_check=True)
    return after, report


def operators(model: Any) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def dtypes_of_weights(model: Any) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_inputs_and_outputs_keep_their_types_and_the_weights_halve(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    after, report = made_half(proto, context)
    assert report.notes == ("5 of 5 float operators in fp16",)
    assert {t.data_type for t in after.graph.initializer} == {F16}
    assert operators(after)["Cast"] == 2, "one at each border"
    parity = compare(run_model(proto, context), run_model(after, context))
    assert parity.cosine > 0.99999
    assert 0 < parity.max_abs < 0.01


def test_a_convolutional_network_is_narrow_throughout(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    after, _ = made_half(proto, context)
    assert operators(after)["Cast"] == 2
    assert after.ByteSize() < 0.6 * proto.ByteSize()
    assert compare(run_model(proto, context), run_model(after, context)).cosine > 0.9999


def test_the_same_model_gives_the_same_bytes(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    first, second = (
        apply((Float16(),), proto, context)[0].SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


def test_a_resize_keeps_its_scales(context_of: Callable) -> None:
    proto = model_of(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Resize", ["c", "", "s"], ["r"], mode="linear"),
            node("Relu", ["r"], ["y"]),
        ],
        {"x": (F32, [1, 3, 4, 4])}, {"y": (F32, [1, 8, 8, 8])},
        {"w": dense(8, 3, 1, 1), "s": np.array([1, 1, 2, 2], np.float32)},
    )  # fmt: skip
    after, report = made_half(proto, context_of({"x": rows(16, 3).reshape(1, 3, 4, 4)}))
    assert report.notes == ("3 of 3 float operators in fp16",)
    assert dtypes_of_weights(after) == {"w_fp16": F16, "s": F32}


def test_a_cast_to_float_becomes_a_cast_to_half(context_of: Callable) -> None:
    proto = model_of(
        [
            node("Cast", ["i"], ["f"], to=F32),
            node("MatMul", ["f", "w"], ["h"]),
            node("Cast", ["h"], ["whole"], to=I64),
            node("Cast", ["whole"], ["back"], to=F32),
            node("Add", ["back", "h"], ["y"]),
        ],
        {"i": (I64, ["n", 8])}, {"y": (F32, ["n", 8])}, {"w": dense(8, 8)},
    )  # fmt: skip
    probe = {"i": np.arange(16).reshape(2, 8)}
    after, _ = made_half(proto, context_of(probe))
    casts = [n.attribute[0].i for n in after.graph.node if n.op_type == "Cast"]
    assert sorted(casts) == [F32, I64, F16, F16]


def test_an_embedding_is_halved_and_its_indices_stay(context_of: Callable) -> None:
    proto = model_of(
        [node("Gather", ["table", "i"], ["e"]), node("MatMul", ["e", "w"], ["y"])],
        {"i": (I64, ["n"])}, {"y": (F32, ["n", 4])},
        {"table": dense(50, 8), "w": dense(8, 4)},
    )  # fmt: skip
    after, _ = made_half(proto, context_of({"i": np.array([1, 49])}))
    assert set(dtypes_of_weights(after).values()) == {F16}
    assert operators(after)["Cast"] == 1


def branch(name: str, *nodes: Any, constants: dict[str, Any] | None = None) -> Any:
    return helper.make_graph(
        list(nodes), name, [], [helper.make_tensor_value_info(f"{name}_out", F32, None)],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip


def test_branches_stay_float_and_read_float(context_of: Callable) -> None:
    yes = branch("yes", node("MatMul", ["h", "inner"], ["yes_out"]),
                 constants={"inner": dense(8, 8)})  # fmt: skip
    no = branch("no", node("Mul", ["h", "shared"], ["no_out"]))
    proto = model_of(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("If", ["c"], ["b"], then_branch=yes, else_branch=no),
            node("Mul", ["b", "shared"], ["y"]),
        ],
        {"x": (F32, ["n", 32]), "c": (BOOL, [])}, {"y": (F32, ["n", 8])},
        {"w": dense(32, 8), "shared": dense(8)},
    )  # fmt: skip
    context = context_of(*({"x": rows(32), "c": np.array(c)} for c in (True, False)))
    after, report = made_half(proto, context)
    assert "`if1` stays float32: If has no fp16 form in opset 17" in report.notes
    kept = dtypes_of_weights(after)
    assert kept["shared"] == F32, "the branch still reads it"
    assert kept["w_fp16"] == F16


def test_a_loop_body_stays_float(context_of: Callable) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["a", "h"], ["b"]), node("Identity", ["go"], ["on"])], "body",
        [value("i", I64, []), value("go", BOOL, []), value("a", F32, None)],
        [value("on", BOOL, []), value("b", F32, None)],
    )  # fmt: skip
    proto = model_of(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("Loop", ["three", "", "h"], ["l"], body=body),
            node("MatMul", ["l", "v"], ["y"]),
        ],
        {"x": (F32, ["n", 8])}, {"y": (F32, ["n", 4])},
        {"w": dense(8, 8), "v": dense(8, 4), "three": np.array(3)},
    )  # fmt: skip
    context = context_of({"x": rows(8)})
    after, report = made_half(proto, context)
    assert report.notes[0] == "2 of 3 float operators in fp16"
    assert compare(run_model(proto, context), run_model(after, context)).max_abs < 0.05


@pytest.mark.parametrize(
    ("middle", "constants", "scale", "reason"),
    [
        ([node("Mul", ["h", "k"], ["m"]), node("Mul", ["m", "q"], ["z"])],
         {"k": np.float32(1e5), "q": np.float32(1e-3)}, 1.0, "a constant of it reaches 1e\\+05"),
        ([node("Exp", ["h"], ["m"]), node("Log", ["m"], ["z"])], {}, 6.0,
         "`m` reaches [0-9.e+]+, and fp16 ends at 6.55e\\+04"),
        ([node("Mul", ["h", "h"], ["m"]), node("Sqrt", ["m"], ["z"])], {}, 1.0,
         "`m` falls to [0-9.e-]+ before a division, root or logarithm"),
        ([node("ReduceL2", ["h"], ["m"], axes=[1]), node("Max", ["m", "k"], ["a"]),
          node("Div", ["h", "a"], ["z"])], {"k": np.float32(1e-9)}, 1.0,
         "a constant of it is 1e-09, which fp16 loses"),
        ([node("LpNormalization", ["h"], ["z"])], {}, 200.0, "it squares values up to"),
        ([node("Mul", ["h", "k"], ["m"]), node("Mul", ["m", "q"], ["z"])],
         {"k": np.float32(2e-7), "q": np.float32(5e4)}, 1.0, "which fp16 loses"),
        ([node("Mul", ["h", "k"], ["m"]), node("Mul", ["m", "k"], ["s"]),
          node("Mul", ["s", "q"], ["z"])],
         {"k": np.float32(2.0**-12), "q": np.float32(2.0**15)}, 1.0,
         "`s` is so small that fp16 loses"),
    ],
)  # fmt: skip
def test_what_leaves_the_range_stays_float_with_the_reason(
    middle: list[Any], constants: dict[str, Any], scale: float, reason: str,
    context_of: Callable,
) -> None:  # fmt: skip
    nodes = [node("MatMul", ["x", "w"], ["h"]), *middle, node("MatMul", ["z", "v"], ["y"])]
    proto = model_of(
        nodes, {"x": (F32, ["n", 32])}, {"y": (F32, ["n", 8])},
        {"w": dense(32, 32), "v": dense(32, 8), **constants},
    )  # fmt: skip
    context = context_of({"x": rows(32, scale=scale)})
    after, report = made_half(proto, context)
    import re

    assert re.search(reason, "\n".join(report.notes)), report.notes
    assert dtypes_of_weights(after)["w_fp16"] == F16
    assert compare(run_model(proto, context), run_model(after, context)).cosine > 0.999


@pytest.mark.parametrize(
    ("operator", "attributes", "reason"),
    [
        ("InstanceNormalization", {"epsilon": 1e-12}, "its epsilon 1e-12 vanishes"),
        ("InstanceNormalization", {"epsilon": 1e-5}, None),
        ("GlobalAveragePool", {}, "it sums up to"),
    ],
)
def test_what_happens_inside_an_operator_counts(
    operator: str, attributes: dict[str, Any], reason: str | None, context_of: Callable
) -> None:
    normal = ["scale", "shift"] if "Norm" in operator else []
    proto = model_of(
        [node("Conv", ["x", "w"], ["h"]), node(operator, ["h", *normal], ["y"], **attributes)],
        {"x": (F32, [1, 4, 32, 32])}, {"y": (F32, [1, None, None, None])},
        {"w": dense(64, 4, 1, 1), "scale": np.ones(64, np.float32), "shift": dense(64)},
    )  # fmt: skip
    probe = {"x": 20 + rows(1024, 4).reshape(1, 4, 32, 32)}
    _, report = made_half(proto, context_of(probe))
    assert (reason is None) == (len(report.notes) == 1)
    assert reason is None or reason in report.notes[1]


def attention(lowest: float) -> Any:
    return model_of(
        [
            node("MatMul", ["x", "q"], ["a"]),
            node("Transpose", ["a"], ["t"], perm=[1, 0]),
            node("MatMul", ["a", "t"], ["s"]),
            node("Mul", ["m", "low"], ["bias"]),
            node("Add", ["s", "bias"], ["masked"]),
            node("Softmax", ["masked"], ["p"]),
            node("MatMul", ["p", "a"], ["y"]),
        ],
        {"x": (F32, [4, 32]), "m": (F32, [4, 4])}, {"y": (F32, [4, 16])},
        {"q": dense(32, 16), "low": np.float32(lowest)},
    )  # fmt: skip


@pytest.mark.parametrize("half", [FLOAT16, BFLOAT16])
def test_a_mask_for_the_softmax_is_shortened(half: Any, context_of: Callable) -> None:
    proto = attention(float(np.finfo(np.float32).min))
    mask = np.triu(np.ones((4, 4), np.float32), 1)
    context = context_of({"x": rows(32), "m": mask})
    _, _, twin, found = convert(proto, context, half, ())
    assert found == (f"7 of 7 float operators in {half.name}", "1 mask written as -9984")
    assert compare(run_model(proto, context), run_model(twin, context)).max_abs < 0.05


def test_a_large_constant_that_also_goes_elsewhere_is_no_mask(context_of: Callable) -> None:
    proto = attention(-1e12)
    proto.graph.output.append(helper.make_tensor_value_info("bias", F32, [4, 4]))
    mask = np.triu(np.ones((4, 4), np.float32), 1)
    _, report = made_half(proto, context_of({"x": rows(32), "m": mask}))
    assert "`mul3` stays float32: a constant of it reaches 1e+12" in report.notes


def test_infinite_masks_are_numbers_of_fp16(context_of: Callable) -> None:
    proto = attention(1.0)
    mask = np.where(np.triu(np.ones((4, 4)), 1) > 0, -np.inf, 0).astype(np.float32)
    _, report = made_half(proto, context_of({"x": rows(32), "m": mask}))
    assert report.notes == ("7 of 7 float operators in fp16",)


def test_operators_between_float_ones_do_not_go_back_and_forth(context_of: Callable) -> None:
    middle = [
        node("Exp", ["h"], ["e"]),
        node("Reshape", ["e", "s"], ["r"]),
        node("Identity", ["r"], ["i"]),
        node("Log", ["i"], ["z"]),
    ]
    proto = model_of(
        [node("MatMul", ["x", "w"], ["h"]), *middle, node("MatMul", ["z", "v"], ["y"])],
        {"x": (F32, ["n", 32])}, {"y": (F32, ["n", 8])},
        {"w": dense(32, 32), "v": dense(32, 8), "s": np.array([-1, 32])},
    )  # fmt: skip
    after, _ = made_half(proto, context_of({"x": rows(32, scale=4.0)}))
    assert operators(after)["Cast"] == 4, "borders, and around the float operators"


def test_whole_numbers_that_fp16_cannot_hold_stay_float(context_of: Callable) -> None:
    proto = model_of(
        [
            node("Cast", ["i"], ["f"], to=F32),
            node("Identity", ["f"], ["g"]),
            node("MatMul", ["x", "w"], ["h"]),
            node("Mul", ["g", "small"], ["k"]),
            node("Add", ["h", "k"], ["y"]),
        ],
        {"x": (F32, ["n", 8]), "i": (I64, [8])}, {"y": (F32, ["n", 8])},
        {"w": dense(8, 8), "small": np.float32(0.001)},
    )  # fmt: skip
    probe = {"x": rows(8), "i": np.arange(8) * 601}
    _, report = made_half(proto, context_of(probe))
    assert any("counts to 4207, and fp16 rounds whole numbers" in note for note in report.notes)


def test_nodes_asked_for_stay_float(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    name = proto.graph.node[-1].name
    after, report = made_half(proto, context, Float16(keep=(name,)))
    assert report.notes[1] == f"`{name}` stays float32: it was asked to"
    assert dtypes_of_weights(after)[proto.graph.node[-1].input[1]] == F32


def test_where_nearly_all_stays_float_the_pass_is_left_out(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    kept = tuple(n.name for n in proto.graph.node if n.op_type == "MatMul")[:2]
    _, (report,) = apply((Float16(keep=kept),), proto, context)
    assert report.status == "left out"
    assert report.reason == "the weights shrank by 4% only: too many must stay float32"
    every = tuple(n.name for n in proto.graph.node)
    assert apply((Float16(keep=every),), proto, context)[1][0].status == "unchanged"


def test_quantized_models_and_models_without_weights_are_refused(
    make_mlp: Callable, make_samples: Callable, make_context: Callable, context_of: Callable
) -> None:
    model = make_mlp()
    context = make_context(make_samples(model))
    quantized, _ = apply((Int8Dynamic(),), onnx.load(model.path), context)
    assert Float16().requires(quantized, context) == "the model is quantized already"
    plain = model_of([node("Relu", ["x"], ["y"])], {"x": (F32, ["n"])}, {"y": (F32, ["n"])}, {})
    reason = "no weight outside of branches and loops is float32"
    assert Float16().requires(plain, context_of({"x": np.ones(3, np.float32)})) == reason
    plain.functions.add(name="f", domain="d")
    reason = "the model has functions of its own"
    assert Float16().requires(plain, context_of({"x": np.ones(3, np.float32)})) == reason


def test_the_twin_shows_an_overflow_that_the_cpu_hides(context_of: Callable) -> None:
    proto = model_of(
        [node("Mul", ["x", "k"], ["a"]), node("Mul", ["a", "q"], ["y"])],
        {"x": (F32, [4])}, {"y": (F32, [4])},
        {"k": np.float32(60000), "q": np.float32(2.0**-14)},
    )  # fmt: skip
    context = context_of({"x": np.array([1, 2, 3, 4], np.float32)})
    found = plan(proto, context, FLOAT16, ())
    assert found.narrow == frozenset()
    forms = [
        HalfGraph(model=proto, slots=found.slots, narrow={0, 1}, half=FLOAT16, emulate=e).write()
        for e in (False, True)
    ]
    (real,), (rounded,) = (run_model(form, context) for form in forms)
    assert np.isfinite(real["y"]).all(), "ONNX Runtime computes it in float32"
    assert np.isinf(rounded["y"][1:]).all()


def test_contributed_operators_become_narrow_where_the_engine_says_so(
    context_of: Callable,
) -> None:
    proto = model_of(
        [node("MatMul", ["x", "w"], ["h"]), node("Identity", ["h"], ["y"])],
        {"x": (F32, ["n", 8])}, {"y": (F32, ["n", 8])}, {"w": dense(8, 8), "b": dense(8)},
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node[1].CopyFrom(
        node("BiasGelu", ["h", "b"], ["y"], name="gelu", domain="com.microsoft")
    )
    context = context_of({"x": rows(8)})
    after, (report,) = apply((Float16(),), proto, context)
    assert report.notes == ("2 of 2 float operators in fp16",)
    assert compare(run_model(proto, context), run_model(after, context)).cosine > 0.9999


def test_constants_of_every_kind_become_initializers() -> None:
    proto = model_of(
        [
            node("Constant", [], ["a"], value=numpy_helper.from_array(dense(2, 2))),
            node("Constant", [], ["b"], value_float=2.5),
            node("Constant", [], ["c"], value_ints=[1, 2]),
            node("Constant", [], ["s"], value_string=b"stays"),
            node("Identity", ["b"], ["y"]),
        ],
        {}, {"y": (F32, [])}, {},
    )  # fmt: skip
    constants_as_initializers(proto)
    assert [n.op_type for n in proto.graph.node] == ["Constant", "Identity"]
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert values["b"] == np.float32(2.5)
    assert values["b"].shape == ()
    assert values["c"].tolist() == [1, 2]


def test_bfloat16_is_refused_where_the_engine_has_no_kernels(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    reason = "the target runs ONNX Runtime on the CPU, which has no bf16 kernels"
    assert BFloat16().requires(proto, context) == reason
    context = dataclasses.replace(context, target=gpu())
    reason = "convolutions know bf16 from opset 22 on, this is 17"
    assert BFloat16().requires(proto, context) == reason


def test_bfloat16_is_held_to_its_twin(
    make_cnn: Callable, make_samples: Callable, make_context: Callable, tmp_path: Path
) -> None:
    model = make_cnn()
    proto = onnx.load(model.path)
    context = dataclasses.replace(make_context(make_samples(model)), target=gpu())
    after, reports = apply((RaiseOpset(least=22, preferred=22), BFloat16()), proto, context)
    assert [r.status for r in reports] == ["applied", "applied"]
    assert interface_of(proto) == interface_of(after)
    assert {t.data_type for t in after.graph.initializer} == {TensorProto.BFLOAT16}
    onnx.save(after, tmp_path / "bf16.onnx")
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        open_session(tmp_path / "bf16.onnx", 1)
    _, _, twin, _ = convert(proto, context, BFLOAT16, ())
    assert twin is not None
    parity = compare(run_model(proto, context), run_model(twin, context))
    assert 0.9 < parity.cosine < 1.0


def test_a_changed_interface_breaks_the_promise(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto, context = onnx.load(model.path), make_context(make_samples(model))
    after, _ = made_half(proto, context)
    after.graph.output[0].type.tensor_type.elem_type = F16
    with pytest.raises(PassBroken, match="an input or output changed its type"):
        Float16().ensures(proto, after, context)
