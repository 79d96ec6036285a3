"""Makes the trained variants of one model: prune, simulate int8, have the hook train, export."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from packager.errors import ModelUnsupported
from packager.importers.ladder import climb
from packager.importers.onnx_file import write_model
from packager.importers.request import RESULT_FILE as IMPORTED_FILE
from packager.importers.torch_calls import Callee
from packager.importers.torch_module import make, module_digest
from packager.importers.torch_sizes import export_sizes, inputs_at, plan_torch_axes
from packager.model import Provenance, as_saved
from packager.training.fake_quant import Scheme, attach, detach
from packager.training.fold import fold_batch_norms, freeze_batch_norms, release_batch_norms
from packager.training.hook import load_hook, train
from packager.training.modules import copy_of, count_parameters
from packager.training.session import Session
from packager.training.wire import SAMPLES_FOLDER, TrainingRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from packager.training.prune import Pruned

    Feed = Mapping[str, torch.Tensor]
    Tell = Callable[[str, dict[str, Any]], None]

_PROBE_SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every variant starts from."""

    request: TrainingRequest
    callee: Callee
    hook: Callable[[Any, Session], None] | None
    samples: Sequence[Feed]
    probes: Sequence[Feed]
    folder: Path
    tell: Tell


def make_variants(request: TrainingRequest, folder: Path, tell: Tell) -> list[dict[str, Any]]:
    """Make every variant that the request asks for.

    Returns:
        Per variant its name, the folder of its `model.onnx` and `model.json` inside `folder`,
        notes and facts, as JSON has them.

    Raises:
        ModelUnsupported: the factory or the hook fails or breaks its contract, the model cannot
            be pruned, or a trained module cannot be exported.
        UsageError: a share of parameters that cannot go.
        BackendMissing: torch-pruning is needed and not installed.
    """
    module, examples = make(request.source)
    if module_digest(module, request.source, examples) != request.weights_sha256:
        raise ModelUnsupported(
            f"`{request.source.source}` made another model than when it was imported",
            hint="seed what it draws, or have it load weights from a file",
        )
    callee = Callee(module, examples)
    work = _Work(
        request=request,
        callee=callee,
        hook=load_hook(request.hook) if request.hook else None,
        samples=_read_samples(folder / SAMPLES_FOLDER),
        probes=_probes(callee, request),
        folder=folder,
        tell=tell,
    )
    pruned: _Trained | None = None
    found = []
    for name in request.variants:
        tell("stage", {"text": f"train variant `{name}`" if work.hook else f"make `{name}`"})
        if name == "pruned":
            trained = pruned = _pruned(work, name)
        elif name == "qat":
            trained = _quantized(work, name, Callee(copy_of(module), examples))
        elif name == "pruned-qat":
            assert pruned is not None  # noqa: S101 - `variant_names` puts it first
            smaller = Callee(copy_of(pruned.module), examples)
            trained = _quantized(work, name, smaller)
            trained = replace(trained, notes=(*pruned.notes, *trained.notes),
                              facts={**pruned.facts, **trained.facts})  # fmt: skip
        elif name == "sparse":
            trained = _sparse(work, name)
        else:
            trained = _distilled(work, name)
        found.append(_exported(work, name, trained))
    return found


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A module that is ready for export."""

    module: nn.Module
    notes: tuple[str, ...]
    facts: Mapping[str, Any]


def _pruned(work: _Work, name: str) -> _Trained:
    from packager.training.prune import prune

    made: Pruned = prune(
        work.callee,
        work.request.prune,
        samples=work.samples,
        probes=work.probes,
        seed=work.request.seed,
        tell=lambda text: work.tell("note", {"text": text}),
    )
    trained_s = _train(work, name, made.module)
    gone = 1 - made.after / made.before
    notes = [
        f"{made.before - made.after} of {made.before} parameters were cut out ({gone:.1%}): "
        + ", ".join(f"`{root}` {width} → {left}" for root, (left, width) in made.widths.items()),
        *made.notes,
    ]
    if work.hook is None:
        notes.append("nothing trained it after the cut: there is no `train.function`")
    facts = {"trained_s": trained_s, "widths": {k: list(v) for k, v in made.widths.items()}}
    return _Trained(module=made.module, notes=tuple(notes), facts=facts)


def _quantized(work: _Work, name: str, callee: Callee) -> _Trained:
    module = callee.module
    scheme = Scheme(**work.request.scheme)
    folded = fold_batch_norms(module, callee, work.probes)
    frozen = freeze_batch_norms(module)
    layers = attach(module, scheme, callee, work.samples)
    if not layers:
        raise ModelUnsupported(
            "the module has no convolution or linear layer whose int8 could be simulated",
            hint="leave out `train.quantize`",
        )
    trained_s = _train(work, name, module)
    detach(module)
    release_batch_norms(module)
    channels = "per channel" if scheme.per_channel else "per tensor"
    steps = f"{scheme.weight_bits}-bit weights {channels} and {scheme.activation_bits}-bit inputs"
    notes = [f"{layers} layers were trained with simulated {steps}; the weights lie on those"]
    if folded or frozen:
        notes.append(
            f"{folded} batch normalizations were folded before, {frozen} kept their statistics"
        )
    facts = {"trained_s": trained_s, "weight_bits": scheme.weight_bits}
    return _Trained(module=module, notes=tuple(notes), facts=facts)


def _sparse(work: _Work, name: str) -> _Trained:
    from packager.training.sparsity import attach_masks, detach_masks

    module = copy_of(work.callee.module)
    layers, share = attach_masks(module)
    if not layers:
        raise ModelUnsupported(
            "no layer of the module reads a multiple of four inputs, which 2:4 sparsity needs",
            hint="leave out `train.sparsity`",
        )
    trained_s = _train(work, name, module)
    detach_masks(module)
    note = f"{layers} layers were trained with 2 of 4 weights at zero ({share:.0%} of all weights)"
    return _Trained(module=module, notes=(note,), facts={"trained_s": trained_s, "zeros": share})


def _distilled(work: _Work, name: str) -> _Trained:
    assert work.request.student is not None  # noqa: S101 - `variant_names` asked for it
    source = work.request.student
    module, examples = make(source)
    original = work.callee
    if {k: (v.dtype, v.ndim) for k, v in examples.items()} != {
        k: (v.dtype, v.ndim) for k, v in original.examples.items()
    }:
        raise ModelUnsupported(
            f"the student `{source.source}` takes other inputs than the original",
            accepted=", ".join(f"`{k}` {v.dtype}" for k, v in original.examples.items()),
        )
    student = Callee(module, original.examples)
    want, got = original.outputs(original.examples), student.outputs(original.examples)
    if {k: (v.dtype, v.shape) for k, v in want.items()} != {
        k: (v.dtype, v.shape) for k, v in got.items()
    }:
        raise ModelUnsupported(
            f"the student `{source.source}` gives other outputs than the original",
            accepted=", ".join(f"`{k}` {v.dtype}{list(v.shape)}" for k, v in want.items()),
        )
    trained_s = _train(work, name, module, callee=student, teach=True)
    note = f"the student `{source.source}` was trained in the original's place"
    facts = {"trained_s": trained_s, "student_sha256": module_digest(module, source, examples)}
    return _Trained(module=module, notes=(note,), facts=facts)


def _train(
    work: _Work,
    name: str,
    module: nn.Module,
    *,
    callee: Callee | None = None,
    teach: bool = False,
) -> float:
    """Have the hook train the module in place, if there is one; return the seconds it took."""
    if work.hook is None:
        return 0.0
    request = work.request
    teacher = None
    if request.distill or teach:
        teacher = copy_of(work.callee.module).eval()
        for parameter in teacher.parameters():
            parameter.requires_grad_(requires_grad=False)
    began = time.monotonic()
    session = Session(
        variant=name,
        seed=request.seed,
        teacher=teacher,
        time_limit_s=request.time_limit_s,
        tell=work.tell,
    )
    train(
        work.hook,
        module,
        session,
        callee=callee or work.callee,
        examples=work.callee.examples,
        source=_hook_source(request),
        time_limit_s=request.time_limit_s,
        folder=work.folder,
    )
    return round(time.monotonic() - began, 3)


def _exported(work: _Work, name: str, trained: _Trained) -> dict[str, Any]:
    request = work.request
    work.tell("note", {"text": f"export `{name}`"})
    module = trained.module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)
    folder = work.folder / name
    folder.mkdir()
    taken = climb(Callee(module, work.callee.examples), request.source, folder)
    imported = write_model(
        taken.model,
        taken.signature,
        workdir=folder,
        provenance=Provenance(
            kind="torch",
            source=request.source.source,
            source_sha256=module_digest(module, request.source, work.callee.examples),
            exporter=taken.rung,
            rungs=taken.rungs,
            notes=taken.notes,
        ),
    )
    imported.write(folder / IMPORTED_FILE)
    facts: dict[str, Any] = {
        "parameters_before": count_parameters(work.callee.module),
        "parameters_after": count_parameters(module),
        **trained.facts,
    }
    if request.hook:
        facts["hook"] = _hook_source(request)
        content = Path(request.hook.rpartition(":")[0]).read_bytes()
        facts["hook_sha256"] = hashlib.sha256(content).hexdigest()
    return {"name": name, "notes": list(trained.notes), "facts": facts}


def _probes(callee: Callee, request: TrainingRequest) -> list[dict[str, torch.Tensor]]:
    """Return inputs that a surgery is checked on: seeded ones of the sizes that are exported."""
    plan = plan_torch_axes(callee.examples, shapes=request.source.shapes, dims=request.source.dims)
    sizes = export_sizes(plan)
    return [inputs_at(plan, callee.examples, sizes, seed=seed) for seed in _PROBE_SEEDS]


def _read_samples(folder: Path) -> list[dict[str, torch.Tensor]]:
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found.append({name: _tensor(as_saved(arrays[name])) for name in arrays.files})
    return found


def _tensor(array: Any) -> torch.Tensor:
    """Return an array as a tensor; torch takes no bfloat16 from numpy, so its bits change hands."""
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


def _hook_source(request: TrainingRequest) -> str:
    return Path(request.hook).name
