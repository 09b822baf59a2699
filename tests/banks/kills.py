"""Programs that are killed at every point of their writing.

A program is Python text. It runs in a process of its own, forked from one that has imported the
package already, with `sys.argv[1:]` as given, and is killed by SIGKILL at its n-th point. A point
is before a write to a file that was opened by name, in the middle of that write, and before a call
of `CALLS`. Writes of compiled libraries, and to files without a name, are no points.
"""

import atexit
import builtins
import contextlib
import functools
import importlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence

CALLS = (
    "copy_file_range",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "pwrite",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "sendfile",
    "truncate",
    "unlink",
    "write",
)
"""Functions of `os` that change what is on the disk."""

LOTR = """
    import sys
    from lotr_tn.cli import main
    sys.argv[0] = "lotr"
    main()
"""
"""The program `lotr`, with its arguments as `args`."""


def run_killed_at(script: str, args: Sequence[object], point: int) -> bool:
    """Run a program and kill it at a point, counted from 1; at 0 it is never killed.

    Returns:
        Whether it ended by itself, since it has fewer points.

    Raises:
        AssertionError: it failed, with what it printed.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    job = {
        "script": textwrap.dedent(script),
        "args": [str(argument) for argument in args],
        "point": point,
        "folder": os.getcwd(),
    }
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    if answer["status"] == -signal.SIGKILL:
        assert point, "killed by somebody else"
        return False
    assert answer["status"] == 0, f"at point {point}:\n{answer['output']}"
    return True


def kills(
    script: str, args: Sequence[object], prepare: Callable[[], object] = lambda: None
) -> Iterator[int]:
    """Kill a program at each of its points in turn, and then let it end.

    Args:
        script: the program.
        args: its arguments.
        prepare: makes the state of the disk before each run.

    Yields:
        The point of each kill, after it; the last is 0: nothing was killed.
    """
    for point in itertools.count(1):
        prepare()
        if run_killed_at(script, args, point):
            assert point > 1, "the program writes nothing that could be seen"
            yield 0
            return
        yield point


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        encoding="utf-8",
    )
    atexit.register(server.communicate)  # ends its input
    return server


def serve() -> None:
    """Answer each job of the input by forking, running and waiting.

    What one has imported, the next finds imported: a program that is killed twenty times would
    else spend its time there.
    """
    _import("lotr_tn.cli")
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as imported:
            child = os.fork()
            if child == 0:
                _run(job, printed.fileno(), imported.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            printed.seek(0)
            output = printed.read().decode(errors="replace")
            imported.seek(0)
            for name in imported.read().decode().split():
                _import(name)
        sys.stdout.write(json.dumps({"status": status, "output": output}) + "\n")
        sys.stdout.flush()


def _import(name: str) -> None:
    with contextlib.suppress(Exception):  # a package that is broken is for the program to report
        importlib.import_module(name)


def _run(job: dict, printed: int, imported: int) -> None:
    """Run a job in a forked process, which ends here."""
    status, write, known = 1, os.write, set(sys.modules)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.chdir(job["folder"])
        sys.argv = ["-c", *job["args"]]
        _watch(Points(job["point"]))
        exec(compile(job["script"], "<script>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stderr.write(f"exit {end.code}")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # no room, where a program has made it so
            write(imported, "\n".join(sys.modules.keys() - known).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Points:
    """Counts points, and kills this process at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.seen = 0

    def reach(self) -> None:
        self.seen += 1
        if self.seen == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def is_next_fatal(self) -> bool:
        return self.seen + 1 == self.fatal


def _watch(points: Points) -> None:
    """Count what this process does to files."""

    class Watched(io.FileIO):
        def write(self, data, /):
            half = memoryview(data).nbytes // 2
            if memoryview(data).nbytes:
                points.reach()
                if points.is_next_fatal:
                    super().write(memoryview(data).cast("B")[:half])
                points.reach()
            return super().write(data)

    def watched_open(
        file,
        mode="r",
        buffering=-1,
        encoding=None,
        errors=None,
        newline=None,
        closefd=True,
        opener=None,
    ):
        if not set(mode) & set("wax+") or isinstance(file, int) or os.path.isdir(file):
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Watched(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        file = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

    def watched(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            points.reach()
            return function(*args, **kwargs)

        return call

    plain = io.open
    builtins.open = io.open = watched_open
    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, watched(getattr(os, name)))


if __name__ == "__main__":
    serve()
