"""Runs a model on made-up inputs, whatever shapes its file declares, and under a time limit."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from packager.checks.bfloat16 import with_bfloat16
from packager.checks.latency import keep_outside
from packager.errors import ModelUnsupported
from packager.importers.lint import is_external
from packager.model import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    16: "bfloat16",
}  # fmt: skip
ELEM_TYPES: Final = {name: code for code, name in _DTYPES.items()}
STYLES: Final = ("mixed", "ones", "zeros", "negative")


class RunFailure(Exception):  # noqa: N818 - not an error: a probe that fails is a finding
    """The engine refused to load or run the model; the text is its reason in one line."""


def dtype_name(elem_type: int) -> str | None:
    """Return our name of an ONNX element type, None where no request can carry it."""
    return _DTYPES.get(elem_type)


def engine_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime's Python binding raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    found = [
        value
        for value in vars(binding).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*found, RuntimeError, ValueError, TypeError)


def kernel_hint(model: onnx.ModelProto, fault: BaseException) -> str | None:
    """Return what to do where the engine lacks an operator because it computes in bfloat16."""
    if "Could not find an implementation" not in str(fault):
        return None
    values = (*model.graph.input, *model.graph.output)
    kinds = {value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.BFLOAT16 not in kinds:
        return None
    return (
        "ONNX Runtime has few operators in bfloat16 on the CPU: compute in float32, and cast at "
        "the inputs and outputs where these have to be bfloat16"
    )


def reason(fault: BaseException) -> str:
    """Return the engine's message as one short line without its source locations."""
    text = " ".join(str(fault).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S+?\.(cc|h):\d+ ", "", text)
    text = re.sub(r"(onnxruntime|onnx)::\S+\([^)]*\)( const)? ?", "", text)
    text = re.sub(
        r"Non-zero status code returned while running (\w+) node\. "
        r"Name:'([^']*)' Status Message: ",
        r"operator \1 `\2`: ",
        text,
    ).replace(" ``:", ":")
    text = re.sub(r"(^| )(void|static \w+|common::Status) ", r"\1", text)
    text = re.sub(r"Load model from \S+ failed: ?", "", text)
    return text[:400].strip().rstrip(".") or type(fault).__name__


def sample(
    dtype: str, shape: Sequence[int], *, rng: np.random.Generator, style: str = "mixed"
) -> np.ndarray[Any, Any]:
    """Return a made-up tensor with values that few models refuse.

    Floats lie in [0, 1), so that logarithms, square roots and image nets are at ease; integers
    are 0 or 1, which are valid ids of any vocabulary; strings are short words.
    """
    if dtype == "string":
        words = {"zeros": ("",), "negative": ("0",), "ones": ("a",)}.get(style, ("a", "a b"))
        return rng.choice(np.array(words, dtype=object), size=shape)
    if style in ("ones", "zeros"):
        return np.full(shape, 1 if style == "ones" else 0, dtype=numpy_dtype(dtype))
    if "float" in dtype:
        values = rng.random(shape) if style == "mixed" else rng.standard_normal(shape)
        return np.asarray(values, dtype=numpy_dtype(dtype))
    return np.asarray(rng.integers(0, 2, shape), dtype)


class Probe:
    """An engine session over a copy of the model whose declared shapes are removed.

    Args:
        model: The whole model; external data, where there is any, lies in `folder`.
        folder: Where the copy is written for the time of loading.
        limit_s: Wall-clock limit of one run.
        source: What the user named, for messages.

    Raises:
        RunFailure: the engine does not load the model.
    """

    def __init__(
        self, model: onnx.ModelProto, *, folder: Path, limit_s: float, source: str
    ) -> None:
        import onnxruntime

        self._limit_s = limit_s
        self._source = source
        self._errors = engine_errors()
        path = folder / "probe.onnx"
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        for value in (*bare.graph.input, *bare.graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        path.write_bytes(bare.SerializeToString())
        del bare
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if any(map(is_external, model.graph.initializer)):
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.graph_optimization_level = level
            keep_outside(options)
        try:
            self._session = with_bfloat16(
                onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            )
        except self._errors as fault:
            self._memory_check(fault)
            raise RunFailure(reason(fault)) from fault
        finally:
            path.unlink()
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Run once and return the outputs by name.

        Raises:
            RunFailure: the engine refuses these inputs.
            ModelUnsupported: no answer within the limit, or the memory limit is reached.
        """
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            options.terminate = True

        timer = threading.Timer(self._limit_s, stop)
        timer.daemon = True
        timer.start()
        try:
            values = self._session.run(None, dict(feeds), options)
        except self._errors as fault:
            if expired.is_set():
                raise ModelUnsupported(
                    f"`{self._source}` gave no answer within {self._limit_s:g} s on a small probe "
                    "input: it may loop for ever"
                ) from fault
            self._memory_check(fault)
            raise RunFailure(reason(fault)) from fault
        finally:
            timer.cancel()
        return dict(zip(self.outputs, values, strict=True))

    def _memory_check(self, fault: BaseException) -> None:
        text = str(fault)
        if any(word in text for word in ("bad_alloc", "Failed to allocate memory", "BFCArena")):
            raise ModelUnsupported(
                f"`{self._source}` needs more memory than a model of its size may take: "
                f"{reason(fault)}"
            ) from fault
