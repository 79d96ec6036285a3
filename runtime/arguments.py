"""Reads the device's command line from a table: argparse alone takes milliseconds to import."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .errors import UsageFault


class Option(NamedTuple):
    """One option of a command.

    Attributes:
        flags: As `("-i",)` or `("--host",)`; the last names the value.
        metavar: What stands for the value in the help; empty for a switch.
        read: Turns the text into the value, or raises ValueError.
        accepted: What `read` takes, in words.
        default: Where the option is absent. A list collects every value given.
    """

    flags: Tuple[str, ...]
    metavar: str
    help: str
    read: Callable[[str], Any] = str
    accepted: str = ""
    default: Any = None


class Command(NamedTuple):
    """One command.

    Attributes:
        operand: The names of its positional arguments; a single one is optional with `?`.
        hidden: Left out of the help: other programs use it.
    """

    help: str
    options: Tuple[Option, ...] = ()
    operand: str = ""
    hidden: bool = False


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range."""

    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


def positive(text: str) -> float:
    """Read a finite number above zero."""
    number = float(text)
    if not 0 < number < 1e9:
        raise ValueError(text)
    return number


def parse(
    argv: Sequence[str], commands: Dict[str, Command]
) -> Optional[Tuple[str, Dict[str, Any]]]:
    """Return the command and its values by long name; None where help was asked for.

    Raises:
        UsageFault: an unknown command or option, a missing value, or one that cannot be.
    """
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        return None
    name = words.pop(0)
    command = commands.get(name)
    if command is None:
        shown = [word for word in commands if not commands[word].hidden]
        raise UsageFault("there is no command `%s`" % name, _nearest(name, shown))
    known = {flag: option for option in command.options for flag in option.flags}
    values: Dict[str, Any] = {}
    for option in command.options:
        default = option.default
        values[_key(option)] = list(default) if isinstance(default, list) else default
    operands: List[str] = []
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return None
        if not word.startswith("-") or word == "-":
            operands.append(word)
            continue
        flag, equals, inline = word.partition("=") if word.startswith("--") else (word, "", "")
        negated = flag.startswith("--no-") and "--" + flag[5:] in known
        found = known.get("--" + flag[5:] if negated else flag)
        if found is None or (negated and found.metavar):
            raise UsageFault("`%s` has no option `%s`" % (name, flag), _nearest(flag, list(known)))
        if not found.metavar:
            if equals:
                raise UsageFault("`%s` takes no value" % flag)
            values[_key(found)] = not negated
            continue
        if not equals and not words:
            raise UsageFault("`%s` needs a value: %s" % (flag, found.metavar))
        text = inline if equals else words.pop(0)
        try:
            value = found.read(text)
        except ValueError:
            raise UsageFault(
                "`%s` cannot be `%s`" % (flag, text), "give %s" % found.accepted
            ) from None
        if isinstance(found.default, list):
            values[_key(found)].append(value)
        else:
            values[_key(found)] = value
    _take_operand(name, command, operands, values)
    return name, values


def describe(program: str, commands: Dict[str, Command]) -> List[str]:
    """Return the help as lines."""
    lines = ["usage: %s COMMAND [OPTION…]" % program, ""]
    for name, command in commands.items():
        if command.hidden:
            continue
        operand = " [%s]" % command.operand[:-1] if command.operand.endswith("?") else ""
        operand = operand or (" " + command.operand if command.operand else "")
        lines.append("%-16s %s" % (name + operand, command.help))
        lines += ["    %-24s %s" % _describe(option) for option in command.options]
    return lines


def _describe(option: Option) -> Tuple[str, str]:
    default = option.default
    if not option.metavar:
        # a switch that is on is told of by what turns it off
        flags = [flag.replace("--", "--no-", 1) if default else flag for flag in option.flags]
        return ", ".join(flags), option.help
    note = "; repeatable" if isinstance(default, list) else ""
    if default is not None and not note:
        note = "; by default %s" % ("%g" % default if isinstance(default, float) else default)
    return "%s %s" % (", ".join(option.flags), option.metavar), option.help + note


def _take_operand(name: str, command: Command, operands: List[str], values: Dict[str, Any]) -> None:
    wanted = command.operand.rstrip("?").split()
    if len(operands) > len(wanted):
        raise UsageFault("`%s` does not take `%s`" % (name, operands[-1]))
    if len(operands) < len(wanted) and not command.operand.endswith("?"):
        raise UsageFault("`%s` needs %s" % (name, " ".join(wanted)))
    for index, word in enumerate(wanted):
        values[word.lower()] = operands[index] if index < len(operands) else None


def _key(option: Option) -> str:
    return option.flags[-1].lstrip("-").replace("-", "_")


def _nearest(word: str, known: List[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return "did you mean `%s`?" % close[0] if close else "one of " + ", ".join(known)
