"""A corpus of hostile and broken ONNX files: each is refused in words, none leaves anything."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from packager.errors import EdgepackError
from packager.importers.request import ImportLimits
from tests.unit.packager.importers.onnx_models import (
    BOOL,
    FLOAT,
    INT64,
    constant,
    dense,
    externalise,
    model,
    save,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.packager.importers.conftest import Importing

LIMITS = ImportLimits(probe_s=3, onnx_wall_s=60, memory_mib=2048)
SECRET = b"\x00\x00\xe0\x40" * 12

CORPUS: dict[str, tuple[Callable[[Path], object], str]] = {}


def hostile(words: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Add a builder to the corpus with words that its refusal must hold."""

    def add(build: Callable[[Path], object]) -> Callable[[Path], object]:
        CORPUS[build.__name__] = (build, words)
        return build

    return add


@hostile("is empty")
def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


@hostile("is a text file")
def text_called_onnx(path: Path) -> None:
    path.write_text("this is not a model\n" * 20)


@hostile("is a text file")
def json_called_onnx(path: Path) -> None:
    path.write_text('{"ir_version": 8, "graph": {}}')


@hostile("Git LFS pointer")
def a_git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@hostile("pickled checkpoint")
def a_pickle_called_onnx(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0] * 20}))


@hostile("an image")
def an_image_called_onnx(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))


@hostile("zip archive")
def a_zip_called_onnx(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.txt", "hello")


@hostile("not an ONNX model")
def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4096))


@hostile("not an ONNX model")
def zero_bytes(path: Path) -> None:
    path.write_bytes(bytes(512))


@hostile("cut off")
def a_truncated_model(path: Path) -> None:
    path.write_bytes(dense().SerializeToString()[:-40])


@hostile("cut off")
def a_model_cut_in_half(path: Path) -> None:
    content = dense().SerializeToString()
    path.write_bytes(content[: len(content) // 2])


@hostile("damaged")
def a_model_with_trailing_bytes(path: Path) -> None:
    path.write_bytes(dense().SerializeToString() + b"\xff\xff\xff\xff\x07")


@hostile("damaged")
def a_damaged_graph(path: Path) -> None:
    content = bytearray(dense().SerializeToString())
    middle = content.find(b"Gemm")
    content[middle - 1] = 0xFF
    path.write_bytes(bytes(content))


@hostile("no graph")
def a_model_without_a_graph(path: Path) -> None:
    save(onnx.ModelProto(ir_version=8, producer_name="x"), path)


@hostile("no outputs")
def a_model_without_outputs(path: Path) -> None:
    proto = dense()
    del proto.graph.output[:]
    save(proto, path)


@hostile("no operator set")
def a_model_without_opsets(path: Path) -> None:
    proto = dense()
    del proto.opset_import[:]
    save(proto, path)


@hostile("two inputs called")
def two_inputs_of_one_name(path: Path) -> None:
    proto = dense()
    proto.graph.input.append(proto.graph.input[0])
    save(proto, path)


def external(path: Path, **entries: str) -> bytes:
    proto = dense()
    data = externalise(proto, "W", **entries)
    save(proto, path)
    return data


@hostile("which is missing")
def external_data_missing(path: Path) -> None:
    external(path, location="gone.bin")


@hostile("outside the model's folder")
def external_data_absolute(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(SECRET)
    external(path, location=str(path.parent.parent / "secret.bin"))


@hostile("outside the model's folder")
def external_data_in_the_parent(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(SECRET)
    external(path, location="../secret.bin")


@hostile("outside the model's folder")
def external_data_through_the_parent(path: Path) -> None:
    (path.parent / "sub").mkdir()
    (path.parent.parent / "secret.bin").write_bytes(SECRET)
    external(path, location="sub/../../secret.bin")


@hostile("outside the model's folder")
def external_data_with_backslashes(path: Path) -> None:
    external(path, location="..\\secret.bin")


@hostile("outside the model's folder")
def external_data_at_a_url(path: Path) -> None:
    external(path, location="file:///etc/passwd")


@hostile("does not say in which file")
def external_data_nowhere(path: Path) -> None:
    external(path, offset="0")


@hostile("symbolic link")
def external_data_behind_a_symlink(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(SECRET)
    (path.parent / "w.bin").symlink_to(path.parent.parent / "secret.bin")
    external(path, location="w.bin")


@hostile("symbolic link")
def external_data_behind_a_linked_folder(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(SECRET)
    (path.parent / "sub").symlink_to(outside)
    external(path, location="sub/w.bin")


@hostile("a hard link")
def external_data_hard_linked(path: Path) -> None:
    (path.parent.parent / "secret.bin").write_bytes(SECRET)
    os.link(path.parent.parent / "secret.bin", path.parent / "w.bin")
    external(path, location="w.bin")


@hostile("not a regular file")
def external_data_in_a_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "w.bin")
    external(path, location="w.bin")


@hostile("not a regular file")
def external_data_in_a_folder(path: Path) -> None:
    (path.parent / "w.bin").mkdir()
    external(path, location="w.bin")


@hostile("external data's offset")
def external_data_at_a_negative_offset(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(external(path, location="w.bin", offset="-4"))


@hostile("external data's length")
def external_data_of_an_odd_length(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(external(path, location="w.bin", length="0x30"))


@hostile("external data's length")
def external_data_of_a_huge_length(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(external(path, location="w.bin", length="9" * 30))


@hostile("which has 48")
def external_data_past_the_end(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(external(path, location="w.bin", offset="8"))


@hostile("takes 48 bytes but names 40")
def external_data_too_short(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(external(path, location="w.bin", length="40"))


def sparse(path: Path, kind: int, gigabytes: int) -> None:
    """Write a model whose weights all lie in the same empty gigabyte: a file with a hole."""
    with (path.parent / "w.bin").open("wb") as stream:
        stream.truncate(1 << 30)
    rows = (1 << 30) // 4096 // (4 if kind == FLOAT else 2)
    tensors = []
    for i in range(gigabytes):
        tensor = TensorProto(name=f"w{i}", data_type=kind, dims=[4096, rows])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        tensors.append(tensor)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    save(model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], tensors), path)


@hostile("it fits into one file of 2 GB in no smaller form")
def external_data_of_many_gigabytes_in_a_hole(path: Path) -> None:
    sparse(path, FLOAT, 1000)


@hostile("of which 0.0 GB are float32")
def external_data_of_three_gigabytes_of_fp16(path: Path) -> None:
    sparse(path, TensorProto.FLOAT16, 3)


@hostile("of which 0.0 GB are float32 initializers")
def external_data_of_three_gigabytes_inside_of_nodes(path: Path) -> None:
    sparse(path, FLOAT, 3)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.node.insert(0, node)
    del proto.graph.initializer[:]
    save(proto, path)


@hostile("unknown external data key")
def external_data_with_an_injected_attribute(path: Path) -> None:
    data = external(path, location="w.bin", __class__="x")
    (path.parent / "w.bin").write_bytes(data)


@hostile("which is missing")
def external_data_in_the_engines_memory(path: Path) -> None:
    external(path, location="*/_ORT_MEM_ADDR_/*", offset="4096", length="48")


@hostile("which is missing")
def external_data_of_a_sparse_tensor(path: Path) -> None:
    proto = dense()
    values = constant("s", np.ones(2, np.float32))
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    entry = values.external_data.add()
    entry.key, entry.value = "location", "gone.bin"
    sparse = helper.make_sparse_tensor(values, constant("", np.array([0, 1])), [4])
    proto.graph.sparse_initializer.append(sparse)
    save(proto, path)


@hostile("takes 48 bytes but holds 44")
def raw_data_too_short(path: Path) -> None:
    proto = dense()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    save(proto, path)


@hostile("takes 12 values but holds 2")
def typed_data_too_short(path: Path) -> None:
    proto = dense()
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend([1.0, 2.0])
    save(proto, path)


@hostile("negative dimension")
def a_negative_dimension(path: Path) -> None:
    proto = dense()
    proto.graph.initializer[0].dims[0] = -4
    save(proto, path)


@hostile("claims")
def a_tensor_of_exabytes(path: Path) -> None:
    proto = dense()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([1 << 31, 1 << 31])
    save(proto, path)


@hostile("unknown element type")
def a_tensor_of_no_type(path: Path) -> None:
    proto = dense()
    proto.graph.initializer[0].data_type = 99
    save(proto, path)


@hostile("declares")
def an_input_of_terabytes(path: Path) -> None:
    proto = dense()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    save(proto, path)


@hostile("custom operator `evil.Run`")
def a_custom_operator(path: Path) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil")
    opsets = {"": 17, "evil": 1}
    save(model([node], [value("x", ["N", 4])], [value("y", ["N", 4])], opsets=opsets), path)


@hostile("custom operator")
def a_custom_operator_in_a_branch(path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Run", ["x"], ["z"], domain="evil")], "b", [], [value("z", None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    inputs = [value("c", [], BOOL), value("x", ["N", 4])]
    save(model([node], inputs, [value("y", None)], opsets={"": 17, "evil": 1}), path)


@hostile("custom operator")
def an_aten_fallback(path: Path) -> None:
    node = helper.make_node("ATen", ["x"], ["y"], domain="org.pytorch.aten")
    opsets = {"": 17, "org.pytorch.aten": 1}
    save(model([node], [value("x", ["N", 4])], [value("y", ["N", 4])], opsets=opsets), path)


@hostile("does not load")
def an_operator_that_does_not_exist(path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    save(model([node], [value("x", ["N", 4])], [value("y", ["N", 4])]), path)


@hostile("does not load")
def an_unknown_contributed_operator(path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.microsoft")
    opsets = {"": 17, "com.microsoft": 1}
    save(model([node], [value("x", ["N", 4])], [value("y", ["N", 4])], opsets=opsets), path)


@hostile("does not load")
def a_cycle(path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    save(model(nodes, [value("x", [2])], [value("b", [2])]), path)


@hostile("does not load")
def a_tensor_that_nothing_makes(path: Path) -> None:
    save(
        model([helper.make_node("Relu", ["q"], ["y"])], [value("x", [2])], [value("y", [2])]), path
    )


@hostile("uses operator set 9999")
def an_opset_from_the_future(path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    save(model([node], [value("x", [2])], [value("y", [2])], opsets={"": 9999}), path)


@hostile("levels deep")
def graphs_nested_too_deeply(path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "leaf", [], [value("z", None)]
    )
    for depth in range(22):
        node = helper.make_node("If", ["c"], [f"z{depth}"], then_branch=graph, else_branch=graph)
        last = onnx.GraphProto()
        last.CopyFrom(helper.make_graph([node], f"d{depth}", [], [value(f"z{depth}", None)]))
        del node
        last.node[0].attribute[1].g.CopyFrom(
            helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "e", [], [value("e", None)])
        )
        graph = last
    inputs = [value("c", [], BOOL), value("x", ["N"])]
    proto = model(list(graph.node), inputs, [value("z21", None)])
    save(proto, path)


@hostile("expands to more than")
def a_function_bomb(path: Path) -> None:
    functions = []
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    for level in range(24):
        if level == 0:
            nodes = [helper.make_node("Relu", ["a"], ["b"])]
        else:
            inner = f"f{level - 1}"
            nodes = [
                helper.make_node(inner, ["a"], ["m"], domain="bomb"),
                helper.make_node(inner, ["m"], ["b"], domain="bomb"),
            ]
        functions.append(helper.make_function("bomb", f"f{level}", ["a"], ["b"], nodes, opsets))
    call = helper.make_node("f23", ["x"], ["y"], domain="bomb")
    inputs, outputs = [value("x", [2])], [value("y", [2])]
    imports = {"": 17, "bomb": 1}
    save(model([call], inputs, outputs, opsets=imports, functions=functions), path)


@hostile("call themselves")
def a_function_that_calls_itself(path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    nodes = [helper.make_node("f", ["a"], ["b"], domain="bomb")]
    function = helper.make_function("bomb", "f", ["a"], ["b"], nodes, opsets)
    call = helper.make_node("f", ["x"], ["y"], domain="bomb")
    inputs, outputs = [value("x", [2])], [value("y", [2])]
    imports = {"": 17, "bomb": 1}
    save(model([call], inputs, outputs, opsets=imports, functions=[function]), path)


@hostile("more than 200000 operators")
def too_many_operators(path: Path) -> None:
    proto = dense()
    node = helper.make_node("Relu", ["y"], ["z"])
    proto.graph.node.extend([node] * 200_001)
    save(proto, path)


@hostile("may loop for ever")
def an_endless_loop(path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["cond_out"]),
            helper.make_node("Identity", ["v"], ["v_out"]),
        ],
        "body",
        [value("i", [], INT64), value("cond", [], BOOL), value("v", None)],
        [value("cond_out", [], BOOL), value("v_out", None)],
    )
    node = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)
    yes = constant("yes", np.array(1, bool))
    save(model([node], [value("x", [2])], [value("y", [2])], [yes]), path)


@hostile("more memory than")
def a_memory_bomb(path: Path) -> None:
    fill = helper.make_tensor("v", FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"], value=fill),
        helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    size = constant("size", np.array([1 << 18, 1 << 18]))
    save(model(nodes, [value("x", [2])], [value("y", [2])], [size]), path)


@hostile("more memory than")
def a_memory_bomb_by_expansion(path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["big"]),
        helper.make_node("ReduceMax", ["big"], ["y"], keepdims=0),
    ]
    size = constant("size", np.array([1 << 20, 1 << 16, 2]))
    save(model(nodes, [value("x", [2])], [value("y", [])], [size]), path)


@hostile("is a sequence")
def a_sequence_as_input(path: Path) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    save(model([node], [helper.make_value_info("x", kind)], [value("y", None)]), path)


@hostile("is not a tensor")
def a_sequence_as_output(path: Path) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    node = helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)
    save(model([node], [value("x", [2, 2])], [helper.make_value_info("y", kind)]), path)


@hostile("no request can carry")
def a_complex_input(path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    kind = TensorProto.COMPLEX64
    save(model([node], [value("x", [2], kind)], [value("y", [2], kind)]), path)


@hostile("without a type")
def an_input_without_a_type(path: Path) -> None:
    proto = dense()
    proto.graph.input[0].ClearField("type")
    save(proto, path)


def test_the_corpus_has_at_least_forty_files() -> None:
    assert len(CORPUS) >= 40


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_hostile_files_are_refused_in_words(
    name: str, tmp_path: Path, workdir: Path, importing: Importing
) -> None:
    build, words = CORPUS[name]
    folder = tmp_path / "outer" / "models"
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    build(path)
    before = sorted(folder.rglob("*"))
    with pytest.raises(EdgepackError) as refused:
        importing(path, limits=LIMITS)
    assert words in refused.value.message
    assert refused.value.exit_code in (2, 5, 10)
    assert "Traceback" not in refused.value.message
    assert not refused.value.message.endswith(".")
    assert sorted(folder.rglob("*")) == before
    left = {entry.name for entry in workdir.iterdir()}
    assert left <= {"import.log"}


def test_a_sound_model_is_accepted(tmp_path: Path, importing: Importing) -> None:
    assert importing(save(dense(), tmp_path / "m.onnx")).signature.inputs[0].name == "x"


def test_external_data_beside_the_model_is_taken_in(tmp_path: Path, importing: Importing) -> None:
    inside = importing(save(dense(), tmp_path / "m.onnx")).path.read_bytes()
    proto = dense()
    data = externalise(proto, "W", location="sub/w.bin", offset="16", length="48")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(16) + data)
    assert importing(save(proto, tmp_path / "m.onnx")).path.read_bytes() == inside


def test_a_model_behind_a_symlink_is_accepted(tmp_path: Path, importing: Importing) -> None:
    save(dense(), tmp_path / "blob.onnx")
    (tmp_path / "m.onnx").symlink_to(tmp_path / "blob.onnx")
    assert importing(tmp_path / "m.onnx").signature.outputs[0].name == "y"


def test_a_modest_function_library_is_accepted(tmp_path: Path, importing: Importing) -> None:
    opsets = [helper.make_opsetid("", 17)]
    nodes = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("mine", "Rectify", ["a"], ["b"], nodes, opsets)
    call = helper.make_node("Rectify", ["x"], ["y"], domain="mine")
    io = [value("x", ["N", 4])], [value("y", ["N", 4])]
    proto = model([call], *io, opsets={"": 17, "mine": 1}, functions=[function])
    assert str(importing(save(proto, tmp_path / "m.onnx")).signature.outputs[0]) == (
        "y: float32[batch=1..32, 4]"
    )
