"""Tables as samples: columns, labels, and every cell that cannot be."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packager.errors import BackendMissing, UsageError
from packager.model import Dim
from packager.recipe import ColumnsInput, TextInput

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = "age,label,height\n31,1,1.75\n42,0,1.8\n7,2,1e0\n"


def test_the_recipes_columns_become_the_input_in_their_order(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "people.csv").write_text(ROWS)
    columns = {"x": ColumnsInput(names=("height", "age"), mean=(1.7, 30.0), std=(0.1, 9.0))}
    samples = load(
        tmp_path / "people.csv", make_spec("x", "float32", 2), labelled=True, columns=columns
    )
    assert [s["x"].tolist() for s in samples] == [
        [[1.75, 31.0]],
        [[np.float32(1.8), 42.0]],
        [[1.0, 7.0]],
    ]
    assert [label.tolist() for label in samples.labels] == [[1], [0], [2]]
    assert {label.dtype for label in samples.labels} == {np.dtype(np.int64)}
    assert samples.names == ("line 2", "line 3", "line 4")
    assert samples.kind == "csv"
    assert samples.origin == "3 rows of a `.csv` file"
    assert samples.notes == ()


def test_columns_are_found_by_the_inputs_names(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("id,n,x.0,x.1,x.2,x.3,word\n9,5,1,2,3,4,hello\n9,6,5,6,7,8,x\n")
    inputs = (
        make_spec("x", "float32", 1, 2, 2), make_spec("n", "int64"), make_spec("word", "string", 1)
    )  # fmt: skip
    samples = load(tmp_path / "a.csv", *inputs)
    assert samples[0]["x"].shape == (1, 1, 2, 2)
    assert samples[0]["x"].ravel().tolist() == [1, 2, 3, 4]
    assert samples[1]["n"].tolist() == [6]
    assert samples[1]["n"].dtype == np.int64
    assert samples[0]["word"].tolist() == [["hello"]]
    assert samples.labels is None


def test_a_parquet_file_gives_the_same_samples_as_its_csv(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "people.csv").write_text(ROWS)
    table = pa.table({"age": [31, 42, 7], "label": [1, 0, 2], "height": [1.75, 1.8, 1.0]})
    pq.write_table(table, tmp_path / "people.parquet", row_group_size=2)
    columns = {"x": ColumnsInput(names=("height", "age"))}
    x = make_spec("x", "float32", 2)
    one, two = (
        load(tmp_path / f"people.{kind}", x, labelled=True, columns=columns)
        for kind in ("csv", "parquet")
    )
    assert one.contents == two.contents
    assert one.digest == two.digest
    assert two.names == ("row 0", "row 1", "row 2")


def test_a_list_column_of_a_parquet_file_fills_an_input(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    rows = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    pq.write_table(pa.table({"x": rows}), tmp_path / "a.parquet")
    samples = load(tmp_path / "a.parquet", make_spec("x", "float32", 2, 2))
    assert samples[1]["x"].tolist() == [rows[1]]
    free = make_spec("x", "float32", Dim(name="n", min=1, max=9, opt=2), 2)
    assert load(tmp_path / "a.parquet", free)[0]["x"].shape == (1, 2, 2)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "a.parquet")
    for name in [name for name in sys.modules if name.startswith("pyarrow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendMissing) as caught:
        load(tmp_path / "a.parquet", make_spec("x", "float32"))
    assert "edgepack[parquet]" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_missing_value_of_a_parquet_file_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    pq.write_table(pa.table({"x": [1.0, None]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet`, row 1: `x` is empty"):
        load(tmp_path / "a.parquet", make_spec("x", "float32"))


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_broken_parquet_file_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, kept: int
) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:kept])
    with pytest.raises(UsageError, match="is not a readable Parquet file"):
        load(tmp_path / "a.parquet", make_spec("x", "float32"))


@pytest.fixture
def text(tmp_path: Path) -> TextInput:
    return TextInput(tokenizer=tmp_path / "vocab.txt")


def test_text_stays_text_until_the_tokenizer(
    tmp_path: Path, load: Callable, make_spec: Callable, text: TextInput
) -> None:
    (tmp_path / "a.csv").write_text('label,review\n1,"good, really"\n0,"bad\nworse"\n')
    tokens = [make_spec(name, "int64", 8) for name in ("input_ids", "attention_mask")]
    samples = load(tmp_path / "a.csv", *tokens, text=text, labelled=True)
    assert [s["text"].tolist() for s in samples] == [["good, really"], ["bad\nworse"]]
    assert samples[0]["text"].dtype.kind == "U"
    assert set(samples[0]) == {"text"}
    # The second row ends in the fourth line of the file.
    assert samples.names == ("line 2", "line 4")


def test_lines_of_a_text_file_are_samples(
    tmp_path: Path, load: Callable, make_spec: Callable, text: TextInput
) -> None:
    (tmp_path / "a.txt").write_text("grün\r\n\r\n zwei \n")
    tokens = [make_spec(name, "int64", 8) for name in ("input_ids", "attention_mask")]
    samples = load(tmp_path / "a.txt", *tokens, text=text)
    assert [s["text"].tolist() for s in samples] == [["grün"], [" zwei "]]
    assert samples.names == ("line 1", "line 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x\n1\n\n2,3\n", r"line 4: 2 cells, and the header has 1"),
        ("x,label\n1,2\n3\n", r"line 3: 1 cells, and the header has 2"),
        ("x\n1\n \n", r"line 3: `x` is empty"),
        ("x\n1\ntwo\n", r"line 3: `x` is `two`"),
        ("x\nnan\n", r"line 2: `x` is `nan`"),
        ("x\n1_000\n", r"line 2: `x` is `1_000`"),
        ("x\n1,5\n", r"line 2: 2 cells"),
        ("x\n1e999\n", r"line 2: `x` is inf"),
        ('x\n"1\n', r"line \d: unexpected end of data"),
        ("y\n1\n", r"has no column for the input `x`"),
        ("x,x\n1,2\n", r"has several columns `x`"),
        ("x.0,x.1\n1,2\n", r"line 2: `x` gets 2 cells"),
        ("x;label\n1;2\n", r"has one column `x;label`"),
        ("", r"is empty"),
        ("x\n", r"holds no samples"),
    ],
)
def test_a_csv_file_that_cannot_be_is_refused_with_its_line(
    tmp_path: Path, load: Callable, make_spec: Callable, content: str, message: str
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path / "bad.csv", make_spec("x", "float32"))
    assert "bad.csv" in caught.value.message


@pytest.mark.parametrize(
    "case",
    [
        ("int8", "300", "`x` is 300"),
        ("int64", "1.5", "`x` is 1.5"),
        ("uint8", "-1", "`x` is -1"),
        ("bool", "2", "`x` is `2`"),
        ("float16", "70000", "holds infinity"),
    ],
)
def test_a_cell_that_the_inputs_dtype_cannot_hold_is_refused(
    tmp_path: Path, load: Callable, make_spec: Callable, case: tuple[str, str, str]
) -> None:
    dtype, cell, message = case
    (tmp_path / "bad.csv").write_text(f"x\n{cell}\n")
    with pytest.raises(UsageError, match=re.escape(message)):
        load(tmp_path / "bad.csv", make_spec("x", dtype))


def test_large_integers_and_truth_values_keep_their_value(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("n,flag\n9007199254740993,true\n-1,False\n")
    samples = load(tmp_path / "a.csv", make_spec("n", "int64"), make_spec("flag", "bool"))
    assert [s["n"].item() for s in samples] == [9007199254740993, -1]
    assert [s["flag"].item() for s in samples] == [True, False]


def test_a_byte_order_mark_is_no_part_of_the_first_column(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffx\n1\n2\n".encode())
    assert len(load(tmp_path / "a.csv", make_spec("x", "float32"))) == 2


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("utf-16", 1)])
def test_another_encoding_is_refused_with_the_line(
    tmp_path: Path, load: Callable, make_spec: Callable, encoding: str, line: int
) -> None:
    (tmp_path / "a.csv").write_bytes("x,word\n1,a\n2,grün\n".encode(encoding))
    with pytest.raises(UsageError, match=rf"a\.csv`, line {line}: not UTF-8"):
        load(tmp_path / "a.csv", make_spec("x", "float32"))


def test_a_misspelt_column_is_guessed(tmp_path: Path, load: Callable, make_spec: Callable) -> None:
    (tmp_path / "a.csv").write_text("height,age\n1,2\n")
    columns = {"x": ColumnsInput(names=("heigth",))}
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "a.csv", make_spec("x", "float32", 1), columns=columns)
    assert caught.value.hint == "did you mean `height`?"


def test_a_label_column_of_another_name_is_named_in_the_recipe(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("x,kind\n1,0\n2,2\n")
    with pytest.raises(UsageError, match="has no labels") as caught:
        load(tmp_path / "a.csv", make_spec("x", "float32"), labelled=True)
    assert "`label`" in caught.value.accepted
    samples = load(tmp_path / "a.csv", make_spec("x", "float32"), labelled=True, label="kind")
    assert [label.item() for label in samples.labels] == [0, 2]


def test_an_empty_label_is_refused_where_labels_are_read_and_nowhere_else(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    (tmp_path / "a.csv").write_text("x,label\n1,0\n2,\n")
    with pytest.raises(UsageError, match=r"line 3: the label `label` is empty"):
        load(tmp_path / "a.csv", make_spec("x", "float32"), labelled=True)
    samples = load(tmp_path / "a.csv", make_spec("x", "float32"))
    assert samples.labels is None
    assert samples.notes == ("labels were left out: `line 3` has no label",)


def test_reading_a_table_holds_no_more_than_a_row(
    tmp_path: Path, load: Callable, make_spec: Callable
) -> None:
    import tracemalloc

    with (tmp_path / "wide.csv").open("w") as stream:
        stream.write(",".join(f"x.{i}" for i in range(400)) + "\n")
        for row in range(120):
            stream.write(",".join(str((row * 7 + i) % 251) for i in range(400)) + "\n")
    tracemalloc.start()
    samples = load(tmp_path / "wide.csv", make_spec("x", "float32", 400))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # As arrays the rows are 192 kB.
    assert held < 120_000
    assert samples[119]["x"][0, :3].tolist() == [(119 * 7 + i) % 251 for i in range(3)]


def test_the_spooled_samples_leave_no_file_and_no_descriptor(
    tmp_path: Path, load: Callable, make_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import tempfile

    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    samples: Any = load(tmp_path / "a.csv", make_spec("x", "float32"))
    assert list((tmp_path / "spool").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    assert [s["x"].item() for s in samples[1:]] == [2.0]
    del samples
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
