"""Models over 2 GB, with that limit lowered to kilobytes: import, search, artifact, golden."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.backends.onnxruntime import build
from packager.bundle.golden import make_golden
from packager.checks.latency import open_session
from packager.errors import BudgetMissed, EdgepackError, InputOutputError, ModelUnsupported
from packager.importers.lint import read_onnx
from packager.importers.onnx_file import import_onnx
from packager.importers.request import ImportRequest
from packager.pipeline.cache import stage_key
from packager.pipeline.compressing import search_key
from packager.pipeline.stages import Data
from packager.pipeline.training import Trained
from packager.recipe import Compression, OutputSteps, Recipe
from packager.search.choose import choose
from packager.search.setting import SearchData
from packager.target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from packager.artifact import Candidate
    from packager.model import Model
    from packager.search.outcome import Outcome

# Three weights and a table of 64 × 64 are 64 KiB; half as much in fp16, a third in blocks.
WIDTH, LIMIT = 64, 40_000
OVER = "the model is over 2 GB: only forms made weight by weight"


def write_model(folder: Path, *, noise: float = 1.0, transposed: bool = False) -> Path:
    """Write ids int64 [n, 3] → y float32 [n, 3, 64], its weights in a file beside it."""
    random = np.random.default_rng(0)
    tensors, data = [], b""
    for name in ("table", "w0", "w1", "w2"):
        values = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) * noise
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        told = {"location": "weights.bin", "offset": len(data), "length": values.nbytes}
        for key, value in told.items():
            tensor.external_data.add(key=key, value=str(value))
        data += values.tobytes()
        tensors.append(tensor)
    tensors.append(numpy_helper.from_array(np.float32(0.125), "scale"))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["h0"])]
    for i in range(3):
        weight = f"w{i}"
        if transposed:
            nodes.append(helper.make_node("Transpose", [weight], [f"t{i}"], perm=[1, 0]))
            weight = f"t{i}"
        nodes += [
            helper.make_node("MatMul", [f"h{i}", weight], [f"m{i}"]),
            helper.make_node("Mul", [f"m{i}", "scale"], ["y" if i == 2 else f"h{i + 1}"]),
        ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, WIDTH])
    graph = helper.make_graph(nodes, "g", [ids], [y], tensors)
    opsets = [helper.make_opsetid("", 17)]
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(data)
    path = folder / "big.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture
def lower_limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr("packager.passes.external.MOST_BYTES", size)


@pytest.fixture(autouse=True)
def over_the_limit(lower_limit: Callable[[int], None]) -> None:
    lower_limit(LIMIT)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Model]:
    def call(**shape: Any) -> Model:
        folder = tmp_path / "import"
        folder.mkdir(exist_ok=True)
        path = write_model(tmp_path / "source", **shape)
        request = ImportRequest(kind="onnx", source=path.name, path=str(path))
        return import_onnx(request, folder).as_model(folder / "model.onnx", name="big")

    return call


@pytest.fixture
def search(tmp_path: Path, notes: Any) -> Callable[..., Outcome]:
    def call(model: Model, *, locked: Any = None, folder: str = "search", **asked: Any) -> Outcome:
        workdir = tmp_path / folder
        workdir.mkdir(exist_ok=True)
        return choose(
            model, find_target("cpu-x86_64"), SearchData(), Compression(**asked), locked=locked,
            threads=1, workdir=workdir, reporter=notes,
        )  # fmt: skip

    return call


def by_name(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in candidates}


def run(path: Path, ids: Any) -> Any:
    return open_session(path, 1).run(["y"], {"ids": ids})[0]


IDS = np.array([[0, 1, 2], [60, 3, 9]], np.int64)


def test_the_import_copies_the_weights_beside_the_graph(
    imported: Callable[..., Model], tmp_path: Path
) -> None:
    model = imported()
    assert model.large
    assert model.files == (model.path, tmp_path / "import" / "model.onnx.data")
    assert sorted(f.name for f in model.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert model.size_bytes > 4 * WIDTH * WIDTH * 4 > model.path.stat().st_size
    assert str(model.signature.inputs[0]) == "ids: int64[batch=1..32, 3]"
    source = tmp_path / "source" / "big.onnx"
    assert np.allclose(run(model.path, IDS), run(source, IDS), rtol=1e-5)
    content = source.read_bytes() + (tmp_path / "source" / "weights.bin").read_bytes()
    assert model.provenance.source_sha256 == hashlib.sha256(content).hexdigest()


def test_small_and_inner_constants_move_into_the_graph(
    imported: Callable[..., Model], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "inner")
    proto = onnx.load(path, load_external_data=False)
    constant = onnx.TensorProto.FromString(proto.graph.initializer[1].SerializeToString())
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], value=constant))
    del proto.graph.initializer[1]
    path.write_bytes(proto.SerializeToString())
    model, _ = read_onnx(path, source="big.onnx")
    assert len(model.graph.node[0].attribute[0].t.raw_data) == WIDTH * WIDTH * 4
    assert [len(t.external_data) for t in model.graph.initializer] == [3, 3, 3, 0]


def test_eight_bits_are_chosen_and_the_rest_is_told(
    imported: Callable[..., Model], search: Callable[..., Outcome], tmp_path: Path
) -> None:
    model = imported()
    outcome = search(model)
    found = by_name(outcome.candidates)
    assert found["fp32"].verdict == "skipped"
    assert found["fp32"].reason == OVER
    assert found["int8-dynamic"].reason == OVER
    assert found["int8-static"].reason == OVER
    chosen = outcome.chosen
    assert chosen.name == "int8-weights"
    assert "latency: unmeasured, as the original fits into no bundle" in chosen.reason
    assert chosen.parity is not None
    assert chosen.parity.cosine > 0.999
    assert chosen.path is not None
    assert chosen.path.stat().st_size < LIMIT
    assert not any(t.external_data for t in onnx.load(chosen.path).graph.initializer)
    assert found["int8-weights-int4-tables"].size_bytes < chosen.size_bytes
    assert "fp16" not in found  # the largest form, and another keeps the budget
    assert outcome.record["original"]["size_bytes"] == model.size_bytes
    sizes = outcome.record["sizes"]
    assert sum(row["bytes_before"] for row in sizes) >= 4 * WIDTH * WIDTH * 4
    assert not (tmp_path / "search" / "original").exists()


def test_the_same_choice_has_the_same_bytes_again(
    imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    model = imported()
    first = search(model)
    again = search(model, locked=first.lock, folder="again")
    assert [c.name for c in again.candidates] == ["int8-weights"]
    assert first.chosen.path is not None
    assert again.chosen.path is not None
    assert first.chosen.path.read_bytes() == again.chosen.path.read_bytes()


def test_for_size_the_smallest_that_keeps_the_budget_is_chosen(
    imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    model = imported()
    outcome = search(model, objective="size", min_cosine=0.95)
    found = by_name(outcome.candidates)
    assert outcome.chosen.name == "int4-weights"
    assert {"fp16", "int8-weights", "int8-weights-int4-tables"} < set(found)
    assert outcome.chosen.size_bytes == min(c.size_bytes for c in found.values() if c.path)


def test_fp16_is_the_last_resort_where_blocks_lose_too_much(
    imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    outcome = search(imported(), min_cosine=0.99999)
    found = by_name(outcome.candidates)
    assert outcome.chosen.name == "fp16"
    assert found["int8-weights"].verdict == "drifted"


def test_a_precision_asked_for_by_name_is_made_alone(
    imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    model = imported()
    found = by_name(search(model, precision="fp16").candidates)
    assert set(found) == {"fp32", "fp16"}
    found = by_name(search(model, precision="int8", folder="int8").candidates)
    assert found["int8-weights"].verdict == "chosen"
    assert "int4-weights" not in found
    assert "int8-weights-int4-tables" not in found


@pytest.mark.parametrize("asked", ["fp32", "int8-static", "int8-dynamic"])
def test_a_form_that_takes_the_whole_graph_leads_to_no_bundle(
    asked: str, imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    with pytest.raises(BudgetMissed, match=f"`{asked}` leads to no bundle") as caught:
        search(imported(), precision=asked)
    assert caught.value.exit_code == 7
    assert "one file 2 GB at most" in caught.value.message
    assert OVER in caught.value.message


def test_what_fits_in_no_form_inside_the_budget_is_a_miss_with_the_reasons(
    imported: Callable[..., Model], search: Callable[..., Outcome],
    lower_limit: Callable[[int], None],
) -> None:  # fmt: skip
    model = imported()
    lower_limit(30_000)  # below fp16
    with pytest.raises(BudgetMissed, match="do not fit into one file") as caught:
        search(model, min_cosine=0.99999)
    assert "int8-weights: " in caught.value.message
    assert caught.value.hint is not None
    assert "--max-drop" in caught.value.hint


def test_weights_behind_a_transpose_are_turned_by_the_import(
    imported: Callable[..., Model], search: Callable[..., Outcome], tmp_path: Path
) -> None:
    model = imported(transposed=True)
    source = tmp_path / "source" / "big.onnx"
    assert np.allclose(run(model.path, IDS), run(source, IDS), rtol=1e-4, atol=1e-5)
    graph = onnx.load(model.path, load_external_data=False).graph
    assert [n.op_type for n in graph.node] == ["Gather", *["MatMul", "Mul"] * 3]
    assert {t.name for t in graph.initializer} == {"table", "t0", "t1", "t2", "scale"}
    outcome = search(model)
    assert "1 table in 8 bits" in outcome.chosen.reason
    assert "3 weights in 8 bits" in outcome.chosen.reason


def test_a_table_that_is_multiplied_with_as_well_is_held_twice(tmp_path: Path) -> None:
    path = write_model(tmp_path / "source", transposed=True)
    proto = onnx.load(path, load_external_data=False)
    last = next(n for n in proto.graph.node if n.input[0] == "w2")
    last.input[0] = "table"
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "import").mkdir()
    request = ImportRequest(kind="onnx", source=path.name, path=str(path))
    import_onnx(request, tmp_path / "import")
    model = tmp_path / "import" / "model.onnx"
    graph = onnx.load(model, load_external_data=False).graph
    assert {t.name for t in graph.initializer} == {"table", "t0", "t1", "t2", "scale"}
    assert np.allclose(run(model, IDS), run(path, IDS), rtol=1e-4, atol=1e-5)


def test_a_quantized_model_over_the_limit_is_refused(
    imported: Callable[..., Model], search: Callable[..., Outcome]
) -> None:
    model = dataclasses.replace(imported(), quantized=True)
    with pytest.raises(ModelUnsupported, match=r"`big.onnx` came in quantized and holds 66.\d kB"):
        search(model)


def test_the_search_depends_on_the_weights_beside_the_graph(
    imported: Callable[..., Model], tmp_path: Path
) -> None:
    model = imported()
    recipe = Recipe(model="big.onnx", name="big")
    arguments = (recipe, find_target("cpu-x86_64"), model, Data(calibration=None, evaluation=None))

    def key() -> str:
        return search_key(*arguments, Trained(), locked=None)

    first = key()
    assert key() == first != stage_key("compress")
    weights = model.files[1].read_bytes()
    model.files[1].write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert key() != first


def test_the_artifact_and_its_golden_samples_have_the_post_processing(
    imported: Callable[..., Model], search: Callable[..., Outcome], tmp_path: Path
) -> None:
    model = imported()
    recipe = Recipe(model="big.onnx", name="big", outputs={"y": OutputSteps(activation="softmax")})
    folder = tmp_path / "artifact"
    folder.mkdir()
    found = search(model).candidates
    artifact = build(model, found, find_target("cpu-x86_64"), recipe, folder)
    assert artifact.path.stat().st_size < LIMIT
    plain = make_golden(
        artifact, samples=None, seed=0, min_cosine=0.9, workdir=tmp_path, recipe=recipe
    )
    assert plain.table["original"]["min_cosine"] == 0.9
    whole = tmp_path / "whole.onnx"
    onnx.save(onnx.load(model.path), whole)
    inside = dataclasses.replace(artifact, model=dataclasses.replace(model, path=whole))
    other = make_golden(
        inside, samples=None, seed=0, min_cosine=0.9, workdir=tmp_path, recipe=recipe
    )
    for one, two in zip(plain.entries, other.entries, strict=True):
        assert one.path == two.path
    assert plain.table == other.table


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data.unlink(), "is kept in `weights.bin`, which is missing"),
    (lambda data: data.write_bytes(data.read_bytes()[:-1]), "which has 65535"),
])  # fmt: skip
def test_weights_that_are_not_all_there_are_refused(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "source")
    change(path.with_name("weights.bin"))
    with pytest.raises(ModelUnsupported, match=words):
        read_onnx(path, source=path.name)


def test_no_room_for_the_copy_is_said_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, imported: Callable[..., Model], tmp_path: Path
) -> None:
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(InputOutputError, match=r"needs 0\.0 GB for a copy of the model") as caught:
        imported()
    assert isinstance(caught.value, EdgepackError)
    assert list((tmp_path / "import").iterdir()) == []
