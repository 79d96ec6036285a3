"""A model cut into head, core and tail answers as the whole model does."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import ortlibrary
from runtime import parts as chaining
from runtime.engine import OnnxRuntimeEngine, open_engine
from runtime.errors import BadRequest, InputOutputFault, ModelFault
from runtime.parts import MAX_PLANS, ChainEngine, Interface, open_parts
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUNTIME = Path(chaining.__file__).resolve().parent
INPUTS = ["photo", "gain", "tags"]
OUTPUTS = ["best", "scores", "mean", "tags_out"]
# `gain` passes the head by, `tags` is the tail's, `mean` is the head's and passes the rest by.
CUTS = {
    "head": (["photo"], ["scaled", "mean"]),
    "core": (["scaled", "gain"], ["scores"]),
    "tail": (["scores", "tags"], ["best", "tags_out"]),
}


def make_whole() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.standard_normal((12, 5)).astype(np.float32), "weight")
    nodes = [
        helper.make_node("Cast", ["photo"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["floats", "mean"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "gain"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Identity", ["tags"], ["tags_out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "whole",
        [
            value("photo", TensorProto.UINT8, ["n", 12]),
            value("gain", TensorProto.FLOAT, [1]),
            value("tags", TensorProto.STRING, ["n"]),
        ],
        [
            value("best", TensorProto.INT64, ["n"]),
            value("scores", TensorProto.FLOAT, ["n", 5]),
            value("mean", TensorProto.FLOAT, ["n", 1]),
            value("tags_out", TensorProto.STRING, ["n"]),
        ],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass
class Release:
    folder: str
    manifest: dict[str, Any]


def make_release(folder: Path, library: Path) -> Release:
    (folder / "lib").mkdir()
    (folder / "lib" / "libonnxruntime.so").symlink_to(library)
    (folder / "model").mkdir()
    onnx.save(make_whole(), folder / "whole.onnx")
    for name, (inputs, outputs) in CUTS.items():
        onnx.utils.extract_model(
            str(folder / "whole.onnx"), str(folder / "model" / f"{name}.onnx"), inputs, outputs
        )
    engine = {
        "name": "onnxruntime",
        "version": "0.0.0",
        "library": "lib/libonnxruntime.so",
        "artifact": "model/core.onnx",
        "parts": {name: f"model/{name}.onnx" for name in CUTS},
        "threads": 1,
        "precision": "int8-static",
        "scheme": "",
    }
    signature = {
        "inputs": [{"name": name, "dtype": "float32", "shape": []} for name in INPUTS],
        "outputs": [{"name": name, "dtype": "float32", "shape": []} for name in OUTPUTS],
    }
    return Release(str(folder), {"engine": engine, "model": {"signature": signature}})


@pytest.fixture
def release(tmp_path: Path, engine_library: Path) -> Release:
    return make_release(tmp_path, engine_library)


@pytest.fixture
def chain(release: Release) -> Any:
    engine = open_engine(release)
    yield engine
    engine.close()


def feeds_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "photo": rng.integers(0, 256, (count, 12)).astype(np.uint8),
        "gain": rng.random(1).astype(np.float32),
        "tags": np.array([f"tag {i}" for i in range(count)]),
    }


def to_tensors(feeds: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {
        name: Tensor("string", values.shape, [item.encode() for item in values.tolist()])
        if values.dtype.kind == "U"
        else Tensor(str(values.dtype), values.shape, values.tobytes())
        for name, values in feeds.items()
    }


def expected(release: Release, feeds: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    path = Path(release.folder) / "whole.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ready = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in feeds.items()}
    answers = dict(zip(OUTPUTS, session.run(OUTPUTS, ready), strict=True))
    return to_tensors({k: v.astype(str) if v.dtype == object else v for k, v in answers.items()})


def test_the_parts_answer_as_the_whole_does(release: Release, chain: Any) -> None:
    for count in (1, 3, 1):
        feeds = feeds_of(count, seed=count)
        got = chain.run(to_tensors(feeds))
        assert list(got) == OUTPUTS
        assert got == expected(release, feeds)


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runtime.engine import open_engine
from runtime.npz import read_npz, write_npz
class Release:
    folder = sys.argv[2]
    manifest = json.loads(sys.stdin.read())
engine = open_engine(Release)
assert type(engine).__name__ == "ChainEngine"
feeds = read_npz(sys.argv[3])
answers = engine.run(feeds)
assert engine.run(feeds) == answers
write_npz(sys.argv[4], answers)
engine.close()
"""


def test_every_cpython_runs_the_parts(old_python: Path, release: Release, tmp_path: Path) -> None:
    feeds = feeds_of(4)
    source, out = tmp_path / "in.npz", tmp_path / "out.npz"
    with source.open("wb") as stream:
        np.savez(stream, **feeds)
    argv = [str(old_python), "-I", "-X", "dev", "-c", CHILD, str(RUNTIME.parent), release.folder]
    run = subprocess.run(
        [*argv, str(source), str(out)], input=json.dumps(release.manifest),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    got = np.load(out)
    for name, tensor in expected(release, feeds).items():
        assert got[name].tolist() == np.array(tensor.to_nested()).tolist()


def test_all_parts_are_sessions_of_one_library(release: Release) -> None:
    ortlibrary.load_library.cache_clear()
    engine = open_engine(release, 2)
    assert ortlibrary.load_library.cache_info().misses == 1
    assert ortlibrary.load_library.cache_info().hits == 2
    assert engine.threads == 2
    engine.close()


class Recorded:
    """A part that notes which outputs were asked of it, around a real one."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.asked: list[tuple[str, ...]] = []
        self.tensors: list[dict[str, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def run(self, feeds: Any, outputs: Sequence[str]) -> dict[str, Tensor]:
        self.asked.append(tuple(outputs))
        self.tensors.append(dict(feeds))
        return self._part.run(feeds, outputs)


def recorded_chain(release: Release) -> tuple[ChainEngine, dict[str, Recorded]]:
    parts = {
        name: Recorded(OnnxRuntimeEngine(release, 1, artifact=path))
        for name, path in release.manifest["engine"]["parts"].items()
    }
    whole = Interface(tuple(INPUTS), tuple(OUTPUTS))
    return ChainEngine(parts["head"], parts["core"], parts["tail"], whole=whole), parts


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (["best"], {"head": ("scaled",), "core": ("scores",), "tail": ("best",)}),
        (["mean"], {"head": ("mean",)}),
        (["scores"], {"head": ("scaled",), "core": ("scores",)}),
        (["mean", "scores"], {"head": ("scaled", "mean"), "core": ("scores",)}),
        ([], {}),
    ],
)
def test_only_what_is_asked_for_is_computed(
    wanted: list[str], asked: dict[str, tuple[str, ...]], release: Release
) -> None:
    chain, parts = recorded_chain(release)
    feeds = feeds_of(2)
    got = chain.run(to_tensors(feeds), wanted)
    assert list(got) == wanted
    assert {name: part.asked for name, part in parts.items() if part.asked} == {
        name: [outputs] for name, outputs in asked.items()
    }
    assert all(got[name] == expected(release, feeds)[name] for name in wanted)
    chain.close()


def test_what_passes_a_part_by_is_the_very_same_tensor(release: Release) -> None:
    chain, parts = recorded_chain(release)
    feeds = to_tensors(feeds_of(2))
    answers = chain.run(feeds)
    assert parts["core"].tensors[0]["gain"] is feeds["gain"]
    assert parts["tail"].tensors[0]["tags"] is feeds["tags"]
    assert parts["tail"].tensors[0]["scores"] is answers["scores"]
    chain.close()


def test_the_order_in_which_outputs_are_asked_for_gives_a_part_no_new_work(
    release: Release,
) -> None:
    chain, parts = recorded_chain(release)
    feeds = to_tensors(feeds_of(2))
    for wanted in (["mean", "best"], ["best", "mean"]):
        assert list(chain.run(feeds, wanted)) == wanted
    assert len(set(parts["head"].asked)) == 1
    chain.close()


def test_plans_for_strange_orders_of_outputs_do_not_pile_up(chain: Any) -> None:
    feeds = to_tensors(feeds_of(1))
    for count in range(MAX_PLANS + 5):
        assert list(chain.run(feeds, ["mean"] * (count + 1))) == ["mean"]
    assert len(chain._plans) == MAX_PLANS


@pytest.mark.parametrize(
    ("change", "outputs", "message"),
    [
        ({"gain": None}, None, "missing input `gain`"),
        ({"more": Tensor("float32", (1,), bytes(4))}, None, "the model has no input `more`"),
        ({"photo": Tensor("float32", (1, 12), bytes(48))}, None, "input `photo` is float32 where"),
        ({"photo": Tensor("uint8", (1, 12), bytes(11))}, None, "input `photo` has 11 bytes"),
        ({}, ["scaled"], "the model has no output `scaled`"),
        ({}, ["absent"], "the model has no output `absent`"),
    ],
)
def test_a_wrong_request_is_refused_in_the_terms_of_the_whole(
    change: dict[str, Any], outputs: list[str] | None, message: str, chain: Any
) -> None:
    feeds = {**to_tensors(feeds_of(1)), **change}
    with pytest.raises(BadRequest, match=message):
        chain.run({name: tensor for name, tensor in feeds.items() if tensor}, outputs)


def test_a_chain_may_lack_head_or_tail(release: Release) -> None:
    parts = release.manifest["engine"]["parts"]
    core = OnnxRuntimeEngine(release, 1, artifact=parts["core"])
    alone = ChainEngine(None, core, None)
    assert alone.interface == (("scaled", "gain"), ("scores",))
    assert alone.provider == "CPUExecutionProvider"
    alone.close()
    release.manifest["engine"]["parts"] = {**parts, "tail": None}
    release.manifest["model"]["signature"]["outputs"] = [{"name": "scores"}]
    engine = open_engine(release)
    feeds = feeds_of(2)
    got = engine.run(to_tensors(feeds))
    assert got == {"scores": expected(release, feeds)["scores"]}
    engine.close()


class OtherCore:
    """A core that says other things of itself than ONNX Runtime, and adds one to every score."""

    name = "tensorrt"
    version = "10.3.0.30"
    provider = "TensorRT"
    precision = "fp16"
    threads = 0
    state = "live"

    def __init__(self, core: Any) -> None:
        self._core = core
        self.closed = False

    def run(self, feeds: Any, outputs: Any = None) -> dict[str, Tensor]:
        scores = self._core.run(feeds, outputs)["scores"]
        raised = np.frombuffer(scores.data, np.float32) + np.float32(1)
        return {"scores": Tensor("float32", scores.shape, raised.tobytes())}

    def close(self) -> None:
        self.closed = True


def test_the_whole_says_what_its_core_says(release: Release) -> None:
    wrapped: list[OtherCore] = []

    def wrap(core: Any) -> Any:
        wrapped.append(OtherCore(core))
        return wrapped[0]

    chain = open_parts(release, 1, wrap)
    assert (chain.name, chain.version, chain.precision) == ("tensorrt", "10.3.0.30", "fp16")
    assert chain.provider == "TensorRT, CPUExecutionProvider"
    assert chain.state == "live"
    # a core that switches engines changes what it says
    wrapped[0].precision = "int8-static"
    assert chain.precision == "int8-static"
    with pytest.raises(AttributeError, match="absent"):
        _ = chain.absent
    chain.close()
    assert wrapped[0].closed


def test_another_core_is_tried_in_the_same_chain_and_leaves_it_open(release: Release) -> None:
    chain = open_parts(release, 1)
    other = OtherCore(chain.core)
    trial = chain.with_core(other)
    feeds = to_tensors(feeds_of(2))
    plain, raised = chain.run(feeds), trial.run(feeds)
    assert raised["mean"] == plain["mean"]
    np.testing.assert_allclose(
        np.frombuffer(raised["scores"].data, np.float32),
        np.frombuffer(plain["scores"].data, np.float32) + 1,
        rtol=1e-6,
    )
    trial.close()
    assert other.closed
    assert chain.run(feeds) == plain
    chain.close()
    with pytest.raises(ModelFault, match="the session is closed"):
        chain.run(feeds)


def test_what_crosses_the_cuts_is_told_in_its_type(release: Release, chain: Any) -> None:
    told = chain.core_signature
    assert {name: spec.dtype for name, spec in told.inputs.items()} == {
        "scaled": "float32", "gain": "float32",
    }  # fmt: skip
    assert list(told.outputs) == ["scores"]
    told.check(to_tensors({"scaled": np.zeros((3, 12), "f4"), "gain": np.zeros(1, "f4")}))
    with pytest.raises(BadRequest, match="has size 11 in dimension 1 where the model"):
        told.check_shape("scaled", (3, 11))
    assert (
        ChainEngine(
            None, OtherCore(None), None, core_interface=Interface(("b",), ("c",))
        ).core_signature
        is None
    )


def test_threads_share_a_chain(release: Release, chain: Any) -> None:
    asked = [feeds_of(1 + seed % 3, seed) for seed in range(8)]
    right = [expected(release, feeds) for feeds in asked]
    wrong: list[int] = []

    def work(number: int) -> None:
        feeds = to_tensors(asked[number])
        wrong.extend(number for _ in range(20) if chain.run(feeds) != right[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_parts_that_do_not_fit_together_are_told() -> None:
    def part(inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        made = Recorded(None)
        made.interface = Interface(tuple(inputs), tuple(outputs))  # type: ignore[attr-defined]
        return made

    core = part(["b"], ["c"])
    with pytest.raises(ModelFault, match="two parts of the model make `c`"):
        ChainEngine(part(["a"], ["b", "c"]), core, None)
    with pytest.raises(ModelFault, match="reads `d`, which a later one makes"):
        ChainEngine(part(["d"], ["b"]), core, part(["c"], ["d"]))
    with pytest.raises(ModelFault, match="reads `b`, which nothing gives it"):
        ChainEngine(None, core, None, whole=Interface(("a",), ("c",)))
    with pytest.raises(ModelFault, match="no part of the model makes its output `e`"):
        ChainEngine(None, core, None, whole=Interface(("b",), ("e",)))
    with pytest.raises(ModelFault, match="does not tell its inputs and outputs"):
        ChainEngine(None, OtherCore(None), None)
    told = ChainEngine(None, OtherCore(None), None, core_interface=Interface(("b",), ("c",)))
    assert told.interface == (("b",), ("c",))


def test_a_part_that_is_missing_is_told_and_the_others_are_closed(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Watched(OnnxRuntimeEngine):
        def __init__(self, release: Any, threads: int | None, artifact: str | None = None) -> None:
            super().__init__(release, threads, artifact)
            close = self.close
            self.close = lambda: (closed.append(str(artifact)), close())  # type: ignore[assignment,method-assign,func-returns-value]

    monkeypatch.setattr(chaining, "OnnxRuntimeEngine", Watched)
    release.manifest["engine"]["parts"]["tail"] = "model/absent.onnx"
    with pytest.raises(InputOutputFault, match=r"there is no model file `absent.onnx`"):
        open_engine(release)
    assert closed == ["model/head.onnx", "model/core.onnx"]


def test_parts_that_are_not_the_signatures_are_refused(release: Release) -> None:
    release.manifest["model"]["signature"]["inputs"].pop(0)
    with pytest.raises(ModelFault, match="reads `photo`, which nothing gives it"):
        open_engine(release)
