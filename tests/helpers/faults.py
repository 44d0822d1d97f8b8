"""What goes wrong in a run: videos that are cut, decoders that hang or crash, processes that fail, a sudden end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modules.tasks.retrieval import RetrievalTask

# A decord, for PYTHONPATH, that hangs and crashes in decoding files whose names say so.
LIBRARY = """
import os, signal, sys, time
class logging:
    QUIET = ERROR = 0
    set_level = staticmethod(lambda level: None)
def cpu(number):
    return None
class VideoReader:
    def __init__(self, path, **_):
        name = os.path.basename(path)
        if "hang" in name:
            open(path + ".hangs", "w").close()
            time.sleep(10_000)
        if "crash" in name:
            with open(path + ".count", "a+") as file:
                file.write("x")
                file.seek(0)
                times = len(file.read())
            if "once" not in name or times == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
        raise RuntimeError("leaves it to OpenCV")
"""


class Killed(BaseException):
    """What ends a run at once."""


def spoil(folder: Path, video_id: str) -> None:
    """Let a video of a folder break off where nothing of it can be decoded."""
    path = folder / f"{video_id}.mp4"
    path.write_bytes(path.read_bytes()[:200])


def poison_losses(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """Make the loss NaN in the calls, from 1, for which `when` holds."""
    loss, calls = RetrievalTask.loss, 0

    def poisoned(self, *args):
        nonlocal calls
        calls += 1
        value = loss(self, *args)
        return value * float("nan") if when(calls) else value

    monkeypatch.setattr(RetrievalTask, "loss", poisoned)


def in_program(folder: Path, code: str) -> str:
    """A folder for PYTHONPATH by which a program's processes, but no launcher and no decoder, run some code first."""
    folder.mkdir()
    (folder / "code_of_test.py").write_text(code)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('main_task' in word for word in sys.orig_argv) and 'torch.distributed.run' not in sys.orig_argv:\n"
        "    import code_of_test\n"
    )
    return str(folder)


def failing(folder: Path, body: str) -> str:
    """A folder for PYTHONPATH, made in `folder`, that makes one rank run `body` in its fourth backward pass."""
    folder = folder / "failing"
    return in_program(
        folder,
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import torch\n"
        "    backward, calls = torch.Tensor.backward, []\n"
        "    def failing(self, *args, **kwargs):\n"
        "        calls.append(1)\n"
        f"        if len(calls) == 4: open({str(folder / 'begun')!r}, 'w').close()\n"
        f"        if len(calls) == 4: {body}\n"
        "        return backward(self, *args, **kwargs)\n"
        "    torch.Tensor.backward = failing\n",
    )
