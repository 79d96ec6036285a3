"""Pruning: what is cut, that nothing else changes, and what stays because the code needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (extra `train`)")

from packager.errors import ModelUnsupported, UsageError  # noqa: E402
from packager.importers.torch_calls import Callee  # noqa: E402
from packager.training.modules import copy_of, count_parameters  # noqa: E402
from packager.training.prune import prune  # noqa: E402
from packager.training.structure import Graph, column_mask  # noqa: E402
from tests.unit.packager.training.networks import Bert, ConvNet, Fixed, settle  # noqa: E402

if TYPE_CHECKING:
    from packager.training.prune import Pruned

pytestmark = pytest.mark.torch


def images(count: int) -> list[dict[str, Any]]:
    return [{"x": torch.randn(2, 3, 12, 12)} for _ in range(count)]


def texts(count: int) -> list[dict[str, Any]]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return [{"ids": torch.randint(0, 50, (2, 7)), "mask": mask} for _ in range(count)]


def cut(module: Any, share: float, feeds: list[dict[str, Any]], *, weigh: bool = True) -> Pruned:
    callee = Callee(module, feeds[0])
    return prune(
        callee,
        share,
        samples=feeds if weigh else [],
        probes=feeds[:2],
        seed=0,
        tell=lambda text: None,
    )


@pytest.mark.parametrize("weigh", [True, False], ids=["by answers", "by weights"])
def test_a_share_of_the_parameters_goes_and_the_outputs_stay(weigh: bool) -> None:
    module = settle(ConvNet())
    before = count_parameters(module)
    made = cut(module, 0.4, images(4), weigh=weigh)
    assert made.before == before == count_parameters(module), "the original is left alone"
    assert made.after == count_parameters(made.module)
    assert 0.4 <= 1 - made.after / made.before < 0.5
    assert made.module(torch.randn(3, 3, 12, 12)).shape == (3, 5)
    assert "head" not in made.widths
    assert {"left", "right"}.isdisjoint(made.widths), "the parts of `grouped` stay alike"
    assert any("`left` stay" in note for note in made.notes)


def test_what_is_left_computes_what_the_original_does_when_the_rest_is_not_read() -> None:
    module = settle(ConvNet())
    callee = Callee(module, images(1)[0])
    graph = Graph(copy_of(module), callee)
    groups, notes = graph.groups()
    assert notes == []
    roots = {group.root for group in groups}
    assert {"depth", "squeeze", "grouped", "left", "right"} <= roots
    for group in groups:
        if group.root in {"left", "right"}:  # behind them the parts of `grouped` would differ
            continue
        unit = group.units[1]
        reference = Graph(copy_of(module), callee)
        smaller = Graph(copy_of(module), callee)
        smaller.cut(group, [unit], resize={})
        with torch.no_grad():
            for name, positions, of_unit in reference.readers(group):
                layer = reference.module.get_submodule(name)
                read = [p for p, u in zip(positions, of_unit, strict=True) if u == 1]
                layer.weight.masked_fill_(column_mask(layer, read), 0.0)
        x = torch.randn(2, 3, 12, 12)
        assert count_parameters(smaller.module) < count_parameters(module)
        assert torch.allclose(reference.module(x), smaller.module(x), atol=1e-4), group.root


def test_the_least_important_channels_go_first() -> None:
    module = settle(ConvNet())
    with torch.no_grad():  # these channels change nothing
        module.project.weight[:, :48] = 0.0
        module.squeeze.weight[:, :48] = 0.0
    made = cut(module, 0.25, images(4))
    left, width = made.widths["depth"]
    assert (left, width) == (48, 96)
    assert set(made.widths) == {"depth"}
    x = torch.randn(4, 3, 12, 12)
    assert torch.allclose(module(x), made.module(x), atol=1e-4), "nothing that counts is gone"


def test_wide_layers_keep_multiples_of_eight() -> None:
    made = cut(settle(ConvNet()), 0.4, images(2))
    for left, width in made.widths.values():
        assert left % (8 if width >= 64 else 4 if width >= 32 else 1) == 0


def test_the_same_inputs_prune_the_same() -> None:
    module, feeds = settle(ConvNet()), images(3)
    first, second = (cut(module, 0.3, feeds).module.state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("fused", [False, True], ids=["written out", "one operator"])
def test_whole_heads_go_and_the_attention_is_told(fused: bool) -> None:
    module, feeds = Bert(fused=fused).eval(), texts(3)
    with torch.no_grad():  # heads 0, 2 and 4 of the first layer are never read
        for head in (0, 2, 4):
            module.layers[0].attention.out.weight[:, head * 8 : head * 8 + 8] = 0.0
    made = cut(module, 0.18, feeds)
    attention = made.module.layers[0].attention
    assert attention.num_attention_heads <= 3
    assert attention.all_head_size == 8 * attention.num_attention_heads
    assert attention.query.out_features == attention.out.in_features == attention.all_head_size
    assert attention.head_size == 8
    assert attention.out.out_features == 48, "the residual stream stays"
    assert any("LayerNorm" in note for note in made.notes)
    assert made.module(**texts(1)[0]).shape == (2, 3)


def test_heads_stay_where_the_code_writes_their_width_down() -> None:
    made = cut(Bert(rigid=True).eval(), 0.1, texts(2))
    assert {name.rpartition(".")[2] for name in made.widths} == {"up"}
    assert made.module.layers[0].attention.num_attention_heads == 6
    assert any("attention" in note and "does not work without some" in note for note in made.notes)


def test_a_module_whose_code_depends_on_every_width_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="no channel or head") as caught:
        cut(Fixed().eval(), 0.2, [{"x": torch.randn(1, 1, 6, 6)}] * 2)
    assert "`conv` stay: the module does not work without some" in caught.value.message
    assert caught.value.hint == "leave out `train.prune`"


def test_more_than_can_go_is_refused_with_what_can() -> None:
    with pytest.raises(UsageError, match=r"`train.prune` is 0.95, but no more than 0\.\d+") as info:
        cut(settle(ConvNet()), 0.95, images(2))
    assert info.value.accepted is not None
    assert info.value.accepted.startswith("0 to 0.")
