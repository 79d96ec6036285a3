"""Runs one inference per input file, and shows top classes or a compact view of the outputs."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import codecache
from .detect import check_fits, detect_device
from .engine import describe_choice, open_engine
from .errors import BadRequest, InputOutputFault, UsageFault
from .mediatypes import kind_of_file
from .npz import read_npy, read_npz, write_npz
from .release import Release, open_release
from .results import Result, read_lines, read_results, show
from .sequences import from_zeros
from .signature import Signature
from .tensor import Tensor

# What only the build host decodes.
_OTHER_PHOTOS = (".bmp", ".webp", ".tif", ".tiff", ".gif")
# The most that a file's inputs may take: a part of the memory that the target promises.
_SHARE_OF_MEMORY = 16
_LEAST_BYTES = 16 << 20
_MOST_TEXT_BYTES = 64 << 20
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
            what `/predict` takes: a photo, a sound, a table, or lines of text.
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
        # of a model with state, each request begins a sequence of its own
        sequences = release.manifest.get("sequences")
        signature = Signature((sequences or release.manifest["model"])["signature"])
        requests = [_read_feeds(name, signature, release) for name in inputs]
        for feeds in requests:
            signature.check(feeds)
        engine = open_engine(release, threads)
        try:
            run = from_zeros(sequences, engine.run) if sequences else engine.run
            answers = [run(feeds, list(signature.outputs)) for feeds in requests]
        finally:
            engine.close()
        codecache.keep()
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
    if suffix == ".npz":
        return _rounded(read_npz(path), signature)
    kind = kind_of_file(path)
    if kind is not None or suffix in _OTHER_PHOTOS:
        return _read_body(path, kind, signature, release)
    if suffix != ".npy":
        raise UsageFault(
            "`%s` is no input file" % path, "give an .npz with one array per input name"
        )
    if len(signature.inputs) != 1:
        raise UsageFault(
            "`%s` holds one array, and the model takes %d inputs" % (path, len(signature.inputs)),
            "give an .npz with the arrays %s" % ", ".join("`%s`" % n for n in signature.inputs),
        )
    feeds = {next(iter(signature.inputs)): read_npy(_read_file(path), path)}
    return _rounded(feeds, signature)


def _rounded(feeds: Dict[str, Tensor], signature: Signature) -> Dict[str, Tensor]:
    """Return float32 arrays as bfloat16 where the model takes that: NumPy has none to save.

    Raises:
        BadRequest: a number is not finite as bfloat16.
    """
    for name, tensor in feeds.items():
        spec = signature.inputs.get(name)
        if spec is not None and spec.dtype == "bfloat16" and tensor.dtype == "float32":
            shape = tensor.shape
            feeds[name] = Tensor.from_flat(tensor.to_flat(), shape, spec.dtype, where=name)
    return feeds


def _read_body(
    path: str, kind: Optional[str], signature: Signature, release: Release
) -> Dict[str, Tensor]:
    """Return the inputs that a file holds which could as well be sent to `/predict`."""
    served = release.manifest.get("bodies", {})
    if kind is None or kind not in served:
        raise UsageFault(
            "`%s` is of no kind that this bundle decodes" % path,
            "give an .npz with one array per input name%s"
            % "".join(", or `%s`" % one for one in sorted(served)),
        )
    from .bodies import Bodies

    tokenize = None
    if release.manifest["model"].get("text"):
        from .wordpiece import open_tokenizer

        tokenize = open_tokenizer(release.manifest, release).encode
    memory_bytes = int(release.manifest["target"].get("memory_mib", 0)) << 20
    bodies = Bodies(
        release,
        signature,
        most_bytes=max(memory_bytes // _SHARE_OF_MEMORY, _LEAST_BYTES),
        most_text_bytes=_MOST_TEXT_BYTES,
        tokenize=tokenize,
    )
    try:
        return bodies.decode(kind, _read_file(path, bodies.most_body_bytes(kind)))
    except BadRequest as fault:
        raise BadRequest("`%s`: %s" % (path, fault.message), hint=fault.hint) from fault


def _read_file(path: str, most_bytes: Optional[int] = None) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read() if most_bytes is None else stream.read(most_bytes + 1)
    except OSError as fault:
        raise InputOutputFault(
            "`%s` cannot be read: %s" % (path, (fault.strerror or str(fault)).lower())
        ) from fault
    if most_bytes is not None and len(data) > most_bytes:
        raise UsageFault("`%s` has more than %d bytes" % (path, most_bytes))
    return data


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
