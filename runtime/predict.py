"""Runs one inference per input file, and shows top classes or a compact view of the outputs."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .detect import check_fits, detect_device
from .engine import describe_choice, open_engine
from .errors import InputOutputFault, UsageFault
from .npz import read_npy, read_npz, write_npz
from .release import Release, open_release
from .results import Result, read_lines, read_results, show
from .signature import Signature
from .tensor import Tensor

_PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_SHOWN_ELEMENTS = 8
_SHOWN_ROWS = 20


def run_predict(
    path: str,
    inputs: Sequence[str],
    *,
    output: Optional[str],
    top: int,
    threads: Optional[int],
    as_json: bool,
) -> List[str]:
    """Return the lines to print.

    Args:
        path: The bundle or release.
        inputs: `.npz` files with one array per input name, `.npy` for a model of one input, or
            `.txt` with a text per line for a model that takes text.
        output: Where the outputs go as `.npz`, one array per output name.
        top: Classes shown per row where an output has labels.
        threads: Intra-op threads; None for the manifest's choice.
        as_json: One JSON document instead of text.

    Raises:
        UsageFault: an input file of another kind.
        BadRequest: arrays that the signature does not allow.
        TargetMismatch: the bundle is for another machine.
    """
    if output is not None and len(inputs) != 1:
        raise UsageFault("`-o` holds the outputs of one input file", "one `-i` for each `-o`")
    with open_release(path, True) as release:
        check_fits(release.manifest, detect_device())
        signature = Signature(release.manifest["model"]["signature"])
        requests = [_read_feeds(name, signature, release) for name in inputs]
        for feeds in requests:
            signature.check(feeds)
        engine = open_engine(release, threads)
        try:
            answers = [engine.run(feeds, list(signature.outputs)) for feeds in requests]
        finally:
            engine.close()
        if output is not None:
            write_npz(output, answers[0])
        labels = _read_labels(release)
        known = read_results(release.manifest, release)
        results: List[Dict[str, Any]] = [
            {"input": os.path.basename(name), "outputs": _describe(outputs, labels, top, known)}
            for name, outputs in zip(inputs, answers)  # noqa: B905 - CPython 3.8 has no strict
        ]
        choice = describe_choice(engine)
        if as_json:
            document: Dict[str, Any] = {
                "model": release.manifest["name"],
                "version": release.manifest["version"],
                "engine": "%s %s" % (engine.name, engine.version),
                "precision": engine.precision,
                "results": results,
            }
            if choice is not None:
                document["accelerator"] = choice
            return [json.dumps(document, ensure_ascii=False, indent=2)]
    lines: List[str] = []
    for result in results:
        lines.append(result["input"] + ":")
        for name, view in result["outputs"].items():
            lines.extend(_lines(name, view))
    return lines if choice is None else [*lines, "engine: " + choice]


def _read_feeds(path: str, signature: Signature, release: Release) -> Dict[str, Tensor]:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _PHOTOS:
        raise UsageFault(
            "`%s` is a photo, and a device decodes none" % path,
            "edgepack predict on the build host, or hand the pixels over as .npz",
        )
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".txt":
        return _read_texts(path, release)
    if suffix == ".wav":
        raise UsageFault(
            "`%s` is a sound file, and a device decodes none" % path,
            "edgepack predict on the build host, or hand the samples over as .npz",
        )
    if suffix != ".npy":
        raise UsageFault(
            "`%s` is no input file" % path, "give an .npz with one array per input name"
        )
    if len(signature.inputs) != 1:
        raise UsageFault(
            "`%s` holds one array, and the model takes %d inputs" % (path, len(signature.inputs)),
            "give an .npz with the arrays %s" % ", ".join("`%s`" % n for n in signature.inputs),
        )
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as fault:
        raise InputOutputFault(
            "`%s` cannot be read: %s" % (path, (fault.strerror or str(fault)).lower())
        ) from fault
    return {next(iter(signature.inputs)): read_npy(data, path)}


def _read_texts(path: str, release: Release) -> Dict[str, Tensor]:
    """Return one row per line that is not empty."""
    if not release.manifest["model"].get("text"):
        raise UsageFault("`%s` holds text, and the model takes none" % path, "give an .npz")
    from .wordpiece import open_tokenizer

    try:
        with open(path, encoding="utf-8") as stream:
            lines = [line.rstrip("\n") for line in stream]
    except OSError as fault:
        raise InputOutputFault(
            "`%s` cannot be read: %s" % (path, (fault.strerror or str(fault)).lower())
        ) from fault
    except UnicodeDecodeError as fault:
        raise UsageFault("`%s` is not UTF-8" % path, "save it as UTF-8") from fault
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageFault("`%s` holds no text" % path, "one text per line")
    return open_tokenizer(release.manifest, release).encode(texts)


def _read_labels(release: Release) -> Dict[str, List[str]]:
    labels = {}
    for output, path in release.manifest["model"].get("labels", {}).items():
        labels[output] = read_lines(release.path(path))
    return labels


def _describe(
    outputs: Mapping[str, Tensor],
    labels: Mapping[str, List[str]],
    top: int,
    results: Sequence[Result],
) -> Dict[str, Any]:
    views: Dict[str, Any] = {}
    known = show(results, outputs)
    taken = {name for view in known.values() for name in view.pop("takes", ())}
    for name, tensor in outputs.items():
        view: Dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        if name in known:
            views[name] = {**view, **known[name]}
            continue
        if name in taken:
            continue
        names = labels.get(name)
        flat = tensor.to_flat()
        if names and tensor.shape and tensor.shape[-1] == len(names):
            rows = [flat[at : at + len(names)] for at in range(0, len(flat), len(names))]
            view["top"] = [_top_classes(row, names, top) for row in rows]
        else:
            view["data"] = [_plain(value) for value in flat]
        views[name] = view
    return views


def _top_classes(row: Sequence[float], names: Sequence[str], top: int) -> List[Dict[str, Any]]:
    # A NaN is never among the best, and ties go to the lower index, as with argmax.
    order = sorted(
        range(len(row)), key=lambda at: (math.isnan(row[at]), -row[at] if row[at] == row[at] else 0)
    )
    return [{"label": names[at], "index": at, "score": _plain(row[at])} for at in order[:top]]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lines(name: str, view: Mapping[str, Any]) -> List[str]:
    title = "  %s %s%s" % (name, view["dtype"], view["shape"])
    if "texts" in view:
        return ["%s: %s" % (title, text) for text in view["texts"]]
    if "found" in view:
        return [title] + [
            "    %s  %s  [%s]"
            % (box["label"], _short(box["score"]), ", ".join(map(_short, box["box"])))
            for box in view["found"]
        ]
    if "top" not in view:
        data = view["data"]
        shown = ", ".join(_short(value) for value in data[:_SHOWN_ELEMENTS])
        return ["%s: %s%s" % (title, shown, ", …" if len(data) > _SHOWN_ELEMENTS else "")]
    lines = []
    for row in view["top"][:_SHOWN_ROWS]:
        width = max(len(entry["label"]) for entry in row)
        lines.append(title)
        lines.extend("    %-*s  %s" % (width, e["label"], _short(e["score"])) for e in row)
    if len(view["top"]) > _SHOWN_ROWS:
        lines.append("    and %d rows more" % (len(view["top"]) - _SHOWN_ROWS))
    return lines


def _short(value: Any) -> str:
    return "%.6g" % value if isinstance(value, float) else str(value)
