"""The text recogniser of rapidocr (PP-OCRv4): size, speed and characters read from drawings."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.lines import LEAST_WIDTH, character_accuracy, decode, make_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

INPUT: Final = "x"
TARGETS: Final = ("cpu-x86_64-vnni", "cpu-x86_64")
CALIBRATION: Final = 48
EVALUATION: Final = 200


def main() -> None:
    """Compress with ONNX Runtime's defaults and with edgepack's passes; print the table."""
    from packager.passes.contract import first_line, tool_faults

    # The quantizer warns of what is measured here.
    logging.disable(logging.WARNING)
    original = find_model()
    characters = read_characters(original)
    _, calibration = make_lines(CALIBRATION, seed=11)
    texts, evaluation = make_lines(EVALUATION, seed=1)
    single = next(line for line in evaluation if line.shape[3] == LEAST_WIDTH)
    fp32 = _accuracy(original, texts, evaluation, characters)
    rows = [
        Row("fp32, size", original.stat().st_size / 1e6, "MB"),
        Row("fp32, characters right", 100 * fp32, "%"),
    ]
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways: list[tuple[str, Callable[[Path], None]]] = [
            ("quantize_static", partial(quantize_plainly, original, calibration)),
            ("quantize_dynamic", partial(quantize_dynamically, original)),
            ("edgepack in float", partial(reshape, original, calibration)),
            *((f"edgepack {t}", partial(compress, original, calibration, t)) for t in TARGETS),
        ]
        for title, make in ways:
            path = folder / f"{title.replace(' ', '-')}.onnx"
            try:
                make(path)
                accuracy = _accuracy(path, texts, evaluation, characters)
            except tool_faults() as fault:
                failed.append(f"  {title}: {first_line(fault)}")
                continue
            is_goal = title == f"edgepack {TARGETS[0]}"
            rows += _rows(title, original, path, single, fp32 - accuracy, is_goal=is_goal)
    title = f"text recogniser: {CALIBRATION} lines to calibrate, {EVALUATION} others to read"
    print_table(title, rows)
    for line in failed:
        print(line)


def find_model() -> Path:
    """Return the recogniser's file in the package `rapidocr-onnxruntime`.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("install `rapidocr-onnxruntime` with `--no-deps`")
    return Path(spec.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def read_characters(path: Path) -> list[str]:
    """Return the characters that the classes after the blank stand for; a space is the last."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    (text,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    return [*text.splitlines(), " "]


def compress(original: Path, calibration: Sequence[np.ndarray], target: str, path: Path) -> None:
    """Write what edgepack makes of the model with the passes that are best for it.

    Scales folded, hard swish as two operators, convolutions and matrix products in static int8
    with rounded weights and float activations between them, depthwise convolutions in float.
    """
    import onnx

    from packager.passes.int8_static import WEIGHTED, Int8Static
    from packager.passes.revert_layers import depthwise_convolutions, revert_layers
    from packager.passes.round_weights import RoundWeights

    with tempfile.TemporaryDirectory() as folder:
        context = _context(calibration, target, Path(folder))
        reference = _reshaped(original, context)
        quantizer = RoundWeights(quantizer=Int8Static(operators=WEIGHTED))
        quantized = quantizer.run(reference, context).model
        names = depthwise_convolutions(reference)
        onnx.save(revert_layers(quantized, reference, names), path)


def reshape(original: Path, calibration: Sequence[np.ndarray], path: Path) -> None:
    """Write the model after the exact passes alone."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(_reshaped(original, _context(calibration, TARGETS[0], Path(folder))), path)


def quantize_plainly(original: Path, calibration: Sequence[np.ndarray], path: Path) -> None:
    """Write what ONNX Runtime's `quantize_static` makes with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._lines: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            line = next(self._lines, None)
            return None if line is None else {INPUT: line}

    quantize_static(original, path, Reader())


def quantize_dynamically(original: Path, path: Path) -> None:
    """Write what ONNX Runtime's `quantize_dynamic` makes with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(original, path)


def _reshaped(original: Path, context: Any) -> Any:
    import onnx

    from packager.passes.clean_up import CleanUp
    from packager.passes.contract import apply
    from packager.passes.fold_scales import FoldScales
    from packager.passes.fuse_transformer import FuseTransformer
    from packager.passes.hard_swish import HardSwish
    from packager.passes.quantizer import name_nodes
    from packager.passes.raise_opset import RaiseOpset

    steps = (CleanUp(), RaiseOpset(), FuseTransformer(), HardSwish(), FoldScales())
    model, reports = apply(steps, onnx.load(original), context)
    if any(report.status != "applied" for report in reports):
        raise RuntimeError(f"a pass was left out: {reports}")
    name_nodes(model)
    return model


def _context(calibration: Sequence[np.ndarray], target: str, folder: Path) -> Any:
    from packager.console import Silent
    from packager.data import Samples
    from packager.passes.contract import PassContext
    from packager.target import find_target

    samples = Samples(
        [lambda line=line: {INPUT: line} for line in calibration],
        digest="lines", origin="rendered lines", kind="npz",
    )  # fmt: skip
    return PassContext(
        target=find_target(target), samples=samples, probes=[samples[0], samples[1]],
        workdir=folder, reporter=Silent(),
    )  # fmt: skip


def _accuracy(
    path: Path, texts: Sequence[str], lines: Sequence[np.ndarray], characters: Sequence[str]
) -> float:
    from packager.checks.latency import open_session

    session = open_session(path, 1)
    read = [decode(session.run(None, {INPUT: line})[0], characters) for line in lines]
    return character_accuracy(texts, read)


def _rows(
    title: str, original: Path, path: Path, line: np.ndarray, drop: float, *, is_goal: bool
) -> list[Row]:
    from packager.checks.latency import alternate

    speedups = [
        alternate(original, path, {INPUT: line}, threads, target_confidence=0.9999).speedup
        for threads in (1, 2)
    ]
    reach = "1.6" if is_goal else ""
    return [
        Row(f"{title}, size", path.stat().st_size / 1e6, "MB"),
        Row(f"{title}, 1 thread", speedups[0], "× fp32", reach, at_least=is_goal),
        Row(f"{title}, 2 threads", speedups[1], "× fp32"),
        Row(f"{title}, characters lost", 100 * drop, "points", "0.5" if is_goal else ""),
    ]
