"""Running a main program on the processes there are, and saying what ended it."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from dataloaders.video.decoding import BadVideoError
from modules.program.arguments import Arguments
from modules.runtime.interruption import EXIT_CODE as INTERRUPTED_EXIT_CODE
from modules.runtime.interruption import Interrupted, Interruption, end_children
from modules.runtime.processes import Processes, start_processes, stop_processes
from modules.runtime.run_folder import file_logger

logger = logging.getLogger("stop")


@dataclass(frozen=True)
class Session:
    """What a program runs in.

    Attributes:
        processes: to share the work among.
        interruption: tells when to stop.
    """

    processes: Processes
    interruption: Interruption


def run_program(parse: Callable[[], Arguments], run: Callable[[Arguments, Session], Any]) -> int:
    """Run something on the processes there are, and say what went wrong if the user can mend it.

    Args:
        parse: reads the command line.
        run: does what it says.

    Returns:
        The exit status: 0; 1 after an error that the user can mend, which has been printed; or
        `modules.runtime.interruption.EXIT_CODE` after SIGTERM or SIGINT, when the same command continues.
    """
    processes = None
    with Interruption() as interruption:
        try:
            with _first_alone_prints():
                try:
                    arguments = parse()
                except UserError as error:
                    print(error, file=sys.stderr)  # there is no log yet
                    return 1
            processes = start_processes(arguments.patience)
            run(arguments, Session(processes, interruption))
            stop_processes(processes)
            return 0
        except SystemExit:  # of argparse, which has said why
            raise
        except BaseException as error:
            interruption.start_leaving()
            status = _exit_status(error, processes, interruption)
        # the loaders that the error held are closed by now; a worker in the middle of a video has not noticed
        end_children()
        return status


@contextlib.contextmanager
def _first_alone_prints() -> Iterator[None]:
    """Around what all processes of a machine do alike, such as reading the command line: the first shows its output."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def _exit_status(error: BaseException, processes: Processes | None, interruption: Interruption) -> int:
    """Say what ended a run; raises it again if it is nothing that the user can mend."""
    if isinstance(error, UserError | BadVideoError | FloatingPointError):
        _say(str(error), processes)
        return 1
    if processes is not None and isinstance(error, Exception | Interrupted) and processes.others_failed(error):
        # the launcher told this one to stop, or what they share is broken
        text = f"process {processes.rank}: stopped, since {processes.what_failed()}"
        # the launcher has the last word on the screen, and knows better than this one
        (file_logger if processes.launched else logger).error("%s", text)
        if isinstance(error, Exception):
            file_logger.error("process %d met this:\n%s", processes.rank, _trace(error))
        return 1
    if isinstance(error, Interrupted):
        interruption.finish()
        return INTERRUPTED_EXIT_CODE
    if processes is None or processes.world_size == 1:
        file_logger.error("ended by an error of the program itself\n%s", _trace(error))
    else:
        processes.report_failure()
        text = f"process {processes.rank} of {processes.world_size}:\n{_trace(error)}"
        file_logger.error("%s", text)
        if not processes.is_first_to_say(_trace(error)) or processes.leave_last_word(text):
            return 1
    end_children()
    raise error


def _trace(error: BaseException) -> str:
    """An error's traceback."""
    return "".join(traceback.format_exception(error))


def _say(message: str, processes: Processes | None) -> None:
    """Show an error, once where all processes have met the same; ``log.txt`` has it of each."""
    if processes is None or processes.world_size == 1:
        if logger.handlers:
            logger.error("%s", message)
        else:  # the log has no folder yet
            print(message, file=sys.stderr)
        return
    processes.report_failure()
    text = f"process {processes.rank} of {processes.world_size}: {message}"
    shown = not processes.is_first_to_say(message) or processes.leave_last_word(text)
    (file_logger if shown else logger).error("%s", text)
