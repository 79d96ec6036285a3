"""Layers ranked by the noise that each adds alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply, run_model
from packager.passes.int8_static import Int8Static
from packager.passes.quantizer import name_nodes
from packager.search.sensitivity import rank_layers, sqnr_db

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def made(make_cnn: Callable, make_samples: Callable, make_context: Callable) -> Any:
    """Return (float model, quantized model, samples, context) of six convolutions and a Gemm."""
    model = make_cnn(layers=6)
    samples = make_samples(model, 16)
    context = make_context(samples)
    reference, _ = apply((CleanUp(),), onnx.load(model.path), context)
    name_nodes(reference)
    quantized, _ = apply((Int8Static(),), reference, context)
    return reference, quantized, samples, context


def ranked(made: Any, samples: Any = None, **options: Any) -> Any:
    reference, quantized, data, context = made
    return rank_layers(
        quantized, reference, samples or data, workdir=context.workdir, threads=1,
        reporter=context.reporter, **options,
    )  # fmt: skip


def damage(quantized: Any, layer: str) -> None:
    """Round the weights of one layer to a few steps."""
    node = next(n for n in quantized.graph.node if n.name == layer)
    (maker,) = (n for n in quantized.graph.node if node.input[1] in n.output)
    for tensor in quantized.graph.initializer:
        if tensor.name == maker.input[0]:
            steps = numpy_helper.to_array(tensor)
            coarse = (np.rint(steps / 60.0) * 60).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(coarse, tensor.name))


def test_every_layer_is_ranked_the_most_sensitive_first(made: Any) -> None:
    reference, quantized, _, _ = made
    third = [n.name for n in reference.graph.node if n.op_type == "Conv"][3]
    damage(quantized, third)
    found = ranked(made)
    weighted = [n.name for n in reference.graph.node if n.op_type in ("Conv", "Gemm")]
    assert sorted(layer.name for layer in found) == sorted(weighted)
    assert found[0].name == third
    assert [f.sqnr_db for f in found] == sorted(f.sqnr_db for f in found)
    assert found[0].sqnr_db < found[1].sqnr_db - 6
    assert {(f.op_type, f.weights) for f in found} == {
        ("Conv", 16 * 3 * 9), ("Conv", 16 * 16 * 9), ("Gemm", 160),
    }  # fmt: skip


def test_the_noise_of_the_layers_adds_up_to_that_of_the_model(made: Any) -> None:
    reference, quantized, samples, context = made
    context = type(context)(
        target=context.target, samples=None, workdir=context.workdir, reporter=context.reporter,
        probes=[samples[i] for i in range(4)],
    )  # fmt: skip
    whole = sqnr_db(run_model(reference, context), run_model(quantized, context))
    total = -10 * np.log10(sum(10 ** (-layer.sqnr_db / 10) for layer in ranked(made)))
    assert whole == pytest.approx(total, abs=3)


def test_four_samples_are_read_and_no_file_is_left(made: Any) -> None:
    *_, samples, context = made
    before = sorted(context.workdir.iterdir())
    read = []

    def reading() -> Iterator[Any]:
        for index, sample in enumerate(samples):
            read.append(index)
            yield sample

    first = ranked(made, reading())
    assert read == [0, 1, 2, 3]
    assert sorted(context.workdir.iterdir()) == before
    assert first == ranked(made)


def test_it_stops_at_the_limit_and_says_how_far_it_came(made: Any, notes: Any) -> None:
    found = ranked(made, limit_s=0)
    assert [layer.name for layer in found] == [made[0].graph.node[0].name]
    assert notes.said == ["ranked 1 of 7 layers in 0 s"]


def test_the_ratio_counts_each_output_the_same() -> None:
    want = [{"small": np.array([1.0, -1.0]), "large": np.array([1e6])}]
    have = [{"small": np.array([1.1, -1.1]), "large": np.array([1e6])}]
    assert sqnr_db(want, have) == pytest.approx(10 * np.log10(2 / 0.01))
    assert sqnr_db(want, want) == 144
    broken = [{"small": np.array([np.nan, 1.0]), "large": np.array([1e6])}]
    assert sqnr_db(want, broken) == -144
    assert sqnr_db(broken, broken) == 144
