"""The engine recipe: everything that a device needs to know to build its engine from the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.errors import TargetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.recipe import TensorRTOptions
    from packager.target import Target, TensorRT

    Profile = Mapping[str, Mapping[str, list[int]]]

# What one layer may take while it computes: a part of what the device has, and no more than
# brought anything in NVIDIA's own examples.
_LEAST_WORKSPACE_MIB: Final = 64
_MOST_WORKSPACE_MIB: Final = 4096
_SHARE: Final = {"shared": 8, "own": 4}
# The first TensorRT whose DLA takes explicit int8 in a strongly typed network again.
_DLA_INT8: Final = (11, 4, 1)


def engine_recipe(
    *,
    target: Target,
    precision: str,
    profiles: Sequence[Profile],
    options: TensorRTOptions,
    artifact: str,
    artifact_sha256: str,
    needs: Sequence[str],
    products: Sequence[str] = (),
    carried_pythons: Sequence[str] = (),
) -> dict[str, Any]:
    """Return `manifest["tensorrt"]`, without engines.

    Args:
        target: With a `[tensorrt]` table.
        precision: The artifact's: `fp32`, `fp16`, `bf16`, `int8-static` and its kin.
        profiles: Per profile, input and bound its shape.
        options: The recipe's.
        artifact: Path of the graph inside the bundle.
        artifact_sha256: Its digest.
        needs: What the device must have, a sentence each.
        products: Convolutions and matrix products that the graph has in the precision asked for:
            the device looks whether its engine computes them so.
        carried_pythons: CPythons that the bundle brings TensorRT-RTX for.

    Raises:
        TargetError: an accelerator that the target does not have.
        UsageError: something that the accelerator cannot do.
    """
    engine = _engine_of(target)
    dla_core = options.dla_core if options.dla_core >= 0 else None
    if dla_core is not None:
        _check_dla(target, engine, dla_core, precision, profiles)
    if options.version_compatible:
        _check_version_compatible(target, engine)
    return {
        "module": engine.module,
        "version": engine.version,
        "cuda": engine.cuda,
        "l4t": engine.l4t,
        "compute_capabilities": list(engine.compute_capabilities),
        "platform": f"{target.os}-{target.arch}",
        "artifact": artifact,
        "artifact_sha256": artifact_sha256,
        "precision": precision,
        "strongly_typed": engine.strongly_typed,
        "flags": [] if engine.strongly_typed else _flags(precision),
        "profiles": [
            {name: {bound: list(shape) for bound, shape in bounds.items()}
             for name, bounds in profile.items()}
            for profile in profiles
        ],
        "workspace_mib": options.workspace_mib or workspace_mib(engine),
        "sparse": "sparse" in precision and "2:4" in target.sparsity,
        "dla_core": dla_core,
        "gpu_fallback": True,
        "version_compatible": options.version_compatible,
        "cuda_graphs": options.cuda_graphs,
        "needs": list(needs),
        "products": list(products),
        **({"carried_pythons": list(carried_pythons)} if carried_pythons else {}),
        "engines": [],
    }  # fmt: skip


def workspace_mib(engine: TensorRT) -> int:
    """Return how much memory one layer may take while it computes, in MiB.

    A quarter of a graphics card's memory; an eighth where the processor lives in the same.
    """
    share = engine.gpu_memory_mib // _SHARE[engine.memory]
    return max(_LEAST_WORKSPACE_MIB, min(_MOST_WORKSPACE_MIB, share))


def _engine_of(target: Target) -> TensorRT:
    if target.tensorrt is None:
        raise TargetError(f"`{target.name}` has no TensorRT")
    return target.tensorrt


def _flags(precision: str) -> list[str]:
    """Return what TensorRT 8.x has to be allowed, as its networks carry no types of their own."""
    if "int8" in precision:
        return ["int8"]
    return ["fp16"] if "fp16" in precision else []


def _check_dla(
    target: Target, engine: TensorRT, core: int, precision: str, profiles: Sequence[Profile]
) -> None:
    if core >= engine.dla_cores:
        has = f"{engine.dla_cores} DLA cores" if engine.dla_cores else "no DLA"
        raise TargetError(
            f"`{target.name}` has {has}, and the recipe's `tensorrt.dla_core` is {core}",
            hint="leave `dla_core` out to run on the GPU",
        )
    if "int8" in precision and _numbers(engine.version) < _DLA_INT8:
        raise UsageError(
            f"TensorRT {engine.version} takes no int8 Q/DQ graph on the DLA: 11.4.1 is the first",
            hint="build with `--precision fp16`, or leave `dla_core` out",
        )
    if "int8" not in precision and precision != "fp16":
        raise UsageError(
            f"the DLA computes in fp16 and int8, and the artifact is {precision}",
            hint="build with `--precision fp16`",
        )
    for profile in profiles:
        for name, bounds in profile.items():
            if len({tuple(shape) for shape in bounds.values()}) > 1:
                raise UsageError(
                    f"the DLA runs one fixed size, and input `{name}` goes from "
                    f"{bounds['min']} to {bounds['max']}",
                    hint="fix it, as with `--dim batch=1..1`",
                )


def _check_version_compatible(target: Target, engine: TensorRT) -> None:
    if engine.module == "tensorrt_rtx" or _numbers(engine.version) < (8, 6):
        raise UsageError(
            f"`{target.name}` has {engine.module} {engine.version}, which builds no "
            "version-compatible engines",
            hint="leave `tensorrt.version_compatible` out of the recipe",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
