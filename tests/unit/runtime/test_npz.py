"""NumPy reads what we write, we read what NumPy writes, and nothing hostile gets through."""

from __future__ import annotations

import io
import subprocess
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime import npz
from runtime.errors import BadRequest, InputOutputFault
from runtime.npz import pack_npz, read_npy, read_npz, write_npy, write_npz
from runtime.tensor import Tensor

KINDS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(KINDS).flatmap(lambda kind: hnp.arrays(kind, SHAPES))
# NumPy pads strings with NUL and so cannot tell one at the end from none
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(lambda s: s.rstrip("\0"))


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def loaded(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


@given(ARRAYS, st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_numpys_files_are_read(array: np.ndarray, version: tuple[int, int]) -> None:
    tensor = read_npy(saved(array, version))
    assert (tensor.dtype, tensor.shape) == (str(array.dtype), array.shape)
    assert bytes(tensor.data) == array.tobytes()


@given(ARRAYS)
def test_numpy_reads_our_files(array: np.ndarray) -> None:
    got = loaded(write_npy(Tensor(str(array.dtype), array.shape, array.tobytes())))
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()


@given(ARRAYS)
def test_column_major_and_big_endian_arrays_are_turned_round(array: np.ndarray) -> None:
    for other in (np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))):
        tensor = read_npy(saved(other))
        assert tensor.shape == other.shape
        assert bytes(tensor.data) == array.reshape(other.shape).tobytes()


@given(hnp.arrays(object, SHAPES, elements=TEXT), st.booleans())
def test_strings_go_both_ways(array: np.ndarray, fortran: bool) -> None:
    text = array.astype(str)
    other = np.asfortranarray(text) if fortran else text.astype(text.dtype.newbyteorder(">"))
    tensor = read_npy(saved(other))
    assert tensor.to_flat() == text.ravel().tolist()
    got = loaded(write_npy(tensor))
    assert (got.shape, got.dtype.kind) == (other.shape, "U")
    assert got.tolist() == text.reshape(other.shape).tolist()


def test_byte_strings_are_kept_as_they_are() -> None:
    array = np.array([[b"a", b"\xff\xfe"], [b"", b"abc"]])
    tensor = read_npy(saved(array))
    assert tensor.data == [b"a", b"\xff\xfe", b"", b"abc"]
    assert loaded(write_npy(tensor)).tolist() == array.tolist()


def test_bfloat16_is_the_two_byte_type_that_ml_dtypes_writes() -> None:
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    tensor = read_npy(saved(array))
    assert (tensor.dtype, tensor.to_flat()) == ("bfloat16", [1.5, -2.0])
    assert loaded(write_npy(tensor)).view(ml_dtypes.bfloat16).tolist() == [1.5, -2.0]


@settings(max_examples=25)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"])), ARRAYS))
def test_an_npz_file_goes_both_ways(arrays: dict[str, np.ndarray]) -> None:
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **{f"k{at}": array for at, array in enumerate(arrays.values())})
        got = read_npz(stream.getvalue())
        assert [bytes(item.data) for item in got.values()] == [
            array.tobytes() for array in arrays.values()
        ]
    ours = pack_npz(
        {name: Tensor(str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}
    )
    assert list(read_npz(ours)) == list(arrays)
    back = np.load(io.BytesIO(ours), allow_pickle=False)
    assert sorted(back.files) == sorted(arrays)


def test_the_same_arrays_give_the_same_file_under_every_cpython(
    old_python: Path, tmp_path: Path
) -> None:
    tensors = {"a/β": Tensor("int8", (2,), b"\1\2"), "s": Tensor("string", (1,), [b"x"])}
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from runtime.npz import write_npz, read_npz; from runtime.tensor import Tensor\n"
        "t = {'a/\\u03b2': Tensor('int8', (2,), b'\\1\\2'), 's': Tensor('string', (1,), [b'x'])}\n"
        "write_npz(sys.argv[2], t); assert read_npz(sys.argv[2]) == t\n"
    )
    out = tmp_path / "out.npz"
    root = Path(npz.__file__).resolve().parent.parent
    subprocess.run(
        [str(old_python), "-I", "-X", "dev", "-c", program, str(root), str(out)],
        check=True, timeout=60,
    )  # fmt: skip
    assert out.read_bytes() == pack_npz(tensors)
    with zipfile.ZipFile(out) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}


def npy(header: str, content: bytes = b"", major: int = 1) -> bytes:
    text = header.encode("latin-1")
    size = len(text).to_bytes(2 if major == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([major, 0]) + size + text + content


def fields(descriptor: str = "'<f4'", order: str = "False", shape: str = "(1,)") -> str:
    return f"{{'descr': {descriptor}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "array `array` is no .npy file"),
        (b"\x93NUMPY\1\0", "is no .npy file"),
        (npy(fields(), b"1234", major=9), "is of .npy version 9, and 1 to 3 are known"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "has a .npy header of 4294967295 bytes"),
        (b"\x93NUMPY\1\0\x40\0{}", "has a .npy header of 64 bytes"),
        (npy("{'descr'"), "has a .npy header that cannot be read"),
        (npy("(" * 9000), "has a .npy header that cannot be read"),
        (npy("-" * 9000 + "1"), "has a .npy header"),
        (npy("__import__('os').system('true')"), "has a .npy header that cannot be read"),
        (npy("[1, 2]"), "has a .npy header without the fields of one"),
        (npy("{'descr': '<f4'}"), "has a .npy header without the fields of one"),
        (npy(fields(shape="(-1,)")), "has a .npy header with an impossible shape"),
        (npy(fields(shape="(True,)"), b"1234"), "has a .npy header with an impossible shape"),
        (npy(fields(shape="[1]"), b"1234"), "has a .npy header with an impossible shape"),
        (npy(fields(shape=str((1,) * 33)), b"1234"), "with an impossible shape"),
        (npy(fields(order="0"), b"1234"), "has a .npy header with an impossible shape"),
        (npy(fields(shape="(10**9,)")), "has a .npy header that cannot be read"),
        (npy(fields(shape="(1000000000000,)")), "has 0 bytes where its header says 4000000000000"),
        (npy(fields(), b"12345"), "has 5 bytes where its header says 4"),
        (npy(fields("'|O'")), "is of Python objects, whose pickles could run any program"),
        (npy(fields("[('a', '<f4')]")), "is of records, which are not served"),
        (npy(fields("'<c8'")), "is of type `<c8`, which is not served"),
        (npy(fields("'<M8[ns]'")), "is of records, which are not served"),
        (npy(fields("'<f16'")), "is of type `<f16`, which is not served"),
        (npy(fields("'|b1'"), b"\2"), "holds a byte that is neither 0 nor 1"),
        (npy(fields("'<U1'"), b"\xff\xff\xff\xff"), "holds what is no Unicode text"),
    ],
)  # fmt: skip
def test_a_bad_array_is_refused_in_plain_words(data: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_npy(data)
    assert message in caught.value.message


def test_an_object_array_comes_with_the_way_out() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(BadRequest, match="whose pickles could run any program") as caught:
        read_npy(stream.getvalue())
    assert caught.value.hint is not None
    assert "astype(str)" in caught.value.hint


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole .npz file"),
        (b"PK\3\4 and no more", "not a whole .npz file"),
        (saved(np.zeros(1)), "not a whole .npz file"),
        (zipped([("a.txt", b"")]), "`a.txt` in the .npz file is no .npy array"),
        (zipped([("a.npy", b"no")]), "array `a` is no .npy file"),
        (
            zipped([("a.npy", saved(np.zeros(1)))], zipfile.ZIP_BZIP2),
            "array `a` is compressed in a way that .npz files are not",
        ),
    ],
)
def test_a_bad_npz_file_is_refused_in_plain_words(data: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_npz(data)
    assert message in caught.value.message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_comes_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"the .npz file holds array `a` twice"):
        read_npz(zipped([("a.npy", saved(np.zeros(1)))] * 2))


@given(st.data())
def test_a_damaged_file_is_read_as_it_was_or_refused(data: Any) -> None:
    whole = bytearray(zipped([("a.npy", saved(np.arange(4)))], zipfile.ZIP_DEFLATED))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del whole[at:]
    try:
        got = read_npz(bytes(whole))
    except (BadRequest, InputOutputFault):
        return
    assert all(tensor.to_flat() == [0, 1, 2, 3] for tensor in got.values())


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zipped([("a.npy", bytes(64 << 20))], zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(BadRequest, match=r"the .npz file unpacks to more than 1048576 bytes"):
        read_npz(bomb, max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_files_that_cannot_be_read_or_written_are_input_output_faults(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match=r"cannot read `.*absent.npz`: No such file"):
        read_npz(str(tmp_path / "absent.npz"))
    with pytest.raises(InputOutputFault, match=r"cannot write `.*a.npz`: No such file"):
        write_npz(str(tmp_path / "absent" / "a.npz"), {})
    (tmp_path / "taken.npz").mkdir()
    with pytest.raises(InputOutputFault, match="cannot write"):
        write_npz(str(tmp_path / "taken.npz"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken.npz"]


def test_a_name_that_a_zip_file_would_cut_is_refused() -> None:
    with pytest.raises(BadRequest, match="cannot hold a NUL character"):
        pack_npz({"a\0b": Tensor("int8", (1,), b"\1")})
