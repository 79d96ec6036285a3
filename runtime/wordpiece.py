"""Text as token numbers, as BERT's tokenizer makes them: the exact twin of the build host's."""

from __future__ import annotations

import re
import unicodedata
from array import array
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from .bert_unicode import (
    ACCENTS,
    DROPPED,
    IDEOGRAPHS,
    LATER_MARKS,
    PUNCTUATION,
    SPACES,
    Ranges,
    later_capitals,
)
from .errors import ModelFault
from .results import read_lines
from .tensor import Tensor

_CODES = {"int64": "q", "int32": "i"}
# A table keeps what it has seen below this code point only, so that no text makes it grow.
_KEPT_BELOW = 0x10000
_LATER = Ranges(LATER_MARKS).characters()


class WordPiece:
    """A tokenizer (Devlin et al., 2018): clean, split into words, longest pieces first.

    Args:
        settings: `manifest["model"]["text"]`.
        vocabulary: The tokens by number.
        dtypes: The type of each input that tokens fill.

    Raises:
        ModelFault: the settings are not of the documented form.
    """

    def __init__(
        self, settings: Mapping[str, Any], vocabulary: Sequence[str], dtypes: Mapping[str, str]
    ) -> None:
        if settings.get("kind") != "wordpiece":
            raise ModelFault("this runtime knows no tokenizer `%s`" % settings.get("kind"))
        try:
            self._inputs = [
                (str(name), str(role), dtypes[name]) for name, role in settings["inputs"].items()
            ]
            self._max_length = int(settings["max_length"])
            self._min_length = int(settings["min_length"])
            self._before = [int(number) for number in settings["before"]]
            self._after = [int(number) for number in settings["after"]]
            self._unknown = int(settings["unknown"])
            self._padding = int(settings["padding"])
            self._max_word = int(settings["max_word"])
            self._prefix = str(settings["prefix"])
            self._fold = bool(settings["strip_accents"])
            special = [str(token) for token in settings["special"]]
            self._clean = _Cleaning(
                clean=bool(settings["clean"]), split_cjk=bool(settings["split_cjk"])
            )
            self._part = _Parting(strip_accents=self._fold, lower_case=bool(settings["lower_case"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFault("the manifest's tokenizer cannot be read: %s" % error) from error
        self._numbers = {token: number for number, token in enumerate(vocabulary)}
        self._special = {token: self._numbers[token] for token in special}
        self._longest = max(map(len, vocabulary), default=1)
        words = sorted(special, key=len, reverse=True)
        self._find_special = re.compile("(%s)" % "|".join(map(re.escape, words))) if words else None

    def encode(self, texts: Sequence[str]) -> Dict[str, Tensor]:
        """Return the model's inputs, [texts, tokens] each, filled up to the longest text."""
        rows = [self.tokens(text) for text in texts]
        length = max([self._min_length, *map(len, rows)])
        feeds = {}
        for name, role, dtype in self._inputs:
            numbers = array(_CODES[dtype])
            for row in rows:
                fill = length - len(row)
                if role == "ids":
                    numbers.extend(row)
                    numbers.extend([self._padding] * fill)
                elif role == "mask":
                    numbers.extend([1] * len(row) + [0] * fill)
                else:
                    numbers.extend([0] * length)
            feeds[name] = Tensor(dtype, (len(rows), length), numbers.tobytes())
        return feeds

    def tokens(self, text: str) -> List[int]:
        """Return the numbers of one text, cut to the longest row that the model takes."""
        left = self._max_length - len(self._before) - len(self._after)
        found: List[int] = []
        for piece in self._pieces(text):
            if len(found) >= left:
                break
            found.append(piece)
        return self._before + found + self._after

    def _pieces(self, text: str) -> Iterator[int]:
        parts = [text] if self._find_special is None else self._find_special.split(text)
        for part in parts:
            number = self._special.get(part)
            if number is not None:
                yield number
                continue
            for word in self._words(part):
                yield from self._split(word)

    def _words(self, text: str) -> Iterator[str]:
        text = text.translate(self._clean)
        if self._fold and not text.isascii():
            text = _decompose(text)
        return filter(None, text.translate(self._part).split(" "))

    def _split(self, word: str) -> List[int]:
        numbers, start, size = [], 0, len(word)
        if size > self._max_word:
            return [self._unknown]
        while start < size:
            prefix = self._prefix if start else ""
            for end in range(min(size, start + self._longest), start, -1):
                number = self._numbers.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            numbers.append(number)
            start = end
        return numbers


def open_tokenizer(manifest: Mapping[str, Any], release: Any) -> WordPiece:
    """Return the tokenizer that a release carries.

    Args:
        manifest: The release's.
        release: Has `.path`.

    Raises:
        ModelFault: the manifest's tokenizer is not of the documented form.
        InputOutputFault: the vocabulary cannot be read.
    """
    settings = manifest["model"]["text"]
    inputs = manifest["model"]["signature"]["inputs"]
    dtypes = {str(spec["name"]): str(spec["dtype"]) for spec in inputs}
    vocabulary = read_lines(release.path(str(settings.get("vocabulary", ""))))
    return WordPiece(settings, vocabulary, dtypes)


class _Table(Dict[int, Optional[str]]):
    """What becomes of a character, for `str.translate`; found out when it first occurs."""

    def __missing__(self, point: int) -> Optional[str]:
        found = self.find(point)
        if point < _KEPT_BELOW:
            self[point] = found
        return found

    def find(self, point: int) -> Optional[str]:
        """Return what takes the character's place, None for nothing."""
        raise KeyError(point)


class _Cleaning(_Table):
    def __init__(self, *, clean: bool, split_cjk: bool) -> None:
        super().__init__()
        self._dropped = Ranges(DROPPED if clean else "")
        self._spaces = Ranges(SPACES if clean else "")
        self._ideographs = Ranges(IDEOGRAPHS if split_cjk else "")

    def find(self, point: int) -> Optional[str]:
        if point in self._dropped:
            return None
        if point in self._spaces:
            return " "
        return " %s " % chr(point) if point in self._ideographs else chr(point)


class _Parting(_Table):
    def __init__(self, *, strip_accents: bool, lower_case: bool) -> None:
        super().__init__()
        self._accents = Ranges(ACCENTS if strip_accents else "")
        self._spaces = Ranges(SPACES)
        self._punctuation = Ranges(PUNCTUATION)
        self._lower_case = lower_case
        self._capitals = later_capitals()

    def find(self, point: int) -> Optional[str]:
        if point in self._accents:
            return None
        if point in self._spaces:
            return " "
        if point in self._punctuation:
            return " %s " % chr(point)
        if not self._lower_case:
            return chr(point)
        # One by one: a sigma at the end of a word is no other letter.
        return self._capitals.get(point) or chr(point).lower()


def _decompose(text: str) -> str:
    """Return the canonical decomposition as of Unicode 12.1, which later versions extend."""
    if _LATER.isdisjoint(text):
        return unicodedata.normalize("NFD", text)
    parts: List[str] = []
    run: List[str] = []
    for character in text:
        if character in _LATER:
            parts += [unicodedata.normalize("NFD", "".join(run)), character]
            run = []
        else:
            run.append(character)
    return "".join([*parts, unicodedata.normalize("NFD", "".join(run))])
