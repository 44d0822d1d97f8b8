"""What a program does before it imports what takes seconds: nothing slow may be imported here."""

import os
import signal
import sys
import time

EXIT_CODE = 75  # of a program that was told to stop; EX_TEMPFAIL of sysexits.h: try again


def say_starting() -> None:
    """Say that a program has begun, on stderr in the form of the log; not for ``--help`` nor on ranks other than 0."""
    if os.environ.get("RANK", "0") == "0" and not {"-h", "--help"} & set(sys.argv[1:]):
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} INFO {os.path.basename(sys.argv[0])} is starting: importing torch", file=sys.stderr, flush=True)


def leave_quietly_on_ctrl_c() -> None:
    """Until a program takes signals itself Ctrl-C ends it without a traceback of what it was importing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_CODE))
