"""MiniLM at sequence 128: size, speed and faithfulness of our int8 beside ONNX Runtime's own.

Faithfulness is the cosine with fp32 on 100 texts (news of the Lee corpus and their first
sentences), none used for calibration, and the rank correlation with WordSim-353.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.figures import Row, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.passes.contract import Pass

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "minilm"
MODULE: Final = ROOT / "tests" / "models" / "minilm.py"
TEXTS: Final = "gensim==4.4.0"
TARGETS: Final = ("cpu-x86_64-vnni", "cpu-x86_64")
_CALIBRATION_TEXTS: Final = 32
_SECONDS: Final = 8.0


@dataclass(frozen=True)
class Texts:
    """Tokenized: (ids, mask), int64 [texts, 128] each; words come in rated pairs."""

    calibration: tuple[Any, Any]
    evaluation: tuple[Any, Any]
    words: tuple[Any, Any]
    ratings: list[float]


def main() -> None:
    """Export the model, make every form, and print the table."""
    from packager.passes.fuse_transformer import FuseTransformer
    from packager.passes.int8_dynamic import Int8Dynamic
    from packager.passes.smooth_quant import SmoothQuant

    original, texts = export_model(), fetch_texts()
    fuse, dynamic = FuseTransformer(), Int8Dynamic()
    forms: dict[str, tuple[str, tuple[Pass, ...]]] = {
        "fp32 fused": (TARGETS[0], (fuse,)),
        **{f"int8 {target}": (target, (fuse, dynamic)) for target in TARGETS},
        **{f"int8 smoothed {t}": (t, (fuse, SmoothQuant(), dynamic)) for t in TARGETS},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {"fp32 as exported": original, "ONNX Runtime": folder / "plain.onnx"}
        quantize_plainly(original, paths["ONNX Runtime"])
        for title, (target, steps) in forms.items():
            paths[title] = folder / f"{len(paths)}.onnx"
            compress(original, texts, target, steps, paths[title])
        reference = embeddings(original, texts.evaluation)
        rows: list[Row] = []
        for title, path in paths.items():
            rows += _rows(title, original, path, texts, reference)
    print_table("MiniLM, sequence 128", rows)


def export_model() -> Path:
    """Return the float32 ONNX file, exported once as edgepack exports it."""
    from packager.console import Silent
    from packager.importers.load import import_model
    from packager.recipe import Recipe

    path = CACHE / "fp32.onnx"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(model=f"{MODULE}:make_model", name="minilm")
            model = import_model(recipe, workdir=Path(folder), reporter=Silent())
            shutil.copyfile(model.path, path)
    return path


def fetch_texts(folder: Path = CACHE) -> Texts:
    """Return the texts out of gensim's test data, downloaded once with pip and kept."""
    names = ("wordsim353.tsv", "lee.cor", "lee_background.cor")
    if not all((folder / name).is_file() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        subprocess.run([*download, TEXTS], check=True)
        (wheel,) = folder.glob("gensim-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                (folder / name).write_bytes(archive.read(f"gensim/test/test_data/{name}"))
        wheel.unlink()
    tokenize = _module().tokenize
    news, others = (
        (folder / name).read_text("latin-1").splitlines() for name in (names[1], names[2])
    )
    rated = [
        line.split("\t")
        for line in (folder / names[0]).read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return Texts(
        calibration=tokenize(others[:_CALIBRATION_TEXTS]),
        evaluation=tokenize([*news, *(text.split(". ")[0] for text in news)]),
        words=tokenize([word for row in rated for word in row[:2]]),
        ratings=[float(row[2]) for row in rated],
    )


def compress(original: Path, texts: Texts, target: str, steps: Sequence[Pass], path: Path) -> None:
    """Write what passes make of the model after clean-up.

    Raises:
        RuntimeError: one of them was left out.
    """
    import onnx

    from packager.console import Silent
    from packager.data import Samples
    from packager.passes.clean_up import CleanUp
    from packager.passes.contract import PassContext, apply
    from packager.target import find_target

    samples = Samples(
        [lambda index=index: _feeds(texts.calibration, index)
         for index in range(len(texts.calibration[0]))],
        digest="lee", origin="news", kind="npz",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as workdir:
        context = PassContext(
            target=find_target(target), samples=samples, probes=[samples[0], samples[1]],
            workdir=Path(workdir), reporter=Silent(),
        )  # fmt: skip
        model, reports = apply((CleanUp(), *steps), onnx.load(original), context)
    if any(report.status not in ("applied", "unchanged") for report in reports):
        raise RuntimeError(f"a pass was left out: {reports}")
    onnx.save(model, path)


def quantize_plainly(original: Path, path: Path) -> None:
    """Write what ONNX Runtime's `quantize_dynamic` makes with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(original, path)


def embeddings(path: Path, tokens: tuple[Any, Any]) -> Any:
    """Return the outputs of a model for each text: float32 [texts, 384]."""
    import numpy as np

    from packager.checks.latency import open_session

    session = open_session(path, 2)
    return np.concatenate(
        [session.run(None, _feeds(tokens, index))[0] for index in range(len(tokens[0]))]
    )


def rank_correlation(path: Path, texts: Texts) -> float:
    """Return Spearman's correlation of the cosines of word pairs with people's ratings."""
    import numpy as np

    vectors = embeddings(path, texts.words)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ranks = [_ranks((vectors[::2] * vectors[1::2]).sum(axis=1)), _ranks(np.array(texts.ratings))]
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Any) -> Any:
    """Return ranks from 0; equal values share the mean of theirs."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _feeds(tokens: tuple[Any, Any], index: int) -> dict[str, Any]:
    ids, mask = tokens
    return {"input_ids": ids[index : index + 1], "attention_mask": mask[index : index + 1]}


def _rows(title: str, original: Path, path: Path, texts: Texts, reference: Any) -> list[Row]:
    import numpy as np

    from packager.checks.latency import alternate

    got = embeddings(path, texts.evaluation)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(got, axis=1)
    cosines = (reference * got).sum(axis=1) / norms
    goal = title == f"int8 {TARGETS[0]}"
    # The longest text fills all 128 tokens; a short one is padded, as most requests are.
    lengths = texts.evaluation[1].sum(axis=1)
    full, short = (_feeds(texts.evaluation, int(i)) for i in (lengths.argmax(), lengths.argmin()))
    speeds = [
        (what, alternate(original, path, feeds, threads, min_pairs=40, max_seconds=_SECONDS,
                         target_confidence=0.9999).speedup)
        for what, feeds, threads in (
            ("1 thread", full, 1), ("2 threads", full, 2), ("1 thread, padded", short, 1),
        )
    ] if path != original else []  # fmt: skip
    return [
        Row(f"{title}: size", path.stat().st_size / 1e6, "MB", "23" if goal else ""),
        *(
            Row(f"{title}: speed-up, {what}", speed, "×",
                "2.6" if goal and what == "1 thread" else "", at_least=True)
            for what, speed in speeds
        ),
        Row(f"{title}: cosine, mean", float(cosines.mean()), "", "0.99" if goal else "",
            at_least=True),
        Row(f"{title}: cosine, least", float(cosines.min()), ""),
        Row(f"{title}: WordSim-353", rank_correlation(path, texts), "Spearman",
            "0.724" if goal else "", at_least=True),
    ]  # fmt: skip


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("minilm", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
