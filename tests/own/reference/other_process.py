"""A process that runs a piece of Python: forked from one that has torch loaded, its streams are pipes to the test."""

import multiprocessing
import os
import sys
import warnings
from multiprocessing.connection import Connection

from rank_workers import FORKS


class OtherProcess:
    """Starts at once; has of `subprocess.Popen` what tests need."""

    def __init__(self, code: str) -> None:
        (stdin, to_stdin), (of_stdout, stdout), (of_stderr, stderr) = (
            multiprocessing.Pipe(duplex=False) for _ in range(3)
        )
        self._process = FORKS.Process(target=_run, args=(code, stdin, stdout, stderr))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdin = open(os.dup(to_stdin.fileno()), "w")  # noqa: SIM115 -- `close` closes it
        self.stdout, self.stderr = (open(os.dup(end.fileno())) for end in (of_stdout, of_stderr))  # noqa: SIM115 -- the same
        for end in (stdin, to_stdin, of_stdout, stdout, of_stderr, stderr):
            end.close()

    def line(self) -> str:
        """The next line that it prints; its errors if it has none."""
        return self.stdout.readline().strip() or self.stderr.read()

    def tell(self, line: str) -> None:
        """It reads this line."""
        print(line, file=self.stdin, flush=True)

    def kill(self) -> None:
        """Return when it is gone."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End it, if it is still there."""
        self.kill()
        for stream in (self.stdout, self.stderr, self.stdin):
            stream.close()


def _run(code: str, *streams: Connection) -> None:
    for descriptor, end in enumerate(streams):
        os.dup2(end.fileno(), descriptor)
        end.close()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 -- they live as long as it
    warnings.simplefilter("ignore")
    exec(compile(code, "<the other process>", "exec"), {"__name__": "__main__"})
