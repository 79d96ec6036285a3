"""The forms of a model that the search tries: which passes make each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from packager.passes.correct_bias import CorrectBias
from packager.passes.float16 import BFloat16, BFloat16Rounded, Float16
from packager.passes.float16_rest import LEAST_OPSET, Float16Rest
from packager.passes.fold_scales import FoldScales
from packager.passes.fuse_attention import FuseAttention
from packager.passes.fuse_transformer import FuseTransformer
from packager.passes.hard_swish import HardSwish
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.int8_static import WEIGHTED, Int8Static
from packager.passes.raise_opset import RaiseOpset
from packager.passes.round_weights import RoundWeights
from packager.passes.smooth_quant import SmoothQuant
from packager.passes.weight_only import WeightOnly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.passes.contract import Pass
    from packager.recipe import Compression
    from packager.target import Target

PLAIN: Final = "fp32"
CLEANED: Final = "cleaned"
ORIGINAL: Final = "as it came"
LAYERS_ALONE: Final = "int8-static-layers"
NEAREST: Final = "int8-static-nearest"
# At the end of a form's name: what it computes in float it computes in fp16.
HALF_REST: Final = "+fp16"
_RAISED: Final = RaiseOpset(least=13)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A graph that computes what the model does: engines run one faster than the other.

    Attributes:
        passes: In order, after the clean-up.
        own: How many of the last ones make the shape; one of them at least has to find something.
    """

    passes: tuple[Pass, ...] = ()
    own: int = 1


SHAPES: Final[Mapping[str, Shape]] = {
    CLEANED: Shape(),
    ORIGINAL: Shape(),
    "transformer": Shape(passes=(FuseTransformer(),)),
    "attention": Shape(passes=(FuseTransformer(), FuseAttention())),
    "folded": Shape(passes=(_RAISED, FuseTransformer(), HardSwish(), FoldScales()), own=2),
}
_STATIC_SHAPES: Final = ("folded", CLEANED)
_DYNAMIC_SHAPES: Final = ("transformer", "attention", CLEANED)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to compress a model.

    Attributes:
        name: The candidate's name.
        precision: The recipe's word that asks for it.
        shapes: Graphs that the passes may start from, of SHAPES; the fastest that applies is
            taken, or where nothing is timed the first that does.
        passes: After those of the shape, in order.
        float_layers: Names of layers that go back to float once the passes are through.
        last: Passes after that.
        base: The form of the table whose passes these are; empty where it is one itself.
        source: The model it starts from: empty for the original, else a training variant's name.
        variant: It refines another form: where it does not apply it is not spoken of.
        rank: Where nothing can be timed, forms with the lowest rank are taken to be the fastest.
    """

    name: str
    precision: str
    shapes: tuple[str, ...] = (CLEANED,)
    passes: tuple[Pass, ...] = ()
    float_layers: tuple[str, ...] = ()
    last: tuple[Pass, ...] = ()
    base: str = ""
    source: str = ""
    variant: bool = False
    rank: int = 0

    @property
    def needs_samples(self) -> bool:
        """Tell whether it cannot be made without calibration data."""
        return any(step.needs_samples for step in self.passes)

    @property
    def shape(self) -> str:
        """Return the graph that the passes start from."""
        return self.shapes[0]

    @property
    def family(self) -> str:
        """Return the name of the form in the table that this one comes from."""
        return self.base or self.name

    def asked_by(self, compression: Compression, target: Target) -> bool:
        """Tell whether a recipe allows this form, or, where it leaves it open, the target does."""
        asked = compression.precision.removesuffix(HALF_REST)
        if asked == "auto":
            # For size alone, what the target runs slowly may do as well.
            return compression.objective == "size" or any(
                self.precision in (wanted, f"{wanted}-static", f"{wanted}-dynamic")
                for wanted in (PLAIN, *target.precisions)
            )
        int8 = ("int8-static", "int8-dynamic")
        return asked in (self.name, self.precision) or (asked == "int8" and self.precision in int8)

    def with_float(self, layers: tuple[str, ...], called: str = "mixed") -> Form:
        """Return the form with these layers in float.

        Args:
            layers: Names of nodes.
            called: What is told of the set in the candidate's name, before its size.
        """
        name = f"{self.family}-{called}-{len(layers)}"
        return replace(self, name=name, base=self.family, float_layers=layers)

    def with_half_rest(self) -> Form:
        """Return the form with fp16 in the place of what it computes in float32."""
        return replace(
            self,
            name=f"{self.name}{HALF_REST}",
            precision=f"{self.precision}{HALF_REST}",
            base=self.family,
            last=(RaiseOpset(least=LEAST_OPSET, preferred=LEAST_OPSET), Float16Rest()),
            rank=0,
        )

    def to_lock(self) -> dict[str, Any]:
        """Return what a lock needs to make the form again."""
        return {
            "precision": self.name,
            "form": self.family,
            "shape": self.shape,
            "float_layers": list(self.float_layers),
        }


def table(
    compression: Compression, variants: tuple[str, ...] = (), *, tensorrt: bool = False
) -> tuple[Form, ...]:
    """Return the forms that are tried, the plain one first.

    Args:
        compression: What the recipe allows.
        variants: Names of models that training made.
        tensorrt: They are for TensorRT instead of ONNX Runtime.
    """
    forms = _forms_for_tensorrt if tensorrt else _forms
    found = forms(compression)
    for variant in variants:
        found += [
            replace(form, name=_of_variant(variant, form.name), source=variant)
            for form in forms(compression)
            if form.precision in (PLAIN, "int8-static") and not form.variant
        ]
    return tuple(found)


def locked_form(forms: tuple[Form, ...], choice: Mapping[str, Any]) -> Form | None:
    """Return the form that an earlier build chose, or None where there is none of that name."""
    form = next((form for form in forms if form.name == choice.get("form")), None)
    shape = str(choice.get("shape"))
    if form is None or (shape not in form.shapes and (form.name, shape) != (PLAIN, ORIGINAL)):
        return None
    layers, named = choice.get("float_layers", []), str(choice.get("precision"))
    form, name = replace(form, shapes=(shape,)), named.removesuffix(HALF_REST)
    if layers:
        found = _with_layers(form, name, layers)
        if found is None:
            return None
        form = found
    return form.with_half_rest() if name != named else form


def has_half_rest(target: Target) -> bool:
    """Tell whether a target's engine takes int8 layers beside fp16 ones, typed in the graph."""
    tensorrt = target.tensorrt
    return (
        tensorrt is not None
        and tensorrt.strongly_typed
        and tensorrt.max_opset >= LEAST_OPSET
        and "fp16" in target.precisions
    )


def _with_layers(form: Form, name: str, layers: Any) -> Form | None:
    named = re.fullmatch(rf"{re.escape(form.name)}-[a-z0-9-]{{1,40}}", name)
    if named is None or not isinstance(layers, list) or not all(isinstance(n, str) for n in layers):
        return None
    return replace(form, name=name, base=form.name, float_layers=tuple(layers))


def _of_variant(variant: str, name: str) -> str:
    return variant if name == PLAIN else f"{variant}-{name}"


def _layers_alone() -> Form:
    # What lies between the layers stays float: faster where that is float operators anyway.
    static = Int8Static(operators=WEIGHTED, calibration="mse")
    return Form(
        name=LAYERS_ALONE,
        precision="int8-static",
        shapes=_STATIC_SHAPES,
        passes=(_RAISED, RoundWeights(quantizer=static)),
        variant=True,
        rank=1,
    )


def _forms(compression: Compression) -> list[Form]:
    static = Int8Static(operators=compression.op_types, calibration="mse")
    found = [Form(name=PLAIN, precision=PLAIN)]
    found += [
        Form(name=f"{PLAIN}-{shape}", precision=PLAIN, shapes=(shape,), variant=True)
        for shape in SHAPES
        if shape not in {CLEANED, ORIGINAL}
    ]
    found += [
        Form(
            name="int8-dynamic",
            precision="int8-dynamic",
            shapes=_DYNAMIC_SHAPES,
            passes=(Int8Dynamic(),),
            rank=2,
        ),
        Form(
            name="int8-dynamic-smooth",
            precision="int8-dynamic",
            shapes=_DYNAMIC_SHAPES,
            passes=(SmoothQuant(), Int8Dynamic()),
            variant=True,
            rank=2,
        ),
        Form(
            name="int8-static",
            precision="int8-static",
            shapes=_STATIC_SHAPES,
            passes=(_RAISED, RoundWeights(quantizer=static)),
        ),
        Form(
            name="int8-static-corrected",
            precision="int8-static",
            shapes=_STATIC_SHAPES,
            passes=(_RAISED, CorrectBias(quantizer=RoundWeights(quantizer=static))),
            variant=True,
        ),
        # Rounding fits the weights to the calibration data, which may not be like what comes.
        Form(
            name=NEAREST,
            precision="int8-static",
            shapes=_STATIC_SHAPES,
            passes=(_RAISED, static),
            variant=True,
        ),
        *([] if compression.op_types else [_layers_alone()]),
    ]
    found += [
        Form(name="fp16", precision="fp16", passes=(Float16(),)),
        Form(name="bf16", precision="bf16", passes=(BFloat16(),)),
        # Tables bear four bits (cosine .9987 on MiniLM), products do not (.968).
        Form(
            name="int8-dynamic-int4-tables",
            precision="int4",
            shapes=_DYNAMIC_SHAPES,
            passes=(WeightOnly(bits=4, products=False), Int8Dynamic()),
            variant=True,
        ),
        Form(name="int8-weights", precision="int8-weights", passes=(WeightOnly(bits=8),)),
        Form(
            name="int8-weights-int4-tables",
            precision="int4",
            passes=(WeightOnly(table_bits=4),),
            variant=True,
        ),
        Form(name="int4-weights", precision="int4", passes=(WeightOnly(bits=4),)),
    ]
    return found


def _forms_for_tensorrt(compression: Compression) -> list[Form]:
    """Return what TensorRT parses: standard operators, ranges fixed ahead, explicit Q/DQ.

    It fuses by itself, so the graph's shape is left alone; Q/DQ stand in front of the layers that
    have weights, and what these give stays float up to the next pair. Depthwise convolutions stay
    float as well: few kernels are made for them in int8 (TensorRT-RTX pads their weights with
    zeros: EfficientNet-Lite0's engine for one row has 18.8 MB with them and 10.6 MB without), and
    they cost most of the accuracy (agreement .966 with them, .993 without, on 296 photos).
    """
    static = Int8Static(
        operators=compression.op_types or WEIGHTED, calibration="mse",
        outputs=False, depthwise=False,
    )  # fmt: skip
    smooth = (SmoothQuant(), static)
    return [
        Form(name=PLAIN, precision=PLAIN),
        Form(
            name="int8-static",
            precision="int8-static",
            passes=(_RAISED, RoundWeights(quantizer=static)),
            rank=1,
        ),
        Form(
            name="int8-static-corrected",
            precision="int8-static",
            passes=(_RAISED, CorrectBias(quantizer=RoundWeights(quantizer=static))),
            variant=True,
            rank=1,
        ),
        Form(name=NEAREST, precision="int8-static", passes=(_RAISED, static), variant=True, rank=1),
        Form(
            name="int8-static-smooth",
            precision="int8-static",
            passes=(_RAISED, *smooth),
            variant=True,
            rank=1,
        ),
        Form(name="fp16", precision="fp16", passes=(Float16(),)),
        Form(
            name="bf16",
            precision="bf16",
            passes=(RaiseOpset(least=22, preferred=22), BFloat16Rounded()),
        ),
    ]
