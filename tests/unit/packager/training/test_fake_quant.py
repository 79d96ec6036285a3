"""Simulated int8: its steps are the quantizer's, training gets used to it, nothing is left."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")

from packager.importers.torch_calls import Callee  # noqa: E402
from packager.passes.contract import apply  # noqa: E402
from packager.passes.int8_static import Int8Static  # noqa: E402
from packager.passes.round_weights import RoundWeights  # noqa: E402
from packager.target import find_target  # noqa: E402
from packager.training.fake_quant import Scheme, attach, detach  # noqa: E402
from packager.training.fold import (  # noqa: E402
    fold_batch_norms,
    freeze_batch_norms,
    release_batch_norms,
)
from packager.training.run import scheme_of  # noqa: E402
from packager.training.sparsity import attach_masks, detach_masks  # noqa: E402
from tests.unit.packager.training.networks import ConvNet, settle  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

nn = torch.nn
pytestmark = pytest.mark.torch


def feeds(count: int = 2) -> list[dict[str, Any]]:
    return [{"x": torch.randn(2, 3, 12, 12)} for _ in range(count)]


@pytest.mark.parametrize("target", ["cpu-x86_64", "cpu-x86_64-vnni"])
@pytest.mark.parametrize("weights", [Int8Static, RoundWeights], ids=["nearest", "to the data"])
def test_rounded_weights_are_what_static_int8_finds(
    target: str,
    weights: Any,
    make_mlp: Callable,
    make_samples: Callable,
    make_context: Callable,
) -> None:
    model = make_mlp()
    proto = onnx.load(model.path)
    scheme = Scheme(**scheme_of(find_target(target).quantization))
    assert scheme.weight_bits == (7 if target == "cpu-x86_64" else 8)
    rounded = {}
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 2:  # [inputs, outputs], as a Gemm has it
            layer = nn.Linear(*values.shape)
            layer.weight.data = torch.from_numpy(values.T.copy())
            callee = Callee(layer, {"input": torch.zeros(1, values.shape[0])})
            attach(layer, scheme, callee, [])
            detach(layer)
            kept = layer.weight.detach().numpy().T
            assert not np.array_equal(kept, values)
            rounded[tensor.name] = kept
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(kept), tensor.name))
    context = make_context(make_samples(model), target=target)
    passes = (Int8Static(),) if weights is Int8Static else (RoundWeights(quantizer=Int8Static()),)
    after, reports = apply(passes, proto, context)
    assert [r.status for r in reports] == ["applied"]
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    compared = 0
    for node in after.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            name = node.input[0].removesuffix("_quantized")
            if name in rounded:
                scale = arrays[node.input[1]]
                got = arrays[node.input[0]].astype(np.float32) * scale
                assert np.abs(got - rounded[name]).max() <= 1e-3 * scale.max()
                compared += 1
    assert compared == len(rounded)


def test_inputs_are_rounded_to_steps_of_the_range_that_the_samples_show() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0]]))
    callee = Callee(layer, {"input": torch.zeros(1, 2)})
    samples = [{"input": torch.tensor([[-1.0, 0.0]])}, {"input": torch.tensor([[1.55, 0.0]])}]
    assert attach(layer, Scheme(), callee, samples) == 1
    layer.eval()
    with torch.no_grad():
        values = [float(layer(torch.tensor([[x, 0.0]]))) for x in (0.0, 0.333, 9.0, -9.0)]
    assert values == pytest.approx([0.0, 0.33, 1.55, -1.0], abs=1e-5)
    x = torch.tensor([[0.3, 0.0], [9.0, 0.0]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad[0, 0] == 1.0, "gradients pass inside the range"
    assert x.grad[1, 0] == 0.0, "and not outside"


def test_training_recovers_what_three_bits_lose() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 12, generator=generator)
    labels = torch.arange(400) % 4
    rows = centers[labels] + 0.9 * torch.randn(400, 12, generator=generator)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    def train(module: Any, steps: int) -> None:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.train()(rows), labels).backward()
            optimizer.step()

    def loss(module: Any) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(module.eval()(rows), labels))

    train(net, 80)
    small = copy.deepcopy(net)
    callee = Callee(small, {"input": rows[:1]})
    attach(small, Scheme(weight_bits=3, per_channel=False), callee, [{"input": rows}])
    rounded = loss(small)
    train(small, 80)
    trained = loss(small)
    detach(small)
    assert loss(net) < rounded
    assert trained < loss(net) + 0.3 * (rounded - loss(net))
    assert [type(m) for m in small.modules()] == [type(m) for m in net.modules()]
    assert not any(layer._forward_pre_hooks for layer in small.modules())
    for layer in (small[0], small[2]):
        steps = layer.weight / (layer.weight.abs().max() / 3)
        assert torch.allclose(steps, steps.round(), atol=1e-4), "the weights lie on the steps"


def test_batch_normalizations_fold_where_nothing_changes() -> None:
    module = settle(ConvNet())
    callee, probes = Callee(module, feeds(1)[0]), feeds()
    with torch.no_grad():
        before = module(probes[0]["x"])
        assert fold_batch_norms(module, callee, probes) == 2
        assert torch.allclose(module(probes[0]["x"]), before, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


class _ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_batch_normalization_stays_where_the_convolution_is_read_elsewhere() -> None:
    module = settle(_ReadTwice())
    callee, probes = Callee(module, feeds(1)[0]), feeds()
    before = module(probes[0]["x"])
    assert fold_batch_norms(module, callee, probes) == 0
    assert torch.equal(module(probes[0]["x"]), before)
    mean = module.norm.running_mean.clone()
    assert freeze_batch_norms(module) == 1
    module.train()(torch.randn(8, 3, 12, 12))
    assert torch.equal(module.norm.running_mean, mean), "frozen while training"
    release_batch_norms(module)
    module.train()(torch.randn(8, 3, 12, 12))
    assert not torch.equal(module.norm.running_mean, mean)


def test_two_of_four_weights_stay_at_zero_while_training() -> None:
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    layers, share = attach_masks(net)
    assert layers == 2
    assert share == pytest.approx((288 / 2 + 12 / 2) / (288 + 4 + 12 + 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(2, 8, 3, 3)).square().sum().backward()
    optimizer.step()
    detach_masks(net)
    weight = net[0].weight.detach().movedim(1, -1).reshape(-1, 4)
    assert ((weight != 0).sum(1) == 2).all()
    assert type(net[0]) is nn.Conv2d
