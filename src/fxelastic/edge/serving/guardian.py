"""Run as a file: starts the process that prepares subnets, and never leaves it behind stopped.

    python guardian.py FOLDER DIGEST NICENESS PATHS

FOLDER and DIGEST are the bundle's, PATHS is ``sys.path`` with newlines between. The first line on
stdout is JSON with the id of the process that works, the others are its answers (see
`fxelastic.edge.serving.worker`).

While requests run, the serving process stops it (see `Courtesy`). If that process were killed just
then, nobody would let it go on, to see that its input has ended: this one does, which is never
stopped itself. Where processes can't fork, they can't be stopped either, and one is enough.
"""

import json
import os
import select
import signal
import sys


def main(folder: str, digest: str, niceness: int, paths: str) -> int:
    """Work, or watch over who works.

    Args:
        folder: The bundle's folder.
        digest: The bundle's.
        niceness: Of the process that works.
        paths: ``sys.path`` for it, with newlines between.

    Returns:
        The exit code.
    """
    sys.path[:] = paths.split("\n")
    # A terminal's Ctrl-C reaches it too, and what ends a group of processes; but it ends when the
    # serving process lets go of it.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # What a library prints, from its import on, must not get between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    getattr(os, "nice", int)(niceness)
    worker = os.fork() if hasattr(os, "fork") else 0
    if worker:
        # It must not look as if there were answers to come when the worker has ended.
        os.close(answers)
        return guard(worker)
    with os.fdopen(answers, "w", encoding="utf-8") as stream:
        print(json.dumps({"worker": os.getpid()}), file=stream, flush=True)
        from fxelastic.edge.serving.worker import main as work

        work(folder, digest, sys.stdin, stream)
    return 0


def guard(worker: int) -> int:
    """Wait for the worker to end; where its input ends before, let it go on.

    Args:
        worker: Its process.

    Returns:
        Its exit code.
    """
    hung_up = select.poll()
    hung_up.register(0, 0)
    done = status = 0
    while not done:
        if hung_up.poll(200):
            os.kill(worker, signal.SIGCONT)
            done, status = os.waitpid(worker, 0)
        else:
            done, status = os.waitpid(worker, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
