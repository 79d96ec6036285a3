"""Moves the outliers of activations into the weights of the next layer, before quantization."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.checks.latency import open_session
from packager.errors import UsageError
from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import digest_of, interface_of, is_quantized
from packager.passes.patterns import Graph, attribute

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data import Samples

# Scales near 1 change nothing that eight bits could show, and would cost a multiplication.
_LEAST_SCALE: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Products that read one activation, and what can take its division by the scales."""

    activation: str
    products: tuple[Any, ...]
    absorbers: tuple[tuple[Any, int], ...]


@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Divides each channel of an activation by a scale that the next weights are multiplied by.

    s = max|X|^a / max|W|^(1 - a) per channel (SmoothQuant, arXiv 2211.10438). The division goes
    into scale and bias of the layer norm, or weights and bias of the layer before (ReLU lets it
    pass); where others read the activation too, or a GELU made it, it is a multiplication.

    Attributes:
        alpha: a; share of the difficulty that moves into the weights, 0 to 1.
        multiply: Allow multiplications of their own; without, such activations stay as they are.
    """

    alpha: float = 0.7
    multiply: bool = True
    name: ClassVar[str] = "smooth-quant"
    summary: ClassVar[str] = "move outliers of activations into weights"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a strength outside 0..1.

        Raises:
            UsageError: it is.
        """
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"the smoothing strength is {self.alpha}", accepted="0 to 1")

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a float model in which a layer norm is followed by a product with weights."""
        if is_quantized(model):
            return "the model is quantized already"
        graph = Graph(model)
        if not graph.nodes("LayerNormalization"):
            return "the model has no layer norm"
        if not _groups(graph, multiply=self.multiply):
            return "no matrix product has its own constant weights"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model with other weights and the same outputs.

        Raises:
            UsageError: there are no samples.
        """
        import numpy as np
        import onnx

        if context.samples is None:
            raise UsageError("smoothing needs calibration data", hint="give it with `-c FOLDER`")
        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        graph = Graph(draft)
        groups = _groups(graph, multiply=self.multiply)
        peaks = _channel_peaks(model, [group.activation for group in groups], context)
        folded = multiplied = 0
        for group in groups:
            weights = [graph.constant(product.input[1]) for product in group.products]
            rows = np.max([np.abs(w).max(axis=1) for w in weights if w is not None], axis=0)
            peak = peaks[group.activation]
            if peak.shape != rows.shape:
                continue
            scale = _scales(peak, rows, self.alpha)
            if np.allclose(scale, 1.0, rtol=0.0, atol=_LEAST_SCALE):
                continue
            for product, weight in zip(group.products, weights, strict=True):
                if weight is not None:
                    product.input[1] = graph.add_constant(
                        f"{product.input[1]}_smooth", (weight * scale[:, None]).astype(np.float32)
                    )
            if group.absorbers:
                _divide_constants(graph, group.absorbers, scale)
                folded += 1
            else:
                _multiply(graph, group, scale)
                multiplied += 1
        if folded + multiplied == 0:
            return PassResult(model=model, modified=False)
        graph.sweep()
        counts = ((folded, "folded into the layer before"), (multiplied, "by a multiplication"))
        notes = tuple(f"{count} activations {what}" for count, what in counts if count)
        return PassResult(model=draft, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that names, dtypes and shapes of inputs and outputs stay.

        Raises:
            PassBroken: one of them changed.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its name, dtype or shape")


def _scales(peak: NDArray[Any], rows: NDArray[Any], alpha: float) -> NDArray[Any]:
    """Return one factor per channel; 1 where the channel or its weights are zero."""
    import numpy as np

    usable = (peak > 0) & (rows > 0)
    wide_peak = np.where(usable, peak, 1.0).astype(np.float64)
    wide_rows = np.where(usable, rows, 1.0).astype(np.float64)
    scale = wide_peak**alpha / wide_rows ** (1 - alpha)
    # One common factor changes no range relative to another; without it most weights keep theirs.
    scale /= np.exp(np.log(scale[usable]).mean()) if usable.any() else 1.0
    return np.where(usable, scale, 1.0)


def _groups(graph: Graph, *, multiply: bool) -> list[_Group]:
    """Return the activations whose readers are products with weights of their own."""
    found = []
    seen: set[str] = set()
    for product in graph.nodes("MatMul"):
        activation = product.input[0]
        if activation in seen or _weight(graph, product) is None:
            continue
        seen.add(activation)
        readers = graph.consumers(activation)
        products = tuple(
            node
            for node in readers
            if node.op_type == "MatMul"
            and node.input[0] == activation
            and _weight(graph, node) is not None
        )
        alone = len(products) == len(readers) and not graph.is_kept(activation)
        absorbers = _absorbers(graph, activation) if alone else ()
        wanted = graph.producer(activation, "LayerNormalization") or _is_gelu(graph, activation)
        if absorbers or (multiply and wanted):
            found.append(_Group(activation=activation, products=products, absorbers=absorbers))
    return found


def _weight(graph: Graph, product: Any) -> NDArray[Any] | None:
    value = graph.constant(product.input[1])
    fits = value is not None and value.ndim == 2 and value.dtype.name == "float32"
    return value if fits else None


def _is_gelu(graph: Graph, name: str) -> bool:
    node = graph.producer(name)
    return node is not None and node.op_type in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")


def _absorbers(graph: Graph, name: str) -> tuple[tuple[Any, int], ...]:
    """Return (node, input) of the constants that scale every channel of a value when scaled."""
    norm = graph.producer(name, "LayerNormalization")
    if norm is not None:
        constants = tuple((norm, i) for i in range(1, len(norm.input)) if norm.input[i])
        last = attribute(norm, "axis", -1) == -1 and len(norm.output) == 1
        fit = last and all(_is_vector(graph, norm.input[i]) for _, i in constants)
        return constants if fit else ()
    relu = graph.producer(name, "Relu")
    if relu is not None:
        name = relu.input[0]
        if len(graph.consumers(name)) > 1 or graph.is_kept(name):
            return ()
    plus = graph.producer(name, "Add")
    bias: tuple[tuple[Any, int], ...] = ()
    if plus is not None:
        side = next((i for i in (0, 1) if _is_vector(graph, plus.input[i])), None)
        if side is None:
            return ()
        bias, name = ((plus, side),), plus.input[1 - side]
        if len(graph.consumers(name)) > 1 or graph.is_kept(name):
            return ()
    product = graph.producer(name, "MatMul")
    if product is None or _weight(graph, product) is None:
        return ()
    return ((product, 1), *bias)


def _is_vector(graph: Graph, name: str) -> bool:
    value = graph.constant(name)
    return value is not None and value.ndim == 1 and value.dtype.name == "float32"


def _divide_constants(
    graph: Graph, absorbers: tuple[tuple[Any, int], ...], scale: NDArray[Any]
) -> None:
    import numpy as np

    for node, position in absorbers:
        value = graph.constant(node.input[position])
        if value is not None:
            node.input[position] = graph.add_constant(
                f"{node.input[position]}_smooth", (value / scale).astype(np.float32)
            )


def _multiply(graph: Graph, group: _Group, scale: NDArray[Any]) -> None:
    import numpy as np
    from onnx import helper

    factor = graph.add_constant("smooth_factor", (1.0 / scale).astype(np.float32))
    smooth = graph.fresh(f"{group.activation}_smooth")
    node = helper.make_node("Mul", [group.activation, factor], [smooth], smooth)
    graph.insert_after(group.activation, node)
    for product in group.products:
        product.input[0] = smooth


def _channel_peaks(model: Any, names: list[str], context: PassContext) -> dict[str, NDArray[Any]]:
    """Return the largest magnitude per channel (last axis) of activations over all samples.

    They are found once per model and kept in the working folder.
    """
    import numpy as np
    import onnx

    key = hashlib.sha256(f"{digest_of(model)} {sorted(names)}".encode()).hexdigest()
    kept = context.workdir / f"peaks-{key[:16]}.npz"
    if kept.is_file():
        with np.load(kept) as arrays:
            return {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = context.workdir / "peaks.onnx"
    try:
        onnx.save(probe, path)
        found = _run_peaks(path, names, context.samples, context)
    finally:
        path.unlink(missing_ok=True)
    np.savez(kept, *(found[name] for name in names))
    return found


def _run_peaks(
    path: Path, names: list[str], samples: Samples | None, context: PassContext
) -> dict[str, NDArray[Any]]:
    import numpy as np

    found: dict[str, NDArray[Any]] = {}
    session = open_session(path, 1)
    for position in range(len(samples or ())):
        context.reporter.progress(position, len(samples or ()), "find outliers")
        feeds = dict((samples or ())[position])
        for name, value in zip(names, session.run(names, feeds), strict=True):
            peak = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0)
            found[name] = np.maximum(found[name], peak) if name in found else peak
    return found
