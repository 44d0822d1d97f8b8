"""The suite is the same wherever and however it is started."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from helpers.launching import interruptible
from helpers.paths import ROOT
from helpers.suite import MAX_PROCESSES, num_cores


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_program_can_be_interrupted_wherever_the_suite_was_started(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interruptible():
            sleeper = subprocess.Popen(
                [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
    sleeper.stdout.readline()
    sleeper.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in sleeper.communicate(timeout=30)[1]


def test_one_file_is_not_worth_a_second_process(pytestconfig):
    def processes(*paths):
        asked = SimpleNamespace(args=[str(ROOT / path) for path in paths])
        return pytestconfig.hook.pytest_xdist_auto_num_workers(config=asked)

    one_test = "tests/scripts/test_suite.py::test_one"
    assert processes("tests/scripts/test_suite.py") == processes(one_test, "tests/preprocess/test_toy.py") == 0
    assert processes("tests") == (min(num_cores(), MAX_PROCESSES) if num_cores() > 1 else 0)
