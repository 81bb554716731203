"""Python commands in processes that are forked from the tests' own. That one has imported what would take each of them
many seconds. For what a command does; that it can be started is another test's."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

LOOK_SECONDS = 0.02


class Forked:
    """As much of `subprocess.Popen` as its users here need."""

    def __init__(self, function: Callable[[], object], output: IO[Any], env: Mapping[str, str], cwd: Path) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_child(function, output, env, cwd))

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            else:
                time.sleep(LOOK_SECONDS)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _child(function: Callable[[], object], output: IO[Any], env: Mapping[str, str], cwd: Path) -> int:
    """Runs the function as a new session, with both outputs in a file; its exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def as_function(command: Sequence[str]) -> Callable[[], object]:
    """What `python -m MODULE ...` or `python -c TEXT ...` does, in a process whose modules are imported already."""
    program, option, what, *arguments = map(str, command)
    assert (program, option) in ((sys.executable, "-m"), (sys.executable, "-c")), command

    def call() -> None:
        sys.argv = [what if option == "-m" else option, *arguments]
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})

    return call


def popen(command: Sequence[str], *, stdout: IO[Any], env: Mapping[str, str], cwd: Path, **_: Any) -> Forked:
    """In place of `subprocess.Popen`."""
    return Forked(as_function(command), stdout, env, cwd)


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The exit code and both outputs, as one text in `stdout`, of a Python command."""
    with tempfile.TemporaryFile("w+") as output:
        code = popen(command, stdout=output, env=env, cwd=cwd).wait()
        output.seek(0)
        return subprocess.CompletedProcess(list(command), code, output.read(), "")
