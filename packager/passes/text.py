"""Text as tokens: the tokenizer of a recipe, for samples and for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.errors import BackendMissing, UsageError
from packager.passes.wordpiece import WordPiece, read_wordpiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import TextInput


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """How long rows of tokens are, and which inputs they fill.

    Attributes:
        inputs: (input's name, dtype, `ids` or `mask` or `types`), in the signature's order.
        max_length: Longest row; longer text is cut.
        min_length: Shorter rows are filled up to this, and to the longest of the batch.
    """

    inputs: tuple[tuple[str, str, str], ...]
    max_length: int
    min_length: int


def check_text(text: TextInput, signature: Signature) -> TextPlan:
    """Check that tokens are what a model takes.

    Raises:
        UsageError: an input that is not there or that nothing fills, or a length that never fits.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    roles = {text.ids: "ids", text.mask: "mask", text.types: "types"}
    roles.pop("", None)
    known = ", ".join(f"`{name}`" for name in specs)
    for name, role in roles.items():
        if name not in specs:
            raise UsageError(
                f"`text.{role}` names `{name}`, and the model has no such input",
                accepted=known,
                hint=None if role == "ids" else f'set `{role} = ""` where the model takes none',
            )
        spec = specs[name]
        if len(spec.shape) != 2 or spec.dtype not in {"int32", "int64"}:
            raise UsageError(
                f"`text.{role}` fills int64 or int32 [batch, tokens]",
                accepted=f"what the model takes, `{spec}`",
            )
    missing = next((name for name in specs if name not in roles), None)
    if missing is not None:
        raise UsageError(
            f"the model's input `{missing}` is given by nothing",
            accepted=known,
            hint=f'set `types = "{missing}"` or `mask = "{missing}"` in `[text]`',
        )
    least, most = (text.max_length, text.max_length) if text.pad else (1, text.max_length)
    for name in roles:
        dim = specs[name].shape[1]
        low, high = (dim.min, dim.max) if dim.size is None else (dim.size, dim.size)
        if text.max_length < low or (high is not None and text.max_length > high):
            raise UsageError(
                f"`text.max_length` is {text.max_length}",
                accepted=f"what the model takes, `{specs[name]}`",
                hint=f"set `max_length = {low if text.max_length < low else high}`",
            )
        least = max(least, low)
    inputs = tuple((spec.name, spec.dtype, roles[spec.name]) for spec in signature.inputs)
    return TextPlan(inputs=inputs, max_length=most, min_length=least)


def tokenize(
    text: TextInput, signature: Signature
) -> Callable[[Sequence[str]], dict[str, NDArray[Any]]]:
    """Return a function from texts to the model's inputs, [texts, tokens] each.

    The `tokenizers` package does the work; `runtime/wordpiece.py` is its twin on the device.

    Raises:
        UsageError: the tokenizer is of another kind, or does not fit the model.
        InputOutputError: its file cannot be read.
        BackendMissing: `tokenizers` is not installed.
    """
    import numpy as np

    plan, pieces = check_text(text, signature), _pieces_of(text)
    engine = _engine(pieces)
    engine.enable_truncation(plan.max_length)

    def encode(texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        rows = [encoding.ids for encoding in engine.encode_batch(list(texts))]
        length = max([plan.min_length, *map(len, rows)])
        ids = np.full((len(rows), length), pieces.padding, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        arrays = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
        return {name: arrays[role].astype(dtype) for name, dtype, role in plan.inputs}

    return encode


def manifest_text(text: TextInput, signature: Signature, vocabulary: str) -> dict[str, Any]:
    """Return `manifest["model"]["text"]`: what `runtime/wordpiece.py` needs.

    Args:
        text: The recipe's.
        signature: The model's.
        vocabulary: The vocabulary's path in the bundle.
    """
    plan, pieces = check_text(text, signature), _pieces_of(text)
    return {
        "kind": "wordpiece",
        "vocabulary": vocabulary,
        "inputs": {name: role for name, _, role in plan.inputs},
        "max_length": plan.max_length,
        "min_length": plan.min_length,
        **pieces.to_json(),
    }


def _pieces_of(text: TextInput) -> WordPiece:
    pieces = read_wordpiece(text)
    around = len(pieces.before) + len(pieces.after)
    if text.max_length <= around:
        raise UsageError(
            f"`text.max_length` is {text.max_length}",
            accepted=f"more than {around}, the tokens around every text",
        )
    return pieces


def _engine(pieces: WordPiece) -> Any:
    """Return a `tokenizers.Tokenizer` that does as the device's twin shall."""
    try:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, processors
    except ImportError as fault:
        raise BackendMissing(
            "text needs the package `tokenizers`, which is not installed",
            hint="pip install 'edgepack[text]'",
        ) from fault
    tokens = pieces.vocabulary
    engine: Any = tokenizers.Tokenizer(
        models.WordPiece(
            {token: number for number, token in enumerate(tokens)},
            unk_token=tokens[pieces.unknown],
            max_input_chars_per_word=pieces.max_word,
            continuing_subword_prefix=pieces.prefix,
        )
    )
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=pieces.clean,
        handle_chinese_chars=pieces.split_cjk,
        strip_accents=pieces.strip_accents,
        lowercase=pieces.lower_case,
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in pieces.special]
    )
    around = [*pieces.before, *pieces.after]
    if around:
        engine.post_processor = processors.TemplateProcessing(
            single=[*(tokens[n] for n in pieces.before), "$A", *(tokens[n] for n in pieces.after)],
            special_tokens=[(tokens[number], number) for number in sorted(set(around))],
        )
    return engine
