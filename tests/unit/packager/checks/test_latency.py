"""Latency: alternating pairs, a confidence, and an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from packager.checks import latency
from packager.checks.latency import alternate, bootstrap_confidence, open_session, race
from packager.passes.clean_up import CleanUp
from packager.passes.contract import apply
from packager.passes.int8_static import WEIGHTED, Int8Static

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_much_smaller_model_wins_with_confidence(make_mlp: Callable) -> None:
    large = make_mlp(width=1024).path
    big = large.rename(large.with_name("big.onnx"))
    small = make_mlp(width=8).path
    timed = alternate(big, small, {"x": np.zeros((1, 32), np.float32)}, 1)
    assert timed.speedup > 1.0
    assert timed.confidence >= 0.95
    assert timed.runs >= 3
    assert 0 < timed.p50_ms <= timed.p90_ms
    assert timed.original_p50_ms > timed.p50_ms


def test_equal_models_end_when_the_time_is_up(make_mlp: Callable) -> None:
    path = make_mlp().path
    timed = alternate(path, path, {"x": np.zeros((1, 32), np.float32)}, 1, max_seconds=0.3)
    assert timed.threads == 1
    assert timed.runs >= 3


def test_a_race_tells_the_faster_of_two_and_both_from_the_original(make_mlp: Callable) -> None:
    paths = {}
    for width in (1024, 256, 8):
        path = make_mlp(width=width).path
        paths[width] = path.rename(path.with_name(f"{width}.onnx"))
    feeds = {"x": np.zeros((1, 32), np.float32)}
    middle, small = race(paths[1024], [paths[256], paths[8]], feeds, 1, seconds=0.5)
    assert 1.0 < middle.speedup < small.speedup
    assert middle.runs == small.runs >= 3
    assert middle.original_p50_ms == small.original_p50_ms


def test_confidence_follows_the_measured_ratios() -> None:
    assert bootstrap_confidence(np.full(20, 1.5)) == 1.0
    assert bootstrap_confidence(np.full(20, 0.5)) == 0.0
    mixed = np.tile([0.9, 1.1], 15)
    assert 0.05 < bootstrap_confidence(mixed) < 0.95
    assert bootstrap_confidence(mixed) == bootstrap_confidence(mixed)


def test_a_session_uses_the_processor_alone(make_mlp: Callable) -> None:
    session = open_session(make_mlp().path, 1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    options = session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_model_that_does_not_load_is_raised(make_mlp: Callable) -> None:
    path = make_mlp().path
    broken = path.with_name("broken.onnx")
    broken.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Exception, match=r"broken\.onnx"):
        alternate(path, broken, {"x": np.zeros((1, 32), np.float32)}, 1)


@pytest.mark.parametrize("saturates", [False, True])
def test_int8_for_a_gpu_is_not_run_where_its_products_saturate(
    saturates: bool, make_cnn: Callable, make_samples: Callable, make_context: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = make_cnn()
    context = make_context(make_samples(model), target="server-l4")
    made, _ = apply((CleanUp(), Int8Static(operators=WEIGHTED)), onnx.load(model.path), context)
    onnx.save(made, model.path)
    monkeypatch.setattr(latency, "products_saturate", lambda: saturates)
    options = open_session(model.path, 1).get_session_options()
    if saturates:
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            options.get_session_config_entry("session.disable_quant_qdq")
