"""Metrics say what scikit-learn, jiwer's definition and COCO's rules say, and refuse the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.checks.metrics import (
    METRICS,
    Measured,
    budget_in_unit,
    check_budget,
    drop,
    find_metric,
    rows_needed,
)
from packager.checks.metrics._texts import edit_distance
from packager.errors import ModelUnsupported, UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.recipe import Drop

if TYPE_CHECKING:
    from pathlib import Path

BATCH = Dim(name="batch", min=1, max=8, opt=1)


def signature(**outputs: tuple[Any, ...]) -> Signature:
    """Make outputs as `scores=("float32", 10)`, each with a batch axis first."""
    specs = tuple(
        TensorSpec(name=name, dtype=dtype, shape=(BATCH, *(Dim(size=s) for s in sizes)))
        for name, (dtype, *sizes) in outputs.items()
    )
    return Signature(inputs=(), outputs=specs)


def scores(*rows: list[float]) -> dict[str, np.ndarray]:
    return {"scores": np.array(rows, np.float32)}


def measure(word: str, outputs: Any, labels: Any = None, references: Any = None, **more: Any):
    return find_metric(word, **more).measure(outputs, references or outputs, labels)


def random_classes(rows: int, classes: int, *, seed: int = 0, digits: int = 9) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    values = random.dirichlet(np.ones(classes), rows).round(digits).astype(np.float32)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, rows - classes)])
    return values, labels


def in_samples(values: np.ndarray, labels: np.ndarray, *, name: str = "scores") -> tuple[Any, Any]:
    """Cut rows into samples of 1, 2, 3 … rows."""
    ends = np.cumsum(np.arange(1, len(values)))
    ends = ends[ends < len(values)]
    return [{name: part} for part in np.split(values, ends)], np.split(labels, ends)


def test_every_name_is_a_metric_and_says_its_direction() -> None:
    assert {name for name in METRICS if not find_metric(name).higher_is_better} == {
        "mse", "mse-original", "wer", "cer",
    }  # fmt: skip
    assert {name for name in METRICS if not find_metric(name).needs_labels} == {
        "agreement", "cosine", "mse-original",
    }  # fmt: skip
    assert {find_metric(name).unit for name in METRICS} == {"share", "value"}
    assert all(find_metric(name).name == name for name in METRICS)


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    from sklearn.metrics import top_k_accuracy_score

    values, labels = random_classes(100, 10)
    got = measure(f"top{k}", *in_samples(values, labels))
    assert got.value == pytest.approx(top_k_accuracy_score(labels, values, k=k))
    assert (got.rows, got.step) == (100, 0.01)


def test_a_row_with_nan_is_never_right() -> None:
    assert measure("top1", [scores([math.nan, 1], [0, 1])], [np.array([0, 1])]).value == 0.5


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    assert measure("top1", [scores([1, 1])], [np.array([0])]).value == 1.0


def test_top_k_reads_the_classes_that_top_k_post_processing_leaves() -> None:
    answer = {"y": np.array([[0.9, 0.1]], np.float32), "y_classes": np.array([[812, 3]])}
    assert measure("top1", [answer], [np.array([812])]).value == 1.0
    assert measure("top1", [answer], [np.array([3])]).value == 0.0
    assert measure("agreement", [answer], references=[answer]).value == 1.0
    with pytest.raises(UsageError, match="`top5` cannot be measured on the 2 classes") as caught:
        find_metric("top5").check(
            signature(y=("float32", 2), y_classes=("int64", 2)), [np.array([812])]
        )
    assert caught.value.hint == "`top_k = 5` or more in the recipe"


def test_the_first_scores_are_read_unless_an_output_is_named() -> None:
    answer = {
        "label": np.array([1]),
        "a": np.array([[0.1, 0.9]], np.float32),
        "b": np.array([[0.9, 0.1]], np.float32),
    }
    assert measure("top1", [answer], [np.array([1])]).value == 1.0
    assert measure("top1:b", [answer], [np.array([1])]).value == 0.0
    assert measure("top1:label", [answer], [np.array([1])]).value == 1.0
    with pytest.raises(UsageError, match="`top1:lable` names no output") as caught:
        measure("top1:lable", [answer], [np.array([1])])
    assert caught.value.hint == "did you mean `top1:label`?"
    with pytest.raises(UsageError, match=r"`top5` cannot be measured on `label` int\[1\]"):
        measure("top5:label", [answer], [np.array([1])])


def test_agreement_is_the_share_of_rows_with_the_same_best_class() -> None:
    want = [scores([1, 0], [0, 1]), scores([0, 1])]
    have = [scores([2, 1], [3, 1]), scores([0, 9])]
    assert measure("agreement", have, references=want).value == pytest.approx(2 / 3)
    broken = [scores([math.nan, 0], [0, 1]), scores([0, 9])]
    assert measure("agreement", broken, references=want).value == pytest.approx(2 / 3)


def test_agreement_of_decoded_texts_asks_for_equal_rows() -> None:
    want = [{"text": np.array([[1, 2, -1], [3, -1, -1]])}]
    have = [{"text": np.array([[1, 2, -1], [3, 3, -1]])}]
    assert measure("agreement", have, references=want).value == 0.5
    strings = [{"text": np.array(["a", "b"], object)}]
    other = [{"text": np.array(["a", "c"], object)}]
    assert measure("agreement", strings, references=other).value == 0.5


@pytest.mark.parametrize("digits", [9, 1])  # one digit makes many ties
def test_the_area_under_the_curve_is_scikit_learns(digits: int) -> None:
    from sklearn.metrics import roc_auc_score

    values, labels = random_classes(80, 4, digits=digits)
    outputs, parts = in_samples(values, labels)
    wanted = np.mean([roc_auc_score(labels == c, values[:, c]) for c in range(4)])
    assert measure("auc", outputs, parts).value == pytest.approx(wanted)
    binary = labels % 2
    for column in (values[:, 0], values[:, :1]):
        outputs, parts = in_samples(column, binary)
        assert measure("auc", outputs, parts).value == pytest.approx(
            roc_auc_score(binary, values[:, 0])
        )


def test_the_area_of_logits_is_that_of_their_probabilities() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(5)
    logits, labels = random.standard_normal((60, 3)) * 3, np.arange(60) % 3
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    outputs, parts = in_samples(logits, labels)
    assert measure("auc", outputs, parts).value == pytest.approx(
        roc_auc_score(labels, shares, multi_class="ovr")
    )
    two, parts = in_samples(logits[:, :2], labels % 2)
    assert measure("auc", two, parts).value == pytest.approx(
        roc_auc_score(labels % 2, logits[:, 1] - logits[:, 0])
    )


def test_the_area_under_the_curve_of_one_class_is_refused() -> None:
    with pytest.raises(UsageError, match="`auc` is undefined: every label is 1"):
        measure("auc", [scores([0.1, 0.9], [0.2, 0.8])], [np.array([1, 1])])


def test_the_cosine_is_the_mean_over_rows() -> None:
    want = np.eye(9, dtype=np.float32)[:2]
    have = np.stack([want[0] * 7, want[0] + want[1]])
    got = measure("cosine", [{"y": have}], references=[{"y": want}])
    assert got.value == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert (got.rows, got.step) == (2, None)


def test_the_cosine_of_short_rows_is_taken_over_all_rows() -> None:
    want, have = [{"y": np.array([[3.0], [4.0]])}], [{"y": np.array([[4.0], [3.0]])}]
    assert measure("cosine", have, references=want).value == pytest.approx(24 / 25)


def test_the_mean_squared_error_is_against_labels_or_the_original() -> None:
    outputs = [{"y": np.array([[1.0], [2.0]])}, {"y": np.array([[4.0]])}]
    labels = [np.array([1.0, 4.0]), np.array([3.0])]
    assert measure("mse", outputs, labels).value == pytest.approx(5 / 3)
    references = [{"y": np.array([[1.0], [2.0]])}, {"y": np.array([[1.0]])}]
    assert measure("mse-original", outputs, references=references).value == pytest.approx(3)
    with pytest.raises(
        UsageError, match=r"labels of the shape \[2, 1\] for `y`, which is \[2, 3\]"
    ):
        measure("mse", [{"y": np.ones((2, 3))}], [np.ones(2)])


@pytest.mark.parametrize("word", ["spearman", "pearson"])
def test_correlations_are_scipys(word: str) -> None:
    from scipy import stats

    random = np.random.default_rng(2)
    values = random.integers(0, 12, 50).astype(np.float32)
    labels = values * 2 + random.integers(0, 9, 50)
    wanted = getattr(stats, word + "r")(values, labels).statistic
    outputs, parts = in_samples(values[:, None], labels)
    assert measure(word, outputs, parts).value == pytest.approx(wanted)


def test_embeddings_are_compared_in_pairs() -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((12, 16)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = (unit[0::2] * unit[1::2]).sum(axis=1).astype(np.float64)
    pairs = [{"e": vectors[i : i + 2]} for i in range(0, 12, 2)]
    per_pair = [np.array([value]) for value in likeness]
    assert measure("pearson", pairs, per_pair).value == pytest.approx(1.0)
    single = [{"e": row[None]} for row in vectors]
    per_row = [np.array([value]) for value in np.repeat(likeness, 2)]
    assert measure("spearman", single, per_row).value == pytest.approx(1.0)
    with pytest.raises(UsageError, match="rows 0 and 1 are a pair"):
        measure("spearman", single, [np.array([float(i)]) for i in range(12)])
    with pytest.raises(UsageError, match="there are 11 rows"):
        measure("spearman", single[:11], per_row[:11])


def test_a_constant_answer_has_no_correlation() -> None:
    with pytest.raises(ModelUnsupported, match="`y` is the same for every row"):
        measure("spearman", [{"y": np.ones(3)}], [np.arange(3.0)])
    with pytest.raises(UsageError, match="every label is the same"):
        measure("pearson", [{"y": np.arange(3.0)}], [np.ones(3)])


@pytest.mark.parametrize("word", ["cosine", "mse", "mse-original", "auc", "spearman"])
def test_a_metric_of_nan_has_no_value(word: str) -> None:
    outputs = [{"y": np.array([[math.nan, 1.0], [0.0, 1.0]])}]
    labels = [np.array([0, 1])] if word == "auc" else [np.ones((2, 2)) * [[0], [1]]]
    with pytest.raises(ModelUnsupported, match=f"`{word}` has no value: the output `y` holds NaN"):
        measure(word, outputs, labels)


def text_outputs(*texts: str) -> list[dict[str, np.ndarray]]:
    return [{"text": np.array([text], object)} for text in texts]


def test_error_rates_count_edits_over_all_texts() -> None:
    # By hand: "the cat" → "the hat" one word, one character; "sat" → "" one word, three.
    labels, outputs = [["the cat"], ["sat"], ["on"]], text_outputs("the hat", "", "on")
    words, characters = measure("wer", outputs, labels), measure("cer", outputs, labels)
    assert (words.value, words.rows, words.step) == (2 / 4, 4, 1 / 4)
    assert (characters.value, characters.rows) == (4 / 12, 12)
    assert measure("wer", text_outputs("a b c d"), [["a"]]).value == 3.0


def test_class_numbers_become_texts_by_the_labels_file() -> None:
    outputs = [{"out": np.array([[1, 2, -1], [2, -1, -1]])}]
    got = measure("cer", outputs, [["ab", "a"]], alphabet=("", "a", "b"))
    assert got.value == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match="gives class 2, and its labels file has 2 lines"):
        measure("cer", outputs, [["ab", "a"]], alphabet=("", "a"))
    with pytest.raises(UsageError, match="needs the characters") as caught:
        find_metric("cer").check(signature(out=("int64", 3)), [["ab"]])
    assert caught.value.hint == '`labels = "characters.txt"` under `[output.out]` in the recipe'


def slow_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, last + (x != y))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_the_edit_distance_is_levenshteins(a: str, b: str) -> None:
    assert edit_distance(list(a), list(b)) == slow_distance(a, b)


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> dict[str, Any]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.int64),
        "batch": np.zeros(len(scores), np.int64),
    }


def wanted(boxes: list[list[float]], classes: list[int]) -> dict[str, Any]:
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "classes": np.array(classes)}


A, B, FAR = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]


def test_perfect_boxes_have_a_precision_of_one() -> None:
    answers = [found([A, B], [0.9, 0.8], [0, 1])]
    labels = [wanted([B, A], [1, 0])]
    assert [measure(w, answers, labels).value for w in ("map", "map50", "f1")] == [1.0, 1.0, 1.0]


def test_average_precision_by_hand() -> None:
    # One class, two labelled boxes; by score: hit, false alarm, hit. Precision is 1 up to recall
    # 0.5 (51 of 101 places), then 2/3 (50 places).
    answers = [found([A, FAR, B], [0.9, 0.8, 0.7], [0, 0, 0])]
    labels = [wanted([A, B], [0, 0])]
    assert measure("map50", answers, labels).value == pytest.approx((51 + 50 * 2 / 3) / 101)
    # F1: two hits, one false alarm, no miss.
    assert measure("f1", answers, labels).value == pytest.approx(4 / 5)
    # An overlap of 0.8 matches at seven of the ten thresholds, 0.5 to 0.8.
    near = [found([[0, 0, 10, 8]], [0.9], [0])]
    assert measure("map", near, [wanted([A], [0])]).value == pytest.approx(0.7)
    # The same box found twice is a false alarm, and a better score does not move it to another
    # class; a class without labelled boxes does not count.
    twice = [found([A, A, FAR], [0.9, 0.8, 0.99], [0, 0, 3])]
    assert measure("map50", twice, [wanted([A], [0])]).value == 1.0
    assert measure("f1", twice, [wanted([A], [0])]).value == pytest.approx(2 / 4)


def test_boxes_of_a_batch_are_matched_in_their_own_photo() -> None:
    answer = found([A, A], [0.9, 0.8], [0, 0])
    answer["batch"] = np.array([0, 1])
    labels = [[wanted([A], [0]), wanted([B], [0])]]
    assert measure("f1", [answer], labels).value == pytest.approx(0.5)
    with pytest.raises(UsageError, match="labels of 1 photos for a batch of more"):
        measure("map", [answer], [wanted([A], [0])])


def test_boxes_are_refused_where_there_are_none() -> None:
    with pytest.raises(UsageError, match="no photo has a labelled box"):
        measure("map", [found([], [], [])], [wanted([], [])])
    with pytest.raises(UsageError, match="needs boxes as labels"):
        measure("map", [found([A], [0.9], [0])], [np.array([1])])
    with pytest.raises(UsageError, match="needs decoded boxes") as caught:
        find_metric("f1").check(signature(scores=("float32", 10)), [wanted([A], [0])])
    assert caught.value.hint == "`[boxes]` in the recipe decodes them"
    with pytest.raises(UsageError, match="is no box"):
        measure("f1", [found([A], [0.9], [0])], [wanted([[9, 0, 1, 5]], [0])])


@pytest.mark.parametrize(
    ("labels", "message", "hint"),
    [
        (None, "`top1` needs labels, and the evaluation data has none", "`label = "),
        ([np.array([10])], "the label 10 is outside the 10 classes of `scores`", "count from 1"),
        ([np.array([-1])], "the label -1 is no class number", ""),
        ([["cat"]], "needs class numbers as labels, not text", ""),
        ([np.array([0.5])], "needs class numbers as labels, not float64", ""),
        ([wanted([A], [0])], "needs class numbers as labels, not boxes", ""),
    ],
)
def test_labels_that_are_no_classes_are_refused_before_anything_runs(
    labels: Any, message: str, hint: str
) -> None:
    metric = find_metric("top1")
    with pytest.raises(UsageError, match=message) as caught:
        metric.check(signature(scores=("float32", 10)), labels)
    assert hint in (caught.value.hint or "")
    with pytest.raises(UsageError, match=message):
        metric.measure([scores([0.0] * 10)], [], labels)


def test_another_number_of_labels_is_refused() -> None:
    two = [scores([1, 0]), scores([0, 1])]
    with pytest.raises(UsageError, match="`top1` got 1 labels for more samples"):
        measure("top1", two, [np.array([0])])
    with pytest.raises(UsageError, match="`top1` got 3 labels for 2 samples"):
        measure("top1", two, [np.array([0])] * 3)
    with pytest.raises(UsageError, match="`top1` got 2 labels for a sample of 1 rows"):
        measure("top1", two, [np.array([0, 1]), np.array([1])])


@pytest.mark.parametrize(
    ("word", "outputs"),
    [
        ("top1", {"y": ("float32", 3, 4, 4)}),
        ("top1", {"y": ("float32", 1)}),
        ("agreement", {"y": ("float32", 3, 4, 4)}),
        ("auc", {"y": ("int64",)}),
        ("cosine", {"y": ("int64", 4)}),
        ("mse", {"y": ("string",)}),
        ("spearman", {"y": ("float32", 3, 4)}),
        ("cer", {"y": ("float32", 40, 97)}),
    ],
)
def test_a_model_without_a_fitting_output_is_refused(word: str, outputs: Any) -> None:
    with pytest.raises(UsageError, match=f"`{word}` cannot be measured: the model's outputs are"):
        find_metric(word).check(signature(**outputs), [np.array([0]), np.array([1])])


@pytest.mark.parametrize(
    ("word", "hint"),
    [("top-1", "did you mean `top1`?"), ("accuracy", None), ("", None), ("top1:", "did you mean"),
     ("map:boxes", "map")],
)  # fmt: skip
def test_another_word_is_no_metric(word: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        find_metric(word)
    assert (hint or "") in (caught.value.hint or "")
    assert word == "map:boxes" or "file.py:function" in (caught.value.accepted or "")


def test_a_drop_is_positive_where_the_metric_got_worse() -> None:
    assert drop(find_metric("top1"), 0.9, 0.8) == pytest.approx(0.1)
    assert drop(find_metric("wer"), 0.1, 0.3) == pytest.approx(0.2)
    assert drop(find_metric("mse"), 2.0, 1.0) == -1.0


def test_a_relative_budget_is_a_share_of_the_originals_value() -> None:
    assert budget_in_unit(Drop(value=0.005), 0.8) == 0.005
    assert budget_in_unit(Drop(value=0.01, relative=True), 0.8) == pytest.approx(0.008)
    assert budget_in_unit(Drop(value=0.01, relative=True), -0.5) == pytest.approx(0.005)


def test_a_budget_finer_than_one_row_is_refused_with_the_number_needed() -> None:
    top1 = find_metric("top1")
    measured = Measured(value=0.7, rows=98, step=1 / 98)
    with pytest.raises(UsageError, match="finer than one answer in the 98 rows") as caught:
        check_budget(top1, measured, 0.005)
    assert caught.value.hint == "give at least 200 rows to measure a budget of 0.005"
    assert rows_needed(top1, 0.005) == 200
    assert rows_needed(top1, 0.01) == 100
    check_budget(top1, measured, 1 / 98)
    check_budget(top1, measured, 0.0)
    check_budget(top1, Measured(value=0.7, rows=200, step=1 / 200), 0.005)
    check_budget(find_metric("mse"), Measured(value=0.7, rows=2), 1e-9)
    assert rows_needed(find_metric("mse"), 1e-9) is rows_needed(top1, 0.0) is None


USERS = """
import math, os, sys, time
import numpy as np

def right(outputs, labels):
    hits = [(o["scores"].argmax(1) == l).mean() for o, l in zip(outputs, labels)]
    return np.mean(hits)

def error(outputs, labels):
    assert labels is None
    return len(outputs)
error.higher_is_better = False
error.needs_labels = False

def kinds(outputs, labels):
    print(repr([[(k, str(v.dtype)) for k, v in o.items()] for o in outputs]))
    assert labels == [["a", "b"]] and outputs[0]["texts"].tolist() == ["x", "yy"]
    return 1

def boxes(outputs, labels):
    return float(labels[0]["boxes"].sum() + labels[0]["classes"].sum())

def fails(outputs, labels):
    return {}["missing"]

def leaves(outputs, labels):
    sys.exit(0)

def dies(outputs, labels):
    os.abort()

def greedy(outputs, labels):
    return len(bytearray(1 << 40))

def endless(outputs, labels):
    time.sleep(60)

def nan(outputs, labels):
    return math.nan

def infinite(outputs, labels):
    return np.float32(np.inf)

def text(outputs, labels):
    return "0.5"

def nothing(outputs, labels):
    pass

def yes(outputs, labels):
    return True

number = 3
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USERS, encoding="utf-8")
    return tmp_path / "mine.py"


def test_a_users_function_is_called_with_outputs_and_labels(users: Path) -> None:
    metric = find_metric(f"{users}:right")
    assert (metric.name, metric.unit, metric.needs_labels) == ("mine.py:right", "value", True)
    outputs, labels = [scores([1, 0], [1, 0]), scores([0, 1])], [np.array([0, 1]), np.array([1])]
    assert metric.measure(iter(outputs), [], labels) == Measured(value=0.75, rows=2)
    with pytest.raises(UsageError, match=r"`mine\.py:right` needs labels"):
        metric.check(signature(scores=("float32", 2)), None)
    with pytest.raises(UsageError, match=r"`mine\.py:right` got 1 labels for 2 samples"):
        metric.measure(outputs, [], labels[:1])


def test_a_users_function_says_its_direction(users: Path) -> None:
    metric = find_metric(f"{users}:error")
    assert (metric.higher_is_better, metric.needs_labels) == (False, False)
    metric.check(signature(scores=("float32", 2)), None)
    assert metric.measure([scores([1, 0])] * 3, [], None).value == 3.0


def test_texts_and_boxes_reach_a_users_function(users: Path) -> None:
    outputs = [{"texts": np.array(["x", "yy"], object)}]
    assert measure(f"{users}:kinds", outputs, [["a", "b"]]).value == 1.0
    assert measure(f"{users}:boxes", [scores([1, 0])], [wanted([A], [2])]).value == 22.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"the metric `mine\.py:fails` failed: KeyError: 'missing'"),
        ("leaves", r"the metric `mine\.py:leaves` failed and said nothing"),
        ("dies", r"the metric `mine\.py:dies` failed"),
        ("greedy", r"the metric `mine\.py:greedy` failed: MemoryError"),
        ("nan", r"the metric `mine\.py:nan` returned nan, not a finite number"),
        ("infinite", r"the metric `mine\.py:infinite` returned inf, not a finite number"),
        ("text", r"the metric `mine\.py:text` returned `'0\.5'` \(str\), not a number"),
        ("nothing", r"the metric `mine\.py:nothing` returned `None` \(NoneType\), not a number"),
        ("yes", r"the metric `mine\.py:yes` returned `True` \(bool\), not a number"),
    ],
)
def test_a_users_function_that_fails_is_explained(users: Path, function: str, message: str) -> None:
    metric = find_metric(f"{users}:{function}")
    with pytest.raises(UsageError, match=message):
        metric.measure([scores([1, 0])], [], [np.array([0])])


def test_a_users_function_that_never_ends_is_ended(users: Path) -> None:
    metric = find_metric(f"{users}:endless", timeout_s=2.0)
    with pytest.raises(UsageError, match=r"`mine\.py:endless` did not end within 2 s"):
        metric.measure([scores([1, 0])], [], [np.array([0])])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mine.py:absent", r"`mine\.py` has no function `absent`"),
        ("mine.py:number", r"`mine\.py` has no function `number`"),
        ("other.py:right", r"`other\.py` does not exist"),
        ("broken.py:right", r"the metric `broken\.py:right` failed: SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused_early(
    users: Path, word: str, message: str
) -> None:
    users.with_name("broken.py").write_text("def right(:\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        find_metric(str(users.with_name(word)))
