"""Keeps what TensorRT's logger says, and turns it into sentences with a fix."""

from __future__ import annotations

import collections
import re
import sys
from typing import Any, Callable, Deque, List, NamedTuple, Optional, Tuple

from .onnxnodes import name_node

_KEPT = 40
_KEPT_ERRORS = 20
_MAX_LINE = 600
_LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}
_SAID_EACH_TIME = re.compile(r"-{20,}\Z|Trying to load shared library|Loaded shared library")

Explained = Tuple[str, Optional[str]]


class Cause(NamedTuple):
    """What the logger says of one cause, the sentence for it, and its fix."""

    pattern: str
    sentence: str
    hint: str


_KNOWN = (
    Cause(
        pattern=r"Target GPU SM (\d+) is not supported",
        sentence="this build of TensorRT lacks kernels for this GPU (compute capability SM{0})",
        hint="on a Jetson: python3 -m pip uninstall tensorrt; sudo apt install python3-libnvinfer. "
        "Elsewhere: install a TensorRT whose support matrix lists this GPU",
    ),
    Cause(
        pattern=r"[Uu]nable to (?:load|open) (?:shared )?library:? ?([^\s:]+)",
        sentence="TensorRT cannot load its library `{0}`",
        hint="reinstall TensorRT with all its libraries, and add their folder to LD_LIBRARY_PATH",
    ),
    Cause(
        pattern=r"[Oo]ut ?[Oo]f ?[Mm]emory|[Ii]nsufficient (?:GPU )?memory|bad_alloc|"
        r"Resource temporarily unavailable|cudaError ?2\b|"
        r"CUDA initialization failure with error: 2\b",
        sentence="memory ran out while the engine was built",
        hint="stop what else uses the GPU or the memory, or build with a smaller "
        "`tensorrt.workspace_mib`",
    ),
    Cause(
        pattern=r"k(?:MIN|OPT|MAX) values for profile (\d+) violate shape constraints: "
        r"\w+ (\S+): (.{1,200}?)(?: In \w+ at |\Z)",
        sentence="the graph does not run at all sizes of profile {0}: `{1}`: {2}",
        hint="export the model with these sizes left open, or narrow them with `--dim`",
    ),
    Cause(
        pattern=r"No space left on device",
        sentence="the disk is full",
        hint="free some of it, or set XDG_CACHE_HOME to another disk",
    ),
    Cause(
        pattern=r"FP32 GEMM is not supported",
        sentence="TensorRT-RTX has no fp32 matrix products for compute capability 7.5",
        hint="build with `--precision fp16`, or for newer GPUs alone",
    ),
    Cause(
        pattern=r"[Cc]ould not find any implementation for node (.+?)(?: due to|\.|$)",
        sentence="TensorRT found no kernel for `{0}`",
        hint="build with a larger `tensorrt.workspace_mib`, or another precision",
    ),
    Cause(
        pattern=r"(\S+) has no runners that implement it",
        sentence="TensorRT has no kernel for `{0}`",
        hint="build the bundle again: what the engine cannot run is then moved to the CPU",
    ),
)
_CUDA = re.compile(r"(?:CUDA initialization failure with error:?|cudaError|CUDA error:?)\s*(\d+)")
_OUT_OF_MEMORY = 2
_OLD_DRIVER = 35
_CUDA_CAUSES = {
    _OLD_DRIVER: Cause(
        pattern="",
        sentence="there is no NVIDIA driver here",
        hint="install the driver, or start the container with `--runtime nvidia` (`--gpus all`)",
    ),
    46: Cause("", "the GPU is in use by another process alone", "stop that process"),
    100: Cause(
        "", "no NVIDIA GPU is visible here", "see what `nvidia-smi` lists, and CUDA_VISIBLE_DEVICES"
    ),
    802: Cause("", "the GPUs of this system are not ready yet", "start `nvidia-fabricmanager`"),
    803: Cause("", "the driver's parts are of different versions", "restart the machine"),
    804: Cause("", "this GPU does not run with CUDA's compatibility package", "update the driver"),
    999: Cause(
        "", "CUDA did not start", "restart the machine, and see `dmesg` for the driver's reason"
    ),
}


class Journal:
    """The logger's last lines, of every severity but the most verbose.

    Args:
        write: Takes each line for a log file.
        watch: Takes every line with no letter before it, the most verbose too.
    """

    def __init__(
        self,
        write: Optional[Callable[[str], Any]] = None,
        watch: Optional[Callable[[str], Any]] = None,
    ) -> None:
        self.lines: Deque[str] = collections.deque(maxlen=_KEPT)
        self.errors: Deque[str] = collections.deque(maxlen=_KEPT_ERRORS)
        self.warnings: Deque[str] = collections.deque(maxlen=_KEPT_ERRORS)
        self.watch = watch
        self._write = write

    def add(self, severity: str, text: str) -> None:
        """Take one message; `severity` is TensorRT's word for it."""
        if self.watch is not None:
            self.watch(text)
        letter = _LETTERS.get(severity, "?")
        if letter == "V" or _SAID_EACH_TIME.match(text):
            return
        text = text.strip()
        if letter in "FE":
            self.errors.append(text[:_MAX_LINE])
        elif letter == "W":
            self.warnings.append(text[:_MAX_LINE])
        line = "[%s] %s" % (letter, text[:_MAX_LINE])
        self.lines.append(line)
        if self._write is not None:
            self._write(line)


def make_logger(trt: Any, journal: Journal) -> Any:
    """Return a logger that TensorRT takes, and that must outlive all that was made with it.

    Args:
        trt: The vendor's module: the base class exists only there.
        journal: Takes each message.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Hands each message on; an exception here would end the process inside the library."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            try:
                journal.add(severity.name, msg)
            except Exception as fault:  # noqa: BLE001 - see the class
                sys.stderr.write("edgepack: a line of the log was lost: %s\n" % fault)

    return Logger()


def explain(journal: Journal, name: str, *, driver: Optional[str] = None) -> Explained:
    """Return what went wrong, and a fix where one is known.

    Args:
        journal: What the logger said.
        name: TensorRT's name and version.
        driver: The kernel driver's version, where there is one.
    """
    known = known_cause(journal, name, driver=driver)
    if known is not None:
        return known
    if journal.errors:
        return "%s built no engine: %s" % (name, _plain(journal.errors[-1])), None
    return "%s built no engine, and did not say why" % name, None


def known_cause(
    journal: Journal, name: str, *, driver: Optional[str] = None
) -> Optional[Explained]:
    """Return a cause that has a sentence and a fix of its own; None for all others.

    TensorRT 8.5 only warns of what ends it, such as a missing driver, so warnings count where no
    error tells a known cause.
    """
    for line in (*journal.errors, *journal.warnings):
        found = _CUDA.search(line)
        if found and int(found.group(1)) != _OUT_OF_MEMORY:
            return _explain_cuda(int(found.group(1)), name, driver)
        for cause in _KNOWN:
            caught = re.search(cause.pattern, line)
            if caught:
                return cause.sentence.format(*caught.groups()), cause.hint
    return None


def _explain_cuda(number: int, name: str, driver: Optional[str]) -> Explained:
    if number == _OLD_DRIVER and driver is not None:
        return (
            "the NVIDIA driver %s is too old for %s" % (driver, name),
            "update the driver, as the release notes of that TensorRT ask",
        )
    cause = _CUDA_CAUSES.get(number)
    if cause is None:
        return "CUDA failed with error %d" % number, "see `nvidia-smi` and `dmesg`"
    return "%s cannot start: %s" % (name, cause.sentence), cause.hint


def parser_sentences(parser: Any, path: str, name: str) -> List[str]:
    """Return one sentence for each error of TensorRT's ONNX parser, naming the node.

    Args:
        parser: After it has failed.
        path: Of the ONNX file, where a parser before 10 gives the node's number alone.
        name: TensorRT's name and version.
    """
    sentences: List[str] = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        sentence = _parser_sentence(parser_error, path, name)
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


def _parser_sentence(parser_error: Any, path: str, name: str) -> str:
    number, said = int(parser_error.node()), _plain(parser_error.desc())
    if parser_error.code().name == "MODEL_DESERIALIZE_FAILED" or number < 0:
        return "%s cannot read `%s`: %s" % (name, path.rsplit("/", 1)[-1], said)
    node, operator = "", ""
    if hasattr(parser_error, "node_operator"):
        node, operator = parser_error.node_name(), parser_error.node_operator()
    if not node or not operator:
        found = name_node(path, number) or ("number %d" % number, "")
        node, operator = node or found[0], operator or found[1]
    if "Plugin not found" in said or "plugin creator version" in said or said in ("false", ""):
        said = "it has no such operator, or not with these attributes"
    return "%s cannot take node `%s`%s: %s" % (
        name, node, " (%s)" % operator if operator else "", said,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Return the part of a message that says what is wrong, in one line without a period."""
    text = " ".join(text.split())
    # `Assertion failed: condition: what is wrong`, where there is more than the condition.
    found = re.match(r"(?:.*?\bAssertion failed: )(.+?): (.{12,})\Z", text)
    if found:
        text = found.group(2)
    # Where in the vendor's own sources it happened helps nobody here.
    text = re.sub(r" In (?:function )?\w+ at \S+", "", text)
    return text[:_MAX_LINE].rstrip(". ")
