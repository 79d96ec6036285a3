"""What the parent asks of the training child and what comes back, and what a variant is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from packager.errors import UsageError
from packager.importers.load import parse_source
from packager.importers.request import ImportLimits, ImportRequest
from packager.recipe import DimRange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.model import Model
    from packager.recipe import Recipe, Training

REQUEST_FILE: Final = "training.json"
RESULT_FILE: Final = "trained.json"
PROGRESS_FILE: Final = "progress.jsonl"
SAMPLES_FOLDER: Final = "samples"
HANG_FILE: Final = "hang.txt"
MOST_PRUNED: Final = 0.95
_HOOK_FORM: Final = "`file.py:function`, where `function(module, session)` trains `module` in place"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trained form of the model: another original, to be judged by the true one's answers.

    Attributes:
        name: `pruned`, `qat`, `pruned-qat`, `sparse` or `distilled`.
        model: Float ONNX with the original's signature, checked against the trained module. Of
            `qat` the weights lie on the integers that the target's static int8 finds again.
        notes: What was done, in sentences.
        facts: `parameters_before`, `parameters_after`, `trained_s`, `hook`, `hook_sha256`, and
            what else is known of the variant.
    """

    name: str
    model: Model
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Return the ONNX file."""
        return self.model.path


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What the child does.

    Attributes:
        source: How the original was imported.
        weights_sha256: `Provenance.source_sha256` of that import.
        variants: What to make, in order.
        hook: `file.py:function` with the whole path; empty for none.
        student: Its factory; None for none.
        scheme: The keyword arguments of `fake_quant.Scheme`.
        prune, distill, time_limit_s, seed: As in the recipe.
    """

    source: ImportRequest
    weights_sha256: str
    variants: tuple[str, ...]
    hook: str
    student: ImportRequest | None
    scheme: Mapping[str, Any]
    prune: float
    distill: bool
    time_limit_s: float
    seed: int

    def write(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        wire = json.loads(path.read_text(encoding="utf-8"))
        wire["source"] = _import_request(wire["source"])
        wire["student"] = _import_request(wire["student"]) if wire["student"] else None
        wire["variants"] = tuple(wire["variants"])
        return cls(**wire)


def _import_request(wire: dict[str, Any]) -> ImportRequest:
    wire["shapes"] = {name: tuple(axes) for name, axes in wire["shapes"].items()}
    wire["dims"] = {name: DimRange(**entry) for name, entry in wire["dims"].items()}
    wire["limits"] = ImportLimits(**wire["limits"])
    return ImportRequest(**wire)


def variant_names(training: Training) -> tuple[str, ...]:
    """Return what `[train]` asks for, in the order it is made.

    Raises:
        UsageError: settings that cannot be, or that ask for nothing.
    """
    if not 0 <= training.prune <= MOST_PRUNED:
        raise UsageError(
            f"`train.prune` is {training.prune:g}",
            accepted=f"the share of the parameters to remove, 0 to {MOST_PRUNED:g}",
        )
    names = []
    if training.prune:
        names.append("pruned")
    if training.quantize:
        names.append("qat")
    if training.prune and training.quantize:
        names.append("pruned-qat")
    if training.sparsity:
        names.append("sparse")
    if training.student:
        names.append("distilled")
    needing = [n for n in names if n != "pruned"]
    if needing and not training.function:
        asked = {"qat": "quantize", "pruned-qat": "quantize", "sparse": "sparsity"}
        raise UsageError(
            f"`train.{asked.get(needing[0], 'student')}` needs a hook that trains",
            accepted=f"`train.function` as {_HOOK_FORM}",
        )
    if training.function and not names:
        raise UsageError(
            "`train.function` has nothing to train",
            accepted="`train.prune`, `train.quantize`, `train.sparsity` or `train.student` with it",
        )
    if training.distill and not training.function:
        raise UsageError(
            "`train.distill` gives the hook a teacher, and there is no hook",
            accepted=f"`train.function` as {_HOOK_FORM}",
        )
    return tuple(names)


def hook_file(word: str) -> tuple[Path, str]:
    """Return the file and the function that `file.py:function` names.

    Raises:
        UsageError: another form, or no such file.
    """
    path, colon, name = word.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise UsageError(f"`{word}` is no hook", accepted=_HOOK_FORM)
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no file `{path}`", accepted=_HOOK_FORM)
    return file.resolve(), name


def training_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of the training's settings and of the source files that it names.

    What these files import, and the data they read, is not known and not in it: a change there
    needs a new run without the cache.

    Raises:
        UsageError: the hook or the student is no file, or the settings cannot be.
    """
    training = recipe.train
    names = variant_names(training)
    settings = asdict(training)
    digest = hashlib.sha256()
    for key in ("function", "student"):
        word = settings.pop(key)
        if word:
            file = hook_file(word)[0] if key == "function" else Path(parse_source(word).path)
            settings[key] = [file.name, word.rpartition(":")[2]]
            if file.is_file():  # a student may lie in a package
                settings[key].append(hashlib.sha256(file.read_bytes()).hexdigest())
    settings |= {"seed": recipe.seed, "variants": names, "torch-pruning": _version("torch-pruning")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
