"""Clean-up and raising the opset, and the edits that passes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply
from packager.passes.graph import digest_of, is_quantized, op_types, strip_texts
from packager.passes.int8_static import Int8Static
from packager.passes.raise_opset import RaiseOpset

if TYPE_CHECKING:
    from collections.abc import Callable


def test_batch_norm_and_identities_are_folded_away(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto = onnx.load(model.path)
    proto.graph.node[-1].output[0] = "inner"
    proto.graph.node.append(helper.make_node("Identity", ["inner"], ["scores"]))
    proto.graph.node.append(helper.make_node("Neg", ["inner"], ["unread"]))
    after, (report,) = apply((CleanUp(),), proto, make_context(make_samples(model)))
    assert report.status == "applied"
    assert op_types(after) == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
    assert report.notes == ("14 → 9 nodes",)


def test_a_clean_graph_is_reported_unchanged(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    context = make_context(make_samples(model))
    once, _ = apply((CleanUp(),), onnx.load(model.path), context)
    _, (report,) = apply((CleanUp(),), once, context)
    assert report.status == "unchanged"


def test_a_graph_with_branches_is_left_as_it_is(
    make_context: Callable, make_samples: Callable, make_mlp: Callable
) -> None:
    model = make_mlp()
    proto = onnx.load(model.path)
    branches = {
        key: helper.make_graph(
            [helper.make_node("Identity", ["inner"], [f"{key}_out"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_out", onnx.TensorProto.FLOAT, None)],
        )
        for key in ("then_branch", "else_branch")
    }
    proto.graph.node[-1].output[0] = "inner"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["y"], **branches))
    _, (report,) = apply((CleanUp(),), proto, make_context(make_samples(model)))
    assert (report.status, report.reason) == ("skipped", "the graph has branches or loops")


def test_opset_12_is_raised_so_that_weights_can_be_quantized_per_channel(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(opset=12)
    context = make_context(make_samples(model))
    _, (refused,) = apply((Int8Static(),), onnx.load(model.path), context)
    assert refused.reason == "opset 12 has no per-channel quantization; 13 is needed"
    after, reports = apply((RaiseOpset(), Int8Static()), onnx.load(model.path), context)
    assert [report.status for report in reports] == ["applied", "applied"]
    assert reports[0].notes == ("opset 12 → 17",)
    axes = [a.i for n in after.graph.node for a in n.attribute if a.name == "axis"]
    assert axes


def test_a_later_opset_stays(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(opset=15)
    _, (report,) = apply((RaiseOpset(),), onnx.load(model.path), make_context(make_samples(model)))
    assert (report.status, report.reason) == ("skipped", "the model has opset 15")


def test_texts_that_name_folders_and_versions_are_removed(make_mlp: Callable) -> None:
    plain = onnx.load(make_mlp().path)
    told: Any = onnx.ModelProto()
    told.CopyFrom(plain)
    told.doc_string = told.graph.doc_string = "made in /home/somebody"
    told.producer_name, told.producer_version = "exporter", "9.9"
    helper.set_model_props(told, {"folder": "/home/somebody"})
    told.graph.node[0].doc_string = "file.py line 3"
    told.graph.node[0].metadata_props.add(key="stack", value="/home/somebody/file.py")
    told.opset_import.add(domain="ai.onnx.ml", version=3)
    for model in (plain, told):
        strip_texts(model)
    assert b"somebody" not in told.SerializeToString()
    assert digest_of(told) == digest_of(plain)


def test_quantized_graphs_are_recognized(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    proto = onnx.load(model.path)
    after, _ = apply((Int8Static(),), proto, make_context(make_samples(model)))
    assert not is_quantized(proto)
    assert is_quantized(after)
    _, (report,) = apply((Int8Static(),), after, make_context(make_samples(model)))
    assert report.reason == "the model is quantized already"
