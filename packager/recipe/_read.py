"""Reads `edgepack.toml` into the values of a Recipe."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, UsageError
from packager.recipe._inputs import AudioInput, ColumnsInput, ImageInput, TextInput
from packager.recipe._nouns import (
    OBJECTIVES,
    PRECISIONS,
    Compression,
    TensorRTOptions,
    Training,
)
from packager.recipe._outputs import BoxOutputs, OutputSteps
from packager.recipe._serving import BATCHING, Privacy, Sequences, Server
from packager.recipe._words import (
    model_word,
    parse_dim,
    parse_drop,
    parse_duration,
    parse_shape,
    parse_source,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CHOICES: Final[dict[type[Any], dict[str, tuple[str, ...]]]] = {
    ImageInput: {
        "interpolation": ("bilinear", "bicubic"),
        "layout": ("nchw", "nhwc"),
        "channels": ("rgb", "bgr"),
    },
    AudioInput: {
        "features": ("waveform", "mel"),
        "mel_scale": ("htk", "slaney"),
        "logarithm": ("none", "ln", "log10", "db"),
        "layout": ("mels-frames", "frames-mels"),
    },
    OutputSteps: {"activation": ("none", "softmax", "sigmoid")},
    BoxOutputs: {
        "form": ("xyxy", "cxcywh", "xywh"),
        "activation": ("none", "softmax", "sigmoid"),
    },
    Compression: {"objective": OBJECTIVES, "precision": PRECISIONS},
    Training: {"sparsity": ("", "2:4")},
    Server: {"batching": BATCHING},
}
# Words that name a Python function in a file beside the recipe.
_FUNCTIONS: Final = ("transform", "function", "metric", "student")
_INPUTS: Final = {"image": ImageInput, "audio": AudioInput, "columns": ColumnsInput}
_SHORTEST_KEEP_S: Final = 60.0
_FIELD_OF_INPUT: Final = {"image": "images", "audio": "audio", "columns": "columns"}


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file into the keyword arguments of Recipe; paths become absolute.

    Raises:
        UsageError: not TOML, an unknown key, or a value that cannot be.
        InputOutputError: the file cannot be read.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UsageError(f"`{path}` is not valid TOML: {fault}") from fault
    folder = path.resolve().parent
    known = {"model", "name", "version", "targets", "sequence", "shape", "dim", "calibration",
             "evaluation", "label", "golden", "seed", "input", "text", "output", "boxes",
             "compress", "train", "server", "sequences", "privacy", "tensorrt"}  # fmt: skip
    _refuse_unknown(table, known, where="", origin=path.name)
    values: dict[str, Any] = {"file": path}
    kinds = {"name": str, "version": str, "sequence": int, "seed": int, "label": str}
    for key, kind in kinds.items():
        if key in table:
            values[key] = _typed(table[key], kind, key, path.name)
    if "model" in table:
        values["model"] = model_word(_typed(table["model"], str, "model", path.name), folder)
    if "targets" in table:
        values["targets"] = _strings(table["targets"], "targets", path.name)
    if "golden" in table:
        values["golden"] = folder / _typed(table["golden"], str, "golden", path.name)
    for key in ("calibration", "evaluation"):
        if key in table:
            values[key] = parse_source(_typed(table[key], str, key, path.name), folder)
    shapes = _typed(table.get("shape", {}), dict, "shape", path.name)
    values["shapes"] = {
        name: parse_shape(_typed(text, str, f"shape.{name}", path.name), name=name)
        for name, text in shapes.items()
    }
    dims = _typed(table.get("dim", {}), dict, "dim", path.name)
    values["dims"] = {
        name: parse_dim(_typed(text, str, f"dim.{name}", path.name), name=name)
        for name, text in dims.items()
    }
    values.update({field: {} for field in _FIELD_OF_INPUT.values()})
    for name, entry in _typed(table.get("input", {}), dict, "input", path.name).items():
        _refuse_unknown(entry, set(_INPUTS), where=f"input.{name}.", origin=path.name)
        for word in entry:
            where = f"input.{name}.{word}."
            values[_FIELD_OF_INPUT[word]][name] = _plain(
                _INPUTS[word], entry[word], where, path.name, folder
            )
    values["outputs"] = {
        name: _plain(OutputSteps, entry, f"output.{name}.", path.name, folder)
        for name, entry in _typed(table.get("output", {}), dict, "output", path.name).items()
    }
    parts = {"text": TextInput, "boxes": BoxOutputs, "compress": Compression, "train": Training,
             "server": Server, "sequences": Sequences, "privacy": Privacy,
             "tensorrt": TensorRTOptions}  # fmt: skip
    for key, cls in parts.items():
        if key in table:
            values[key] = _plain(cls, table[key], f"{key}.", path.name, folder)
    return values


def _plain(cls: type[Any], table: Any, where: str, origin: str, folder: Path) -> Any:
    table = _typed(table, dict, where.rstrip("."), origin)
    known = {f.name.removesuffix("_s"): f for f in fields(cls)}
    _refuse_unknown(table, set(known), where=where, origin=origin)
    values: dict[str, Any] = {}
    for name, f in known.items():
        key = f"{where}{name}"
        if name not in table:
            if f.default is MISSING and f.default_factory is MISSING:
                raise UsageError(f"`{origin}` lacks the key `{key}`")
            continue
        values[f.name] = _value(f, table[name], key, origin, folder)
        choices = _CHOICES.get(cls, {}).get(name)
        if choices is not None and values[f.name] not in choices:
            raise UsageError(
                f"`{origin}`: `{key}` is `{values[f.name]}`",
                accepted=" or ".join(f"`{word}`" for word in choices),
            )
    made = cls(**values)
    if isinstance(made, TensorRTOptions) and (made.workspace_mib < 0 or made.dla_core < -1):
        raise UsageError(f"`{origin}`: the numbers of `{where.rstrip('.')}` count from 0")
    if isinstance(made, ImageInput):
        _check_image(made, where, origin)
    if isinstance(made, Server):
        _check_server(made, where, origin)
    if isinstance(made, Sequences):
        _check_sequences(made, where, origin)
    if isinstance(made, Privacy):
        _check_privacy(made, where, origin)
    for name in ("mean", "std"):
        if isinstance(made, ColumnsInput) and len(getattr(made, name)) not in {0, len(made.names)}:
            raise UsageError(f"`{origin}`: `{where}{name}` must have one number per column")
    return made


def _value(f: Any, value: Any, key: str, origin: str, folder: Path) -> Any:
    kind = str(f.type).split(" | ", maxsplit=1)[0]
    if kind == "Path":
        return folder / _typed(value, str, key, origin)
    if kind == "Drop":
        return parse_drop(_typed(value, str, key, origin))
    if f.name.endswith("_s"):
        return parse_duration(_typed(value, str, key, origin))
    if f.name in _FUNCTIONS:
        return model_word(_typed(value, str, key, origin), folder)
    if kind.startswith("tuple[str"):
        return _strings(value, key, origin)
    if kind.startswith("Mapping[str"):
        table = _typed(value, dict, key, origin)
        return {name: _typed(item, str, f"{key}.{name}", origin) for name, item in table.items()}
    if kind.startswith("tuple"):
        element = int if kind.startswith("tuple[int") else (int, float)
        return tuple(_typed(v, element, key, origin) for v in _typed(value, list, key, origin))
    kinds: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    return _typed(value, kinds[kind], key, origin)


def _check_server(server: Server, where: str, origin: str) -> None:
    least = {"max_json_kb": 1, "queue": 1, "workers": 1, "batch_rows": 0, "batch_wait_ms": 0,
             "threads": 0}  # fmt: skip
    for name, lowest in least.items():
        value = getattr(server, name)
        if value is not None and value < lowest:
            raise UsageError(f"`{origin}`: `{where}{name}` must be at least {lowest}")


def _check_sequences(sequences: Sequences, where: str, origin: str) -> None:
    if not sequences.state:
        raise UsageError(
            f"`{origin}`: `{where}state` names no state",
            hint='an input by the output that feeds it: `state = { h_in = "h_out" }`',
        )
    for name, lowest in (("max_sequences", 1), ("chunk", 0)):
        if getattr(sequences, name) < lowest:
            raise UsageError(f"`{origin}`: `{where}{name}` must be at least {lowest}")
    if sequences.axis is not None and sequences.axis < 0:
        raise UsageError(f"`{origin}`: `{where}axis` counts from 0")
    if (sequences.axis is None) != (sequences.chunk == 0):
        raise UsageError(
            f"`{origin}`: `{where}axis` and `{where}chunk` need each other",
            hint="`axis = 1` and `chunk = 16` cut a streamed request into pieces of 16",
        )


def _check_privacy(privacy: Privacy, where: str, origin: str) -> None:
    if not 0 <= privacy.capture <= 1:
        raise UsageError(
            f"`{origin}`: `{where}capture` is a share of requests, 0 to 1",
            hint="`capture = 0.01` keeps one request in a hundred",
        )
    if privacy.keep_s < _SHORTEST_KEEP_S:
        raise UsageError(f"`{origin}`: `{where}keep` must be at least a minute")
    if len(set(privacy.mask)) < len(privacy.mask):
        raise UsageError(f"`{origin}`: `{where}mask` names an input twice")


def _check_image(image: ImageInput, where: str, origin: str) -> None:
    if len(image.size) != 2 or min(image.size) < 1:
        raise UsageError(f"`{origin}`: `{where}size` must be [height, width]")
    if len(image.mean) != 3 or len(image.std) != 3 or min(map(abs, image.std)) == 0:
        raise UsageError(
            f"`{origin}`: `{where}mean` and `{where}std` must be three numbers, std not 0"
        )
    if image.resize is not None and image.letterbox:
        raise UsageError(f"`{origin}`: `{where}resize` and `{where}letterbox` exclude each other")
    if image.resize is not None and image.resize < max(image.size):
        raise UsageError(f"`{origin}`: `{where}resize` is smaller than the crop")
    if not 0 <= image.fill <= 255:
        raise UsageError(f"`{origin}`: `{where}fill` must be in 0..255")


def _typed(value: Any, kind: Any, key: str, origin: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", int: "an integer", dict: "a table", list: "a list"}
        raise UsageError(f"`{origin}`: `{key}` must be {names.get(kind, 'a number or a boolean')}")
    return value


def _strings(value: Any, key: str, origin: str) -> tuple[str, ...]:
    return tuple(_typed(item, str, key, origin) for item in _typed(value, list, key, origin))


def _refuse_unknown(table: Mapping[str, Any], known: set[str], *, where: str, origin: str) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"`{origin}`: `{where.rstrip('.')}` must be a table")
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"`{origin}` has an unknown key `{where}{key}`",
                accepted="one of " + ", ".join(sorted(known)),
                hint=f"did you mean `{where}{close[0]}`?" if close else None,
            )
