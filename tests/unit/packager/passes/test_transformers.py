"""Transformers of both exporters: fused exactly, quantized at run time, smoothed, left alone."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.checks.parity import compare
from packager.data import Samples
from packager.errors import UsageError
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, run_model
from packager.passes.embeddings import quantize_tables
from packager.passes.fuse_attention import FuseAttention
from packager.passes.fuse_transformer import FuseTransformer
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.patterns import Graph, attribute
from packager.passes.smooth_quant import SmoothQuant
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = 2
EXPORTERS = ("torch.export", "torch.export fused", "older tracer")


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """Export one small BERT, dynamic batch and sequence, in each way."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    from tests.models.minilm import Bert

    folder = tmp_path_factory.mktemp("berts")
    found = {}
    for name in EXPORTERS:
        torch.manual_seed(0)
        model = Bert(
            vocabulary=200, positions=40, hidden=32, heads=4, layers=LAYERS, inner=64,
            fused="fused" in name,
        ).eval()  # fmt: skip
        ids = torch.randint(1, 200, (2, 12))
        example = (ids, torch.ones_like(ids))
        names = ["input_ids", "attention_mask"]
        path = folder / f"{len(found)}.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if name == "older tracer":
                torch.onnx.export(
                    model, example, path, dynamo=False, opset_version=17, input_names=names,
                    output_names=["embedding"],
                    dynamic_axes={n: {0: "batch", 1: "sequence"} for n in names},
                )  # fmt: skip
                found[name] = onnx.load(path)
            else:
                axes = {
                    0: torch.export.Dim("batch", min=1, max=8),
                    1: torch.export.Dim("sequence", min=2, max=40),
                }
                program = torch.export.export(model, example, dynamic_shapes=(axes, axes))
                exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
                found[name] = exported.model_proto
    return found


def sentence(index: int, length: int = 12, rows: int = 1) -> dict[str, Any]:
    draw = np.random.default_rng(index)
    mask = np.ones((rows, length), np.int64)
    for row in mask:
        row[draw.integers(3, length + 1) :] = 0
    return {"input_ids": draw.integers(1, 200, (rows, length)), "attention_mask": mask}


@pytest.fixture
def context(make_context: Callable) -> Any:
    samples = Samples(
        [lambda index=index: sentence(index) for index in range(8)],
        digest="sentences", origin="8 sentences", kind="npz",
    )  # fmt: skip
    masked = sentence(11, rows=3)
    masked["attention_mask"][1] = 0
    probes = [sentence(9), sentence(10, length=31, rows=2), masked]
    return replace(make_context(samples), probes=probes)


def count(model: Any, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_gelu_residuals_and_masks_of_every_exporter_are_rewritten_exactly(
    exporter: str, berts: Any, context: Any
) -> None:
    before = berts[exporter]
    after, (report,) = apply((FuseTransformer(),), before, context)
    assert report.notes == (
        f"{LAYERS} GELUs", f"{2 * LAYERS + 1} residual sums kept apart", "1 attention masks",
    )  # fmt: skip
    assert count(after, "Erf") == 0
    assert count(after, "Gelu") == LAYERS
    parity = compare(run_model(before, context), run_model(after, context))
    assert parity.max_abs < 1e-5


@pytest.mark.parametrize("exporter", EXPORTERS[:2])
def test_attention_of_a_masked_batch_becomes_one_operator(
    exporter: str, berts: Any, context: Any
) -> None:
    before, _ = apply((CleanUp(), FuseTransformer()), berts[exporter], context)
    after, (report,) = apply((FuseAttention(),), before, context)
    assert report.notes == (f"{LAYERS} attentions",)
    assert count(after, "Softmax") == 0
    assert count(after, "Expand") <= count(before, "Expand") + 1, "the mask is shared"
    again, (second,) = apply((FuseAttention(),), after, context)
    assert second.status == "unchanged"
    assert again is after


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_the_older_tracer_is_fused_with_and_without_causal_mask(  # noqa: PLR0917
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_context: Callable,
    make_samples: Callable, *, causal: bool,
) -> None:  # fmt: skip
    model = draw_attention(drawing(), make_spec, batch, tmp_path, causal=causal)
    context = make_context(make_samples(model))
    after, (report,) = apply((FuseAttention(),), onnx.load(model.path), context)
    assert report.notes == ("1 attentions",)
    (node,) = [node for node in after.graph.node if node.op_type == "MultiHeadAttention"]
    assert attribute(node, "num_heads") == 2
    assert attribute(node, "scale") == pytest.approx(8**-0.5)


def test_attention_over_another_axis_is_left_alone(  # noqa: PLR0917
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_context: Callable,
    make_samples: Callable,
) -> None:  # fmt: skip
    model = draw_attention(drawing(), make_spec, batch, tmp_path, causal=False, axis=2)
    before = onnx.load(model.path)
    after, (report,) = apply((FuseAttention(),), before, make_context(make_samples(model)))
    assert report.status == "unchanged"
    assert after is before


def draw_attention(
    d: Any, make_spec: Callable, batch: Any, folder: Path, *, causal: bool, axis: int = -1
) -> Any:
    split = d.constant(np.array([0, 0, 2, 8]))
    perms = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    q, k, v = (
        d.add("Transpose", d.add("Reshape", d.add("MatMul", "x", d.weight(16, 16)), split), perm=p)
        for p in perms.values()
    )
    scores = d.add("Div", d.add("MatMul", q, k), d.constant(np.float32(8**0.5)))
    if causal:
        mask = np.triu(np.full((6, 6), np.finfo(np.float32).min, np.float32), 1)
        scores = d.add("Add", d.constant(mask), scores)
    mixed = d.add("MatMul", d.add("Softmax", scores, axis=axis), v)
    joined = d.add("Transpose", mixed, perm=[0, 2, 1, 3])
    d.add("Reshape", joined, d.constant(np.array([0, 0, 16])), out="y")
    shape = (batch, 6, 16)
    return d.save(
        folder / "attention.onnx", (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )  # fmt: skip


def test_fusing_twice_changes_nothing_more(berts: Any, context: Any) -> None:
    once, _ = apply((FuseTransformer(),), berts["torch.export"], context)
    _, (report,) = apply((FuseTransformer(),), once, context)
    assert report.status == "unchanged"


def test_the_engine_does_not_join_residuals_and_layer_norms(
    berts: Any, context: Any, tmp_path: Path
) -> None:
    import onnxruntime

    kinds = []
    fused, _ = apply((FuseTransformer(),), berts["torch.export"], context)
    for name, model in (("plain", berts["torch.export"]), ("fused", fused)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        optimized = onnx.load(tmp_path / f"{name}.onnx")
        kinds.append((count(optimized, "SkipLayerNormalization"), count(optimized, "BiasGelu")))
    assert kinds == [(2 * LAYERS, 0), (0, LAYERS)]


def test_masked_scores_leave_no_subnormal_probabilities(berts: Any, context: Any) -> None:
    smallest = []
    fused, _ = apply((FuseTransformer(),), berts["torch.export"], context)
    for model in (berts["torch.export"], fused):
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        (name, *_) = [n.output[0] for n in probe.graph.node if n.op_type == "Softmax"]
        probe.graph.output.append(onnx.ValueInfoProto(name=name))
        shown = run_model(probe, replace(context, probes=[sentence(3)]))[0]
        values = shown[name]
        assert values.min() < 1e-20, "some keys are masked"
        smallest.append(values.min())
    assert smallest[0] < np.finfo(np.float32).tiny <= smallest[1]


@pytest.mark.parametrize("axes_as_input", [False, True])
def test_a_layer_norm_written_out_becomes_one_operator(  # noqa: PLR0917
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_context: Callable,
    make_samples: Callable, *, axes_as_input: bool,
) -> None:  # fmt: skip
    d = drawing(opset=18 if axes_as_input else 17)
    axis = d.constant(np.array([-1])) if axes_as_input else None

    def mean(name: str) -> str:
        return d.add("ReduceMean", name, axis) if axis else d.add("ReduceMean", name, axes=[-1])

    centred = d.add("Sub", "x", mean("x"))
    variance = mean(d.add("Pow", centred, d.constant(np.float32(2))))
    root = d.add("Sqrt", d.add("Add", variance, d.constant(np.float32(1e-5))))
    scaled = d.add("Mul", d.add("Div", centred, root), d.weight(16))
    d.add("Add", scaled, d.weight(16), out="y")
    shape = (batch, 6, 16)
    model = d.save(
        tmp_path / "norm.onnx", (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )  # fmt: skip
    context = make_context(make_samples(model))
    after, (report,) = apply((FuseTransformer(),), onnx.load(model.path), context)
    assert report.notes == ("1 layer norms",)
    (node,) = after.graph.node
    assert node.op_type == "LayerNormalization"
    assert attribute(node, "epsilon") == pytest.approx(1e-5)


@pytest.mark.parametrize("what", ["other half", "mean over another axis"])
def test_what_only_looks_like_a_pattern_is_left_alone(  # noqa: PLR0917
    what: str, drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path,
    make_context: Callable, make_samples: Callable,
) -> None:  # fmt: skip
    d = drawing()
    if what == "other half":
        bent = d.add("Erf", d.add("Div", "x", d.constant(np.float32(2**0.5))))
        bent = d.add("Mul", "x", d.add("Add", bent, d.constant(np.float32(1))))
        d.add("Mul", bent, d.constant(np.float32(0.6)), out="y")
    else:
        centred = d.add("Sub", "x", d.add("ReduceMean", "x", axes=[1]))
        square = d.add("Mul", centred, centred)
        variance = d.add("ReduceMean", square, axes=[1])
        root = d.add("Sqrt", d.add("Add", variance, d.constant(np.float32(1e-5))))
        scaled = d.add("Mul", d.add("Div", centred, root), d.weight(16))
        d.add("Add", scaled, d.weight(16), out="y")
    shape = (batch, 6, 16)
    model = d.save(
        tmp_path / "near.onnx", (make_spec("x", "float32", *shape),),
        make_spec("y", "float32", *shape),
    )  # fmt: skip
    before = onnx.load(model.path)
    after, (report,) = apply((FuseTransformer(),), before, make_context(make_samples(model)))
    assert report.status == "unchanged"
    assert after is before


def test_a_cnn_comes_out_untouched(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    before = onnx.load(model.path)
    after, reports = apply(
        (FuseTransformer(), SmoothQuant()), before, make_context(make_samples(model))
    )
    assert [report.status for report in reports] == ["unchanged", "skipped"]
    assert reports[1].reason == "the model has no layer norm"
    assert after is before


def test_an_old_opset_and_another_engine_are_told_apart(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn(opset=13)
    context = make_context(make_samples(model))
    proto = onnx.load(model.path)
    reason = FuseTransformer().requires(proto, context)
    assert reason == "opset 13 has no LayerNormalization; 17 is needed"
    engine = replace(context.target.engine, name="tensorrt")
    other = replace(context, target=replace(context.target, engine=engine))
    reason = FuseTransformer().requires(proto, other)
    assert reason == "the fused operators are those of onnxruntime, not of tensorrt"


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_smoothing_keeps_the_outputs_and_narrows_the_activations(
    exporter: str, berts: Any, context: Any
) -> None:
    fused, _ = apply((FuseTransformer(),), berts[exporter], context)
    wild = onnx.ModelProto()
    wild.CopyFrom(fused)
    outlier = _norm_with_outlier(wild)
    smooth, (report,) = apply((SmoothQuant(),), wild, context)
    assert report.status == "applied"
    parity = compare(run_model(wild, context), run_model(smooth, context))
    assert parity.max_abs < 1e-4
    products = [
        node for node in smooth.graph.node
        if node.op_type == "MatMul" and node.input[0].startswith(outlier)
    ]  # fmt: skip
    assert products, "the products read the smoothed activation"
    assert all(node.input[0] != outlier for node in products)


def _norm_with_outlier(model: Any) -> str:
    """Give the first layer norm one channel of 60 times the rest; return its output."""
    (first, *_) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (gamma,) = [t for t in model.graph.initializer if t.name == first.input[1]]
    values = onnx.numpy_helper.to_array(gamma).copy()
    values[5] = 60
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "wild"))
    first.input[1] = "wild"
    return str(first.output[0])


def test_smoothing_makes_run_time_int8_more_faithful(berts: Any, context: Any) -> None:
    fused, _ = apply((FuseTransformer(),), berts["torch.export"], context)
    wild = onnx.ModelProto()
    wild.CopyFrom(fused)
    _norm_with_outlier(wild)
    want = run_model(wild, context)
    cosines = []
    for passes in ((Int8Dynamic(),), (SmoothQuant(), Int8Dynamic())):
        after, reports = apply(passes, wild, context)
        assert {report.status for report in reports} == {"applied"}
        cosines.append(compare(want, run_model(after, context)).cosine)
    assert 1 - cosines[1] < (1 - cosines[0]) / 2


def test_a_norm_read_by_products_alone_takes_the_scales_itself(  # noqa: PLR0917
    drawing: Any, make_spec: Callable, batch: Any, tmp_path: Path, make_context: Callable,
    make_samples: Callable,
) -> None:  # fmt: skip
    d = drawing()
    norm = d.add("LayerNormalization", "x", d.constant(np.linspace(1, 9, 16, dtype=np.float32)))
    hidden = d.add("Add", d.add("MatMul", norm, d.weight(16, 32)), d.weight(32))
    d.add("MatMul", d.add("Relu", hidden), d.weight(32, 4), out="y")
    model = d.save(
        tmp_path / "pre.onnx", (make_spec("x", "float32", batch, 16),),
        make_spec("y", "float32", batch, 4),
    )  # fmt: skip
    context = make_context(make_samples(model))
    before = onnx.load(model.path)
    after, (report,) = apply((SmoothQuant(multiply=False),), before, context)
    assert report.notes == ("2 activations folded into the layer before",)
    assert [node.op_type for node in after.graph.node] == [n.op_type for n in before.graph.node]


def test_a_strength_beyond_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the smoothing strength is 1\.5") as caught:
        SmoothQuant(alpha=1.5)
    assert caught.value.accepted == "0 to 1"


@pytest.mark.parametrize("target", ["cpu-x86_64", "cpu-x86_64-vnni"])
def test_embeddings_keep_eight_bits_where_products_have_seven(
    target: str, berts: Any, context: Any
) -> None:
    context = replace(context, target=find_target(target))
    after, (report,) = apply(
        (Int8Dynamic(),), apply((CleanUp(), FuseTransformer()), berts["torch.export"], context)[0],
        context,
    )  # fmt: skip
    assert report.notes == ("2 embedding tables row by row",)
    largest = {
        array.shape: int(np.abs(array.astype(int)).max())
        for tensor in after.graph.initializer
        for array in [onnx.numpy_helper.to_array(tensor)]
        if array.dtype == np.int8 and array.ndim == 2
    }
    assert largest[200, 32] == 127
    assert largest[32, 64] == (64 if target == "cpu-x86_64" else 127)


def test_a_table_that_more_than_a_look_up_reads_stays_float(drawing: Any) -> None:
    d = drawing()
    table = d.weight(100, 16)
    found = d.add("Gather", table, "ids")
    d.add("MatMul", found, d.add("Transpose", table, perm=[1, 0]), out="y")
    graph = Graph(onnx.helper.make_model(onnx.helper.make_graph(d.nodes, "g", [], [], d.weights)))
    assert quantize_tables(graph) == 0
