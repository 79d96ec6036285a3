"""A recipe: what the user wants, from `edgepack.toml` and the command line."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}")
_DIM = re.compile(r"(?P<min>[0-9]+)(\.\.(?P<max>[0-9]+))?(,opt=(?P<opt>[0-9]+))?")
PRECISIONS = ("auto", "fp32", "int8", "int8-static", "int8-dynamic")


@dataclass(frozen=True, kw_only=True)
class DimRange:
    """The sizes of a dynamic dimension that requests may have."""

    min: int
    max: int
    opt: int


DEFAULT_BATCH = DimRange(min=1, max=32, opt=1)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How a photo becomes an input; everything after decoding is compiled into the graph.

    The order is: resize, center crop, scale to 0..1 (where `scale`), subtract mean, divide by std.

    Attributes:
        size: Height and width that the model gets.
        resize: Size of the shorter side before the crop; None resizes both sides to `size`.
        interpolation: `bilinear` or `bicubic`, both with antialiasing, as Pillow does it.
        scale: Divide by 255 first, so that mean and std are in 0..1.
        mean: Per channel, in the unit of the values at that point.
        std: Per channel.
        layout: `nchw` or `nhwc`, as the model wants it.
        channels: `rgb` or `bgr`.
        labels: A text file with one class name per line, for the first output.
        transform: The training transform as `file.py:function` (PIL image → array like the
            model's input, without the batch axis), which the compiled one is compared with.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None
    interpolation: str = "bilinear"
    scale: bool = True
    layout: str = "nchw"
    channels: str = "rgb"
    labels: Path | None = None
    transform: str | None = None


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What compression may do.

    Attributes:
        precision: One of PRECISIONS; `auto` takes the fastest candidate that passes.
        min_cosine: A candidate whose mean cosine similarity is below has drifted.
        min_agreement: A candidate whose top-1 agreement is below has drifted, where at least 20
            rows were compared: among fewer, one changed answer weighs too much.
        op_types: Operators that static int8 quantizes; empty for the pass's own choice.
    """

    precision: str = "auto"
    min_cosine: float = 0.99
    min_agreement: float = 0.9
    op_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the generated server does.

    Attributes:
        threads: Intra-op threads; None takes the target's.
        metrics, openapi, plain: Serve `/metrics`, `/openapi.json`, `/predict`.
        max_json_kb: JSON bodies above are refused with the binary way named.
    """

    threads: int | None = None
    metrics: bool = True
    openapi: bool = True
    plain: bool = True
    max_json_kb: int = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the user wants, resolved against the folder of its file.

    Attributes:
        model: `file.py:factory`, `package.module:factory`, `.pt2` or `.onnx`.
        shapes: Per input, one entry per axis: a number or a dimension's name.
        dims: Ranges of the dynamic dimensions by name.
        calibration: A folder of images, or of `.npz` files with one array per input name.
        golden: Real samples to carry instead of synthetic ones.
        images: Per input name.
        sequence: The integer that decides downgrades; None derives it from the version.
        file: The recipe's own file, None where there is none.
    """

    model: str
    name: str
    version: str = "1.0.0"
    targets: tuple[str, ...] = ()
    sequence: int | None = None
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    calibration: Path | None = None
    golden: Path | None = None
    seed: int = 0
    images: Mapping[str, ImageInput] = field(default_factory=dict)
    compress: Compression = field(default_factory=Compression)
    server: Server = field(default_factory=Server)
    file: Path | None = None


def parse_dim(text: str, *, name: str) -> DimRange:
    """Read `1..32,opt=8`, `1..32` or `8`.

    Raises:
        UsageError: another form, or a range that is empty or does not hold `opt`.
    """
    match = _DIM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(
            f"`{text}` is no range for dimension `{name}`", accepted="`1..32,opt=8` or `1..32`"
        )
    low = int(match["min"])
    high = int(match["max"]) if match["max"] else low
    opt = int(match["opt"]) if match["opt"] else low
    if not 1 <= low <= opt <= high:
        raise UsageError(
            f"`{text}` is an empty range for dimension `{name}`, or `opt` lies outside",
            accepted="1 ≤ min ≤ opt ≤ max",
        )
    return DimRange(min=low, max=high, opt=opt)


def parse_shape(text: str, *, name: str) -> tuple[int | str, ...]:
    """Read `batch,3,224,224`; an empty text is a scalar.

    Raises:
        UsageError: an axis that is neither a positive number nor a name.
    """
    axes: list[int | str] = []
    for word in filter(None, (w.strip() for w in text.split(","))):
        if word.isdigit() and int(word) > 0:
            axes.append(int(word))
        elif re.fullmatch(r"[A-Za-z_]\w*", word):
            axes.append(word)
        else:
            raise UsageError(
                f"`{word}` in the shape of `{name}` is neither a size nor a name",
                accepted="`batch,3,224,224`",
            )
    return tuple(axes)


def check_name(name: str) -> str:
    """Return a bundle name that is safe as a file name.

    Raises:
        UsageError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot name a bundle",
            accepted="up to 63 lower-case letters, digits, `.`, `_`, `-`; a letter or digit first",
        )
    return name


def check_version(version: str) -> str:
    """Return a version of up to four dotted integers.

    Raises:
        UsageError: it is something else.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(f"`{version}` is no version", accepted="dotted integers, as `1.4.0`")
    return version


def default_sequence(version: str) -> int:
    """Return the integer whose order is the order of versions: 1.4.0 → 1004000."""
    parts = [int(part) for part in version.split(".")]
    parts += [0] * (3 - len(parts))
    return parts[0] * 1_000_000 + min(parts[1], 999) * 1_000 + min(parts[2], 999)


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
             "golden", "seed", "input", "compress", "server"}  # fmt: skip
    _refuse_unknown(table, known, where="", origin=path.name)
    values: dict[str, Any] = {"file": path}
    for key, kind in (("name", str), ("version", str), ("sequence", int), ("seed", int)):
        if key in table:
            values[key] = _typed(table[key], kind, key, path.name)
    if "model" in table:
        values["model"] = _model_word(_typed(table["model"], str, "model", path.name), folder)
    if "targets" in table:
        values["targets"] = _strings(table["targets"], "targets", path.name)
    for key in ("calibration", "golden"):
        if key in table:
            values[key] = folder / _typed(table[key], str, key, path.name)
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
    images: dict[str, ImageInput] = {}
    for name, entry in _typed(table.get("input", {}), dict, "input", path.name).items():
        _refuse_unknown(entry, {"image"}, where=f"input.{name}.", origin=path.name)
        if "image" in entry:
            images[name] = _image(entry["image"], f"input.{name}.image.", path.name, folder)
    values["images"] = images
    for key, cls in (("compress", Compression), ("server", Server)):
        if key in table:
            values[key] = _plain(cls, table[key], f"{key}.", path.name)
    return values


def _image(table: Mapping[str, Any], where: str, origin: str, folder: Path) -> ImageInput:
    image: ImageInput = _plain(ImageInput, table, where, origin, paths=("labels",))
    if image.labels is not None:
        image = replace(image, labels=folder / image.labels)
    if image.transform is not None:
        image = replace(image, transform=_model_word(image.transform, folder))
    choices = (("interpolation", ("bilinear", "bicubic")), ("layout", ("nchw", "nhwc")),
               ("channels", ("rgb", "bgr")))  # fmt: skip
    for key, accepted in choices:
        if getattr(image, key) not in accepted:
            raise UsageError(
                f"`{origin}`: `{where}{key}` is `{getattr(image, key)}`",
                accepted=" or ".join(f"`{word}`" for word in accepted),
            )
    if len(image.size) != 2 or min(image.size) < 1:
        raise UsageError(f"`{origin}`: `{where}size` must be [height, width]")
    if len(image.mean) != 3 or len(image.std) != 3 or min(map(abs, image.std)) == 0:
        raise UsageError(
            f"`{origin}`: `{where}mean` and `{where}std` must be three numbers, std not 0"
        )
    if image.resize is not None and image.resize < max(image.size):
        raise UsageError(f"`{origin}`: `{where}resize` is smaller than the crop")
    return image


def _plain(
    cls: type[Any], table: Any, where: str, origin: str, *, paths: Iterable[str] = ()
) -> Any:
    table = _typed(table, dict, where.rstrip("."), origin)
    known = {f.name: f for f in fields(cls)}
    _refuse_unknown(table, set(known), where=where, origin=origin)
    values: dict[str, Any] = {}
    for name, f in known.items():
        key = f"{where}{name}"
        if name not in table:
            if f.default is MISSING and f.default_factory is MISSING:
                raise UsageError(f"`{origin}` lacks the key `{key}`")
            continue
        value, kind = table[name], str(f.type)
        if name in paths:
            values[name] = Path(_typed(value, str, key, origin))
        elif kind.startswith("tuple[str"):
            values[name] = _strings(value, key, origin)
        elif kind.startswith("tuple"):
            element = int if kind.startswith("tuple[int") else (int, float)
            items = _typed(value, list, key, origin)
            values[name] = tuple(_typed(v, element, key, origin) for v in items)
        else:
            kinds = {"str": str, "int": int, "bool": bool, "float": (int, float)}
            values[name] = _typed(value, kinds[kind.split(" | ", maxsplit=1)[0]], key, origin)
    return cls(**values)


def _typed(value: Any, kind: Any, key: str, origin: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a string", int: "an integer", dict: "a table", list: "a list"}
        raise UsageError(f"`{origin}`: `{key}` must be {names.get(kind, 'a number or a boolean')}")
    return value


def _strings(value: Any, key: str, origin: str) -> tuple[str, ...]:
    return tuple(_typed(item, str, key, origin) for item in _typed(value, list, key, origin))


def _model_word(word: str, folder: Path) -> str:
    path, colon, factory = word.partition(":")
    if path.endswith((".py", ".onnx", ".pt2")):
        return f"{folder / path}{colon}{factory}"
    return word


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
