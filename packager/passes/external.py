"""Compresses a model whose weights lie in files beside it, one weight in memory at a time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.console import human_size
from packager.errors import ModelUnsupported
from packager.model import data_file
from packager.passes.contract import PassContext, tool_faults
from packager.passes.float16 import convert_external
from packager.passes.half_graph import FLOAT16
from packager.passes.quantizer import name_nodes
from packager.passes.weight_only import WeightOnly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

# The most that one protobuf, and so one self-contained ONNX file, can hold.
MOST_BYTES: Final = (1 << 31) - 1
# Smaller tensors stay inside: shapes and axes, which engines read before they look for weights.
_LEAST_EXTERNAL: Final = 1024
# Offsets that the operating system can map.
_ALIGNMENT: Final = 4096
_BLOCKS: Final = {
    "int8-weights": WeightOnly(),
    "int8-weights-int4-tables": WeightOnly(table_bits=4),
    "int4-weights": WeightOnly(bits=4),
}
LARGE_FORMS: Final = (*_BLOCKS, "fp16")


@dataclass(frozen=True, kw_only=True)
class ExternalModel:
    """A graph without its large tensors, and the folder that holds them.

    Attributes:
        proto: `onnx.ModelProto`; external tensors have no data.
        folder: Their files lie here.
    """

    proto: Any
    folder: Path

    def array(self, tensor: Any) -> NDArray[Any]:
        """Return a tensor's values: of an external one a read-only view on its file."""
        import numpy as np
        import onnx

        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        told = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        if 0 in shape:
            return np.zeros(shape, dtype)
        offset = int(told.get("offset", "0"))
        return np.memmap(self.folder / told["location"], dtype, "r", offset, shape)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of graph and tensors together."""
        outside = sum(
            tensor_bytes(tensor) for tensor in self.proto.graph.initializer if tensor.external_data
        )
        return int(self.proto.ByteSize()) + outside


def open_external(path: Path) -> ExternalModel:
    """Return a model whose external tensors stay where they are.

    The file must be linted already (`importers.lint`): references are followed as they stand.
    """
    import onnx

    return ExternalModel(proto=onnx.load(path, load_external_data=False), folder=path.parent)


def is_large(path: Path) -> bool:
    """Tell whether a model with its external tensors is too large for one protobuf."""
    return past_one_file(open_external(path).size_bytes)


def past_one_file(size_bytes: int) -> bool:
    """Tell whether a model of this size cannot be one self-contained file."""
    return size_bytes > MOST_BYTES


def tensor_bytes(tensor: Any) -> int:
    """Return the bytes that a tensor's dimensions and type take, two 4-bit values to a byte."""
    import onnx

    names = onnx.TensorProto
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (names.INT4, names.UINT4, names.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def save_external(
    proto: Any,
    path: Path,
    array: Callable[[Any], NDArray[Any]],
    *,
    most_bytes: int | None = None,
    one_file: bool = False,
) -> tuple[Path, ...]:
    """Write a model tensor by tensor; return its files, the graph's first.

    Up to `most_bytes` it is one self-contained file; else the large tensors lie in one file beside
    it, `NAME.onnx.data`, each at a multiple of 4096 bytes.

    Args:
        proto: The graph; dimensions and types of its initializers are final.
        path: Of the ONNX file; the folder must not be the one that `array` reads the file from
            under the same name.
        array: Gives the values of one initializer at a time.
        most_bytes: The most that one file may hold; None for what a protobuf can.
        one_file: Write nothing where it does not fit into one.

    Raises:
        ModelUnsupported: it does not fit into one file and has to.
    """
    import numpy as np
    import onnx

    most_bytes = MOST_BYTES if most_bytes is None else most_bytes
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    large = [t for t in proto.graph.initializer if tensor_bytes(t) >= _LEAST_EXTERNAL]
    total = plain.ByteSize() + sum(tensor_bytes(tensor) for tensor in large)
    beside = data_file(path)
    inside = total <= most_bytes
    if one_file and not inside:
        raise ModelUnsupported(f"{human_size(total)} do not fit into one file")
    part = beside.with_name(f"{beside.name}.part")
    try:
        with part.open("wb") as stream:
            for index, tensor in enumerate(proto.graph.initializer):
                if tensor_bytes(tensor) < _LEAST_EXTERNAL:
                    if not _holds_data(tensor):
                        held = onnx.numpy_helper.from_array(np.asarray(array(tensor)), tensor.name)
                        plain.graph.initializer[index].CopyFrom(held)
                    continue
                # Contiguous: a view on a file, or transposed, is copied, this one tensor alone.
                values = np.ascontiguousarray(array(tensor))
                placed = plain.graph.initializer[index]
                placed.Clear()
                placed.name, placed.data_type = tensor.name, tensor.data_type
                placed.dims.extend(tensor.dims)
                if inside:
                    placed.raw_data = values.tobytes()
                    continue
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                placed.data_location = onnx.TensorProto.EXTERNAL
                told = {"location": beside.name, "offset": stream.tell(), "length": values.nbytes}
                for key, value in told.items():
                    placed.external_data.add(key=key, value=str(value))
                values.tofile(stream)
                del values
        if not inside:
            part.replace(beside)
    finally:
        part.unlink(missing_ok=True)
    path.write_bytes(plain.SerializeToString(deterministic=True))
    return (path,) if inside else (path, beside)


def _holds_data(tensor: Any) -> bool:
    fields = {field.name for field, _ in tensor.ListFields()}
    return any(name.endswith("_data") and name != "external_data" for name in fields)


def quantize_large(
    path: Path,
    out: Path,
    context: PassContext,
    *,
    form: str,
    most_bytes: int | None = None,
    one_file: bool = False,
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write a compressed form of a model with external data; at no time is all of it in memory.

    Args:
        path: The linted ONNX file, its tensors beside it.
        out: The ONNX file to write.
        context: The target, and for fp16 the inputs on which ranges are measured; its working
            folder must be the model's own, as the engine reads external tensors from there.
        form: One of `LARGE_FORMS`.
        most_bytes: The most that one file may hold; None for what a protobuf can.
        one_file: Write nothing where it does not fit into one.

    Returns:
        The files written, and notes.

    Raises:
        ModelUnsupported: the form does not apply, the engine refuses the model, or the result does
            not fit into one file and has to.
    """
    if form not in LARGE_FORMS:
        raise ModelUnsupported(
            f"a model with external data has no form `{form}`", accepted=", ".join(LARGE_FORMS)
        )
    model = open_external(path)
    try:
        proto, array, notes = (
            _in_half(model, context) if form == "fp16" else _in_blocks(model, context, form)
        )
    except tool_faults() as fault:
        raise ModelUnsupported(f"`{path.name}` cannot be made {form}: {fault}") from fault
    files = save_external(proto, out, array, most_bytes=most_bytes, one_file=one_file)
    return files, notes


def _in_blocks(
    model: ExternalModel, context: PassContext, form: str
) -> tuple[Any, Callable[[Any], NDArray[Any]], tuple[str, ...]]:
    import onnx

    step = _BLOCKS[form]
    reason = step.requires(model.proto, context)
    if reason is not None:
        raise ModelUnsupported(f"the model cannot be made {form}: {reason}")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    name_nodes(proto)
    sources = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = step.find(proto)
    tables = any(layer.layout == "table" for layer in layers.values())
    if not layers or (step.table_bits is not None and not tables):
        what = "no embedding table" if layers else "no weight"
        raise ModelUnsupported(f"{what} is large enough to be kept in blocks")
    step.rewrite(proto, layers)
    placed: list[Any] = []
    origin: dict[str, str] = {}
    for name, tensor in sources.items():
        if name not in layers:
            placed.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
            continue
        for part, (shape, code) in step.part_kinds(name, layers[name]).items():
            placed.append(onnx.TensorProto(name=part, data_type=code, dims=shape))
            origin[part] = name
    held = _Latest(lambda name: step.parts(name, model.array(sources[name]), layers[name]))

    def array(tensor: Any) -> NDArray[Any]:
        source = origin.get(tensor.name)
        return model.array(tensor) if source is None else held[source][tensor.name]

    del proto.graph.initializer[:]
    proto.graph.initializer.extend(placed)
    return proto, array, (step.in_words(layers),)


class _Latest:
    """The parts of the weight asked for last: those of one weight are asked for in a row."""

    def __init__(self, make: Callable[[str], Mapping[str, NDArray[Any]]]) -> None:
        self._make = make
        self._name = ""
        self._parts: Mapping[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> Mapping[str, NDArray[Any]]:
        if name != self._name:
            self._parts = {}
            self._name, self._parts = name, self._make(name)
        return self._parts


def _in_half(
    model: ExternalModel, context: PassContext
) -> tuple[Any, Callable[[Any], NDArray[Any]], tuple[str, ...]]:
    if context.workdir.resolve() != model.folder.resolve():
        raise ValueError("ranges are measured in the model's own folder")
    proto, origin, notes = convert_external(model.proto, context, FLOAT16, model.array)
    sources = {tensor.name: tensor for tensor in model.proto.graph.initializer}

    def array(tensor: Any) -> NDArray[Any]:
        source = origin.get(tensor.name)
        if source is None:
            return model.array(tensor)
        return FLOAT16.round(model.array(sources[source]))

    return proto, array, notes


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process had, views on files included."""
    with Path("/proc/self/status").open(encoding="ascii") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a model's file and those that its tensors lie in, by name."""
    return (path, *sorted(set(_beside(path))))


def _beside(path: Path) -> Iterator[Path]:
    for tensor in open_external(path).proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield path.parent / os.fspath(entry.value)
