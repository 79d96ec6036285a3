"""What a TensorRT target adds to a build: a graph that its parser takes, the engine or recipe."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import ENGINE_GRAPH, Parts
from packager.errors import BudgetMissed
from packager.manifest import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.artifact import Artifact
    from packager.bundle.archive import Entry
    from packager.console import Reporter
    from packager.model import Signature
    from packager.pipeline.cache import StageCache
    from packager.pipeline.plan import Plan
    from packager.recipe import Recipe
    from packager.target import Target

_CORE: Final = "model/model.onnx"
_SAMPLES: Final = 2
# A decomposed operator adds up in another order; a quantizer behind it may then round otherwise.
_LEAST_COSINE: Final = 0.9999
_LEAST_COSINE_QUANTIZED: Final = 0.999
# What a layer's operands may be, and how the first of them is called as the precision of a model.
_NARROW: Final = ("int8", "fp16", "bf16")
_STATIC: Final = {"int8": "int8-static"}


def engine_stage(
    artifact: Artifact,
    *,
    target: Target,
    recipe: Recipe,
    cache: StageCache,
    work: Path,
    reporter: Reporter,
    ahead: bool = True,
    carries_vendor: bool = False,
) -> Artifact:
    """Return the artifact with what its target's TensorRT needs; any other target's as it is.

    Args:
        artifact: As ONNX Runtime runs it.
        target: With or without a `[tensorrt]` table.
        recipe: Its inputs, and how engines are built.
        cache: Engines that were built ahead before.
        work: A folder that is gone afterwards.
        reporter: Is told what was found.
        ahead: Build the engine here where the target's can be; else a reference device does.
        carries_vendor: The user wants NVIDIA's libraries in bundles of targets that can have them.

    Raises:
        ModelUnsupported: the graph holds what TensorRT neither runs nor can leave to the CPU.
        BackendMissing: an engine is to be built ahead, and TensorRT-RTX is not installed.
        BudgetMissed: the graph that TensorRT gets computes something else.
    """
    if target.tensorrt is None:
        return artifact
    from packager.backends.tensorrt.ahead import build_ahead
    from packager.backends.tensorrt.bfloat16 import in_bfloat16, without_rounding
    from packager.backends.tensorrt.needs import needs
    from packager.backends.tensorrt.preflight import preflight
    from packager.backends.tensorrt.profiles import profiles_of
    from packager.backends.tensorrt.recipe import engine_recipe
    from packager.backends.tensorrt.vendor_libraries import carried_pythons
    from packager.passes.inputs import made_up

    reporter.stage(f"fit to {target.tensorrt.module} {target.tensorrt.version}")
    rtx = target.tensorrt.module == "tensorrt_rtx"
    carried = carried_pythons(target) if carries_vendor and rtx else ()
    folder = work / "tensorrt"
    folder.mkdir()
    samples = list(made_up(artifact.signature, recipe, _SAMPLES, recipe.seed))
    bfloat16 = artifact.precision == "bf16"
    if bfloat16:
        fallback = without_rounding(artifact.path, folder / "float32.onnx")
        artifact = dataclasses.replace(artifact, path=fallback)
    found = preflight(artifact.path, target, folder, signature=artifact.signature, samples=samples)
    for note in (*found.notes, *found.unverified):
        reporter.note(note)
    parts = Parts(head=found.parts.head, core=found.parts.core, tail=found.parts.tail)
    parity = _compare(artifact, parts, samples)
    inputs, shapes_at = _core_inputs(parts, artifact.signature)
    if bfloat16:
        engine_path = in_bfloat16(
            parts.core, folder / "engine.onnx", target=target,
            samples=_core_samples(parts, samples, inputs), reporter=reporter,
        )  # fmt: skip
        parts = dataclasses.replace(parts, engine=engine_path)
        carried_mb = parts.core.stat().st_size / 1e6
        reporter.note(f"ONNX Runtime loads no bf16: {carried_mb:.1f} MB of float32 are carried")
    graph = parts.engine or parts.core
    precision = _precision(graph, artifact.precision)
    table = engine_recipe(
        target=target,
        precision=precision,
        profiles=profiles_of(artifact.signature, inputs, shapes_at),
        options=recipe.tensorrt,
        artifact=_CORE if parts.engine is None else ENGINE_GRAPH,
        artifact_sha256=sha256_file(graph),
        needs=needs(target.tensorrt, target.jetpack, carried),
        carried_pythons=carried,
        products=_products(graph, precision),
    )
    facts = {
        "notes": list(found.notes),
        "unverified": list(found.unverified),
        "cosine": parity,
        "profiles": table["profiles"],
    }
    artifact = dataclasses.replace(artifact, parts=parts, tensorrt=table)
    if rtx and ahead:
        reporter.stage(f"build the engine for {target.name}")
        engine, measured = build_ahead(
            table, graph, target.tensorrt, cache=cache, workdir=folder, reporter=reporter
        )
        facts["engine"] = measured
        artifact = dataclasses.replace(artifact, engines=(engine,))
    return dataclasses.replace(artifact, facts={**artifact.facts, "tensorrt": facts})


def _precision(graph: Path, precision: str) -> str:
    """Return what the engine has to compute in, also of a model that came in that precision.

    TensorRT 8.x takes Q/DQ only where int8 is allowed, and a loss of precision is only looked for
    where a recipe asks for one.
    """
    from packager.backends.tensorrt.nodes import products_in
    from packager.search.choose import AS_IT_CAME

    if precision not in (AS_IT_CAME, "fp32"):
        return precision
    found = [word for word in _NARROW if products_in(graph, word)]
    return "+".join(_STATIC.get(word, word) for word in found) or precision


def _products(graph: Path, precision: str) -> tuple[str, ...]:
    """Return the layers that an engine of this precision must not compute in float32."""
    from packager.backends.tensorrt.nodes import products_in

    words = [word for word in _NARROW if word in precision]
    found = (name for word in words for name in products_in(graph, word))
    return tuple(dict.fromkeys(found))


def look_at_device(plan: Plan, *, work: Path, reporter: Reporter) -> None:
    """Ask the reference device, if the plan names one, whether it can build the engine.

    Raises:
        EdgepackError: see `deliver.reference.look_at`.
    """
    if plan.engine_on is None:
        return
    from packager.deliver.reference import look_at

    (target,) = plan.targets
    look_at(plan.engine_on, target, workdir=work, reporter=reporter, config=_ssh_config())


def engine_from_device(
    artifact: Artifact,
    url: str,
    bundle: Path,
    *,
    target: Target,
    work: Path,
    reporter: Reporter,
) -> Artifact:
    """Return the artifact with the engine that a reference device built of its bundle.

    Raises:
        EdgepackError: see `deliver.reference.build_on`.
    """
    from packager.deliver.reference import build_on

    folder = work / "reference"
    folder.mkdir()
    engine, measured = build_on(
        url, bundle, target, workdir=folder, reporter=reporter, config=_ssh_config()
    )
    facts = {**artifact.facts["tensorrt"], "engine": measured}
    return dataclasses.replace(
        artifact, engines=(engine,), facts={**artifact.facts, "tensorrt": facts}
    )


def _ssh_config() -> Path | None:
    """Return the file that EDGEPACK_SSH_CONFIG names; without it the user's own counts."""
    config = os.environ.get("EDGEPACK_SSH_CONFIG")
    return Path(config) if config else None


def vendor_stage(plan: Plan, target: Target, *, reporter: Reporter) -> list[Entry]:
    """Return NVIDIA's files for a bundle, where the user wants them carried and there are any."""
    if not plan.vendor_libraries or target.tensorrt is None:
        return []
    if target.tensorrt.module != "tensorrt_rtx":
        return []
    from packager.backends.tensorrt.vendor_libraries import vendor_terms
    from packager.bundle.vendor import vendor_entries

    for what, why in vendor_terms(target):
        reporter.note(f"{what}: {why}")
    return vendor_entries(
        target, cache=plan.cache_dir, wheelhouse=plan.wheelhouse, reporter=reporter
    )


def why_no_engine_here(target: Target) -> str:
    """Return why this machine cannot run the target's engine; empty where it can, or has none."""
    if target.tensorrt is None:
        return ""
    from packager.bundle.device import reasons_against_engines

    return "; ".join(reasons_against_engines([target])[target.name])


def _compare(artifact: Artifact, parts: Parts, samples: Sequence[Mapping[str, Any]]) -> float:
    """Return how near head, core and tail are to the whole, in ONNX Runtime: the least cosine."""
    from packager.checks.latency import open_session
    from packager.checks.parity import compare

    session = open_session(artifact.path, 1)
    names = [output.name for output in session.get_outputs()]
    chain = [open_session(p, 1) for p in (parts.head, parts.core, parts.tail) if p is not None]
    whole = [dict(zip(names, session.run(names, dict(s)), strict=True)) for s in samples]
    split = [_run_chain(chain, s, names) for s in samples]
    found = compare(whole, split)
    least = _LEAST_COSINE if artifact.precision in ("fp32", "fp16") else _LEAST_COSINE_QUANTIZED
    if found.cosine < least:
        raise BudgetMissed(
            f"the graph that TensorRT gets has a cosine of {found.cosine:.6f} with the artifact, "
            f"where {least} is needed",
            hint="report the model: a rewrite for TensorRT is at fault",
        )
    return found.cosine


def _run_chain(
    sessions: Sequence[Any], sample: Mapping[str, Any], outputs: Sequence[str]
) -> dict[str, Any]:
    values = dict(sample)
    for session in sessions:
        feeds = {value.name: values[value.name] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        values.update(zip(names, session.run(names, feeds), strict=True))
    return {name: values[name] for name in outputs}


def _core_samples(
    parts: Parts, samples: Sequence[Mapping[str, Any]], inputs: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the core gets for samples of the whole."""
    from packager.checks.latency import open_session

    chain = [open_session(parts.head, 1)] if parts.head is not None else []
    return [_run_chain(chain, sample, inputs) for sample in samples]


def _core_inputs(parts: Parts, signature: Signature) -> tuple[list[str], Any]:
    """Return the core's inputs, and what tells their shapes for sizes of the dimensions."""
    import onnx

    from packager.backends.tensorrt.profiles import shape_at, zeros_at
    from packager.checks.latency import open_session

    graph = onnx.load(parts.core, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    specs = {spec.name: spec for spec in signature.inputs}
    head = open_session(parts.head, 1) if parts.head is not None else None

    def shapes_at(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        shapes = {v.name: shape_at(specs[v.name], sizes) for v in inputs if v.name in specs}
        for value in inputs:
            declared = _declared(value, sizes)
            # What the head makes of a photo has one size however large the photo is.
            if value.name not in shapes and declared is not None:
                shapes[value.name] = declared
        missing = [value.name for value in inputs if value.name not in shapes]
        if missing and head is not None:
            zeros = zeros_at(signature, sizes)
            feeds = {value.name: zeros[value.name] for value in head.get_inputs()}
            results = head.run(missing, feeds)
            shapes.update({n: r.shape for n, r in zip(missing, results, strict=True)})
        return shapes

    return [value.name for value in inputs], shapes_at


def _declared(value: Any, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return a tensor's shape at the given sizes, or None where it has others of its own."""
    shape = []
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(int(dim.dim_value))
        elif dim.dim_param in sizes:
            shape.append(sizes[dim.dim_param])
        else:
            return None
    return tuple(shape) if value.type.tensor_type.HasField("shape") else None
