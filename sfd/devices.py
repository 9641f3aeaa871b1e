"""Which device a command runs on."""

import os
import re

import torch


def device_of(asked: str | None = None) -> torch.device:
    """This process's share of a launch; else the device asked for; else CUDA where there is one.

    Raises ValueError if it is not there.
    """
    if asked is not None:
        check_device(asked)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
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
