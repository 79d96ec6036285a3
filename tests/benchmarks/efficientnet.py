"""EfficientNet-Lite0 in int8: size, speed and how often it agrees with float32, on real photos."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.photos import ROOT, Photos, fetch_photos

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

EXAMPLE: Final = ROOT / "docs" / "examples" / "efficientnet_lite0.py"
CACHE: Final = ROOT / ".cache" / "efficientnet"
INPUT: Final = "image"
TARGETS: Final = ("cpu-x86_64-vnni", "cpu-x86_64")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How near a model is to the float32 one on the photos to compare on.

    Attributes:
        agreement: Share of photos with the same first class.
        cosine: Mean over the photos of the cosine of the logits.
        top1: Share of the labelled photos whose first class is the label.
    """

    agreement: float
    cosine: float
    top1: float


def main() -> None:
    """Quantize with ONNX Runtime's defaults and with edgepack for each target; print the table."""
    import numpy as np

    photos = fetch_photos()
    calibration, evaluation = load_photos(photos.calibration), load_photos(photos.evaluation)
    names = [path.name for path in sorted(photos.evaluation.iterdir())]
    labels = np.array([photos.labels.get(name, -1) for name in names])
    original = export_model()
    reference = logits(original, evaluation)
    rows = [
        Row("fp32, size", original.stat().st_size / 1e6, "MB"),
        Row("fp32, top-1 of the labelled photos", _quality(reference, reference, labels).top1, ""),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "plain.onnx"
        quantize_plainly(original, calibration, plain)
        made = [("ONNX Runtime's defaults", plain, False)]
        for target in TARGETS:
            path = folder / f"{target}.onnx"
            compress(original, calibration, target, path, folder)
            made.append((f"edgepack {target}", path, target == TARGETS[0]))
        for title, path, is_goal in made:
            found = _quality(reference, logits(path, evaluation), labels)
            rows += _rows(title, found, original, path, evaluation[0], is_goal=is_goal)
    title = f"EfficientNet-Lite0: {len(calibration)} photos to calibrate, {len(evaluation)} others"
    print_table(f"{title} to compare on, {(labels >= 0).sum()} of them labelled", rows)


def load_photos(folder: Path) -> np.ndarray:
    """Return the photos of a folder, by name, as the model takes them: float32 [n, 3, 224, 224]."""
    import numpy as np
    from PIL import Image

    transform: Callable[[Any], np.ndarray] = getattr(_example(), "transform")  # noqa: B009
    return np.stack([transform(Image.open(path)) for path in sorted(folder.iterdir())])


def export_model() -> Path:
    """Return the float32 ONNX file, exported once as edgepack exports it."""
    from packager.console import Silent
    from packager.importers.load import import_model
    from packager.recipe import Recipe

    path = CACHE / "fp32.onnx"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(model=f"{EXAMPLE}:make_model", name="efficientnet-lite0")
            model = import_model(recipe, workdir=Path(folder), reporter=Silent())
            shutil.copyfile(model.path, path)
    return path


def compress(
    original: Path, calibration: np.ndarray, target: str, path: Path, folder: Path
) -> None:
    """Write what edgepack makes of the model with the passes that are best for it.

    Ranges of least squared error, weights rounded to the data, biases corrected, the first two
    layers in float.
    """
    import onnx

    from packager.console import Silent
    from packager.data import Samples
    from packager.passes.clean_up import CleanUp
    from packager.passes.contract import PassContext, apply
    from packager.passes.correct_bias import CorrectBias
    from packager.passes.int8_static import Int8Static
    from packager.passes.round_weights import RoundWeights
    from packager.target import find_target

    samples = Samples(
        [lambda photo=photo: {INPUT: photo[None]} for photo in calibration],
        digest="photos", origin="photos", kind="npz",
    )  # fmt: skip
    workdir = folder / target
    workdir.mkdir()
    context = PassContext(
        target=find_target(target), samples=samples, probes=[samples[0], samples[1]],
        workdir=workdir, reporter=Silent(),
    )  # fmt: skip
    static = Int8Static(calibration="mse", float_layers=2)
    steps = (CleanUp(), CorrectBias(quantizer=RoundWeights(quantizer=static)))
    model, reports = apply(steps, onnx.load(original), context)
    if any(report.status != "applied" for report in reports):
        raise RuntimeError(f"a pass was left out: {reports}")
    onnx.save(model, path)


def quantize_plainly(original: Path, calibration: np.ndarray, path: Path) -> None:
    """Write what ONNX Runtime's `quantize_static` makes with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._photos: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            photo = next(self._photos, None)
            return None if photo is None else {INPUT: photo[None]}

    quantize_static(original, path, Reader())


def logits(path: Path, photos: np.ndarray) -> np.ndarray:
    """Return the outputs of a model for each photo: float32 [n, 1000]."""
    import numpy as np

    from packager.checks.latency import open_session

    session = open_session(path, 2)
    return np.concatenate([session.run(None, {INPUT: photo[None]})[0] for photo in photos])


def _quality(reference: np.ndarray, got: np.ndarray, labels: np.ndarray) -> Quality:
    import numpy as np

    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(got, axis=1)
    labelled = labels >= 0
    return Quality(
        agreement=float((reference.argmax(axis=1) == got.argmax(axis=1)).mean()),
        cosine=float(((reference * got).sum(axis=1) / norms).mean()),
        top1=float((got.argmax(axis=1) == labels)[labelled].mean()),
    )


def _rows(
    title: str, quality: Quality, original: Path, path: Path, photo: np.ndarray, *, is_goal: bool
) -> list[Row]:
    from packager.checks.latency import alternate

    def row(what: str, value: float, unit: str, reach: str, *, at_least: bool = True) -> Row:
        return Row(f"{title}, {what}", value, unit, reach if is_goal else "", at_least=at_least)

    speed = [
        alternate(original, path, {INPUT: photo[None]}, threads, min_pairs=30).speedup
        for threads in (1, 2)
    ]
    return [
        row("size", path.stat().st_size / 1e6, "MB", "5.2 MB", at_least=False),
        row("speed at one thread", speed[0], "x", "2.0 x"),
        row("speed at two threads", speed[1], "x", ""),
        row("top-1 agreement with fp32", quality.agreement, "", "0.97"),
        row("cosine of the logits", quality.cosine, "", "0.998"),
        row("top-1 of the labelled photos", quality.top1, "", ""),
    ]


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", EXAMPLE)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"`{EXAMPLE}` is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


__all__ = ["Photos", "compress", "export_model", "fetch_photos", "load_photos", "main"]
