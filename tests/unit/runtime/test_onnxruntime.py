"""The engine over the C API gives what the Python module of ONNX Runtime gives."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from runtime import onnxruntime as engine
from runtime.errors import (
    BadRequest,
    DeviceError,
    InputOutputFault,
    IntegrityFault,
    ModelFault,
    TargetMismatch,
    UsageFault,
)
from runtime.onnxruntime import Session
from runtime.ortlibrary import Library, _load_fault, _one_line
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RUNTIME = Path(engine.__file__).resolve().parent
CASES = (
    "mlp", "several", "int64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64",
    "bool", "double", "float16", "string", "scalar", "zero_size", "dynamic", "data_dependent",
    "lying_shape", "passed_through", "branch", "strange_names",
)  # fmt: skip


def to_tensor(values: np.ndarray) -> Tensor:
    if values.dtype.kind == "U":
        return Tensor("string", values.shape, [item.encode() for item in values.ravel().tolist()])
    return Tensor(str(values.dtype), values.shape, values.tobytes())


def to_tensors(feeds: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: to_tensor(values) for name, values in feeds.items()}


def from_tensor(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == "string":
        return np.array(tensor.to_flat(), object).reshape(tensor.shape)
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)


def reference(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ready = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in feeds.items()}
    return dict(zip(names, session.run(None, ready), strict=True))


@pytest.fixture
def open_session(engine_library: Path) -> Iterator[Any]:
    opened = []

    def opener(path: Path, **options: Any) -> Session:
        opened.append(Session(str(engine_library), str(path), **options))
        return opened[-1]

    yield opener
    for session in opened:
        session.close()


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_that_of_onnxruntimes_own_module(
    case: str, small_models: Any, open_session: Any
) -> None:
    model = small_models[case]
    session = open_session(model.path)
    for feeds in model.feeds * 2:
        got = session.run(to_tensors(feeds))
        expected = reference(model.path, feeds)
        assert list(got) == list(expected)
        for name, values in expected.items():
            assert got[name].shape == values.shape
            if values.dtype != object:
                assert got[name].dtype == str(values.dtype)
            np.testing.assert_array_equal(from_tensor(got[name]), values)


def test_every_case_is_tested(small_models: Any) -> None:
    assert set(CASES) == set(small_models)


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runtime.npz import read_npz, write_npz
from runtime.onnxruntime import Session
for case in json.loads(sys.stdin.read()):
    session = Session(sys.argv[2], case["model"])
    for source, out in case["files"]:
        feeds = read_npz(source)
        once = session.run(feeds)
        assert session.run(feeds) == once, case
        write_npz(out, once)
    session.close()
"""


def test_every_cpython_gives_the_same_answers(
    old_python: Path, engine_library: Path, small_models: Any, tmp_path: Path
) -> None:
    cases = []
    for name, model in small_models.items():
        files = []
        for index, feeds in enumerate(model.feeds):
            source = tmp_path / f"{name}{index}.in.npz"
            with source.open("wb") as stream:
                np.savez(stream, **feeds)
            files.append((str(source), str(tmp_path / f"{name}{index}.out.npz")))
        cases.append({"model": str(model.path), "files": files})
    run = subprocess.run(
        [str(old_python), "-I", "-X", "dev", "-c", CHILD, str(RUNTIME.parent), str(engine_library)],
        input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for name, model in small_models.items():
        for index, feeds in enumerate(model.feeds):
            got = np.load(tmp_path / f"{name}{index}.out.npz")
            for output, values in reference(model.path, feeds).items():
                np.testing.assert_array_equal(got[output], values.astype(got[output].dtype))


def test_inputs_and_outputs_are_described_as_declared(small_models: Any, open_session: Any) -> None:
    session = open_session(small_models["several"].path)
    assert session.inputs[0] == ("a", "float32", ("n", 3))
    assert session.inputs[2] == ("k", "int64", (1,))
    assert [output.dtype for output in session.outputs] == ["float32", "bool", "int64"]
    assert open_session(small_models["branch"].path).outputs[0].name == "y"
    assert open_session(small_models["strange_names"].path).outputs[0].name == "out/0:β"


def test_the_version_is_the_librarys_own(small_models: Any, open_session: Any) -> None:
    assert open_session(small_models["mlp"].path).version == onnxruntime.__version__


def test_only_the_outputs_asked_for_are_computed(small_models: Any, open_session: Any) -> None:
    model = small_models["several"]
    session = open_session(model.path)
    for _ in range(2):
        got = session.run(to_tensors(model.feeds[0]), ["best", "best", "scaled"])
        assert list(got) == ["best", "scaled"]
    with pytest.raises(BadRequest, match="the model has no output `worst`"):
        session.run(to_tensors(model.feeds[0]), ["worst"])


def test_answers_are_copies_that_later_runs_leave_alone(
    small_models: Any, open_session: Any
) -> None:
    model = small_models["mlp"]
    session = open_session(model.path)
    kept = [session.run(to_tensors(feeds))["logits"] for feeds in model.feeds]
    before = [bytes(tensor.data) for tensor in kept]
    session.run({"x": Tensor("float32", (1, 64), bytes(256))})
    assert [bytes(tensor.data) for tensor in kept] == before
    assert before[0] != before[1]


def test_inputs_may_be_any_buffer(small_models: Any, open_session: Any) -> None:
    model = small_models["mlp"]
    session = open_session(model.path)
    row = model.feeds[0]["x"]
    expected = session.run(to_tensors(model.feeds[0]))
    for data in (bytearray(row.tobytes()), memoryview(row.tobytes()), memoryview(row), row):
        assert session.run({"x": Tensor("float32", (1, 64), data)}) == expected


def test_threads_share_a_session_without_mixing_answers(
    small_models: Any, open_session: Any
) -> None:
    model = small_models["mlp"]
    session = open_session(model.path, threads=2)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            rows = rng.standard_normal((1 + seed % 3, 64)).astype(np.float32)
            feeds = {"x": to_tensor(rows)}
            first = session.run(feeds)
            if session.run(feeds) != first:
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_waits_for_calls_and_then_refuses(small_models: Any, open_session: Any) -> None:
    model = small_models["mlp"]
    session = open_session(model.path)
    feeds = to_tensors(model.feeds[0])
    refused: list[str] = []

    def ask() -> None:
        try:
            for _ in range(2000):
                session.run(feeds)
        except ModelFault as error:
            refused.append(error.message)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    session.close()
    session.close()
    for thread in threads:
        thread.join()
    assert refused == ["the session is closed"] * 3


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def hammer(session: Session, feeds: dict[str, Tensor], times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(DeviceError):
            session.run(feeds)


@pytest.mark.parametrize("case", ["mlp", "string", "lying_shape", "data_dependent", "branch"])
def test_memory_stays_flat_over_thousands_of_runs(
    case: str, small_models: Any, open_session: Any
) -> None:
    model = small_models[case]
    session = open_session(model.path)
    for feeds in model.feeds:
        hammer(session, to_tensors(feeds), 200)
    before = resident_mib()
    for feeds in model.feeds:
        hammer(session, to_tensors(feeds), 2000)
    assert resident_mib() - before < 2


def test_memory_stays_flat_over_thousands_of_failures(small_models: Any, open_session: Any) -> None:
    session = open_session(small_models["mlp"].path)
    text = open_session(small_models["string"].path)
    bad = (
        (session, {"x": Tensor("float32", (1, 65), bytes(260))}),
        (session, {"x": Tensor("float32", (1, 64), bytes(200))}),
        (session, {"x": Tensor("float64", (1, 64), bytes(512))}),
        (text, {"x": Tensor("string", (1, 2), [b"a\0b", b""])}),
        (text, {"x": Tensor("string", (3,), [b"a", b"b", b"c"])}),
    )
    for target, feeds in bad:
        hammer(target, feeds, 200)
    before = resident_mib()
    for target, feeds in bad:
        hammer(target, feeds, 2000)
    assert resident_mib() - before < 2


def test_many_shapes_and_large_inputs_keep_a_bounded_pool(
    small_models: Any, open_session: Any
) -> None:
    session = open_session(small_models["dynamic"].path)
    for width in range(1, 200):
        session.run({"x": Tensor("float32", (1, 1, width), bytes(4 * width))})
    kept = [binding for free in session._free.values() for binding in free]
    assert len(kept) == session._kept_count == engine.MAX_BINDINGS
    large = Tensor("float32", (1, 3000, 3000), bytes(36_000_000))
    for _ in range(2):
        assert session.run({"x": large})["y"].shape == (1, 3000, 3000)
    session.run({"x": Tensor("float32", (1, 2000, 2000), bytes(16_000_000))})
    session.run({"x": Tensor("float32", (1, 2000, 2001), bytes(16_008_000))})
    kept = [binding for free in session._free.values() for binding in free]
    assert session._kept_bytes == sum(binding.nbytes for binding in kept)
    assert 32_000_000 <= session._kept_bytes <= engine.MAX_BINDING_BYTES


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing input `x`"),
        (
            {"x": Tensor("float32", (1, 64), bytes(256)), "z": Tensor("float32", (), bytes(4))},
            "the model has no input `z`",
        ),
        (
            {"x": Tensor("float64", (1, 64), bytes(512))},
            "input `x` is float64 where the model takes float32",
        ),
        (
            {"x": Tensor("float32", (1, 64), bytes(255))},
            r"input `x` has 255 bytes, which is not what shape \[1, 64\] needs",
        ),
        ({"x": Tensor("float32", (-1, -64), bytes(256))}, r"not what shape \[-1, -64\] needs"),
        ({"x": Tensor("float32", (1, 65), bytes(260))}, "invalid dimensions for input"),
        ({"x": Tensor("float32", (64,), bytes(256))}, "Invalid rank for input: x"),
    ],
)
def test_what_the_model_does_not_take_is_a_bad_request(
    feeds: dict[str, Tensor], message: str, small_models: Any, open_session: Any
) -> None:
    session = open_session(small_models["mlp"].path)
    good = to_tensors(small_models["mlp"].feeds[0])
    for _ in range(2):
        with pytest.raises(BadRequest, match=message) as caught:
            session.run(feeds)
        assert "\n" not in caught.value.message
        assert session.run(good)["logits"].shape == (1, 10)


def test_a_string_with_a_nul_is_refused_instead_of_cut(
    small_models: Any, open_session: Any
) -> None:
    session = open_session(small_models["string"].path)
    with pytest.raises(BadRequest, match="input `x` holds a NUL character"):
        session.run({"x": Tensor("string", (1, 2), [b"a\0b", b""])})
    with pytest.raises(BadRequest, match=r"has 1 strings, which is not what shape \[1, 2\] needs"):
        session.run({"x": Tensor("string", (1, 2), [b"a"])})


def test_an_index_out_of_bounds_is_the_requests_fault(tmp_path: Path, open_session: Any) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [3]), value("i", TensorProto.INT64, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "gather.onnx"
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=imports), path)
    session = open_session(path)
    values = to_tensor(np.arange(3, dtype=np.float32))
    for _ in range(3):
        good = session.run({"x": values, "i": to_tensor(np.array([2], np.int64))})
        assert good["y"].to_flat() == [2]
        with pytest.raises(BadRequest, match="indices element out of data bounds") as caught:
            session.run({"x": values, "i": to_tensor(np.array([9], np.int64))})
        assert "/" not in caught.value.message


def test_outputs_that_are_no_tensors_are_refused_by_name(tmp_path: Path, open_session: Any) -> None:
    row = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    node = helper.make_node(
        "ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]
    )
    scores = onnx.ValueInfoProto(name="scores")
    element = scores.type.sequence_type.elem_type.map_type
    element.key_type = TensorProto.STRING
    element.value_type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph([node], "g", [row], [scores])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "zipmap.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    with pytest.raises(ModelFault, match="output `scores` is a sequence, and only tensors"):
        open_session(path)


def test_element_types_without_a_name_are_refused(tmp_path: Path, open_session: Any) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT8E4M3FN, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    path = tmp_path / "fp8.onnx"
    imports = [helper.make_opsetid("", 19)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=imports), path)
    with pytest.raises(ModelFault, match="input `x` has an element type that is not served"):
        open_session(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04abcd" * 9])
def test_a_broken_model_is_a_fault_without_our_folder_in_it(
    content: bytes, tmp_path: Path, open_session: Any
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFault) as caught:
        open_session(path)
    assert str(tmp_path) not in caught.value.message
    assert caught.value.exit_code == 5


def test_a_missing_model_is_an_input_output_fault(tmp_path: Path, open_session: Any) -> None:
    with pytest.raises(InputOutputFault, match=r"there is no model file `absent.onnx`"):
        open_session(tmp_path / "absent.onnx")


def test_an_engine_prints_nothing(
    small_models: Any, open_session: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_models["lying_shape"]
    session = open_session(model.path)
    for feeds in model.feeds:
        session.run(to_tensors(feeds))
    with pytest.raises(BadRequest):
        session.run({"x": Tensor("float32", (1, 1), bytes(4))})
    assert capfd.readouterr() == ("", "")


def test_a_library_for_another_processor_names_both(tmp_path: Path, engine_library: Path) -> None:
    other = tmp_path / "libonnxruntime.so"
    header = bytearray(engine_library.read_bytes()[:64])
    header[18:20] = (183 if header[18] == 62 else 62).to_bytes(2, "little")
    other.write_bytes(header)
    with pytest.raises(TargetMismatch, match=r"is for (aarch64|x86_64) and this machine is"):
        Library(str(other))


def test_a_cut_library_a_text_and_a_stranger_are_told_apart(
    tmp_path: Path, engine_library: Path
) -> None:
    cut = tmp_path / "cut.so"
    whole = engine_library.read_bytes()
    for size in (64, 100, 4096, len(whole) // 2):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFault, match=r"`cut.so` is cut off"):
            Library(str(cut))
    text = tmp_path / "text.so"
    text.write_text("hello")
    with pytest.raises(ModelFault, match=r"`text.so` is no 64-bit shared library"):
        Library(str(text))
    with pytest.raises(InputOutputFault, match="cannot read the engine library"):
        Library(str(tmp_path / "absent.so"))
    libc = next(Path("/").glob("lib*/*/libm.so.6"), None) or next(Path("/").glob("lib*/libm.so.6"))
    stranger = tmp_path / "stranger.so"
    shutil.copy(libc, stranger)
    with pytest.raises(ModelFault, match=r"`stranger.so` is no ONNX Runtime library"):
        Library(str(stranger))


def test_a_loader_that_lacks_something_says_what() -> None:
    old = _load_fault("l.so", "/lib/libm.so.6: version `GLIBC_2.38' not found (required by l.so)")
    assert isinstance(old, TargetMismatch)
    assert old.message.startswith("the engine library needs GLIBC_2.38 and this system has glibc")
    lacking = _load_fault("l.so", "libgomp.so.1: cannot open shared object file: No such file")
    assert lacking.message == "the engine library needs `libgomp.so.1`, which this system lacks"
    musl = _load_fault("l.so", "Error loading shared library ld-linux-x86-64.so.2: No such file")
    assert "the GNU C library" in musl.message
    noexec = _load_fault("l.so", "l.so: failed to map segment from shared object")
    assert isinstance(noexec, InputOutputFault)


def test_an_engines_source_position_is_left_out_of_a_message() -> None:
    text = "/onnxruntime_src/onnxruntime/core/a.cc:12 Status f(int) the reason.\nmore"
    assert _one_line(text) == "Status f(int) the reason"
    assert _one_line("") == "ONNX Runtime gave no reason"


def test_the_older_api_is_asked_for(engine_library: Path) -> None:
    library = Library(str(engine_library))
    assert library.version == onnxruntime.__version__
    assert library.environment == Library(str(engine_library)).environment


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (UsageFault, 2), (TargetMismatch, 3), (ModelFault, 5), (IntegrityFault, 8),
        (InputOutputFault, 10), (BadRequest, 2),
    ],
)  # fmt: skip
def test_each_fault_has_its_exit_code(fault: type[DeviceError], code: int) -> None:
    error = fault("a message", hint="a hint")
    assert (error.exit_code, error.message, error.hint) == (code, "a message", "a hint")
    assert str(error) == "a message"


def test_a_bad_request_carries_its_http_status() -> None:
    assert BadRequest("no").status == 400
    assert BadRequest("too much", 413).status == 413


def test_a_working_set_is_aligned_for_wide_registers(small_models: Any, open_session: Any) -> None:
    model = small_models["mlp"]
    session = open_session(model.path)
    session.run(to_tensors(model.feeds[0]))
    (bindings,) = session._free.values()
    view = bindings[0].views[0][0]
    assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % 64 == 0
    assert os.sched_getaffinity(0)
