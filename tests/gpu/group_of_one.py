"""The retrieval program in a process group, though it is one process: how it does over NCCL where there is one GPU.

  python tests/gpu/group_of_one.py FLAGS, in the environment that modules/runtime/launch.py gives to its processes

It prints by which backends tensors were added up.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

import main_task_retrieval
from modules.runtime import processes


class One(int):
    """1, and not taken for the only process, which does without a group."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


def main() -> int:
    """Run the program."""
    rendezvous, all_reduce, backends = processes.rendezvous, dist.all_reduce, []

    def read_first(text: str) -> One:
        """The number of processes, which `start_processes` reads before all other numbers."""
        del processes.int
        return One(text)

    def meet(url: str) -> Iterator[tuple[Any, int, int]]:
        for store, rank, world_size in rendezvous(url):
            yield store, rank, One(world_size)

    def noted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        backends.append(dist.get_backend(kwargs.get("group")))
        return all_reduce(tensor, *args, **kwargs)

    processes.int, processes.rendezvous, dist.all_reduce = read_first, meet, noted
    status = main_task_retrieval.main()
    print(f"backends: {' '.join(sorted(set(backends)))}")
    return status


if __name__ == "__main__":
    sys.exit(main())
