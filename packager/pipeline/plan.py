"""Resolves the command line, the recipe and the targets into a plan, without any heavy work."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.console import table
from packager.errors import InputOutputError, UsageError
from packager.recipe import (
    Compression,
    Recipe,
    check_name,
    check_version,
    default_sequence,
    parse_dim,
    parse_shape,
    read_recipe,
)
from packager.target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MODEL_FORMS = "`file.py:factory`, `package.module:factory`, `file.pt2` or `file.onnx`"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage with its choice and the reason for it."""

    stage: str
    choice: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe and its targets, resolved: what will be done, where, and why.

    Attributes:
        lock_file: A lock whose choices are repeated without timing.
        wheelhouse: A folder that replaces the network as the source of engine packages.
        steps: Per target name, in order.
    """

    recipe: Recipe
    targets: tuple[Target, ...]
    sequence: int
    output: Path
    cache_dir: Path
    lock_file: Path | None
    wheelhouse: Path | None
    steps: Mapping[str, tuple[Step, ...]]

    def bundle_path(self, target: Target) -> Path:
        """Return where the bundle of a target will lie."""
        return self.output / f"{self.recipe.name}-{self.recipe.version}-{target.name}.edgepack"

    def to_json(self) -> dict[str, Any]:
        """Return the plan for `--dry-run --json`."""
        return {
            "model": self.recipe.model,
            "name": self.recipe.name,
            "version": self.recipe.version,
            "sequence": self.sequence,
            "targets": {
                target.name: {
                    "bundle": str(self.bundle_path(target)),
                    "steps": [dataclasses.asdict(step) for step in self.steps[target.name]],
                }
                for target in self.targets
            },
        }

    def to_text(self) -> list[str]:
        """Return the plan as lines."""
        lines: list[str] = []
        for target in self.targets:
            rows = [("stage", "choice", "reason")]
            rows += [(s.stage, s.choice, s.reason) for s in self.steps[target.name]]
            lines += [f"{self.bundle_path(target)}", *(f"  {line}" for line in table(rows)), ""]
        return lines[:-1]


def make_plan(
    *,
    model: str | None,
    targets: Iterable[str],
    recipe_file: Path | None,
    output: Path,
    cache_dir: Path,
    name: str | None = None,
    version: str | None = None,
    sequence: int | None = None,
    calibration: Path | None = None,
    precision: str | None = None,
    shapes: Iterable[str] = (),
    dims: Iterable[str] = (),
    golden: Path | None = None,
    lock_file: Path | None = None,
    wheelhouse: Path | None = None,
) -> Plan:
    """Merge the command line over the recipe and check that it can be.

    Raises:
        UsageError: contradictory or missing options, or an unknown recipe key.
        TargetError: an unknown target.
        InputOutputError: a folder or file that is missing or cannot be written.
    """
    recipe = _recipe(model, recipe_file, name, version, calibration, golden, shapes, dims)
    if precision is not None:
        if lock_file is not None:
            raise UsageError(
                "`--precision` and `--lock` contradict each other",
                accepted="one of them: a lock repeats its own choice",
            )
        recipe = dataclasses.replace(
            recipe, compress=dataclasses.replace(recipe.compress, precision=precision)
        )
    names = tuple(targets) or recipe.targets
    if not names:
        raise UsageError(
            "no target is named",
            accepted="`-t TARGET`, or `targets = [...]` in the recipe",
            hint="edgepack targets list",
        )
    if len(set(names)) != len(names):
        raise UsageError("a target is named twice", accepted="each target once")
    found = tuple(find_target(target) for target in names)
    if lock_file is not None and len(found) != 1:
        raise UsageError("`--lock` belongs to one bundle", accepted="exactly one `-t`")
    for option, folder in (("--calibration", recipe.calibration), ("--golden", recipe.golden)):
        _check_folder(option, folder)
    _check_folder("--wheelhouse", wheelhouse)
    if lock_file is not None and not lock_file.is_file():
        raise InputOutputError(f"`{lock_file}` does not exist", hint="leave `--lock` out")
    if recipe.compress.precision == "int8-static" and recipe.calibration is None:
        raise UsageError(
            "static int8 needs calibration data", hint="give a folder with `-c FOLDER`"
        )
    _check_output(output)
    return Plan(
        recipe=recipe,
        targets=found,
        sequence=_first(sequence, recipe.sequence, default_sequence(recipe.version)),
        output=output,
        cache_dir=cache_dir,
        lock_file=lock_file,
        wheelhouse=wheelhouse,
        steps={target.name: tuple(_steps(recipe, target, lock_file)) for target in found},
    )


def _recipe(
    model: str | None,
    recipe_file: Path | None,
    name: str | None,
    version: str | None,
    calibration: Path | None,
    golden: Path | None,
    shapes: Iterable[str],
    dims: Iterable[str],
) -> Recipe:
    file = recipe_file or find_recipe(model)
    values = read_recipe(file) if file is not None else {}
    if model is not None:
        values["model"] = model
    if "model" not in values:
        raise UsageError("no model is named", accepted=_MODEL_FORMS, hint="edgepack build --help")
    given = {"name": name, "version": version, "calibration": calibration, "golden": golden}
    values.update({key: value for key, value in given.items() if value is not None})
    values.setdefault("name", default_name(values["model"]))
    values["shapes"] = {
        **values.get("shapes", {}),
        **{key: parse_shape(text, name=key) for key, text in _pairs("--shape", shapes)},
    }
    values["dims"] = {
        **values.get("dims", {}),
        **{key: parse_dim(text, name=key) for key, text in _pairs("--dim", dims)},
    }
    check_name(values["name"])
    check_version(values.get("version", "1.0.0"))
    return Recipe(**values)


def resolve_recipe(
    model: str, *, shapes: Iterable[str] = (), dims: Iterable[str] = ()
) -> Recipe:
    """Return the recipe for a model alone: the file beside it, under these shapes and dimensions.

    Raises:
        UsageError: an unknown recipe key, or a shape or range that cannot be.
    """
    return _recipe(model, None, None, None, None, None, shapes, dims)


def find_recipe(model: str | None) -> Path | None:
    """Return the recipe beside the model: `<stem>.toml`, or `edgepack.toml` without a model."""
    if model is None:
        file = Path("edgepack.toml")
        return file if file.is_file() else None
    path = Path(model.rpartition(":")[0] or model)
    file = path.with_suffix(".toml")
    return file if path.suffix in {".py", ".onnx", ".pt2"} and file.is_file() else None


def default_name(model: str) -> str:
    """Return a bundle name from the model's word: `nets/MobileNet.py:make` → `mobilenet`."""
    word = model.partition(":")[0]
    path = Path(word)
    is_file = path.suffix in {".py", ".onnx", ".pt2"}
    stem = path.stem if is_file else word.rpartition(".")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:63] or "model"


def _pairs(option: str, words: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        # A dimension's range may hold a `=` (`opt=8`), an input's name may as well.
        split = word.partition if option == "--dim" else word.rpartition
        name, equals, text = split("=")
        if not equals or not name:
            raise UsageError(f"`{word}` lacks a `=`", accepted=f"`{option} NAME=…`")
        pairs.append((name, text))
    return pairs


def _check_folder(option: str, folder: Path | None) -> None:
    if folder is None:
        return
    if not folder.exists():
        raise InputOutputError(f"`{folder}` does not exist", hint=f"give `{option}` a folder")
    if not folder.is_dir():
        raise InputOutputError(f"`{folder}` is not a folder", hint=f"give `{option}` a folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputOutputError(f"`{folder}` cannot be read: permission denied")


def _check_output(output: Path) -> None:
    existing = output.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputOutputError(f"`{existing}` is not a folder", hint="choose another with `-o DIR`")
    if not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise InputOutputError(
            f"`{existing}` cannot be written", hint="choose another with `-o DIR`"
        )


def _steps(recipe: Recipe, target: Target, lock_file: Path | None) -> list[Step]:
    library, scheme = target.engine.library, target.quantization
    steps = [_import_step(recipe)]
    for name, image in recipe.images.items():
        steps.append(Step(
            stage="image", choice=f"`{name}` {image.size[0]} x {image.size[1]}",
            reason="resize, crop and normalization go into the graph; the host only decodes",
        ))  # fmt: skip
    steps += _compress_steps(recipe.compress, recipe, target, lock_file)
    steps.append(Step(
        stage="scheme", choice=f"{scheme.activation} activations, {scheme.weight} weights"
        f"{', 7 bits' if scheme.reduce_range else ''}", reason=scheme.why,
    ))  # fmt: skip
    steps.append(Step(
        stage="engine", choice=f"{target.engine.name} {target.engine.version}",
        reason=f"{library.package} {library.version}, sha-256 {library.wheel_sha256[:12]}…",
    ))  # fmt: skip
    for cpu in target.emulators:
        steps.append(Step(
            stage="check", choice=f"self-test under an emulated {cpu}",
            reason="the answers must be the same on every CPU of this target",
        ))  # fmt: skip
    steps.append(Step(
        stage="golden", choice=str(recipe.golden) if recipe.golden else f"synthetic, seed {recipe.seed}",
        reason="named by `--golden`" if recipe.golden else "a device must not carry anybody's data",
    ))  # fmt: skip
    return steps


def _import_step(recipe: Recipe) -> Step:
    if recipe.model.endswith(".onnx"):
        return Step(stage="import", choice="ONNX file", reason="checked, then run to find true shapes")
    kind = "exported program" if recipe.model.endswith(".pt2") else "torch module"
    return Step(
        stage="import", choice=f"{kind}: torch.export, then strict, then the older tracer",
        reason="the first whose file computes what the module does at every size",
    )  # fmt: skip


def _compress_steps(
    compression: Compression, recipe: Recipe, target: Target, lock_file: Path | None
) -> list[Step]:
    if lock_file is not None:
        return [Step(stage="compress", choice="as locked", reason=f"`{lock_file}`")]
    if compression.precision != "auto":
        return [Step(stage="compress", choice=compression.precision, reason="asked for")]
    steps = [Step(stage="compress", choice="fp32", reason="the original, cleaned; always a candidate")]
    if "int8" in target.precisions:
        steps.append(Step(
            stage="compress", choice="int8-dynamic", reason="where matrix products of weights dominate",
        ))  # fmt: skip
        with_data = recipe.calibration is not None
        steps.append(Step(
            stage="compress", choice="int8-static" if with_data else "no int8-static",
            reason=f"calibrated on `{recipe.calibration}`" if with_data
            else "no calibration data: give a folder with `-c FOLDER`",
        ))  # fmt: skip
    return steps


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)

