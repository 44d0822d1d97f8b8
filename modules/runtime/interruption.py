"""Being told to stop: SIGTERM from a scheduler, SIGINT from a keyboard.

A training finishes its step, saves and leaves. Where a step takes longer than a scheduler waits, the state after the
last finished step is saved in its middle, by a thread: Python runs signal handlers between two of its own instructions
only, and a backward pass on a CPU, or a collective operation whose other side is gone, is one instruction.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from common.early import EXIT_CODE

PATIENCE = 5.0  # seconds for a step to finish
LOCK_PATIENCE = 2.0  # seconds for a change of the state to finish
LAST_RESORT = 4.0  # seconds for all that is done then
SAVING = 20.0  # seconds more for a checkpoint that is being written: a large one takes longer than a step

POLL = 0.1  # seconds between two looks

logger = logging.getLogger("stop")


class Interrupted(BaseException):
    """The run was told to stop. Not an `Exception`, so that nothing takes it for a failure of its own."""


class Interruption:
    """Listens for SIGTERM and SIGINT while it is entered; does nothing outside the main thread.

    Attributes:
        signal_name: of the first signal that came, or None.
    """

    def __init__(self):
        """Nothing is installed before it is entered."""
        self.signal_name: str | None = None
        self._lock = threading.Lock()
        self._save: Callable[[], None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._left = threading.Event()
        self._leaving = False
        self._deaf = False
        self._saving = False

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal_name is not None

    def __enter__(self) -> "Interruption":
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._reading, writing = os.pipe()
            os.set_blocking(writing, False)
            self._writing = writing
            self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
            self._wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *error) -> None:
        if self._installed:
            self._left.set()
            signal.set_wakeup_fd(self._wakeup)
            os.write(self._writing, bytes([0]))  # ends the watcher
            self._watcher.join()
            os.close(self._writing)
            os.close(self._reading)
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_IGN if self._deaf else handler)

    def start_leaving(self) -> None:
        """Let further signals raise nothing: launchers send a second one while the first is being followed."""
        self._leaving = True

    @contextlib.contextmanager
    def when_interrupted(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have something done if the run is left within this because of a signal."""
        self._callbacks.append(callback)
        yield
        self._callbacks.remove(callback)  # not after an exception, which may be the one by which the run is left

    def finish(self) -> None:
        """Do what `when_interrupted` was asked to; the process is to end behind this, whatever signals still come."""
        self._run_callbacks()
        self._deaf = True

    def _run_callbacks(self) -> None:
        for callback in self._callbacks:
            callback()

    @contextlib.contextmanager
    def finish_steps(self, save: Callable[[], None]) -> Iterator[None]:
        """Within this a signal raises nothing: whoever takes the steps looks at `requested` between two of them.

        Args:
            save: saves the state after the last finished step. It is called when this is left by an exception after a
                signal, or from another thread if it is not left in time.

        Raises:
            Interrupted: at its end, or in place of any error, if a signal came: the other processes may have left
                first, which breaks what they share with this one.
        """
        self._save = save
        try:
            yield
        except BaseException as error:
            if not self.requested and not isinstance(error, Interrupted):
                raise
            self.start_leaving()
            if not isinstance(error, Interrupted):
                logger.warning("after %s: %s", self.signal_name, error)
            with self._lock:
                if self._save is not None:
                    save()
            raise Interrupted(self.signal_name) from error
        finally:
            self._save = None
        if self.requested:
            self._raise_unless_leaving()

    @contextlib.contextmanager
    def changing_state(self) -> Iterator[None]:
        """Around what must not be saved half done; if it fails, nothing is saved any more."""
        with self._lock:
            try:
                yield
            except BaseException:
                self._save = None
                raise

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around writing a checkpoint, which is not abandoned for taking long as a step is."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _on_signal(self, number: int, frame) -> None:
        self._note(number)
        if self._save is None:
            self._raise_unless_leaving()

    def _note(self, number: int) -> None:
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name

    def _raise_unless_leaving(self) -> None:
        if not self._leaving:
            self._leaving = True
            raise Interrupted(self.signal_name)

    def _watch(self) -> None:
        """Wait for a signal, then for the run to be left, then leave it."""
        while not self._left.is_set():
            received = os.read(self._reading, 1)[0]
            if received in (signal.SIGTERM, signal.SIGINT):  # others that have handlers are written too
                self._note(received)
                if not self._left.wait(PATIENCE) and not self._left_after_saving():
                    self._leave()

    def _left_after_saving(self) -> bool:
        """Wait for a checkpoint that is being written, and for the run to be left behind it; whether it was."""
        deadline = time.monotonic() + SAVING
        while self._saving and time.monotonic() < deadline:
            while self._saving and time.monotonic() < deadline:
                time.sleep(POLL)
            if self._left.wait(LOCK_PATIENCE):
                return True
        return False

    def _leave(self) -> None:
        """Save if that is possible and end the process, in time whatever hangs: a disk, a GPU, another process."""
        last_resort = threading.Timer(LAST_RESORT, os._exit, [EXIT_CODE])
        last_resort.daemon = True
        last_resort.start()
        # never released: nothing may change any more
        whole = self._lock.acquire(timeout=LOCK_PATIENCE)
        try:
            if whole and self._save is not None:
                self._save()
            self._run_callbacks()
        except Exception:
            logger.exception("the run could not be saved")
        end_children()
        logging.shutdown()
        os._exit(EXIT_CODE)


def end_children() -> None:
    """End the data loaders' workers, which may be in the middle of a video; for a process that is about to end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as crashed
    for child in multiprocessing.active_children():
        child.kill()
