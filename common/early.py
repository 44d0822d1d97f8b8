"""The first line of a program, before it imports what takes seconds: nothing slow may be imported here."""

import os
import sys
import time


def say_starting() -> None:
    """Say that a program has begun, on stderr in the form of the log; not for ``--help`` nor on ranks other than 0."""
    if os.environ.get("RANK", "0") == "0" and not {"-h", "--help"} & set(sys.argv[1:]):
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} INFO {os.path.basename(sys.argv[0])} is starting: importing torch", file=sys.stderr, flush=True)
