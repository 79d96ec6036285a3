"""The forms of a model that the search tries: which passes make each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.int8_static import WEIGHTED, Int8Static
from packager.passes.raise_opset import RaiseOpset
from packager.passes.round_weights import RoundWeights

if TYPE_CHECKING:
    from packager.passes.contract import Pass
    from packager.recipe import Compression

PLAIN: Final = "fp32"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to compress a cleaned model.

    Attributes:
        name: The candidate's name, which a lock repeats.
        precision: The recipe's word that asks for it.
        passes: In order.
        variant: It refines another form: where it does not apply it is not spoken of.
        rank: Where nothing can be timed, forms with the lowest rank are taken to be the fastest.
    """

    name: str
    precision: str
    passes: tuple[Pass, ...] = ()
    variant: bool = False
    rank: int = 0

    @property
    def needs_samples(self) -> bool:
        """Tell whether it cannot be made without calibration data."""
        return any(step.needs_samples for step in self.passes)

    def asked_by(self, precision: str) -> bool:
        """Tell whether a recipe's `precision` allows this form."""
        return precision in ("auto", self.name, self.precision) or (
            precision == "int8" and self.precision.startswith("int8")
        )


def forms(compression: Compression) -> tuple[Form, ...]:
    """Return the forms that are tried, the plain one first."""
    operators, raised = compression.op_types, RaiseOpset(least=13)
    static = Int8Static(operators=operators)
    found = [
        Form(name=PLAIN, precision=PLAIN),
        Form(name="int8-dynamic", precision="int8-dynamic", passes=(Int8Dynamic(),), rank=2),
        Form(
            name="int8-static",
            precision="int8-static",
            passes=(raised, RoundWeights(quantizer=static)),
        ),
        Form(
            name="int8-static-mixed",
            precision="int8-static",
            passes=(raised, RoundWeights(quantizer=replace(static, float_layers=2))),
            variant=True,
        ),
    ]
    if not operators:
        # Everything between the layers stays float: slower, and nearer to the original.
        narrow = Form(
            name="int8-static-layers",
            precision="int8-static",
            passes=(raised, RoundWeights(quantizer=replace(static, operators=WEIGHTED))),
            variant=True,
            rank=1,
        )
        found.append(narrow)
    return tuple(found)
