"""What the user's hook is given: the time left, the teacher, a place to tell how it goes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

from packager.errors import ModelUnsupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_TELL_EVERY_S: Final = 0.5


class Session:
    """One run of the hook `function(module, session)`.

    The hook trains `module` in place on its own data and returns nothing. It may replace no
    layer: the module's inputs, outputs and parameters stay what they are.

    Attributes:
        variant: What is trained: `pruned`, `qat`, `pruned-qat`, `sparse` or `distilled`.
        seed: The recipe's; torch, numpy and `random` are seeded with it before the hook starts.
        teacher: With `train.distill` the original model, frozen and in evaluation mode, called
            like the module; else None.
    """

    def __init__(
        self,
        *,
        variant: str,
        seed: int,
        teacher: Any,
        time_limit_s: float,
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.variant = variant
        self.seed = seed
        self.teacher = teacher
        self._limit_s = time_limit_s
        self._tell = tell
        self._began = time.monotonic()
        self._told = -math.inf
        self._steps = 0

    def time_left_s(self) -> float:
        """Return how long the hook may still take; 0 when it has to come to its end."""
        return max(0.0, self._limit_s - (time.monotonic() - self._began))

    def step(self, loss: Any = None, *, done: int | None = None, total: int | None = None) -> None:
        """Tell that a step is done; call it once per batch or epoch.

        Args:
            loss: A number or a tensor with one element; it is shown, and has to be finite.
            done: Steps done so far; None counts the calls.
            total: Steps in all; None shows the share of the time limit instead.

        Raises:
            ModelUnsupported: the loss is infinite or not a number.
        """
        self._steps = self._steps + 1 if done is None else done
        text = self.variant
        now = time.monotonic()
        if loss is not None:
            value = float(loss.detach() if hasattr(loss, "detach") else loss)
            if not math.isfinite(value):
                raise ModelUnsupported(
                    f"the loss became {value} in step {self._steps}",
                    hint="train with a smaller learning rate",
                )
            text = f"{self.variant}, loss {value:.4g}"
        if total is not None and not 0 <= self._steps <= total:
            raise UsageError(f"`session.step` was told of step {self._steps} of {total}")
        if now - self._told < _TELL_EVERY_S and self._steps != total:
            return
        self._told = now
        if total is None:
            done_s = min(now - self._began, self._limit_s)
            wire = {"done": int(done_s), "total": max(1, int(self._limit_s))}
        else:
            wire = {"done": self._steps, "total": total}
        self._tell("progress", {**wire, "text": f"train {text}"})

    def log(self, text: str) -> None:
        """Show a line to whoever builds."""
        self._tell("note", {"text": str(text)[:500]})

    def distill_loss(
        self, student_out: Any, teacher_out: Any, temperature: float = 2.0, *, kind: str = "scores"
    ) -> Any:
        """Return how far the student's outputs are from the teacher's, as a loss.

        Args:
            student_out: What the module returned: a tensor, or tuples and dictionaries of them.
            teacher_out: What the teacher returned for the same inputs.
            temperature: Above 1 the teacher's smaller scores count more.
            kind: `scores` for unnormalized scores over the last axis: the divergence of their
                softmax, times temperature² (Hinton et al., arXiv 1503.02531). `values` for
                anything else: the mean squared error, in units of the teacher's variance.

        Raises:
            UsageError: a `kind` or temperature that cannot be, or outputs of other shapes.
        """
        from torch.nn import functional

        from packager.importers.torch_calls import flatten

        if kind not in {"scores", "values"} or not temperature > 0:
            raise UsageError(
                f"`distill_loss` was given kind={kind!r}, temperature={temperature!r}",
                accepted="`scores` or `values`, and a temperature above 0",
            )
        pairs = list(zip(flatten(student_out), flatten(teacher_out), strict=False))
        if len(pairs) != len(flatten(teacher_out)) or any(
            a.shape != b.shape for (_, a), (_, b) in pairs
        ):
            raise UsageError("student and teacher return tensors of different shapes")
        losses = []
        for (_, student), (_, teacher) in pairs:
            if not student.is_floating_point():
                continue
            if kind == "values":
                spread = teacher.detach().var(correction=0).clamp_min(1e-12)
                losses.append(functional.mse_loss(student, teacher.detach()) / spread)
                continue
            log_student = functional.log_softmax(student / temperature, dim=-1)
            log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=-1)
            rows = max(1, student.numel() // student.shape[-1])
            divergence = functional.kl_div(
                log_student, log_teacher, reduction="sum", log_target=True
            )
            losses.append(divergence / rows * temperature**2)
        if not losses:
            raise UsageError("the outputs hold no floating-point tensor to distill")
        return sum(losses[1:], losses[0])
