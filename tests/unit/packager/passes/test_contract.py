"""The loop that holds every pass to its contract."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx
import pytest

from packager.passes.clean_up import CleanUp
from packager.passes.contract import PassBroken, PassResult, apply
from packager.passes.int8_dynamic import Int8Dynamic
from packager.passes.int8_static import Int8Static
from packager.passes.raise_opset import RaiseOpset

if TYPE_CHECKING:
    from collections.abc import Callable

ALL = (CleanUp(), RaiseOpset(), Int8Static(), Int8Dynamic())


@dataclass(frozen=True)
class Damage:
    """A pass that does something wrong."""

    kind: str
    name: ClassVar[str] = "damage"
    summary: ClassVar[str] = "break the model"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: Any) -> str | None:
        return None

    def run(self, model: Any, context: Any) -> PassResult:
        after = onnx.ModelProto()
        after.CopyFrom(model)
        if self.kind == "raises":
            raise KeyError("no such node")
        if self.kind == "does not load":
            after.graph.node[0].input[0] = "nowhere"
        if self.kind == "renames":
            after.graph.output[0].name = "renamed"
            after.graph.node[-1].output[0] = "renamed"
        if self.kind == "changes":
            weight = after.graph.initializer[0]
            weight.raw_data = bytes(len(weight.raw_data))
        if self.kind == "not a number":
            weight = after.graph.initializer[-1]
            weight.raw_data = b"\xff" * len(weight.raw_data)
        return PassResult(model=after, modified=True)

    def ensures(self, before: Any, after: Any, context: Any) -> None:
        if self.kind == "promise":
            raise PassBroken("the promise does not hold")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "no such node"),
        ("does not load", "nowhere"),
        ("renames", "the output `y` is missing"),
        ("changes", "an output changed by"),
        ("not a number", "holds NaN or infinity where the original has numbers"),
        ("promise", "the promise does not hold"),
    ],
)
def test_a_pass_that_breaks_the_model_is_left_out_and_reported(
    kind: str, reason: str, make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp()
    proto = onnx.load(model.path)
    context = make_context(make_samples(model))
    after, reports = apply((Damage(kind),), proto, context)
    assert after is proto
    assert reports[0].status == "left out"
    assert reason in reports[0].reason
    assert context.reporter.said == [f"damage was left out: {reports[0].reason}"]
    assert list(context.workdir.iterdir()) == []


def test_later_passes_go_on_from_the_last_model_that_held(
    make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp(opset=11)
    context = make_context(make_samples(model))
    after, reports = apply((Damage("changes"), RaiseOpset()), onnx.load(model.path), context)
    assert [report.status for report in reports] == ["left out", "applied"]
    assert after.opset_import[0].version == 17


def test_a_pass_without_its_calibration_data_is_skipped(
    make_cnn: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_cnn()
    context = make_context(make_samples(model), data=False)
    _, (report,) = apply((Int8Static(),), onnx.load(model.path), context)
    assert (report.status, report.reason) == ("skipped", "there is no calibration data")


def test_what_a_pass_can_do_is_readable_without_onnx() -> None:
    code = (
        "import sys\n"
        "from packager.passes import clean_up, contract, int8_dynamic, int8_static, raise_opset\n"
        "assert int8_static.Int8Static.precision == 'int8-static'\n"
        "assert int8_static.Int8Static.needs_samples\n"
        "assert not {'onnx', 'onnxruntime', 'numpy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_no_pass_changes_the_model_it_is_given(
    step: Any, make_mlp: Callable, make_samples: Callable, make_context: Callable
) -> None:
    model = make_mlp(opset=11 if step.name == "raise-opset" else 17)
    proto = onnx.load(model.path)
    before = proto.SerializeToString(deterministic=True)
    step.run(proto, make_context(make_samples(model)))
    assert proto.SerializeToString(deterministic=True) == before
