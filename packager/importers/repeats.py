"""Refuses a model that answers one input differently each time: nothing could be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from packager.checks.parity import is_float
from packager.errors import ModelUnsupported
from packager.importers.graph_walk import nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx

_RANDOM: Final = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli", "Dropout")
)  # fmt: skip


def check_repeats(
    model: onnx.ModelProto, run: Callable[[], Mapping[str, Any]], *, source: str
) -> None:
    """Run a model that has random operators twice on the same input.

    Args:
        model: The whole model.
        run: Answers that input; called for such models alone.
        source: What the user named, for messages.

    Raises:
        ModelUnsupported: the answers differ.
    """
    random = dict.fromkeys(n.op_type for n in nodes(model) if n.op_type in _RANDOM and not n.domain)
    if not random:
        return
    first, second = run(), run()
    changed = [name for name in first if not same_answer(first[name], second[name])]
    if changed:
        raise ModelUnsupported(
            f"`{source}` answers the same input differently each time (output `{changed[0]}`), by "
            + ", ".join(f"`{op}`" for op in random),
            hint="give the noise as an input of the model, or export it for inference, without",
        )


def same_answer(first: Any, second: Any) -> bool:
    """Return whether two answers differ by no more than the order of their sums may make."""
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if is_float(first):
        return bool(np.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True))
    return bool(np.array_equal(first, second))
