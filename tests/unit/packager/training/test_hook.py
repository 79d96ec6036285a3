"""The hook: what it is given, and every way in which it may break its contract."""

from __future__ import annotations

import contextlib
import copy
import signal
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")

from packager.errors import ModelUnsupported, UsageError  # noqa: E402
from packager.importers.torch_calls import Callee  # noqa: E402
from packager.training import hook as hooks  # noqa: E402
from packager.training.session import Session  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

nn = torch.nn
pytestmark = pytest.mark.torch


def network() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def session(told: list[Any] | None = None, *, limit_s: float = 20.0) -> Session:
    said = told if told is not None else []
    return Session(
        variant="pruned",
        seed=7,
        teacher=None,
        time_limit_s=limit_s,
        tell=lambda kind, wire: said.append((kind, wire)),
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Train a small network with a hook and return it."""

    def call(hook: Any, *, limit_s: float = 20.0, module: Any = None) -> Any:
        module = network() if module is None else module
        examples = {"input": torch.ones(2, 4)}
        hooks.train(
            hook,
            module,
            session(limit_s=limit_s),
            callee=Callee(module, examples),
            examples=examples,
            source="train.py:hook",
            time_limit_s=limit_s,
            folder=tmp_path,
        )
        return module

    return call


def test_a_hook_trains_in_place_and_the_module_comes_back_ready(run: Any, tmp_path: Path) -> None:
    def hook(module: Any, session: Session) -> None:
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x = torch.randn(16, 4)
        for _ in range(3):
            optimizer.zero_grad()
            loss = module(x).square().mean()
            loss.backward()
            optimizer.step()
            session.step(loss)

    first, second = run(hook), None
    before = network()
    torch.manual_seed(0)
    assert not first.training
    assert first[0].weight.shape == before[0].weight.shape
    assert list(tmp_path.iterdir()) == []
    module = network()
    states = []
    for _ in range(2):  # the seed makes it the same each time
        second = run(hook, module=copy.deepcopy(module))
        states.append(second[0].weight.clone())
    assert torch.equal(*states)
    assert not torch.equal(states[0], module[0].weight)


def test_a_failing_hook_is_blamed_by_its_line(run: Any) -> None:
    def hook(module: Any, session: Session) -> None:
        raise ValueError("no such data")

    with pytest.raises(ModelUnsupported, match=r"`train.py:hook` failed at test_hook.py:\d+") as e:
        run(hook)
    assert "ValueError: no such data" in e.value.message


def test_a_loss_that_is_no_number_ends_the_training(run: Any) -> None:
    def hook(module: Any, session: Session) -> None:
        session.step(torch.tensor(1.0))
        session.step(torch.tensor(float("nan")))

    with pytest.raises(ModelUnsupported, match=r"`train\.py:hook`: the loss became nan in step 2"):
        run(hook)


def test_weights_that_are_no_numbers_are_refused(run: Any) -> None:
    def hook(module: Any, session: Session) -> None:
        with torch.no_grad():
            module[0].weight[0, 0] = float("inf")

    with pytest.raises(ModelUnsupported, match=r"left values in `0.weight` that are infinite"):
        run(hook)


def test_a_returned_module_is_refused(run: Any) -> None:
    with pytest.raises(ModelUnsupported, match="returned a Sequential") as caught:
        run(lambda module, session: module)
    assert "trains `module` in place" in str(caught.value.accepted)


def test_another_class_or_layer_or_shape_is_refused(run: Any) -> None:
    class Other(nn.Sequential):
        pass

    def reclass(module: Any, session: Session) -> None:
        module.__class__ = Other

    def replace(module: Any, session: Session) -> None:
        module[1] = nn.GELU()

    def widen(module: Any, session: Session) -> None:
        module[0].weight = nn.Parameter(torch.zeros(8, 5))

    for hook, words in (
        (reclass, "changed the module's class to `Other`"),
        (replace, "added, removed or replaced the layer `1`"),
        (widen, "added, removed or replaced the weight `0.weight`"),
    ):
        with pytest.raises(ModelUnsupported, match=words):
            run(hook)


def test_other_outputs_are_refused(run: Any) -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.wide = nn.Linear(4, 4), False

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            return torch.cat([y, y], 1) if self.wide else y

    def hook(module: Any, session: Session) -> None:
        module.wide = True

    module = Switch().eval()
    with pytest.raises(ModelUnsupported, match="changed the names, shapes or types of the outputs"):
        run(hook, module=module)


def test_a_hook_that_does_not_end_is_ended(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "grace_s", lambda limit_s: 0.3)

    def hook(module: Any, session: Session) -> None:
        while True:
            with contextlib.suppress(Exception):  # this must not save it
                time.sleep(10)

    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    with pytest.raises(ModelUnsupported, match=r"went on after its 0.2 s were over, at test_hook"):
        run(hook, limit_s=0.2)
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (timer > 0), "the old timer is back"


def test_the_time_left_runs_down() -> None:
    given = session(limit_s=0.05)
    assert 0 < given.time_left_s() <= 0.05
    time.sleep(0.06)
    assert given.time_left_s() == 0


def test_steps_and_words_are_told() -> None:
    told: list[Any] = []
    given = session(told)
    for step in range(1, 4):
        given.step(0.5, done=step, total=3)
    given.log("halfway")
    assert told[0] == ("progress", {"done": 1, "total": 3, "text": "train pruned, loss 0.5"})
    assert told[-2] == ("progress", {"done": 3, "total": 3, "text": "train pruned, loss 0.5"})
    assert told[-1] == ("note", {"text": "halfway"})
    with pytest.raises(UsageError, match="step 4 of 3"):
        given.step(done=4, total=3)


def test_the_distance_to_the_teacher_is_zero_where_it_is_copied() -> None:
    given = session()
    scores = torch.randn(5, 4)
    assert float(given.distill_loss(scores, scores)) == pytest.approx(0, abs=1e-6)
    other = {"a": scores + torch.randn(5, 4), "b": torch.arange(5)}
    loss = given.distill_loss(other, {"a": scores, "b": torch.arange(5)}, 4.0)
    assert float(loss) > 0.01
    plain = torch.nn.functional.kl_div(
        (other["a"] / 4).log_softmax(-1), (scores / 4).softmax(-1), reduction="batchmean"
    )
    assert float(loss) == pytest.approx(16 * float(plain), rel=1e-4)
    values = given.distill_loss(scores + 1, scores, kind="values")
    assert float(values) == pytest.approx(1 / float(scores.var(correction=0)), rel=1e-4)


def test_distances_that_cannot_be_are_refused() -> None:
    given = session()
    for arguments, words in (
        ((torch.zeros(2, 3), torch.zeros(2, 4)), "different shapes"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature=0.0"),
        ((torch.zeros(2), torch.zeros(2), 1.0, "other"), "kind='other'"),
        ((torch.arange(2), torch.arange(2)), "no floating-point tensor"),
    ):
        positional, kind = arguments[:3], {"kind": arguments[3]} if len(arguments) > 3 else {}
        with pytest.raises(UsageError, match=words):
            given.distill_loss(*positional, **kind)


def test_a_hook_is_found_by_file_and_name(tmp_path: Path) -> None:
    file = tmp_path / "my_hook.py"
    file.write_text(
        textwrap.dedent(
            """
            def tune(module, session):
                pass
            """
        ),
        encoding="utf-8",
    )
    assert hooks.load_hook(f"{file}:tune").__name__ == "tune"
    with pytest.raises(ModelUnsupported, match=r"`my_hook.py:tone`: there is no function") as e:
        hooks.load_hook(f"{file}:tone")
    assert e.value.accepted == "`tune`"
