"""Which device a command runs on, and by how many threads."""

import importlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 3_000_000
"""Parameters of a network below which its layers are too short for threads to share them; measured
with 1.0 and 1.7 million."""


def device_of(asked: str | None = None) -> torch.device:
    """This process's share of a launch; else the device asked for; else CUDA where there is one.

    Raises ValueError if it is not there.
    """
    if asked is not None:
        check_device(asked)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        # its functions' defaults keep the group that is there at their import, and so its threads
        importlib.import_module("torch.distributed.nn.functional")
        from accelerate import PartialState

        launched = PartialState(cpu=asked == "cpu" or not torch.cuda.is_available())
        return torch.device(launched.device or "cpu")
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_device(asked: str) -> None:
    """Raises ValueError unless it is a device that PyTorch has here, and that this runs on."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise ValueError(f"no device {asked!r}: give cpu, cuda or cuda:NUMBER")
    if asked == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device here: leave --device out, or say --device cpu")
    count = torch.cuda.device_count()
    if int(asked.partition(":")[2] or 0) >= count:
        raise ValueError(f"no device {asked!r}: there are {count}, numbered from 0")


@contextmanager
def threads_for(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """One thread of a CPU while small networks learn, unless `OMP_NUM_THREADS` asks for more.

    Its threads would wait for each other at every layer: two that sleep meanwhile take as long as
    one or twice as long, two that spin take .7 to .9 of it, and more than ten times as long where
    another program runs (`eval/LOG.md`).
    """
    before = torch.get_num_threads()
    small = all(sum(p.numel() for p in m.parameters()) < SMALL for m in modules)
    if small and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """`count` workers that share this process's threads of a CPU; what none has begun when it
    closes is dropped."""
    threads = torch.get_num_threads()
    own = max(1, threads // count)
    workers = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(own,))
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
