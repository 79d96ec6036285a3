"""Post-processing as ONNX nodes: what a recipe makes of a model's outputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.passes.boxes import box_specs, box_steps, boxes_consumed
from packager.passes.steps import Steps, compile_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from packager.recipe import OutputSteps, Recipe

    Finish = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

LEAST_OPSET: Final = 13
_HALVES: Final = ("float16", "bfloat16")
_ACTIVATIONS: Final = ("Softmax", "Sigmoid", "QLinearSoftmax", "QLinearSigmoid")
_TRANSPARENT: Final = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Reshape",
                       "Transpose", "Squeeze", "Unsqueeze")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """What a recipe makes of a model's outputs, checked.

    Attributes:
        recipe: Its `outputs` and `boxes`.
        consumed: The model's outputs that steps replace, in order.
        outputs: Every output afterwards, in order.
    """

    recipe: Recipe
    consumed: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def build(self, steps: Steps, raw: Mapping[str, str]) -> None:
        """Append the steps from the raw values, by output name, to those of `outputs`."""
        specs = {spec.name: spec for spec in self.consumed}
        for name, settings in self.recipe.outputs.items():
            if name in specs:
                _output_steps(steps, settings, raw[name], specs[name])
        if self.recipe.boxes is not None:
            box_steps(steps, self.recipe.boxes, raw, specs)


def plan_finishing(recipe: Recipe, signature: Signature) -> Finishing | None:
    """Check a recipe's outputs against a model's; None where it changes none.

    Raises:
        UsageError: an output that is not there, has another shape, or is asked for two things.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    for name, settings in recipe.outputs.items():
        if name not in specs:
            raise UsageError(
                f"the recipe declares `[output.{name}]`, and the model has no output `{name}`",
                accepted=", ".join(f"`{known}`" for known in specs),
            )
        _check_output(settings, specs[name])
    boxes = recipe.boxes
    consumed = {name for name, steps in recipe.outputs.items() if changes(steps)}
    first = ""
    if boxes is not None:
        names = boxes_consumed(boxes, specs)
        first = names[0]
        twice = next((name for name in names if name in recipe.outputs), None)
        if twice is not None:
            raise UsageError(
                f"`{twice}` is named by `[boxes]` and by `[output.{twice}]`", accepted="one of both"
            )
        consumed |= set(names)
    if not consumed:
        return None
    made: list[TensorSpec] = []
    for spec in signature.outputs:
        if boxes is not None and spec.name == first:
            made += box_specs(boxes, specs)
        elif spec.name not in consumed:
            made.append(spec)
        elif spec.name in recipe.outputs:
            made += _output_specs(recipe.outputs[spec.name], spec)
    _refuse_doubles([*made, *signature.inputs])
    return Finishing(
        recipe=recipe,
        consumed=tuple(spec for spec in signature.outputs if spec.name in consumed),
        outputs=tuple(made),
    )


def finisher(recipe: Recipe, signature: Signature) -> Finish | None:
    """Return a function from a model's raw outputs to those that the recipe asks for.

    It runs the very nodes that `inputs.attach` puts behind the model.

    Args:
        recipe: Its outputs.
        signature: Of the model, before `inputs.attach`.

    Returns:
        The function; None where the recipe changes no output.

    Raises:
        UsageError: the recipe does not fit the model.
    """
    plan = plan_finishing(recipe, signature)
    if plan is None:
        return None
    steps = Steps(prefix="post", opset=LEAST_OPSET)
    raw = [dataclasses.replace(spec, name=f"{spec.name}.raw") for spec in plan.consumed]
    names = {spec.name: value.name for spec, value in zip(plan.consumed, raw, strict=True)}
    plan.build(steps, names)
    kept = {spec.name for spec in signature.outputs} - set(names)
    made = [spec for spec in plan.outputs if spec.name not in kept]
    run = compile_steps(steps, [_of_any_size(spec) for spec in raw], made)

    def finish(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        finished = run({value: outputs[name] for name, value in names.items()})
        return {
            spec.name: outputs[spec.name] if spec.name in kept else finished[spec.name]
            for spec in plan.outputs
        }

    return finish


def decided_outputs(recipe: Recipe, signature: Signature) -> tuple[str, ...]:
    """Return the outputs that turn on a last digit: which class, which box, which side of a limit.

    Args:
        recipe: Its outputs.
        signature: Of the model, before `inputs.attach`.
    """
    plan = plan_finishing(recipe, signature)
    if plan is None:
        return ()
    kept = {spec.name for spec in signature.outputs} - {spec.name for spec in plan.consumed}
    scores = {
        name for name, steps in recipe.outputs.items() if not steps.ctc and steps.threshold is None
    }
    return tuple(spec.name for spec in plan.outputs if spec.name not in kept | scores)


def refuse_second_activation(model: Any, finishing: Finishing) -> None:
    """Refuse an activation that the model computes already.

    Raises:
        UsageError: the output comes from a softmax or a sigmoid.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    asked = {name: settings.activation for name, settings in finishing.recipe.outputs.items()}
    boxes = finishing.recipe.boxes
    if boxes is not None and boxes.scores:
        asked[boxes.scores] = boxes.activation
    for name, activation in asked.items():
        node = makers.get(name)
        while node is not None and node.op_type in _TRANSPARENT:
            node = makers.get(node.input[0])
        if activation != "none" and node is not None and node.op_type in _ACTIVATIONS:
            raise UsageError(
                f"the recipe asks for `{activation}` on `{name}`, which the model ends in a "
                f"{node.op_type} already",
                accepted='`activation = "none"`',
            )


def _of_any_size(spec: TensorSpec) -> TensorSpec:
    """Return the spec with anonymous sizes: a candidate's raw outputs are what they are."""
    shape = tuple(dim if dim.size is not None else Dim() for dim in spec.shape)
    return dataclasses.replace(spec, shape=shape)


def _refuse_doubles(made: list[TensorSpec]) -> None:
    names = [spec.name for spec in made]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UsageError(
            f"the recipe makes an output `{double}`, which the model has as well",
            hint="export the model with other names for its outputs",
        )


def changes(settings: OutputSteps) -> bool:
    """Tell whether an output's steps are more than labels."""
    return (
        settings.activation != "none"
        or settings.top_k is not None
        or settings.threshold is not None
        or settings.ctc
    )


def _check_output(settings: OutputSteps, spec: TensorSpec) -> None:
    where = f"output.{spec.name}"
    asked = [
        word
        for word, given in (
            ("top_k", settings.top_k is not None),
            ("threshold", settings.threshold is not None),
            ("ctc", settings.ctc),
        )
        if given
    ]
    if len(asked) > 1:
        raise UsageError(
            f"`{where}` asks for `{asked[0]}` and for `{asked[1]}`", accepted="one of both"
        )
    if settings.ctc and settings.activation != "none":
        raise UsageError(
            f"`{where}` asks for `{settings.activation}` before `ctc`",
            accepted="`ctc` alone: the largest score is the largest with or without it",
        )
    if changes(settings) and "float" not in spec.dtype:
        raise UsageError(f"the output `{spec.name}` is {spec.dtype}", accepted="a float output")
    ranks = {"top_k": (2, "[batch, classes]"), "ctc": (3, "[batch, frames, classes]")}
    for word in asked:
        rank, form = ranks.get(word, (len(spec.shape), ""))
        if len(spec.shape) != rank:
            raise UsageError(
                f"`{where}.{word}` takes {form}", accepted=f"the model's output is `{spec}`"
            )
    if settings.activation == "softmax" and not spec.shape:
        raise UsageError(f"`{where}` asks for a softmax over a single number")
    classes = spec.shape[-1].size if spec.shape else None
    if settings.top_k is not None and (
        settings.top_k < 1 or (classes is not None and settings.top_k > classes)
    ):
        raise UsageError(
            f"`{where}.top_k` is {settings.top_k}",
            accepted="1 and more" if classes is None else f"1 to the model's {classes} classes",
        )
    if settings.ctc and not 0 <= settings.blank < (classes or settings.blank + 1):
        raise UsageError(
            f"`{where}.blank` is {settings.blank}",
            accepted="0 and more" if classes is None else f"0 to {classes - 1}",
        )


def _output_specs(settings: OutputSteps, spec: TensorSpec) -> tuple[TensorSpec, ...]:
    dtype = "float32" if spec.dtype in _HALVES else spec.dtype
    if settings.top_k is not None:
        shape = (*spec.shape[:-1], Dim(size=settings.top_k))
        return (
            dataclasses.replace(spec, dtype=dtype, shape=shape),
            TensorSpec(name=f"{spec.name}_classes", dtype="int64", shape=shape),
        )
    if settings.ctc:
        return (dataclasses.replace(spec, dtype="int64", shape=spec.shape[:-1]),)
    if settings.threshold is not None:
        return (dataclasses.replace(spec, dtype="bool"),)
    return (dataclasses.replace(spec, dtype=dtype),)


def _output_steps(steps: Steps, settings: OutputSteps, raw: str, spec: TensorSpec) -> None:
    if not changes(settings):
        return
    inner = Steps(prefix=f"{steps.prefix}.{spec.name}", opset=steps.opset)
    dtype = "float32" if spec.dtype in _HALVES else spec.dtype
    values = raw if spec.dtype == dtype else inner.cast(raw, dtype)
    values = activate(inner, settings.activation, values, axis=-1)
    if settings.top_k is not None:
        k = inner.ints("k", [settings.top_k])
        inner.add_many("TopK", [values, k], 2, [spec.name, f"{spec.name}_classes"], axis=-1)
    elif settings.ctc:
        _ctc_steps(inner, settings.blank, values, spec.name)
    elif settings.threshold is not None:
        least = inner.number("threshold", settings.threshold, dtype)
        inner.add("GreaterOrEqual", [values, least], spec.name)
    else:
        inner.add("Identity", [values], spec.name)
    steps.nodes.extend(inner.nodes)
    steps.constants.extend(inner.constants)


def activate(steps: Steps, activation: str, values: str, *, axis: int) -> str:
    """Append `softmax` over an axis, `sigmoid`, or nothing."""
    if activation == "softmax":
        return steps.add("Softmax", [values], axis=axis)
    if activation == "sigmoid":
        return steps.add("Sigmoid", [values])
    return values


def _ctc_steps(steps: Steps, blank: int, values: str, result: str) -> None:
    """Append greedy decoding (Graves et al., 2006): best path, repetitions and blanks removed.

    A frame is kept where its class is no blank and not the frame's before; each kept class goes to
    its place by a running count, all others to one place behind the last, which is cut off.
    """
    best = steps.add("ArgMax", [values], axis=2, keepdims=0)
    none = steps.number("none", -1, "int64")
    one, zero = steps.ints("one", [1]), steps.ints("zero", [0])
    shifted = steps.add("Pad", [best, steps.ints("first", [0, 1, 0, 0]), none])
    before = steps.add("Slice", [shifted, zero, steps.ints("minus_one", [-1]), one])
    changed = steps.add("Not", [steps.add("Equal", [best, before])])
    solid = steps.add("Not", [steps.add("Equal", [best, steps.number("blank", blank, "int64")])])
    kept = steps.add("And", [changed, solid])
    count = steps.add("CumSum", [steps.cast(kept, "int64"), steps.number("axis", 1, "int64")])
    frames = steps.add("Gather", [steps.add("Shape", [best]), steps.number("axis", 1, "int64")])
    place = steps.add("Where", [kept, steps.add("Sub", [count, one]), frames])
    classes = steps.add("Where", [kept, best, none])
    empty = steps.add("Sub", [steps.add("Mul", [shifted, zero]), one])
    filled = steps.add("ScatterElements", [empty, place, classes], axis=1)
    steps.add("Slice", [filled, zero, steps.add("Unsqueeze", [frames, zero]), one], result)
