"""Raises the version of the default operator domain where a later pass needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from packager.passes.contract import PassBroken, PassContext, PassResult, opset_of


@dataclass(frozen=True, kw_only=True)
class RaiseOpset:
    """Converts the graph to a later opset with onnx's version converter.

    Attributes:
        least: Opset that the model must have; a later one stays as it is.
        preferred: Opset that a lower model is raised to, if the target reads it.
    """

    least: int = 13
    preferred: int = 17
    name: ClassVar[str] = "raise-opset"
    summary: ClassVar[str] = "raise the opset"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Apply to models below `least`, on targets that read it."""
        opset = opset_of(model)
        if opset >= self.least:
            return f"the model has opset {opset}"
        if context.target.engine.max_opset < self.least:
            return f"the target reads opset {context.target.engine.max_opset} at most"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model in the new opset."""
        from onnx import version_converter

        opset = max(self.least, min(self.preferred, context.target.engine.max_opset))
        after = version_converter.convert_version(model, opset)
        return PassResult(
            model=after, modified=True, notes=(f"opset {opset_of(model)} → {opset_of(after)}",)
        )

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check the opset that came out.

        Raises:
            PassBroken: it is another than asked for.
        """
        if not self.least <= opset_of(after) <= context.target.engine.max_opset:
            raise PassBroken(f"the model came out with opset {opset_of(after)}")
