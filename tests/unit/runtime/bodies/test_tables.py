"""Tables and texts decoded on a device are what the build host reads from the same files."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.data import read_request
from packager.model import Signature as HostSignature
from packager.recipe import ColumnsInput, Recipe
from runtime.bodies.csvrows import TableDecoder
from runtime.bodies.texts import TextDecoder
from runtime.errors import BadRequest
from runtime.signature import Signature
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from pathlib import Path

BATCH = {"name": "batch", "min": 1, "max": 8, "opt": 1}
NUMPY = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int64": "<i8", "int32": "<i4",
         "uint8": "u1", "bool": "?"}  # fmt: skip


def wire(**inputs: list[Any]) -> dict[str, Any]:
    """Return a signature: by name the dtype and the sizes behind the batch."""
    specs = [{"name": name, "dtype": dtype, "shape": [BATCH, *dims]}
             for name, (dtype, *dims) in inputs.items()]  # fmt: skip
    return {"inputs": specs, "outputs": []}


def device(content: str | bytes, signature: dict[str, Any], **columns: list[str]) -> Any:
    body = content.encode() if isinstance(content, str) else content
    tables = {name: {"names": names} for name, names in columns.items()}
    feeds = TableDecoder(Signature(signature), tables).decode(body)
    Signature(signature).check(feeds)
    return feeds


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == "string":
        return np.array([item.decode() for item in tensor.data]).reshape(tensor.shape)
    return np.frombuffer(tensor.data, NUMPY[tensor.dtype]).reshape(tensor.shape)


def host(
    tmp_path: Path, content: str, signature: dict[str, Any], **columns: list[str]
) -> dict[str, Any]:
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode())
    declared = {name: ColumnsInput(names=tuple(names)) for name, names in columns.items()}
    recipe = Recipe(model="m.onnx", name="m", columns=declared)
    return read_request(path, HostSignature.from_json(signature), recipe)[0]


@pytest.mark.parametrize(
    ("content", "signature", "columns"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", wire(x=["float32", 2]), {"x": ["c", "a"]}),
        ("x.0,x.1,other\n0.1,-2e3,q\n.5,+7,q\n", wire(x=["float32", 2]), {}),
        ("\ufeffx\r\n1\r\n\r\n2\r\n", wire(x=["float64", 1]), {}),
        ('x,y\n"1","two, and a half"\n3,"say ""no"""\n', wire(x=["int64", 1], y=["string", 1]), {}),
        ("x.0,x.1,x.2,x.3\n1,2,3,4\n", wire(x=["int32", 2, 2]), {}),
        ("x\ntrue\nFalse\n1\n0\n", wire(x=["bool", 1]), {}),
        ("x\n3.0\n1e2\ntrue\n", wire(x=["int64", 1]), {}),
        ("x\n65504\n1e-9\n", wire(x=["float16", 1]), {}),
        ("x.0,x.1,x.2\n0.1,0.2,0.3\n", wire(x=["float32", BATCH | {"name": "n"}]), {}),
        (" a , b \n 1 , 2 \n", wire(x=["uint8", 2]), {"x": ["a", "b"]}),
    ],
)
def test_tables_are_the_same_inputs(
    tmp_path: Path, content: str, signature: dict[str, Any], columns: dict[str, list[str]]
) -> None:
    wanted = host(tmp_path, content, signature, **columns)
    found = device(content, signature, **columns)
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert array(tensor).shape == wanted[name].shape
        assert (array(tensor) == wanted[name]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the table is empty"),
        ("\n\n", "the table is empty"),
        ("x\n", "has no rows"),
        ("y\n1\n", "no column for the input `x`"),
        ("x,x\n1,2\n", "several columns `x`"),
        ("x\n1,2\n", "line 2 has 2 cells, and the header has 1"),
        ("x,y\n1,2\n3\n", "line 3 has 1 cells"),
        ("x\n\n \n", "line 3: `x` is empty"),
        ("x\nnan\n", r"line 2: `x` is no number \(float32\)"),
        ("x\ninf\n", "is no number"),
        ("x\n1_000\n", "is no number"),
        ("x\n0x10\n", "is no number"),
        ("x\n\u0661\n", "is no number"),
        ("x\nfour\n", "is no number"),
        ("x\n" + "9" * 401 + "\n", "is no number"),
        ("x\n" + "9" * 399 + "\n", r"`x\[0\]` is not a finite number"),
        ("x\n1e39\n", "too large for float32"),
        ("x\n1e999\n", "not a finite number"),
        ('x\n"1\n', "line 2: unexpected end"),
        ('x\n"1"2\n', "line 2: "),
        ("x\n" + "1\n" * 9, "more rows than the 8 that the model takes"),
        ("x\n" + '"' + "1" * 200_000 + '"\n', "line 2: field larger"),
        (b"x\n\xff\n", "line 2 is not UTF-8"),
        ("x\n1\x00\n", "line "),
    ],
)
def test_broken_tables_are_told_apart(content: str | bytes, message: str) -> None:
    if content == "x\n1\x00\n":
        message = "NUL|is no number"  # the reader refuses it before CPython 3.11
    with pytest.raises(BadRequest, match=message) as caught:
        device(content, wire(x=["float32", 1]))
    assert caught.value.status == 400


@pytest.mark.parametrize("word", ["256", "-1", "1.5", "1e400"])
def test_numbers_that_are_no_such_integer_are_refused(word: str) -> None:
    with pytest.raises(BadRequest, match="line 2: `x` is no integer from 0 to 255"):
        device(f"x\n{word}\n", wire(x=["uint8", 1]))
    with pytest.raises(BadRequest, match="no truth value"):
        device("x\nyes\n", wire(x=["bool", 1]))


def test_mistakes_get_a_hint() -> None:
    for content, columns, hint in (
        ("weigth\n1\n", {"x": ["weight"]}, "did you mean `weigth`"),
        ("a;b\n1;2\n", {"x": ["a"]}, "commas"),
        ("a;b\n1;2\n", {}, "name it `x`"),
    ):
        with pytest.raises(BadRequest) as caught:
            device(content, wire(x=["float32", 1]), **columns)
        assert hint in str(caught.value.hint)


def test_other_numbers_of_cells_than_the_input_has_are_refused() -> None:
    with pytest.raises(BadRequest, match="gets 2 cells of each row where it takes"):
        device("x.0,x.1\n1,2\n", wire(x=["float32", 3]))


def test_a_million_columns_are_refused_soon() -> None:
    for count, message in ((1_000_000, "has 1000000 columns"), (60_000, "no column for the input")):
        header = ",".join(f"c{number}" for number in range(count))
        with pytest.raises(BadRequest, match=message) as caught:
            device(header + "\n", wire(x=["float32", 1]))
        assert len(str(caught.value.hint)) < 1000
    with pytest.raises(BadRequest, match="has no column `missing`"):
        device(header + "\n", wire(x=["float32", 1]), x=["missing"])
    wide = ",".join(f"x.{number}" for number in range(60_000))
    with pytest.raises(BadRequest, match="gets 60000 cells"):
        device(wide + "\n" + "1," * 59_999 + "1\n", wire(x=["float32", 1]))


def test_messages_hold_nothing_of_the_cells() -> None:
    for cell in ("canary", "canary,1", '"canary"x'):
        with pytest.raises(BadRequest) as caught:
            device(f"x\n{cell}\n", wire(x=["float32", 1]))
        assert "canary" not in str(caught.value) + str(caught.value.hint)


@given(st.text(alphabet='x,.0123"\n\r;e-+ \t\0é', max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_table_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        found = device("x.0,x.1\n" + text, wire(x=["float32", 2]))
        assert found["x"].shape[1] == 2


def texts(lines: list[str]) -> dict[str, Tensor]:
    return {"ids": Tensor("int64", (len(lines), 1), bytes(8 * len(lines)))}


def test_texts_are_lines_that_are_not_empty() -> None:
    seen: list[str] = []

    def tokenize(lines: list[str]) -> dict[str, Tensor]:
        seen.extend(lines)
        return texts(lines)

    decode = TextDecoder(Signature(wire(ids=["int64", 1])), tokenize).decode
    found = decode("\ufeffone\r\n\n  \ntwo\u2028lines\n three".encode())
    assert seen == ["one", "two\u2028lines", " three"]
    assert found["ids"].shape == (3, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "holds no text"), (b" \n\t\n", "holds no text"), (b"a\nb\xff", "line 2 is not UTF-8"),
     (b"a\n" * 9, "9 texts where the model takes 8"), ("ä".encode("utf-16"), "not UTF-8")],
)  # fmt: skip
def test_broken_texts_are_told_apart(body: bytes, message: str) -> None:
    decode = TextDecoder(Signature(wire(ids=["int64", 1])), texts).decode
    with pytest.raises(BadRequest, match=message):
        decode(body)
