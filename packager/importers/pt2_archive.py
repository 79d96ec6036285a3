"""Reads `.pt2` archives without executing anything: torch's own reader runs pickles and names.

`torch.export.load` unpickles sample inputs and constants, evaluates size expressions, resolves
operators by attribute name, and may load compiled libraries (read in torch 2.13's
`torch/export/pt2_archive/_package.py` and `torch/_export/serde/serialize.py`). So the archive is
checked, written anew from what was checked, and read with unpickling limited to tensors.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_ARCHIVE_BYTES: Final = 1 << 32
MAX_JSON_BYTES: Final = 1 << 28
_MAX_JSON_DEPTH: Final = 60
_TARGET: Final = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled)"
    r"|torch\.sym_(int|float|max|min|ite|not|sqrt|sum)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_NAME: Final = re.compile(r"[\w.\-\[\]<>:@]{0,500}")
_EXPRESSION: Final = re.compile(r"[\w\s+*/(),.<>=&|~-]{0,2000}")
_SYMBOL: Final = re.compile(r"[a-z]{1,3}\d+|\d\w*")
_QUOTED_SYMBOL: Final = re.compile(r"'([a-z]{1,3}\d+)'")
_FUNCTIONS: Final = frozenset(
    {"FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "RoundToInt", "TruncToInt",
     "TruncToFloat", "ToFloat", "Mod", "PythonMod", "Max", "Min", "Where", "ModularIndexing",
     "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "Identity", "Integer", "Symbol",
     "Float", "Add", "Mul", "Pow", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not",
     "Rational", "oo", "int_oo", "True", "False", "floor", "ceiling", "Abs",
     "positive", "integer", "nonnegative", "real"}
)  # fmt: skip
_SPEC_TYPES: Final = frozenset(
    {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)
_FREE_TEXT: Final = frozenset(
    {"as_string", "as_strings", "stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack",
     "from_node", "custom", "torch_version", "key", "partitioner_tag", "dialect"}
)  # fmt: skip


def rewrite_pt2(path: Path, clean: Path, *, source: str) -> None:
    """Check an archive and write a copy that holds only what was checked.

    The copy leaves no room for two readers to see different entries in one archive.

    Raises:
        ModelUnsupported: what is wrong with it.
        InputOutputError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(archive, source)
            with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as out:
                for entry in entries:
                    content = archive.read(entry)
                    if entry.filename.endswith(".json"):
                        content = _checked_json(content, entry.filename, source)
                    out.writestr(entry.filename, content)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as fault:
        raise ModelUnsupported(f"`{source}` is not a `.pt2` archive, or is damaged: {fault}") from (
            fault
        )
    except OSError as fault:
        raise InputOutputError(f"`{source}` cannot be read: {fault.strerror or fault}") from fault


def load_program(path: Path, *, source: str) -> Any:
    """Load a rewritten archive with unpickling limited to tensors.

    Raises:
        ModelUnsupported: torch does not read it, or it holds other pickled objects.
    """
    import pickle

    import torch

    plain_load = torch.load

    def load_tensors(*arguments: Any, **options: Any) -> Any:
        return plain_load(*arguments, **{**options, "weights_only": True})

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise pickle.UnpicklingError("pickled objects are not executed")

    try:
        with (
            _replaced(torch, "load", load_tensors),
            _replaced(pickle, "loads", refuse),
            _replaced(torch._C, "_pickle_load_obj", refuse),
        ):
            return torch.export.load(path)
    except pickle.UnpicklingError as fault:
        raise ModelUnsupported(
            f"`{source}` holds pickled objects, and pickles are not executed",
            accepted="exported programs of tensors only",
        ) from fault
    except Exception as fault:  # a hostile archive can make the reader raise anything
        first = str(fault).strip().splitlines()[:1]
        text = first[0][:300] if first else type(fault).__name__
        raise ModelUnsupported(
            f"torch {torch.__version__} does not load `{source}`: {text}",
            hint="save it again with `torch.export.save` of this torch, or give a factory",
        ) from fault


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module another function for a while: torch's reader takes no such argument."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _checked_entries(archive: zipfile.ZipFile, source: str) -> list[zipfile.ZipInfo]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if entries and min(entry.header_offset for entry in entries) != 0:
        raise ModelUnsupported(
            f"`{source}` is damaged: its archive does not begin at its first byte"
        )
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name = entry.filename
        parts = name.split("/")
        if name.lower() in seen:
            raise ModelUnsupported(f"`{source}` holds `{name}` twice")
        seen.add(name.lower())
        if ".." in parts or "" in parts or "\\" in name or "\0" in name:
            raise ModelUnsupported(f"`{source}` holds an entry with the path `{name[:200]}`")
        if entry.flag_bits & 1:
            raise ModelUnsupported(f"`{source}` is encrypted")
        if "aotinductor" in parts or re.search(r"\.(so|dll|dylib|cubin|cpp|py)$", name):
            raise ModelUnsupported(
                f"`{source}` holds the compiled code `{name}`, and no such code is executed",
                hint="save the program with `torch.export.save` instead",
            )
        if re.search(r"(custom_obj_|opaque_obj_)", parts[-1]):
            raise ModelUnsupported(
                f"`{source}` holds pickled objects, and pickles are not executed",
                accepted="exported programs of tensors only",
            )
        total += entry.file_size
    if total > MAX_ARCHIVE_BYTES:
        raise ModelUnsupported(f"`{source}` holds {total / 1e9:.1f} GB", accepted="up to 4 GB")
    programs = [e for e in entries if re.fullmatch(r"[^/]+/models/[^/]+\.json", e.filename)]
    if len(programs) != 1:
        raise ModelUnsupported(
            f"`{source}` holds {len(programs)} exported programs"
            + ("" if programs else ", or is of a torch before 2.8"),
            accepted="one, saved by `torch.export.save`",
        )
    return entries


def _checked_json(content: bytes, name: str, source: str) -> bytes:
    """Return the JSON written anew after every string in it was checked for what it is used for."""
    if len(content) > MAX_JSON_BYTES:
        raise ModelUnsupported(f"`{source}`: `{name}` is too large to be read")
    try:
        wire = json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise ModelUnsupported(f"`{source}`: `{name}` is not valid JSON") from fault
    for key, text in _strings(wire, "", source):
        _check_string(key, text, source)
    return json.dumps(wire).encode()


def _strings(value: Any, key: str, source: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield every string with the key it stands under; keys themselves count as names."""
    if depth > _MAX_JSON_DEPTH:
        raise ModelUnsupported(f"`{source}` nests more than {_MAX_JSON_DEPTH} levels deep")
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key, source, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "name", name
            if name == "guards_code" and item:
                raise ModelUnsupported(f"`{source}` holds guards as code, which is not executed")
            yield from _strings(item, key if key in _FREE_TEXT else name, source, depth + 1)


def _check_string(key: str, text: str, source: str) -> None:
    if key in _FREE_TEXT:
        return
    if key == "target":
        if not _TARGET.fullmatch(text):
            raise ModelUnsupported(
                f"`{source}` calls `{text[:200]}`, which is no operator that edgepack converts",
                accepted="operators of torch.ops.aten, and arithmetic on sizes",
            )
    elif key == "expr_str":
        text = _QUOTED_SYMBOL.sub(r"\1", text)
        words = re.findall(r"[^\W\d]\w*", text)
        good = all(word in _FUNCTIONS or _SYMBOL.fullmatch(word) for word in words)
        if not good or not _EXPRESSION.fullmatch(text) or "__" in text:
            raise ModelUnsupported(f"`{source}` holds the odd size expression `{text[:200]}`")
    elif key in ("in_spec", "out_spec"):
        _check_spec(text, source)
    elif not _NAME.fullmatch(text):
        raise ModelUnsupported(f"`{source}` holds the odd name `{text[:100]}`")


def _check_spec(text: str, source: str) -> None:
    if not text:
        return
    try:
        pending = [json.loads(text)]
    except (ValueError, RecursionError) as fault:
        raise ModelUnsupported(f"`{source}` describes its inputs in a broken way") from fault
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            if value.get("type") not in _SPEC_TYPES:
                raise ModelUnsupported(
                    f"`{source}` takes or returns a `{value.get('type')}`",
                    accepted="tensors, and tuples, lists or dictionaries of them",
                )
            pending.append(value.get("children_spec", []))
