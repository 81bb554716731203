"""The command line. Modules that import PyTorch are imported when they are used, so that --help is fast."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sdpo_bench import plugins
from sdpo_bench.cli.parsing import parse
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

COMMANDS: dict[str, Callable[[Sequence[str], str], Any]] = {
    "reproduce": lambda *given: parse(imported("reproduce", "Reproduce"), *given),
    "train": lambda *given: imported("train", "parse_train")(*given),
    "evaluate": lambda *given: parse(imported("evaluate", "Evaluate"), *given),
    "tables": lambda *given: parse(imported("tables", "Tables"), *given),
    "compare": lambda *given: parse(imported("compare", "Compare"), *given),
    "doctor": lambda *given: parse(imported("doctor", "Doctor"), *given),
}
"""By its name, what makes a command from its arguments and the name that help shows. Its module is imported when
plug-ins are known, whose names are among the options."""


OVERVIEW = """usage: sdpo-bench COMMAND [OPTIONS]

A benchmark of reinforcement learning on few-step diffusion models.

  reproduce  run a profile of the benchmark and print its tables (start here)
  train      train a model with one method on one reward
  evaluate   evaluate a model, or the weights that a run saved
  tables     make tables, figures and report again from raw records
  compare    compare two methods, models or commits
  doctor     check this installation

`sdpo-bench COMMAND --help` lists a command's options, with examples."""


def imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sdpo_bench.cli.{module}"), name)


def given_plugins(arguments: Sequence[str]) -> list[str]:
    """The plug-ins that `--plugin` names, found before the command is parsed."""
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
        code: int = COMMANDS[name](rest, f"sdpo-bench {name}")()
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
