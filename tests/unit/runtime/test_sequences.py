"""State is kept by sequence id: carried, bounded, forgotten, and nobody else's."""

from __future__ import annotations

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from runtime.core import InferRequest
from runtime.errors import BadRequest, Busy, ModelFault
from runtime.onnxruntime import Session
from runtime.sequences import Sequences, read_control
from runtime.tensor import Tensor
from tests.models.streaming_gru import (
    make_signal,
    make_streaming_gru,
    scores_of,
    sequences,
    signature,
)
from tests.unit.runtime.live_server import make_release, serving_model, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.runtime.live_server import LiveServer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gru") / "gru.onnx"
    onnx.save(make_streaming_gru(), path)
    return path


@pytest.fixture(scope="module")
def session(gru: Path, engine_library: Path) -> Iterator[Session]:
    opened = Session(str(engine_library), str(gru), threads=1)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(session: Session, clock: Clock) -> Sequences:
    return Sequences(sequences(max_sequences=3, idle_s=10.0), session.run, clock)


def ask(
    signal: np.ndarray, name: str | None = None, *, start: bool = False, end: bool = False
) -> InferRequest:
    feeds = {"signal": Tensor("float32", signal.shape, signal.tobytes())}
    return InferRequest(feeds, sequence=None if name is None else (name, start, end))


def scores(results: dict[str, Tensor]) -> np.ndarray:
    assert list(results) == ["scores"]
    tensor = results["scores"]
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def test_pieces_of_a_sequence_answer_as_the_whole_does_in_one_go(
    kept: Sequences, gru: Path
) -> None:
    signal = make_signal(12)
    pieces = [
        scores(kept.run(ask(signal[:, at : at + 3], "a", start=at == 0, end=at == 9)))
        for at in range(0, 12, 3)
    ]
    assert np.allclose(np.concatenate(pieces, axis=1), scores_of(gru, signal), atol=1e-6)
    assert len(kept) == 0


def test_without_an_id_every_request_begins_from_zeros(kept: Sequences, gru: Path) -> None:
    signal = make_signal(4)
    first, second = scores(kept.run(ask(signal))), scores(kept.run(ask(signal)))
    assert (first == second).all()
    assert np.allclose(first, scores_of(gru, signal), atol=1e-6)
    assert len(kept) == 0


def test_clients_see_neither_the_states_input_nor_its_output(kept: Sequences) -> None:
    assert list(kept.signature.inputs) == ["signal"]
    assert list(kept.signature.outputs) == ["scores"]
    with pytest.raises(BadRequest, match="no input `h_in`"):
        kept.signature.check_dtype("h_in", "float32")
    with pytest.raises(BadRequest, match="no output `h_out`"):
        kept.signature.check_outputs(["h_out"])


def test_sequences_of_other_ids_and_other_callers_are_others(kept: Sequences, gru: Path) -> None:
    signal = make_signal(6)
    fresh, later = signal[:, :3], signal[:, 3:]
    kept.run(ask(fresh, "7", start=True), "mallory")
    kept.run(ask(fresh, "7", start=True), "alice")
    kept.run(ask(later, "7"), "alice")
    with pytest.raises(BadRequest, match="no sequence of this id"):
        kept.run(ask(later, "7"), "bob")
    with pytest.raises(BadRequest, match="no sequence of this id"):
        kept.run(ask(later, "8"), "alice")
    whole = scores_of(gru, signal)
    assert np.allclose(scores(kept.run(ask(later, "7"), "mallory")), whole[:, 3:], atol=1e-6)


def test_a_start_on_a_live_id_begins_again(kept: Sequences, gru: Path) -> None:
    signal = make_signal(4)
    kept.run(ask(signal, "a", start=True))
    again = scores(kept.run(ask(signal, "a", start=True)))
    assert np.allclose(again, scores_of(gru, signal), atol=1e-6)
    assert len(kept) == 1


def test_an_ended_sequence_is_unknown(kept: Sequences) -> None:
    signal = make_signal(2)
    kept.run(ask(signal, "a", start=True))
    kept.run(ask(signal, "a", end=True))
    with pytest.raises(BadRequest, match="not started, has ended, or was idle") as refused:
        kept.run(ask(signal, "a"))
    assert refused.value.status == 400
    assert refused.value.hint == "begin it with `sequence_start`"


def test_an_idle_sequence_is_forgotten_and_a_used_one_is_not(kept: Sequences, clock: Clock) -> None:
    signal = make_signal(2)
    counts: list[int] = []
    kept.counted = counts.append
    kept.run(ask(signal, "a", start=True))
    kept.run(ask(signal, "b", start=True))
    clock.now += 9
    kept.run(ask(signal, "a"))
    clock.now += 2
    kept.sweep()
    assert len(kept) == 1
    assert counts[-1] == 1
    with pytest.raises(BadRequest, match="idle for more than 10 s"):
        kept.run(ask(signal, "b"))
    kept.run(ask(signal, "a"))


def test_too_many_sequences_are_refused_until_one_ends_or_is_forgotten(
    kept: Sequences, clock: Clock
) -> None:
    signal = make_signal(2)
    for name in "abc":
        kept.run(ask(signal, name, start=True))
        clock.now += 2
    with pytest.raises(Busy, match="3 sequences are kept") as refused:
        kept.run(ask(signal, "d", start=True))
    assert refused.value.status == 503
    # the oldest was used six seconds ago, and ten are its time
    assert refused.value.fields == b"Retry-After: 4\r\n"
    clock.now += 4
    kept.run(ask(signal, "d", start=True))
    assert len(kept) == 3
    kept.run(ask(signal, "c", end=True))
    kept.run(ask(signal, "e", start=True))
    # one that is there already needs no room
    kept.run(ask(signal, "e", start=True))


def test_what_states_may_take_is_their_size_times_their_number(kept: Sequences) -> None:
    assert kept.max_state_bytes == 3 * 5 * 4


def test_a_failed_run_leaves_the_state_as_it_was(kept: Sequences, gru: Path) -> None:
    signal = make_signal(6)
    wrong = Tensor("float32", (1, 3, 2), bytes(24))
    kept.run(ask(signal[:, :3], "a", start=True))
    for start, end in ((False, False), (True, False), (False, True)):
        with pytest.raises((BadRequest, ModelFault)):
            kept.run(InferRequest({"signal": wrong}, sequence=("a", start, end)))
    rest = scores(kept.run(ask(signal[:, 3:], "a", end=True)))
    assert np.allclose(rest, scores_of(gru, signal)[:, 3:], atol=1e-6)
    with pytest.raises((BadRequest, ModelFault)):
        kept.run(InferRequest({"signal": wrong}, sequence=("new", True, False)))
    assert len(kept) == 0


def test_a_request_beside_another_of_its_sequence_is_refused_and_changes_nothing(
    session: Session, gru: Path
) -> None:
    signal = make_signal(6)
    entered, go_on = threading.Event(), threading.Event()
    go_on.set()

    def slow(feeds: Any, outputs: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return session.run(feeds, outputs)

    kept = Sequences(sequences(), slow)
    kept.run(ask(signal[:, :3], "a", start=True))
    entered.clear()
    go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.run, ask(signal[:, 3:], "a"))
        assert entered.wait(20)
        for start in (False, True):
            with pytest.raises(BadRequest, match="still being answered") as refused:
                kept.run(ask(signal[:, :3], "a", start=start))
            assert refused.value.status == 409
        # an idle sequence is not forgotten while it is asked
        kept.sweep()
        other = pool.submit(kept.run, ask(signal[:, :3], "b", start=True))
        go_on.set()
        answer = scores(first.result(20))
        other.result(20)
    assert np.allclose(answer, scores_of(gru, signal)[:, 3:], atol=1e-6)


def test_sequences_of_many_threads_do_not_mix(kept: Sequences, gru: Path) -> None:
    def talk(seed: int) -> bool:
        signal = make_signal(20, seed=seed)
        got = [
            scores(kept.run(ask(signal[:, at : at + 1], f"s{seed}", start=at == 0, end=at == 19)))
            for at in range(20)
        ]
        return np.allclose(np.concatenate(got, axis=1), scores_of(gru, signal), atol=1e-6)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(talk, range(3)))
    assert len(kept) == 0


def test_a_lease_left_early_keeps_the_sequence_that_was_to_end(kept: Sequences, gru: Path) -> None:
    signal = make_signal(9)
    lease = kept.enter(("a", True, True))
    lease.run(ask(signal[:, :3]).feeds, None)
    lease.leave(early=True)
    lease.leave()  # twice does nothing
    rest = scores(kept.run(ask(signal[:, 3:], "a")))
    assert np.allclose(rest, scores_of(gru, signal)[:, 3:], atol=1e-6)


def test_only_the_wanted_outputs_come(kept: Sequences) -> None:
    request = ask(make_signal(2), "a", start=True)._replace(outputs=["scores"])
    assert list(kept.run(request)) == ["scores"]


def test_a_state_of_another_shape_is_the_models_fault(session: Session) -> None:
    def growing(feeds: Any, outputs: Any) -> Any:
        return {**session.run(feeds, outputs), "h_out": Tensor("float32", (1, 2, 5), bytes(40))}

    kept = Sequences(sequences(), growing)
    with pytest.raises(ModelFault, match="the state `h_out` came out"):
        kept.run(ask(make_signal(2), "a", start=True))
    assert len(kept) == 0


@pytest.mark.parametrize("missing", ["signature", "state", "max_sequences", "idle_s"])
def test_a_table_that_cannot_be_read_is_the_models_fault(missing: str) -> None:
    wire = sequences()
    del wire[missing]
    with pytest.raises(ModelFault, match="cannot be read"):
        Sequences(wire, lambda feeds, outputs: {})


@pytest.mark.parametrize(
    ("parameters", "control"),
    [
        ({}, None),
        ({"sequence_id": 0}, None),
        ({"sequence_id": "", "sequence_start": False}, None),
        ({"sequence_id": 7}, ("7", False, False)),
        ({"sequence_id": 2**64 - 1, "sequence_end": True}, (str(2**64 - 1), False, True)),
        ({"sequence_id": "ab", "sequence_start": True}, ("ab", True, False)),
    ],
)
def test_parameters_name_a_sequence(parameters: dict[str, Any], control: Any) -> None:
    assert read_control(parameters) == control


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_id": -1}, "whole number"),
        ({"sequence_id": 2**64}, "whole number"),
        ({"sequence_id": 1.0}, "whole number"),
        ({"sequence_id": True}, "whole number"),
        ({"sequence_id": False}, "whole number"),
        ({"sequence_id": "x" * 129}, "up to 128 characters"),
        ({"sequence_id": 1, "sequence_start": 1}, "`sequence_start` has to be true or false"),
        ({"sequence_id": 1, "sequence_end": "yes"}, "`sequence_end` has to be true or false"),
        ({"sequence_start": True}, "need a `sequence_id`"),
        ({"sequence_id": 0, "sequence_end": True}, "need a `sequence_id`"),
    ],
)
def test_parameters_that_name_no_sequence_are_refused(
    parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        read_control(parameters)


@pytest.fixture
def live(gru: Path, engine_library: Path, tmp_path: Path) -> Iterator[LiveServer]:
    release = make_release(tmp_path, gru, engine_library, **signature(), name="gru")
    manifest = {**release.manifest, "sequences": sequences(max_sequences=2)}
    with serving_model(dataclasses.replace(release, manifest=manifest)) as server:
        yield server


def body_of(signal: np.ndarray, **parameters: Any) -> bytes:
    tensor = {
        "name": "signal",
        "shape": list(signal.shape),
        "datatype": "FP32",
        "data": signal.ravel().tolist(),
    }
    return json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()


INFER = "/v2/models/gru/infer"


def test_a_server_keeps_state_between_requests_of_one_sequence(live: LiveServer, gru: Path) -> None:
    signal = make_signal(6)
    with live.client() as client:
        got = []
        for at, flags in ((0, {"sequence_start": True}), (3, {"sequence_end": True})):
            reply = client.ask(
                "POST", INFER, body_of(signal[:, at : at + 3], sequence_id=42, **flags)
            )
            assert reply.status == 200, reply.error
            (output,) = reply.json()["outputs"]
            got.append(np.array(output["data"], np.float32).reshape(output["shape"]))
    assert np.allclose(np.concatenate(got, axis=1), scores_of(gru, signal), atol=1e-6)


def test_a_server_tells_what_is_wrong_with_a_sequence(live: LiveServer) -> None:
    signal = make_signal(2)
    with live.client() as client:
        unknown = client.ask("POST", INFER, body_of(signal, sequence_id=1))
        assert unknown.status == 400
        assert "there is no sequence of this id" in unknown.error
        for name in (1, 2):
            body = body_of(signal, sequence_id=name, sequence_start=True)
            assert client.ask("POST", INFER, body).status == 200
        gauge = client.ask("GET", "/metrics").body.decode()
        assert "\nedgepack_sequences 2\n" in gauge
        full = client.ask("POST", INFER, body_of(signal, sequence_id=3, sequence_start=True))
        assert full.status == 503
        assert 1 <= int(full.fields["retry-after"]) <= 60
        wrong = client.ask("POST", INFER, body_of(signal, sequence_id=[1]))
        assert wrong.status == 400
        assert "`sequence_id` has to be a whole number" in wrong.error


def test_a_sequence_goes_on_when_another_engine_takes_over(
    live: LiveServer, gru: Path, engine_library: Path
) -> None:
    signal = make_signal(6)
    other = Session(str(engine_library), str(gru), threads=1)
    before = live.app.inference.engine
    with live.client() as client:
        body = body_of(signal[:, :3], sequence_id="a", sequence_start=True)
        assert client.ask("POST", INFER, body).status == 200
        live.app.inference.engine = other
        reply = client.ask("POST", INFER, body_of(signal[:, 3:], sequence_id="a"))
    live.app.inference.engine = before
    other.close()
    (output,) = reply.json()["outputs"]
    expected = scores_of(gru, signal)[:, 3:]
    assert np.allclose(np.reshape(output["data"], expected.shape), expected, atol=1e-6)


def test_clients_of_a_server_see_no_state(live: LiveServer, gru: Path) -> None:
    signal = make_signal(2)
    with live.client() as client:
        metadata = client.ask("GET", "/v2/models/gru").json()
        assert [each["name"] for each in metadata["inputs"]] == ["signal"]
        assert [each["name"] for each in metadata["outputs"]] == ["scores"]
        assert client.ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data", "sequence"]
        plain = client.ask("POST", "/predict", json.dumps({"data": signal.tolist()}).encode())
        assert np.allclose(plain.json()["result"], scores_of(gru, signal), atol=1e-6)


def test_a_model_without_state_refuses_sequences(
    small_models: Any, engine_library: Path, tmp_path: Path
) -> None:
    batch = {"name": "n", "min": 1, "max": 32, "opt": 1}
    release = make_release(
        tmp_path,
        small_models["mlp"].path,
        engine_library,
        [tensor("x", "float32", batch, 64)],
        [tensor("logits", "float32", batch, 10)],
        name="mlp",
    )
    request = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}
    body = json.dumps({"parameters": {"sequence_id": 4}, "inputs": [request]}).encode()
    with serving_model(release) as live, live.client() as client:
        refused = client.ask("POST", "/v2/models/mlp/infer", body)
    assert refused.status == 400
    assert "the model keeps no state" in refused.error
