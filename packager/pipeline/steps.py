"""The steps of a plan, each with its choice and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.recipe import Recipe
    from packager.target import Target


@dataclass(frozen=True)
class Step:
    """One stage with its choice and the reason for it."""

    stage: str
    choice: str
    reason: str


def plan_steps(
    recipe: Recipe, target: Target, lock_file: Path | None, *, vendor_libraries: bool = False
) -> list[Step]:
    """Return what will be done for a target, in order.

    Args:
        recipe: What the user wants.
        target: What it is built for.
        lock_file: A lock whose choices are repeated.
        vendor_libraries: NVIDIA's libraries are carried along, where there are such.
    """
    library, scheme = target.engine.library, target.quantization
    steps = [_import_step(recipe)]
    for name, image in recipe.images.items():
        size = f"`{name}` {image.size[0]} × {image.size[1]}"
        steps.append(Step("image", size, "the host only decodes; the rest goes into the graph"))
    steps += _compress_steps(recipe, target, lock_file)
    kinds = f"{scheme.activation} activations, {scheme.weight} weights"
    steps.append(Step("scheme", kinds + ", 7 bits" * scheme.reduce_range, scheme.why))
    package = f"{library.package} {library.version}, sha-256 {library.wheel_sha256[:12]}…"
    steps.append(Step("engine", f"{target.engine.name} {target.engine.version}", package))
    steps += _tensorrt_steps(recipe, target, vendor_libraries=vendor_libraries)
    for cpu in target.emulators:
        why = "the answers must be the same on every CPU of this target"
        steps.append(Step("check", f"self-test under an emulated {cpu}", why))
    if recipe.golden is None:
        why = "a device must not carry anybody's data"
        steps.append(Step("golden", f"synthetic, seed {recipe.seed}", why))
    else:
        steps.append(Step("golden", str(recipe.golden), "named by `--golden`"))
    return steps


def _tensorrt_steps(recipe: Recipe, target: Target, *, vendor_libraries: bool) -> list[Step]:
    engine = target.tensorrt
    if engine is None:
        return []
    named = f"{engine.module} {engine.version}, compute capability " + ", ".join(
        engine.compute_capabilities
    )
    where = "built ahead on this host, which needs no GPU for it"
    if engine.module == "tensorrt":
        where = "built on the device: an engine belongs to one TensorRT on one class of GPU"
    steps = [
        Step("fit", f"opset {engine.max_opset} at most", "what its parser reads"),
        Step("tensorrt", named, where),
    ]
    if recipe.compress.precision == "bf16":
        why = "ONNX Runtime loads no bf16 on a CPU, where the bundle answers without an engine"
        steps.append(Step("fallback", f"float32, {_float32_size(recipe)}", why))
    if recipe.tensorrt.dla_core >= 0:
        why = "named by the recipe; the GPU does what it cannot"
        steps.append(Step("tensorrt", f"DLA core {recipe.tensorrt.dla_core}", why))
    if vendor_libraries and engine.module == "tensorrt_rtx":
        from packager.backends.tensorrt.vendor_libraries import vendor_terms

        (what, how), *terms = vendor_terms(target)
        steps.append(Step("vendor", what, how))
        steps += [Step("licence", term, why) for term, why in terms]
    return [*steps, *(Step("uncertain", target.name, why) for why in engine.uncertain)]


def _float32_size(recipe: Recipe) -> str:
    """Return how large a model is in float32, as far as that is known before its import."""
    path = Path(recipe.model)
    if path.suffix not in (".onnx", ".pt2") or not path.is_file():
        return "twice the size of the engine's graph"
    return f"about {path.stat().st_size / 1e6:.1f} MB"


def _import_step(recipe: Recipe) -> Step:
    if recipe.model.endswith(".onnx"):
        return Step("import", "ONNX file", "checked, then run to find the true shapes")
    kind = "exported program" if recipe.model.endswith(".pt2") else "torch module"
    return Step(
        "import",
        f"{kind}: torch.export, then strict, then the older tracer",
        "the first whose file computes what the module does at every size",
    )


def _compress_steps(recipe: Recipe, target: Target, lock_file: Path | None) -> list[Step]:
    if lock_file is not None:
        return [Step("compress", "as locked", f"`{lock_file}`")]
    from packager.search.forms import HALF_REST, has_half_rest

    compression = recipe.compress
    steps = [_budget_step(recipe)]
    if recipe.train.prune or recipe.train.function is not None:
        why = f"`[train]`, up to {recipe.train.time_limit_s:g} s each"
        steps.append(Step("train", "variants of the module", why))
    if compression.precision != "auto":
        return [*steps, Step("compress", compression.precision, "asked for")]
    steps.append(Step("compress", "fp32", "the original, cleaned; always a candidate"))
    if "int8" in target.precisions:
        if target.tensorrt is None:
            why = "where matrix products of weights dominate"
            steps.append(Step("compress", "int8-dynamic", why))
        if recipe.calibration is None:
            why = "no calibration data: give a folder with `-c FOLDER`"
            steps.append(Step("compress", "no int8-static", why))
        else:
            why = f"calibrated on `{recipe.calibration.word}`"
            steps.append(Step("compress", "int8-static", why))
            if has_half_rest(target):
                steps.append(Step("compress", f"int8-static{HALF_REST}", "the rest in fp16"))
    if "fp16" in target.precisions:
        why = "operators whose range demands it stay fp32"
        steps.append(Step("compress", "fp16", why))
    if compression.objective == "size" and target.tensorrt is None:
        steps.append(Step("compress", "fp16, weights in 8 and 4 bits", "size alone counts"))
    return steps


def _budget_step(recipe: Recipe) -> Step:
    compression, drop = recipe.compress, recipe.compress.max_drop
    aim = {"latency": "the fastest", "size": "the smallest", "balanced": "the best of both"}
    choice = f"{aim[compression.objective]} that keeps the budget"
    if not compression.metric and drop is None and recipe.evaluation is None:
        why = f"answers as the original's: agreement ≥ 0.99 or cosine ≥ {compression.min_cosine:g}"
        return Step("budget", choice, why)
    named = Path(compression.metric).name if compression.metric else "top1 or agreement"
    most = drop.value if drop is not None else 0.01
    kind = "of the original's" if drop is not None and drop.relative else "in its own unit"
    return Step("budget", choice, f"{named} falls by {most:g} {kind} at most")
