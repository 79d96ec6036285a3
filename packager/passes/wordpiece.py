"""Reads a WordPiece tokenizer from a `tokenizer.json` or a `vocab.txt`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from packager.recipe import TextInput

_KIND: Final = "a WordPiece tokenizer as BERT has it: `tokenizer.json` or `vocab.txt`"
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_WORD: Final = 100


@dataclass(frozen=True, kw_only=True)
class WordPiece:
    """A BERT tokenizer (Devlin et al., 2018): clean, split into words, longest pieces first.

    Attributes:
        vocabulary: Tokens by number.
        clean: Drop control characters; every blank is a space.
        split_cjk: Chinese characters are words of their own.
        strip_accents, lower_case: In this order, before words are split.
        unknown: Number of the token for a word without pieces.
        prefix: What a piece inside a word begins with in the vocabulary.
        max_word: Longer words, in characters, are unknown.
        special: Tokens that are found in a text as they are.
        before, after: Numbers of the tokens around every text.
        padding: Number of the token that fills rows up.
    """

    vocabulary: tuple[str, ...]
    clean: bool = True
    split_cjk: bool = True
    strip_accents: bool
    lower_case: bool
    unknown: int
    prefix: str = "##"
    max_word: int = _MAX_WORD
    special: tuple[str, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int

    def to_json(self) -> dict[str, Any]:
        """Return everything but the vocabulary, for a manifest."""
        wire = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "vocabulary"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in wire.items()}


def read_wordpiece(text: TextInput) -> WordPiece:
    """Read the tokenizer that a recipe names.

    Raises:
        InputOutputError: the file cannot be read.
        UsageError: it is a tokenizer of another kind, or none at all.
    """
    path = text.tokenizer
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise UsageError(f"`{path.name}` is not UTF-8", accepted=_KIND) from fault
    if path.suffix != ".json":
        return _from_vocabulary(content, path, lower_case=text.lower_case)
    try:
        wire = json.loads(content)
    except ValueError as fault:
        raise UsageError(f"`{path.name}` is not JSON: {fault}", accepted=_KIND) from fault
    if not isinstance(wire, dict) or not isinstance(wire.get("model"), dict):
        raise UsageError(f"`{path.name}` holds no tokenizer", accepted=_KIND)
    try:
        return _from_json(wire, path)
    except (AttributeError, LookupError, TypeError, ValueError) as fault:
        raise UsageError(
            f"`{path.name}` is not of the form that `tokenizers` saves: {fault!r}", accepted=_KIND
        ) from fault


def _from_vocabulary(content: str, path: Path, *, lower_case: bool) -> WordPiece:
    lines = [line.rstrip() for line in content.removesuffix("\n").split("\n")]
    numbers = {token: number for number, token in enumerate(lines)}
    for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]"):
        _number(numbers, token, path)
    return WordPiece(
        vocabulary=tuple(lines),
        strip_accents=lower_case,
        lower_case=lower_case,
        unknown=numbers["[UNK]"],
        special=tuple(token for token in _SPECIAL if token in numbers),
        before=(numbers["[CLS]"],),
        after=(numbers["[SEP]"],),
        padding=numbers["[PAD]"],
    )


def _from_json(wire: Mapping[str, Any], path: Path) -> WordPiece:
    model: dict[str, Any] = wire["model"]
    cleaning: dict[str, Any] = wire.get("normalizer") or {}
    # Old files leave the type out; only this kind has a prefix for pieces.
    kind = model.get("type", "WordPiece" if "continuing_subword_prefix" in model else "unknown")
    parts = {
        "model": (kind, "WordPiece"),
        "normalizer": (_kind(wire.get("normalizer")), "BertNormalizer"),
        "pre_tokenizer": (_kind(wire.get("pre_tokenizer")), "BertPreTokenizer"),
    }
    for part, (found, wanted) in parts.items():
        if found != wanted:
            raise UsageError(
                f"`{path.name}` has the {part.replace('_', '-')} `{found}`, not `{wanted}`",
                accepted=_KIND,
                hint="tokenize outside and send the numbers, without `[text]`",
            )
    numbers: dict[str, int] = dict(model["vocab"])
    special = []
    for token in wire.get("added_tokens") or ():
        plain = not any(token.get(key) for key in ("single_word", "lstrip", "rstrip", "normalized"))
        if not plain:
            raise UsageError(
                f"`{path.name}` has the added token `{token['content']}`, which takes in what "
                "stands around it or is normalized",
                accepted="special tokens that are found as they are",
            )
        numbers[token["content"]] = token["id"]
        special.append(token["content"])
    lower = bool(cleaning.get("lowercase", True))
    accents = cleaning.get("strip_accents")
    before, after = _template(wire.get("post_processor"), numbers, path)
    filling = wire.get("padding") or {}
    pad = filling.get("pad_id")
    return WordPiece(
        vocabulary=_by_number(numbers, path),
        clean=bool(cleaning.get("clean_text", True)),
        split_cjk=bool(cleaning.get("handle_chinese_chars", True)),
        strip_accents=lower if accents is None else bool(accents),
        lower_case=lower,
        unknown=_number(numbers, model.get("unk_token", "[UNK]"), path),
        prefix=model.get("continuing_subword_prefix", "##"),
        max_word=int(model.get("max_input_chars_per_word", _MAX_WORD)),
        special=tuple(special),
        before=before,
        after=after,
        padding=_number(numbers, "[PAD]", path) if pad is None else int(pad),
    )


def _kind(part: Any) -> str:
    return str(part.get("type", "unknown")) if isinstance(part, dict) else "none"


def _template(
    processor: Any, numbers: Mapping[str, int], path: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of the tokens before and after a single text."""
    if processor is None:
        return (), ()
    kind = _kind(processor)
    if kind == "BertProcessing":
        return (int(processor["cls"][1]),), (int(processor["sep"][1]),)
    single = processor.get("single") if kind == "TemplateProcessing" else None
    places = [at for at, piece in enumerate(single or ()) if "Sequence" in piece]
    if single is None or len(places) != 1:
        raise UsageError(
            f"`{path.name}` has the post-processor `{kind}`",
            accepted="`TemplateProcessing` around one text, or `BertProcessing`",
        )

    def listed(pieces: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
        return tuple(_number(numbers, piece["SpecialToken"]["id"], path) for piece in pieces)

    return listed(single[: places[0]]), listed(single[places[0] + 1 :])


def _number(numbers: Mapping[str, int], token: str, path: Path) -> int:
    if token not in numbers:
        raise UsageError(f"`{path.name}` has no token `{token}`", accepted=_KIND)
    return numbers[token]


def _by_number(numbers: Mapping[str, int], path: Path) -> tuple[str, ...]:
    """Return the tokens in the order of their numbers, which leave no gap."""
    ordered = sorted(numbers.items(), key=lambda entry: entry[1])
    if [number for _, number in ordered] != list(range(len(ordered))):
        raise UsageError(
            f"`{path.name}` numbers its tokens with gaps or twice", accepted="0, 1, 2 and so on"
        )
    broken = next((token for token, _ in ordered if "\n" in token), None)
    if broken is not None:
        raise UsageError(f"`{path.name}` has a token with a line end, {broken!r}", accepted=_KIND)
    return tuple(token for token, _ in ordered)
