"""The command line. Modules that import PyTorch are imported when they are used, so that --help is fast."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from sdpo_bench import plugins
from sdpo_bench.errors import UserError, is_full_disk
from sdpo_bench.interruption import Interrupted, exit_code
from sdpo_bench.terminal import echo

NOT_WRITABLE = (
    errno.EACCES,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)

COMMANDS: dict[str, Callable[[], type]] = {
    "reproduce": lambda: imported("reproduce", "Reproduce"),
    "train": lambda: imported("train", "train_command")(),
    "evaluate": lambda: imported("evaluate", "Evaluate"),
    "tables": lambda: imported("tables", "Tables"),
    "compare": lambda: imported("compare", "Compare"),
    "doctor": lambda: imported("doctor", "Doctor"),
}
"""Imported when plug-ins are known, whose names are among the options."""


OVERVIEW = """usage: sdpo-bench COMMAND [OPTIONS]

A benchmark of reinforcement learning on few-step diffusion models.

  reproduce  run a profile of the benchmark and print its tables (start here)
  train      train a model with one method on one reward
  evaluate   evaluate a model, or the weights that a run saved
  tables     make tables, figures and report again from raw records
  compare    compare two methods, models or commits
  doctor     check this installation

`sdpo-bench COMMAND --help` lists a command's options, with examples."""


def parse(cls: type, arguments: Sequence[str], prog: str) -> Any:
    """Parses the arguments of a command. UserError with tyro's message in one line if they are bad."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(cls, args=list(arguments), prog=prog)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{unboxed(boxed.getvalue())}; see `{prog} --help`") from None


def unboxed(text: str) -> str:
    """The message in a box that tyro draws, without the frame, the copy of the help and the line breaks."""
    # The title is in the frame's first line, or above a line of dashes if the terminal has no frame characters.
    lines = [line.strip(" │") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(section.split()) for section in re.split("[─-]{20,}", "\n".join(lines))]
    message, *more = sections if "╭" in text else sections[1:]
    for prefix, words in (("Perhaps you meant: ", "perhaps you meant"), ("Argument helptext: ", "expected")):
        if more and more[0].startswith(prefix):
            option = re.match(r"--\S+( ([A-Z]{3,}|\{\S+|\[[^a-z]+\]))?", more[0].removeprefix(prefix))
            message = f"{message.rstrip('.')}; {words} {option[0] if option else ''}"
    return message.rstrip(".")


def imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sdpo_bench.cli.{module}"), name)


def given_plugins(arguments: Sequence[str]) -> list[str]:
    """What `--plugin` names, before the command is parsed."""
    following = [value for flag, value in itertools.pairwise(arguments) if flag == "--plugin"]
    return following + [text.partition("=")[2] for text in arguments if text.startswith("--plugin=")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0, 1 if something failed, 2 for bad input, 130 after Ctrl-C, 143 after
    SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The libraries' messages repeat exceptions, which are printed in one line. This is set before the libraries are
    # imported, and for worker processes too.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0 if arguments else 2
    try:
        name, *rest = arguments
        if name == "--version":
            from importlib.metadata import version

            print(version("sdpo-bench"))
            return 0
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}; choose one of: {', '.join(COMMANDS)}")
        plugins.use(given_plugins(rest))
        code: int = parse(COMMANDS[name](), rest, f"sdpo-bench {name}")()
        return code
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt as stop:
        said = stop.said if isinstance(stop, Interrupted) else ""
        print("\nstopped" + f": {said}" * bool(said), file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:  # a reader such as `head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from sdpo_bench.distributed import OtherFailed
        from sdpo_bench.records.files import RecordError, RunLocked

        if isinstance(error, OtherFailed):
            return 2
        if is_full_disk(error):
            message = f"the disk is full ({error}): free space and continue with --resume"
        elif isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            message = f"{error.strerror}: {error.filename or 'while writing'}"
        elif isinstance(error, RecordError | RunLocked):
            message = str(error)
        else:
            raise
    echo("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
