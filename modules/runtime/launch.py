"""Runs a main program in several processes on this machine, one a GPU; what the program says comes last.

  python -m modules.runtime.launch --processes 4 main_task_retrieval.py --do_train …

The computation is that of one process, up to rounding: --batch_size is the global batch. For several machines there is
``torchrun``, which follows whatever ends a run, Ctrl-C too, with tracebacks of its own and hides the exit status of
processes that it was told to stop. Here the processes' errors are shown when all of them have ended and their progress
bars are gone, then a line about a process that a signal killed, which could not say so itself, and nothing more.

The exit status is 0, that of the process that failed first, 128 + n if signal n killed it, or, after SIGTERM or SIGINT,
`modules.runtime.interruption.EXIT_CODE`: the same command continues.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from modules.runtime.interruption import EXIT_CODE, LAST_RESORT, LOCK_PATIENCE, PATIENCE, SAVING

HOST = "127.0.0.1"
ENDING = 2 * (PATIENCE + LOCK_PATIENCE + LAST_RESORT) + SAVING  # seconds for processes that are told to end
POLL = 0.1  # seconds between two looks at the processes
TOLD = (0, EXIT_CODE, -signal.SIGTERM, -signal.SIGINT)  # how a process ends that was told to; before it listens, by it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program and return its exit status."""
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stops.append(number))
    parser = argparse.ArgumentParser(
        prog="python -m modules.runtime.launch",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, help="on this machine, one a GPU")
    parser.add_argument("program", type=Path, help="the main program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its flags")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        parser.error(f"--processes must be at least 1, found {arguments.processes}")
    if not arguments.program.is_file():
        parser.error(f"there is no program {arguments.program}")
    command = [sys.executable, str(arguments.program), *arguments.arguments]
    if arguments.processes == 1:
        os.execv(sys.executable, command)
    try:
        return launch(command, arguments.processes, stops)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def launch(command: Sequence[str], count: int, stops: Sequence[int]) -> int:
    """Run a command in several processes to their end, and show what they left to be shown.

    Args:
        command: of each process, which learns its rank from its environment.
        count: of processes.
        stops: signals that told this process to stop, which its handlers add to.

    Returns:
        The exit status.

    Raises:
        UserError: if there are too few GPUs.
    """
    # slow to import, and a signal must be heard by then
    from torch.distributed import PrefixStore, TCPStore

    from modules.runtime.processes import RUN_KEYS, check_gpus, last_words, report_killed

    check_gpus(count)
    server = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    store = PrefixStore(RUN_KEYS, server)
    running = _start(command, count, server.port)
    codes: dict[int, int] = {}  # by rank, in the order of ending
    killed: dict[int, str] = {}
    deadline = None  # by which all are to end; None while none is
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            codes[rank] = code
            if code == -signal.SIGKILL or (code < 0 and deadline is None and not stops):
                killed[rank] = _describe_kill(rank, count, -code, deadline is not None and time.monotonic() > deadline)
                report_killed(store, killed[rank])
        if deadline is None and (stops or any(codes.values())):
            deadline = time.monotonic() + ENDING
            for process in running.values():
                # a process that does not listen yet ignores SIGINT and ends by SIGTERM; else the first one counts
                for number in dict.fromkeys([*stops[:1], signal.SIGTERM]):
                    process.send_signal(number)
        elif deadline is not None and time.monotonic() > deadline:
            for process in running.values():
                process.kill()
        if running:
            time.sleep(POLL)
    if 0 in killed:
        print(file=sys.stderr)  # its progress bar is still there
    for text in [*last_words(store), *killed.values()]:
        print(text.rstrip(), file=sys.stderr)
    return exit_status(codes, killed, bool(stops))


def exit_status(codes: Mapping[int, int], killed: Mapping[int, str], told: bool) -> int:
    """One status for all processes.

    Args:
        codes: return codes as `subprocess` has them, by rank, in the order of ending.
        killed: has the ranks that something else killed.
        told: whether they were told to stop from outside.
    """
    if told and codes[0] == EXIT_CODE:  # the main process has saved; what its leaving did to the others is no matter
        return EXIT_CODE
    if told and all(code in TOLD for code in codes.values()):
        return EXIT_CODE if any(codes.values()) else 0
    failed = [code for code in codes.values() if code and not (told and code in TOLD)]
    first = next((codes[rank] for rank in killed), next(iter(failed), 0))
    return first if first >= 0 else 128 - first


def _start(command: Sequence[str], count: int, port: int) -> dict[int, subprocess.Popen]:
    """Start the processes, by rank, with the store at a port to find each other by."""
    from modules.runtime.processes import LAUNCHER

    environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # torch's warnings about an end say nothing
    environment |= os.environ
    environment |= {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's: the store is there already
        LAUNCHER: str(os.getpid()),
    }
    # Ctrl-C reaches every process of a terminal: one that is still importing would show a traceback
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return {
            rank: subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        }
    finally:
        signal.signal(signal.SIGINT, handler)


def _describe_kill(rank: int, count: int, number: int, late: bool) -> str:
    """What to say about a process that a signal ended."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = "no name"
    text = f"process {rank} of {count} was killed by signal {number} ({name})"
    if late:
        return f"{text}: it did not end within {ENDING:.0f} s of being told to"
    if number == signal.SIGKILL:
        text += ": usually the machine ran out of memory, which its kernel's log tells (dmesg)"
    return f"{text}. The same command continues."


if __name__ == "__main__":
    sys.exit(main())
