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
from packager.pipeline.steps import Step, plan_steps
from packager.recipe import (
    Recipe,
    check_name,
    check_version,
    default_sequence,
    parse_dim,
    parse_drop,
    parse_duration,
    parse_shape,
    parse_source,
    read_recipe,
)
from packager.target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packager.recipe import Compression, DataSource

_MODEL_FORMS = "`file.py:factory`, `package.module:factory`, `file.pt2` or `file.onnx`"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe and its targets, resolved: what will be done, where, and why.

    Attributes:
        lock_file: A lock whose choices are repeated without timing.
        wheelhouse: A folder that replaces the network as the source of engine packages.
        steps: Per target name, in order.
        command: As it was typed, for the record.
        engine_on: `ssh://…` of a device like the target's, where its engine is built.
        vendor_libraries: NVIDIA's libraries are carried along.
    """

    recipe: Recipe
    targets: tuple[Target, ...]
    sequence: int
    output: Path
    cache_dir: Path
    lock_file: Path | None
    wheelhouse: Path | None
    steps: Mapping[str, tuple[Step, ...]]
    command: str = ""
    engine_on: str | None = None
    vendor_libraries: bool = False

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
    calibration: str | None = None,
    evaluation: str | None = None,
    label: str | None = None,
    precision: str | None = None,
    metric: str | None = None,
    max_drop: str | None = None,
    objective: str | None = None,
    time_budget: str | None = None,
    shapes: Iterable[str] = (),
    dims: Iterable[str] = (),
    golden: Path | None = None,
    lock_file: Path | None = None,
    wheelhouse: Path | None = None,
    engine_on: str | None = None,
    vendor_libraries: bool = False,
    command: str = "",
) -> Plan:
    """Merge the command line over the recipe and check that it can be.

    Raises:
        UsageError: contradictory or missing options, or an unknown recipe key.
        TargetError: an unknown target.
        InputOutputError: a folder or file that is missing or cannot be written.
    """
    recipe = resolve_recipe(
        model,
        recipe_file=recipe_file,
        shapes=shapes,
        dims=dims,
        name=name,
        version=version,
        sequence=sequence,
        calibration=parse_source(calibration) if calibration is not None else None,
        evaluation=parse_source(evaluation) if evaluation is not None else None,
        label=label,
        golden=golden,
    )
    if precision is not None and lock_file is not None:
        raise UsageError(
            "`--precision` and `--lock` contradict each other",
            accepted="one of them: a lock repeats its own choice",
        )
    recipe = dataclasses.replace(
        recipe,
        compress=_compression(
            recipe.compress,
            precision=precision,
            metric=metric,
            max_drop=parse_drop(max_drop) if max_drop is not None else None,
            objective=objective,
            time_budget_s=parse_duration(time_budget) if time_budget is not None else None,
        ),
    )
    if metric == "":
        raise UsageError("`--metric` is empty", accepted="a metric's name, or leave it out")
    _check_budget(recipe)
    names = tuple(targets) or recipe.targets
    if not names:
        raise UsageError(
            "no target is named",
            accepted="`-t TARGET`, or `targets = [...]` in the recipe",
            hint="edgepack targets list",
        )
    found = tuple(find_target(target) for target in names)
    # By its name with the JetPack: `-t X -t X@6.2` may be the same one.
    if len({target.name for target in found}) != len(found):
        raise UsageError("a target is named twice", accepted="each target once")
    if lock_file is not None and len(found) != 1:
        raise UsageError("`--lock` belongs to one bundle", accepted="exactly one `-t`")
    _check_source("--calibration", recipe.calibration)
    _check_source("--eval", recipe.evaluation)
    _check_folder("--golden", recipe.golden)
    _check_folder("--wheelhouse", wheelhouse)
    if lock_file is not None and not lock_file.is_file():
        raise InputOutputError(f"`{lock_file}` does not exist", hint="leave `--lock` out")
    if recipe.compress.precision == "int8-static" and recipe.calibration is None:
        raise UsageError(
            "static int8 needs calibration data", hint="give a folder with `-c FOLDER`"
        )
    _check_output(output)
    _check_engines(found, engine_on=engine_on, vendor_libraries=vendor_libraries)
    return Plan(
        recipe=recipe,
        targets=found,
        sequence=default_sequence(recipe.version) if recipe.sequence is None else recipe.sequence,
        output=output,
        cache_dir=cache_dir,
        lock_file=lock_file,
        wheelhouse=wheelhouse,
        steps={
            target.name: tuple(
                plan_steps(recipe, target, lock_file, vendor_libraries=vendor_libraries)
            )
            for target in found
        },
        command=command,
        engine_on=engine_on,
        vendor_libraries=vendor_libraries,
    )


def resolve_recipe(
    model: str | None,
    *,
    recipe_file: Path | None = None,
    shapes: Iterable[str] = (),
    dims: Iterable[str] = (),
    **given: Any,
) -> Recipe:
    """Return the recipe of a model: the file named or found beside it, under what is given.

    Args:
        model: The user's word; None takes the recipe's.
        recipe_file: An `edgepack.toml`; None looks beside the model.
        shapes: `NAME=AXES` words, over the recipe's.
        dims: `NAME=RANGE` words, over the recipe's.
        **given: Other fields of Recipe; None leaves the recipe's.

    Raises:
        UsageError: an unknown recipe key, a value that cannot be, or no model.
        InputOutputError: the recipe cannot be read.
    """
    file = recipe_file or find_recipe(model)
    values = read_recipe(file) if file is not None else {}
    values.update({key: value for key, value in given.items() if value is not None})
    if model is not None:
        values["model"] = model
    if "model" not in values:
        raise UsageError("no model is named", accepted=_MODEL_FORMS, hint="edgepack build --help")
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


def _compression(given: Compression, **changes: Any) -> Compression:
    wanted = {key: value for key, value in changes.items() if value is not None}
    if wanted.get("metric", "").partition(":")[0].endswith(".py"):
        wanted["metric"] = str(Path(wanted["metric"]).absolute())
    return dataclasses.replace(given, **wanted)


def _check_budget(recipe: Recipe) -> None:
    """Refuse a metric that there is not and a budget that is none before any long work."""
    from packager.checks.metrics import find_metric

    word, drop = recipe.compress.metric, recipe.compress.max_drop
    if ".py:" in word:
        return
    metric = find_metric(word or "top1")
    if word and metric.needs_labels and recipe.evaluation is None:
        raise UsageError(
            f"`{word}` needs labelled data", hint="give it with `--eval DATA`, or leave it out"
        )
    if drop is None or drop.value < 1:
        return
    if metric.higher_is_better if drop.relative else metric.unit == "share":
        raise UsageError(
            f"a budget of {drop.value:.6g} lets `{metric.name}` lose everything",
            accepted="`0.5%` or `0.005` in the metric's unit, `rel:1%` relative",
            hint=f"did you mean `{drop.value:g}%`?",
        )


def _check_source(option: str, source: DataSource | None) -> None:
    if source is None or source.path is None:
        return
    if not source.path.exists():
        raise InputOutputError(
            f"`{source.path}` does not exist", hint=f"give `{option}` a folder or a file"
        )
    if not os.access(source.path, os.R_OK | (os.X_OK if source.path.is_dir() else 0)):
        raise InputOutputError(f"`{source.path}` cannot be read: permission denied")


def _check_folder(option: str, folder: Path | None) -> None:
    if folder is None:
        return
    if not folder.exists():
        raise InputOutputError(f"`{folder}` does not exist", hint=f"give `{option}` a folder")
    if not folder.is_dir():
        raise InputOutputError(f"`{folder}` is not a folder", hint=f"give `{option}` a folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputOutputError(f"`{folder}` cannot be read: permission denied")


def _check_engines(
    targets: Sequence[Target], *, engine_on: str | None, vendor_libraries: bool
) -> None:
    modules = [t.tensorrt.module if t.tensorrt is not None else "" for t in targets]
    if engine_on is not None and (len(modules) != 1 or not modules[0]):
        raise UsageError(
            "`--engine-on` builds the engine of one target on a device like it",
            accepted="exactly one `-t`, of a target that has TensorRT",
        )
    if vendor_libraries and "tensorrt_rtx" not in modules:
        raise UsageError(
            "`--vendor-libraries` carries TensorRT-RTX, which none of these targets uses",
            accepted="an `rtx-…` target",
        )


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
