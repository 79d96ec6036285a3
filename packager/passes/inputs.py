"""Puts a recipe's pre- and post-processing into a model's graph, and applies it to samples."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from packager.data import TEXT_KEY, synthetic
from packager.errors import UsageError
from packager.model import Dim, Signature
from packager.passes import audio as sound
from packager.passes import columns as table
from packager.passes import image as photo
from packager.passes import outputs as post
from packager.passes.attached import check_attached
from packager.passes.contract import opset_of
from packager.passes.graph import strip_texts
from packager.passes.photo import photo_steps
from packager.passes.splice import fresh, put_before, put_behind, raised, rename, values_of
from packager.passes.steps import Steps, value_info
from packager.passes.text import check_text, tokenize
from packager.passes.transform import check_transform
from packager.passes.wordpiece import read_wordpiece

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data import Samples
    from packager.model import TensorSpec
    from packager.recipe import AudioInput, ImageInput, Recipe

_APART: Final = 7919
_RUNS: Final = 2


@dataclass(frozen=True, kw_only=True)
class _Input:
    """One input's pre-processing: the spec that clients see, and what leads to the model's."""

    served: TensorSpec
    build: Callable[[Steps, str, str], None]
    is_raw: Callable[[NDArray[Any]], bool]
    run: Callable[[], Callable[[NDArray[Any]], NDArray[Any]]]


def attach(model_path: Path, signature: Signature, recipe: Recipe, out: Path) -> Signature:
    """Write a model that takes what clients send and answers what they read.

    Photos, sound and columns go in as they are and the graph makes of them what the model takes;
    its outputs become classes, texts or boxes where the recipe says so. Text is turned into tokens
    outside. The result is run and compared with the model between the steps alone.

    Args:
        model_path: ONNX file; its opset is raised where the steps need a later one.
        signature: Its signature.
        recipe: Its inputs and outputs.
        out: Where the new file goes.

    Returns:
        The signature of the new file.

    Raises:
        UsageError: the recipe names an input or output that is not there or does not fit.
        ModelUnsupported: the opset cannot be raised, or the result computes something else.
    """
    import onnx

    inputs, finishing, attached = _plan(signature, recipe)
    if not inputs and finishing is None:
        shutil.copyfile(model_path, out)
        return attached
    model = onnx.load(model_path)
    if finishing is not None:
        post.refuse_second_activation(model, finishing)
    opset = opset_of(model)
    model = raised(model, least_opset(recipe), "what the recipe asks for")
    raw = _put_outputs(model, finishing) if finishing is not None else {}
    for name, each in inputs.items():
        _put_input(model, name, each)
    strip_texts(model)
    onnx.save(model, out)
    del model  # the check loads it twice
    check_attached(
        model_path,
        out,
        attached,
        samples=made_up(attached, recipe, _RUNS, 0),
        raw=raw,
        prepare=lambda samples: prepare(samples, recipe, signature),
        finish=post.finisher(recipe, signature),
        raised=None if opset >= least_opset(recipe) else (opset, least_opset(recipe)),
    )
    return attached


def least_opset(recipe: Recipe) -> int:
    """Return the least opset that a recipe's steps need, 0 where there are none."""
    needs = [
        (recipe.images, photo.LEAST_OPSET),
        (recipe.audio, sound.LEAST_OPSET),
        (any(c.mean or c.std for c in recipe.columns.values()), table.LEAST_OPSET),
        (recipe.boxes or any(map(post.changes, recipe.outputs.values())), post.LEAST_OPSET),
    ]
    return max((opset for needed, opset in needs if needed), default=0)


def served_signature(signature: Signature, recipe: Recipe) -> Signature:
    """Return the signature that `attach` leads to, checked but not built.

    Raises:
        UsageError: the recipe does not fit the model.
    """
    return _plan(signature, recipe)[2]


def prepare(samples: Samples, recipe: Recipe, signature: Signature) -> Samples:
    """Return the same samples as the model itself takes them, on each use.

    Args:
        samples: From `load_samples`, as clients send them; text under `text`. An array that is
            already in the model's own form stays.
        recipe: Its inputs.
        signature: Of the model, before `attach`.
    """
    inputs = _inputs(signature, recipe)[0]
    runs = {name: each.run() for name, each in inputs.items()}
    tokens = _tokens(recipe, signature)
    if not runs and tokens is None:
        return samples

    def change(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if tokens is not None:
            sample = tokens(sample)
        return {
            name: runs[name](array) if name in runs and inputs[name].is_raw(array) else array
            for name, array in sample.items()
        }

    return samples.map(change)


def as_served(samples: Samples, recipe: Recipe, signature: Signature) -> Samples:
    """Return the same samples as the attached model takes them: text as tokens, the rest as it is.

    Args:
        samples: From `load_samples`.
        recipe: Its inputs.
        signature: Of the model, before `attach`.
    """
    tokens = _tokens(recipe, signature)
    return samples if tokens is None else samples.map(tokens)


def made_up(attached: Signature, recipe: Recipe, count: int, seed: int) -> Samples:
    """Return `data.synthetic` inputs of an attached model, with token numbers of the vocabulary.

    Args:
        attached: The signature after `attach`.
        recipe: Its inputs.
        count: How many.
        seed: Of the draw.
    """
    samples = synthetic(attached, count, seed)
    if recipe.text is None:
        return samples
    name, size = recipe.text.ids, len(read_wordpiece(recipe.text).vocabulary)

    def change(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # A prime apart, so that they come from all of the vocabulary.
        ids = (sample[name].astype("int64") * _APART % size).astype(sample[name].dtype)
        return {**sample, name: ids}

    return samples.map(change)


def check_transforms(recipe: Recipe, samples: Samples, signature: Signature) -> dict[str, Any]:
    """Compare the compiled pre-processing with the training transforms that the recipe names.

    Returns:
        What `passes.transform` found, by input name; without those that cannot be compared.

    Raises:
        UsageError: a transform that is not there, fails, or makes another shape.
    """
    inputs = _inputs(signature, recipe)[0]
    found: dict[str, Any] = {}
    declared: dict[str, ImageInput | AudioInput] = {**recipe.images, **recipe.audio}
    for name, settings in declared.items():
        if settings.transform is None or name not in inputs:
            continue
        arrays = [s[name] for s in samples[:16] if name in s and inputs[name].is_raw(s[name])]
        if arrays:
            found[name] = check_transform(settings, arrays, inputs[name].run())
    return found


def _plan(
    signature: Signature, recipe: Recipe
) -> tuple[dict[str, _Input], post.Finishing | None, Signature]:
    inputs, fixed = _inputs(signature, recipe)
    finishing = post.plan_finishing(recipe, signature)
    outputs = finishing.outputs if finishing is not None else signature.outputs
    served = Signature(
        inputs=tuple(
            inputs[spec.name].served if spec.name in inputs else spec for spec in signature.inputs
        ),
        outputs=outputs,
    )
    return inputs, finishing, _settled(served, fixed)


def _inputs(signature: Signature, recipe: Recipe) -> tuple[dict[str, _Input], dict[str, int]]:
    """Return the inputs with steps by name, and the sizes that are fixed by them."""
    specs = {spec.name: spec for spec in signature.inputs}
    _check_names(recipe, specs)
    fixed: dict[str, int] = {}
    found: dict[str, _Input] = {}
    for name, image in recipe.images.items():
        spec = specs[name]
        fixed |= photo.check_photo(image, spec)
        found[name] = _Input(
            served=photo.photo_spec(spec, image, signature, len(recipe.images)),
            build=partial(_photo, image, spec.dtype),
            is_raw=photo.is_photo_array,
            run=partial(photo.preprocess_session, image, spec.dtype),
        )
    for name, audio in recipe.audio.items():
        spec = specs[name]
        fixed |= sound.check_sound(audio, spec)
        found[name] = _Input(
            served=sound.sound_spec(spec, audio, signature, len(recipe.audio)),
            build=partial(_sound, audio, spec),
            is_raw=partial(sound.is_sound_array, audio=audio, spec=spec),
            run=partial(sound.sound_session, audio, spec),
        )
    for name, columns in recipe.columns.items():
        spec = specs[name]
        table.check_columns(columns, spec)
        if columns.mean or columns.std:
            found[name] = _Input(
                served=spec,
                build=partial(_columns, columns, spec),
                is_raw=lambda array: array.ndim == 2,
                run=partial(table.columns_session, columns, spec),
            )
    if recipe.text is not None:
        check_text(recipe.text, signature)
    return found, fixed


def _photo(image: Any, dtype: str, steps: Steps, source: str, result: str) -> None:
    photo_steps(steps, image, source, result, dtype)


def _sound(audio: Any, spec: TensorSpec, steps: Steps, source: str, result: str) -> None:
    sound.sound_steps(steps, audio, source, result, spec)


def _columns(columns: Any, spec: TensorSpec, steps: Steps, source: str, result: str) -> None:
    table.column_steps(steps, columns, source, result, spec)


def _check_names(recipe: Recipe, specs: Mapping[str, TensorSpec]) -> None:
    kinds = {"image": recipe.images, "audio": recipe.audio, "columns": recipe.columns}
    seen: dict[str, str] = {}
    for kind, inputs in kinds.items():
        for name in inputs:
            if name not in specs:
                raise UsageError(
                    f"the recipe declares `[input.{name}.{kind}]`, and the model has no input "
                    f"`{name}`",
                    accepted=", ".join(f"`{known}`" for known in specs),
                )
            if name in seen:
                raise UsageError(
                    f"the input `{name}` is `{seen[name]}` and `{kind}` at once",
                    accepted="one of both",
                )
            seen[name] = kind


def _settled(signature: Signature, fixed: Mapping[str, int]) -> Signature:
    """Return the signature with dimensions that have one size now, or depend on the input's."""

    def settle(spec: TensorSpec) -> TensorSpec:
        shape = tuple(
            Dim(size=fixed[dim.name]) if dim.name is not None and dim.name in fixed else dim
            for dim in spec.shape
        )
        return dataclasses.replace(spec, shape=shape)

    inputs = tuple(map(settle, signature.inputs))
    known = Signature(inputs=inputs, outputs=()).dims()

    def loosen(spec: TensorSpec) -> TensorSpec:
        shape = tuple(
            dataclasses.replace(dim, name=None, min=0, max=None, opt=None)
            if dim.size is None and dim.name is not None and dim.name not in known
            else dim
            for dim in spec.shape
        )
        return dataclasses.replace(spec, shape=shape)

    outputs = tuple(loosen(settle(spec)) for spec in signature.outputs)
    return Signature(inputs=inputs, outputs=outputs)


def _tokens(
    recipe: Recipe, signature: Signature
) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None:
    if recipe.text is None:
        return None
    encode = tokenize(recipe.text, signature)

    def change(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if TEXT_KEY not in sample:
            return sample
        rest = {name: array for name, array in sample.items() if name != TEXT_KEY}
        return {**rest, **encode([str(text) for text in sample[TEXT_KEY]])}

    return change


def _put_input(model: Any, name: str, each: _Input) -> None:
    taken = values_of(model)
    prepared = fresh(f"{name}.prepared", taken)
    rename(model, {name: prepared})
    steps = Steps(prefix=fresh(f"{name}.pre", taken), opset=opset_of(model))
    each.build(steps, name, prepared)
    put_before(model, steps, each.served)


def _put_outputs(model: Any, finishing: post.Finishing) -> dict[str, str]:
    """Put the post-processing behind a model; return the raw values' names by output name."""
    taken = values_of(model)
    raw = {spec.name: fresh(f"{spec.name}.raw", taken) for spec in finishing.consumed}
    declared = {value.name: value for value in model.graph.output}
    made = [spec for spec in finishing.outputs if spec.name in raw or spec.name not in declared]
    # A value inside the graph may bear the name of a new output.
    inner = {spec.name: fresh(f"{spec.name}.inner", taken) for spec in made if spec.name in taken}
    rename(model, {**inner, **raw})
    steps = Steps(prefix=fresh("post", taken), opset=opset_of(model))
    finishing.build(steps, raw)
    new = {spec.name for spec in made}
    put_behind(
        model,
        steps,
        [
            value_info(spec) if spec.name in new else declared[spec.name]
            for spec in finishing.outputs
        ],
    )
    return raw
