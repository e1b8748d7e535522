"""``tscode VERB key=value ...``: reads the arguments in the host's style and calls the verb's module. No logic here."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

from tscode_yolo import __version__
from tscode_yolo.config import unknown_name

VERBS = {  # name: (module with main(args) -> exit code, what it does); help also reads the module's ARGUMENTS
    "doctor": ("tscode_yolo.doctor", "check the installation: versions, hooks, model YAMLs, a forward at an odd size"),
    "profile": ("tscode_yolo.study.profile", "what a head costs: parameters, FLOPs, latency, training step, memory"),
    "compare": ("tscode_yolo.study.compare", "is one head better? paired seeds, intervals, cost, a report"),
    "ablate": ("tscode_yolo.study.ablate", "the same over a grid of head options: table1, table2, table3, FILE.yaml"),
    "paper": ("tscode_yolo.study.paper", "the paper's tables with their GFLOPs beside ours, counted live"),
    "graft": ("tscode_yolo.graft", "a trained TSCODE model from stock weights and any images, without labels"),
    "pack": ("tscode_yolo.safe.pack", "best.pt to best.safetensors: tensors and JSON, loaded without unpickling"),
    "unpack": ("tscode_yolo.safe.unpack", "and back"),
    "push": ("tscode_yolo.safe.hub", "packed weights to the Hugging Face Hub"),
    "parity": (
        "tscode_yolo.parity.command",
        "do the exports compute what PyTorch computes? per format, with tolerances",
    ),
    "align": ("tscode_yolo.align", "see where scores and boxes disagree before NMS: numbers, pictures, report"),
}


def parse(arguments: list[str]) -> dict[str, Any]:
    """``["imgsz=640", "half=True"]`` to ``{"imgsz": 640, "half": True}``.

    Values are Python literals where they are one, text otherwise; true, false and none in any case.

    Raises:
        ValueError: an argument without ``=``, or a key given twice.
    """
    args: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ValueError(f"expected key=value, got '{argument}'; e.g. imgsz=640")
        if key in args:
            raise ValueError(f"'{key}' is given twice")
        args[key] = _value(text)
    return args


def _value(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(value, tuple) and not text.startswith("(") else value  # a,b stays text


def usage() -> str:
    """The help text."""
    verbs = "\n".join(f"  {name:<9} {what}" for name, (_, what) in VERBS.items())
    return (
        f"tscode {__version__}: TSCODE heads for Ultralytics YOLO\n\nusage: tscode VERB key=value ...\n\n{verbs}\n\n"
        "`tscode help VERB` says what it takes; with TSCODE_DEBUG=1 in the environment an error is a traceback.\n"
        "Training, validation, prediction and export are the host's: yolo train model=tscoden.yaml data=shapes.yaml"
    )


def explanation(verb: str, module: ModuleType) -> str:
    """What a verb does and the arguments it takes.

    Args:
        verb: of `VERBS`.
        module: the one its main is in. Its ``ARGUMENTS`` are key -> meaning, or the function or class whose docstring
            has them; without, the module's docstring says it all.
    """
    given = getattr(module, "ARGUMENTS", None)
    if isinstance(given, dict):
        width = max(map(len, given))
        text = "\n".join(f"    {key:<{width}}  {meaning}" for key, meaning in given.items())
    else:
        sections = re.split(r"^(\w+):$", inspect.getdoc(given) or "", flags=re.MULTILINE) if given else []
        text = next((s.strip("\n") for name, s in pairwise(sections) if name in ("Args", "Attributes")), "")
        text = _with_defaults(text, given, getattr(module, "KEYS", None)) if given else ""
    bracketed = "" if isinstance(given, dict) else ", with defaults in brackets"
    arguments = f"\n\nArguments, as key=value{bracketed}:\n\n{text}" if text else ""
    return f"{VERBS[verb][1]}\n\n{inspect.cleandoc(module.__doc__ or '')}{arguments}"


def _with_defaults(text: str, function: Callable[..., Any], keys: Sequence[str] | None) -> str:
    """The ``Args:`` of a docstring, each with its default behind it, if that is a number, a flag or a word.

    Args:
        text: the entries.
        function: whose signature has the defaults.
        keys: those that the verb takes, if Python takes more.
    """
    parameters = inspect.signature(function).parameters
    entries = re.split(r"^(?= {4}\w+: )", text, flags=re.MULTILINE)
    for i, entry in enumerate(entries):
        name = entry.strip().partition(":")[0]
        if keys is not None and name and name not in keys:
            entries[i] = ""
            continue
        default = parameters[name].default if name in parameters else None
        if default is not None and default is not inspect.Parameter.empty:
            entries[i] = f"{entry.rstrip()} [{str(default).lower() if isinstance(default, bool) else default}]\n"
    return "".join(entries).rstrip("\n")


def _show(text: str) -> int:
    """Print a text, which nobody need read to its end; returns the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed when Python ends
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code (2: the command line is at fault).

    With ``TSCODE_DEBUG=1`` in the environment an error is a traceback instead of one line. A reader who has seen enough
    of a help text (``| head``) is no error.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) > 1 and argv[0] == "help":
        argv = [argv[1], "help", *argv[2:]]
    if not argv or argv[0] in ("help", "-h", "--help"):
        return _show(usage())
    if argv[0] in ("version", "--version"):
        return _show(__version__)
    verb, *rest = argv
    try:
        if verb not in VERBS:
            raise ValueError(unknown_name("verb", verb, list(VERBS)))
        run = importlib.import_module(VERBS[verb][0]).main
        if rest and rest[0] in ("help", "-h", "--help"):
            return _show(explanation(verb, sys.modules[run.__module__]))
        return run(parse(rest))
    except (ValueError, OSError, ImportError, FloatingPointError) as e:
        if os.environ.get("TSCODE_DEBUG", "0") != "0":
            raise
        print(f"tscode: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(f"tscode: stopped{f'; {e}' if str(e) else ''}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
