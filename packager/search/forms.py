"""The forms of a model that the search tries: which passes make each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.int8_static import Int8Static
from packager.passes.raise_opset import RaiseOpset

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
    """

    name: str
    precision: str
    passes: tuple[Pass, ...] = ()
    variant: bool = False

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
    return (
        Form(name=PLAIN, precision=PLAIN),
        Form(name="int8-dynamic", precision="int8-dynamic", passes=(Int8Dynamic(),)),
        Form(
            name="int8-static",
            precision="int8-static",
            passes=(raised, Int8Static(operators=operators)),
        ),
        Form(
            name="int8-static-mixed",
            precision="int8-static",
            passes=(raised, Int8Static(operators=operators, float_layers=2)),
            variant=True,
        ),
    )
