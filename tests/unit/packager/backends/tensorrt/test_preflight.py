"""Real models against the installed parser: what is cut off, what is refused, what it computes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from packager.backends.tensorrt.preflight import Preflight, preflight
from packager.errors import ModelUnsupported
from packager.model import Dim, Signature, TensorSpec
from packager.passes.inputs import attach
from packager.recipe import AudioInput, ImageInput, Recipe
from packager.target import find_target
from tests.unit.packager.backends.tensorrt.onnx_drawing import (
    answers,
    graph_of,
    node,
    noise,
    operators,
    tensorrt,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VERSIONS = ("rtx", "8.5.2.2", "10.3.0.30", "10.16.2.10")


def target(version: str, **changes: Any) -> Any:
    base = find_target("cpu-x86_64")
    return dataclasses.replace(base, tensorrt=tensorrt(version, **changes))


def flown(model: Any, version: str, folder: Path, **settings: Any) -> Preflight:
    path = model
    if isinstance(model, onnx.ModelProto):
        path = folder / "whole.onnx"
        onnx.save(model, path)
    return preflight(path, target(version), folder, **settings)


def chain(found: Preflight, feeds: dict[str, Any], outputs: list[str]) -> list[Any]:
    """Run head, core and tail as a device does: by name, and past what does not read."""
    values = dict(feeds)
    for path in (found.parts.head, found.parts.core, found.parts.tail):
        if path is None:
            continue
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        taken = {value.name: values[value.name] for value in model.graph.input}
        names = [value.name for value in model.graph.output]
        values.update(zip(names, answers(model, taken), strict=True))
    return [values[name] for name in outputs]


def same(found: Preflight, model: Any, feeds: dict[str, Any]) -> None:
    """See that the chain answers what the whole does, bit for bit."""
    model = onnx.load(model) if not isinstance(model, onnx.ModelProto) else model
    names = [value.name for value in model.graph.output]
    for wanted, got in zip(answers(model, feeds), chain(found, feeds, names), strict=True):
        assert wanted.dtype == got.dtype
        assert np.array_equal(wanted, got)


def weights(path: Path | None) -> set[str]:
    if path is None:
        return set()
    return {t.name for t in onnx.load(path).graph.initializer if math.prod(t.dims) > 8}


def core(found: Preflight) -> Any:
    return onnx.load(found.parts.core)


@pytest.mark.parametrize("version", VERSIONS)
def test_photos_are_made_ready_on_the_cpu_and_handed_over_as_bytes(
    version: str, make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_cnn(opset=17)
    recipe = Recipe(model="m", name="m", images={"image": ImageInput(size=(16, 16), resize=20)})
    whole = tmp_path / "photos.onnx"
    signature = attach(model.path, model.signature, recipe, whole)
    found = flown(whole, version, tmp_path, signature=signature)
    assert found.parts.tail is None
    assert found.support is not None
    assert found.support.parsed
    (taken,) = core(found).graph.input
    dims = taken.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 16, 16]
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert "Resize" not in operators(core(found))
    (note,) = [note for note in found.notes if "before the engine" in note]
    assert "(Transpose): TensorRT" in note
    assert version == "rtx" or "(Resize): in TensorRT" in note
    assert not weights(found.parts.head) & weights(found.parts.core)
    same(
        found, whole, {"image": np.random.default_rng(0).integers(0, 255, (2, 30, 41, 3), "uint8")}
    )


@pytest.mark.parametrize("version", ["rtx", "10.3.0.30"])
def test_our_own_spectrogram_is_part_of_the_engine(version: str, tmp_path: Path) -> None:
    mels, frames = 16, Dim(name="frames", min=4, max=64, opt=8)
    model = graph_of(
        [
            node("Conv", "mel w1", "a", pads=[1, 1]),
            node("Relu", "a", "r"),
            node("Conv", "r w2", "b", pads=[1, 1]),
            node("GlobalAveragePool", "b", "p"),
            node("Flatten", "p", "y"),
        ],
        {"mel": (np.float32, ["batch", mels, "frames"])},
        {"y": (np.float32, ["batch", 8])},
        {"w1": noise(32, mels, 3), "w2": noise(8, 32, 3)},
    )
    path, whole = tmp_path / "net.onnx", tmp_path / "sound.onnx"
    onnx.save(model, path)
    batch = Dim(name="batch", min=1, max=4, opt=1)
    own = Signature(
        inputs=(TensorSpec(name="mel", dtype="float32", shape=(batch, Dim(size=mels), frames)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(batch, Dim(size=8))),),
    )
    audio = AudioInput(sample_rate=8000, features="mel", n_fft=64, hop=32, mels=mels)
    recipe = Recipe(model="m", name="m", audio={"mel": audio})
    signature = attach(path, own, recipe, whole)
    found = flown(whole, version, tmp_path, signature=signature)
    assert found.moved == ()
    sizes = {name: dim.opt or dim.min for name, dim in signature.dims().items()}
    (spec,) = signature.inputs
    shape = [dim.size or sizes[str(dim.name)] for dim in spec.shape]
    same(found, whole, {"mel": (noise(*shape) * 0.1).astype(spec.dtype)})


def test_a_fourier_transform_is_done_on_the_cpu_before_the_engine(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("Unsqueeze", "sound two", "signal"),
            node("STFT", "signal step window length", "f"),
            node("ReduceSumSquare", "f", "power", axes=[3], keepdims=0),
            node("Transpose", "power", "bands", perm=[0, 2, 1]),
            node("Conv", "bands w1", "a"),
            node("Relu", "a", "r"),
            node("Conv", "r w2", "y"),
        ],
        {"sound": (np.float32, ["n", "samples"])},
        {"y": (np.float32, ["n", 8, "frames"])},
        {
            "two": np.array([2]),
            "step": np.int64(16),
            "length": np.int64(64),
            "window": np.hanning(64).astype(np.float32),
            "w1": noise(32, 33, 3),
            "w2": noise(8, 32, 3),
        },
    )
    found = flown(model, "8.5.2.2", tmp_path)
    assert operators(core(found)) == {"Transpose", "Conv", "Relu"}
    (taken,) = core(found).graph.input
    dims = taken.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["n", "power.1", 33]
    assert any("TensorRT 8.5 has no `STFT`, which came with 10.5" in n for n in found.notes)
    same(found, model, {"sound": noise(2, 200)})


def detector(*behind: Any, outputs: Any) -> Any:
    """Return two layers that make boxes and scores, and what stands behind them."""
    return graph_of(
        [
            node("Conv", "image w", "c", pads=[1, 1, 1, 1]),
            node("Reshape", "c rows", "r"),
            node("MatMul", "r wb", "boxes"),
            node("MatMul", "r ws", "raw"),
            node("Sigmoid", "raw", "s"),
            node("Transpose", "s", "scores", perm=[0, 2, 1]),
            *behind,
        ],
        {"image": (np.float32, [1, 3, 8, 8])},
        outputs,
        {
            "w": noise(16, 3, 3, 3),
            "wb": noise(16, 4, seed=1),
            "ws": noise(16, 2, seed=2),
            "rows": np.array([1, 64, 16]),
            "most": np.array([5]),
            "iou": np.float32(0.5),
            "least": np.float32(0.3),
            "two": np.array([2]),
        },
        opset=17,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_non_maximum_suppression_is_done_on_the_cpu_behind_the_engine(
    version: str, tmp_path: Path
) -> None:
    model = detector(
        node("NonMaxSuppression", "boxes scores most iou least", "picked"),
        node("Gather", "picked two", "which", axis=1),
        outputs={"picked": (np.int64, ["n", 3]), "which": (np.int64, ["n", 1])},
    )
    found = flown(model, version, tmp_path)
    assert found.parts.head is None
    assert found.parts.tail is not None
    assert operators(onnx.load(found.parts.tail)) == {"NonMaxSuppression", "Gather"}
    assert {v.name for v in core(found).graph.output} == {"boxes", "scores"}
    assert [(node.operator, node.part) for node in found.moved] == [
        ("NonMaxSuppression", "tail"),
        ("Gather", "tail"),
    ]
    same(found, model, {"image": noise(1, 3, 8, 8, seed=4)})


def test_data_sized_nodes_in_the_middle_stay_in_a_tensorrt_that_has_them(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("MatMul", "x w", "a"),
            node("NonZero", "a", "nz"),
            node("Transpose", "nz", "t", perm=[1, 0]),
            node("GatherND", "a t", "g"),
            node("Unsqueeze", "g one", "u"),
            node("MatMul", "u w2", "y"),
        ],
        {"x": (np.float32, [4, 64])},
        {"y": (np.float32, ["n", 64])},
        {"w": noise(64, 8), "w2": noise(1, 64), "one": np.array([1])},
    )
    found = flown(model, "10.3.0.30", tmp_path)
    assert found.moved == ()
    assert any("`n_nz` (NonZero) gives as many" in said for said in found.unverified)
    assert any(
        "lacks `n_nz` (NonZero), which tensorrt 10.3.0.30 has" in s for s in found.unverified
    )


def test_a_node_in_the_middle_is_refused_by_name(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("MatMul", "x w1", "a"),
            node("Relu", "a", "r"),
            node("MatMul", "r w2", "b"),
            node("Bernoulli", "b", "c", seed=1.0),
            node("MatMul", "c w3", "d"),
            node("Relu", "d", "e"),
            node("MatMul", "e w4", "y"),
        ],
        {"x": (np.float32, ["n", 8])},
        {"y": (np.float32, ["n", 8])},
        {f"w{i}": noise(8, 8, seed=i) for i in range(1, 5)},
    )
    with pytest.raises(ModelUnsupported) as caught:
        flown(model, "10.3.0.30", tmp_path)
    assert caught.value.message == (
        "`n_c` (Bernoulli) cannot run in TensorRT: no TensorRT has `Bernoulli`; on the CPU, with "
        "all before or behind, it would leave TensorRT 2 of 4 layers"
    )
    assert caught.value.hint


def test_an_empty_core_is_refused(tmp_path: Path) -> None:
    model = graph_of(
        [node("Unique", "x", "y", sorted=1)], {"x": (np.float32, ["n"])}, {"y": (np.float32, ["m"])}
    )
    with pytest.raises(ModelUnsupported, match=r"`n_y` \(Unique\) cannot run in TensorRT"):
        flown(model, "10.3.0.30", tmp_path)


def test_sizes_that_an_input_holds_are_left_to_the_cpu(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("Resize", "x - - sizes", "r", mode="nearest"),
            node("Conv", "r w", "a"),
            node("Relu", "a", "y"),
        ],
        {"x": (np.float32, [1, 3, "h", "w_in"]), "sizes": (np.int64, [4])},
        {"y": (np.float32, [1, 4, "oh", "ow"])},
        {"w": noise(4, 3, 3, 3)},
    )
    found = flown(model, "10.3.0.30", tmp_path)
    assert operators(core(found)) == {"Conv", "Relu"}
    assert any("its sizes are computed from values, not from shapes" in n for n in found.notes)
    same(found, model, {"x": noise(1, 3, 6, 6), "sizes": np.array([1, 3, 9, 8])})


def test_sizes_that_shapes_decide_stay_in_the_engine(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("Shape", "x", "s"),
            node("Slice", "s two four", "sides"),
            node("Mul", "sides two", "doubled"),
            node("Slice", "s zero two", "lead"),
            node("Concat", "lead doubled", "wanted", axis=0),
            node("Resize", "a - - wanted", "y", mode="nearest"),
        ],
        {"x": (np.float32, ["n", 3, "h", "w_in"])},
        {"y": (np.float32, ["n", 3, "oh", "ow"])},
        {
            "w": noise(3, 3, 3, 3),
            "zero": np.array([0]),
            "two": np.array([2]),
            "four": np.array([4]),
        },
    )
    found = flown(model, "10.3.0.30", tmp_path)
    assert found.moved == ()
    same(found, model, {"x": noise(2, 3, 4, 5)})


def test_a_model_too_large_for_one_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"")
    with pytest.raises(ModelUnsupported, match="is too large for one file, and tensorrt is given"):
        preflight(tmp_path / "m.onnx", target("10.3.0.30"), tmp_path)


def test_half_precision_with_a_layer_norm_fits_the_oldest(tmp_path: Path) -> None:
    half = {"s": noise(8, dtype="float16"), "w": noise(8, 8, dtype="float16")}
    model = graph_of(
        [node("MatMul", "x w", "a"), node("LayerNormalization", "a s", "y", axis=-1)],
        {"x": (np.float16, ["n", 8])},
        {"y": (np.float16, ["n", 8])},
        half,
    )
    found = flown(model, "8.5.2.2", tmp_path)
    feeds = {"x": noise(3, 8, dtype="float16")}
    (wanted,), (got,) = answers(model, feeds), chain(found, feeds, ["y"])
    np.testing.assert_allclose(got, wanted, atol=2e-2)


def test_what_the_parser_refuses_against_the_lists_is_written_otherwise(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("MatMul", "x w", "a"),
            node("LayerNormalization", "a s", "b mean", axis=-1),
            node("MatMul", "b w", "c"),
            node("Add", "c mean", "y"),
        ],
        {"x": (np.float32, ["n", 8])},
        {"y": (np.float32, ["n", 8])},
        {"w": noise(8, 8), "s": noise(8)},
    )
    found = flown(model, "rtx", tmp_path)
    assert found.moved == ()
    assert "1 × LayerNormalization written in other operators" in found.notes
    feeds = {"x": noise(2, 8)}
    (wanted,), (got,) = answers(model, feeds), chain(found, feeds, ["y"])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_target_without_tensorrt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="`cpu-x86_64` has no TensorRT"):
        preflight(tmp_path / "m.onnx", find_target("cpu-x86_64"), tmp_path)


def test_operators_of_onnx_runtime_in_the_middle_are_refused_by_name(tmp_path: Path) -> None:
    ops = [
        node("MatMul", "x w", "a"),
        node("MatMul", "a w", "aa"),
        node("Inverse", "aa", "b", domain="com.microsoft"),
        node("MatMul", "b w", "c"),
        node("Inverse", "c", "d", domain="com.microsoft"),
        node("MatMul", "d w", "e"),
        node("MatMul", "e w", "y"),
    ]
    model = graph_of(
        ops,
        {"x": (np.float32, [8, 8])},
        {"y": (np.float32, [8, 8])},
        {"w": noise(8, 8)},
        domains=("com.microsoft",),
    )
    with pytest.raises(ModelUnsupported, match=r"TensorRT has no operators of `com.microsoft`"):
        flown(model, "10.3.0.30", tmp_path)


def test_text_is_read_on_the_cpu(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("Cast", "words", "x", to=onnx.TensorProto.FLOAT),
            node("MatMul", "x w", "a"),
            node("Relu", "a", "y"),
        ],
        {"words": (np.dtype(object), ["n", 8])},
        {"y": (np.float32, ["n", 8])},
        {"w": noise(8, 8)},
    )
    found = flown(model, "rtx", tmp_path)
    assert operators(onnx.load(found.parts.head)) == {"Cast"}
    words = np.array([[str(i * j) for i in range(8)] for j in range(3)], object)
    same(found, model, {"words": words})


def embedding() -> Any:
    return graph_of(
        [
            node("Gather", "table ids", "e"),
            node("MatMul", "e w", "h"),
            node("ReduceMax", "h", "m", axes=[2], keepdims=0),
            node("ArgMax", "h", "which", axis=-1, keepdims=0),
        ],
        {"ids": (np.int64, ["n", "length"])},
        {"m": (np.float32, ["n", "length"]), "which": (np.int64, ["n", "length"])},
        {"table": noise(100, 16), "w": noise(16, 12, seed=1)},
        opset=17,
    )


def test_before_tensorrt_10_wide_integers_cross_the_border_as_int32(tmp_path: Path) -> None:
    model = embedding()
    found = flown(model, "8.5.2.2", tmp_path)
    bound = [*core(found).graph.input, *core(found).graph.output]
    kinds = {value.type.tensor_type.elem_type for value in bound}
    assert kinds == {onnx.TensorProto.INT32, onnx.TensorProto.FLOAT}
    assert "the engine takes `ids` as int32, not int64" in found.notes
    same(found, model, {"ids": np.random.default_rng(1).integers(0, 100, (3, 7))})


def test_from_tensorrt_10_on_wide_integers_cross_as_they_are(tmp_path: Path) -> None:
    found = flown(embedding(), "10.3.0.30", tmp_path)
    assert (found.parts.head, found.parts.tail, found.notes) == (None, None, ())


def test_doubles_are_converted_at_the_border_and_computed_as_floats(tmp_path: Path) -> None:
    model = graph_of(
        [node("MatMul", "x w", "a"), node("Sigmoid", "a", "y")],
        {"x": (np.float64, ["n", 8])},
        {"y": (np.float64, ["n", 8])},
        {"w": noise(8, 8, dtype="float64")},
    )
    found = flown(model, "10.3.0.30", tmp_path)
    feeds = {"x": noise(3, 8, seed=1, dtype="float64")}
    (wanted,), (got,) = answers(model, feeds), chain(found, feeds, ["y"])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert "double is computed as float32, as TensorRT has no double" in found.notes


def test_narrow_integers_are_widened_at_the_border(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("Cast", "x", "f", to=onnx.TensorProto.FLOAT),
            node("MatMul", "f w", "a"),
            node("MatMul", "a w", "y"),
        ],
        {"x": (np.int16, ["n", 8])},
        {"y": (np.float32, ["n", 8])},
        {"w": noise(8, 8)},
    )
    found = flown(model, "rtx", tmp_path)
    same(found, model, {"x": np.arange(-8, 8, dtype=np.int16).reshape(2, 8)})


def test_what_hangs_on_constants_alone_is_computed_ahead(tmp_path: Path) -> None:
    model = graph_of(
        [
            node("MelWeightMatrix", "mels n rate low high", "mel"),
            node("MatMul", "x mel", "a"),
            node("MatMul", "a w", "y"),
        ],
        {"x": (np.float32, ["n", 9])},
        {"y": (np.float32, ["n", 4])},
        {
            "mels": np.int64(4),
            "n": np.int64(16),
            "rate": np.int64(8000),
            "low": np.float32(0),
            "high": np.float32(4000),
            "w": noise(4, 4),
        },
    )
    found = flown(model, "10.3.0.30", tmp_path)
    assert operators(core(found)) == {"MatMul"}
    assert found.parts.head is None
    same(found, model, {"x": noise(3, 9)})


def test_an_lstm_goes_whole(tmp_path: Path) -> None:
    hidden, size = 12, 6
    model = graph_of(
        [
            node("LSTM", "x w r b", "h", hidden_size=hidden),
            node("Squeeze", "h one", "s"),
            node("MatMul", "s v", "y"),
        ],
        {"x": (np.float32, ["time", "batch", size])},
        {"y": (np.float32, ["time", "batch", 3])},
        {
            "w": noise(1, 4 * hidden, size),
            "r": noise(1, 4 * hidden, hidden, seed=1),
            "b": noise(1, 8 * hidden, seed=2),
            "v": noise(hidden, 3, seed=3),
            "one": np.array([1]),
        },
    )
    for version in VERSIONS:
        found = flown(model, version, tmp_path)
        assert found.moved == ()
        assert found.support is not None
        assert found.support.parsed
    same(found, model, {"x": noise(5, 2, size, seed=4)})


@pytest.mark.torch
def test_an_exported_transformer_goes_whole_to_every_tensorrt(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 32)
            layer = torch.nn.TransformerEncoderLayer(
                32, 4, 64, batch_first=True, activation="gelu", dropout=0.0
            )
            self.body = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.body(self.table(ids), src_key_padding_mask=mask == 0).mean(1)

    torch.manual_seed(0)
    path = tmp_path / "net.onnx"
    ids, mask = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    dims = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=64)}
    torch.onnx.export(
        Net().eval(),
        (ids, mask),
        path,
        dynamo=True,
        opset_version=20,
        external_data=False,
        input_names=["ids", "mask"],
        output_names=["y"],
        dynamic_shapes={"ids": dims, "mask": dims},
        verbose=False,
    )
    feeds = {"ids": ids.numpy(), "mask": mask.numpy()}
    (wanted,) = answers(onnx.load(path), feeds)
    for version in VERSIONS:
        found = flown(path, version, tmp_path, samples=[feeds])
        assert found.support is not None
        assert found.support.parsed
        assert {node.operator for node in found.moved} == set()
        (got,) = chain(found, feeds, ["y"])
        np.testing.assert_allclose(got, wanted, atol=2e-5)
        opset = next(o.version for o in core(found).opset_import if not o.domain)
        assert opset <= tensorrt(version).max_opset


def test_the_same_model_is_cut_into_the_same_bytes(
    make_cnn: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_cnn(opset=17)
    recipe = Recipe(model="m", name="m", images={"image": ImageInput(size=(16, 16))})
    whole = tmp_path / "photos.onnx"
    attach(model.path, model.signature, recipe, whole)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        parts = flown(whole, "8.5.2.2", tmp_path / name).parts
        made.append([parts.head.read_bytes(), parts.core.read_bytes()])  # type: ignore[union-attr]
    assert made[0] == made[1]


def test_without_the_parser_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from packager.backends.tensorrt import support

    monkeypatch.setattr(support, "MODULE", "a_tensorrt_that_is_not_here")
    found = flown(embedding(), "10.3.0.30", tmp_path)
    assert found.support is None
    assert any("is not installed here, so no parser has seen" in s for s in found.unverified)


def test_a_large_weight_that_two_parts_read_is_named(tmp_path: Path) -> None:
    big = noise(80, 80)
    model = graph_of(
        [
            node("MatMul", "x big", "a"),
            node("MatMul", "a w", "aa"),
            node("MatMul", "aa w2", "b"),
            node("NonZero", "b", "nz"),
            node("Cast", "nz", "f", to=onnx.TensorProto.FLOAT),
            node("ReduceSum", "big", "s", keepdims=0),
            node("Add", "f s", "g"),
            node("Gather", "big nz", "y"),
        ],
        {"x": (np.float32, ["n", 80])},
        {"y": (np.float32, None), "g": (np.float32, None)},
        {"big": big, "w": noise(80, 80, seed=1), "w2": noise(80, 80, seed=2)},
    )
    found = flown(model, "rtx", tmp_path)
    assert "the weight `big` is in the core and in the tail" in found.notes
    same(found, model, {"x": noise(2, 80)})
