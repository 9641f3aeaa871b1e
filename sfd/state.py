"""A training run's progress: the loop, its checkpoints, signals, statistics and processes."""

import copy
import json
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfd import checkpoints, content, devices
from sfd.teachers import NotFinite

Stats = dict[str, tuple[float, float]]
"""Name to (sum, count): adds up over steps and processes."""


class Stopped(RuntimeError):
    """A run ended in the middle and can be resumed. `code` is the process's exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


LEFT = (
    "state", "stats.jsonl", "curves.jsonl", "samples", "samples.png", "recipe.yaml",
    "provenance.json", "student.safetensors", "audit.json", "audit.json.sig", "report.html",
    "sheets", "attacks", "review", "review.new", "review-key.json",
)  # fmt: skip
"""What a run and its audit leave in their folder."""


MARKS = (
    "recipe.yaml",
    "stats.jsonl",
    "student.safetensors",
    "audit.json",
    "state/state.safetensors",
)
"""Files one of which a run's folder has."""


def claim(folder: Path, *also: str, force: bool) -> None:
    """See that a run can have a folder. `force` removes what a run left there, and the names
    `also`; what else lies there stays. Raises ValueError where it is a file, or holds what is
    called as a run's is and no run.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, a run needs a folder")
    theirs = [name for name in LEFT if (folder / name).exists()]
    if theirs and not any((folder / name).is_file() for name in (*MARKS, *also)):
        why = "--force deletes nothing" if force else "none is begun"
        raise ValueError(f"{folder}: holds {theirs[0]} and no run, so {why} there: give out=FOLDER")
    barrier()  # every process has looked before the first deletes
    for name in (*LEFT, *also) if force and world()[0] == 0 else ():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# --- processes -----------------------------------------------------------------------------------


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Part from the other processes of a launch, all of them at about the same time.

    Beside the threads of one that did not Python may abort as it ends, and the launcher then ends
    the others in whatever they do (pytorch/pytorch#179291).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def own_rows(start: int, count: int) -> range:
    """This process's share of the image numbers start to start + count: one contiguous run.

    Raises ValueError if the processes cannot share the count equally.
    """
    rank, size = world()
    if count % size:
        raise ValueError(f"a batch of {count} cannot be split over {size} processes")
    share = count // size
    return range(start + rank * share, start + (rank + 1) * share)


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add every parameter's gradient over all processes (losses are already divided by B).

    One that has a gradient in any process has it in all.
    """
    if world()[1] == 1:
        return
    learned = list(parameters)
    there = torch.tensor([p.grad is not None for p in learned], device=learned[0].device).float()
    dist.all_reduce(there)
    moved = [p for p, count in zip(learned, there.tolist(), strict=True) if count]
    if not moved:
        return
    flat = torch.cat([_gradient(p).flatten() for p in moved])
    dist.all_reduce(flat)
    for p, part in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
        p.grad = part.reshape(p.shape).to(p.dtype)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def add_stats(stats: Stats, device: torch.device) -> Stats:
    """Statistics added over all processes."""
    if world()[1] == 1:
        return stats
    flat = torch.tensor([list(pair) for pair in stats.values()], dtype=torch.float64, device=device)
    dist.all_reduce(flat)
    return dict(zip(stats, ((a, b) for a, b in flat.tolist()), strict=True))


def check_alike(run: "Run", device: torch.device) -> None:
    """Raises ValueError unless every process goes on from the same image with the same weights."""
    if world()[1] == 1:
        return
    learned = (p.detach() for module in run.modules.values() for p in module.parameters())
    sums = [float(p.double().abs().sum()) for p in learned]
    own = torch.tensor([run.nimg, math.fsum(sums)], dtype=torch.float64, device=device)
    least, most = own.clone(), own.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if least[0] != most[0]:
        raise ValueError(
            f"processes resume at images {int(least[0])} and {int(most[0])}: give all of them one"
            " folder"
        )
    if not torch.equal(least, most):
        raise ValueError("processes start from different weights: a teacher's make_student draws"
                         " them at random, or a file differs between machines")  # fmt: skip


# --- averages and schedules ----------------------------------------------------------------------


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that does not learn, in evaluation mode; what does not learn in `module` is shared."""
    still = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, dict(still)).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(
    average: nn.Module, module: nn.Module, *, images: int, seen: int, half_life: float
) -> None:
    """Move `average` towards `module` by `images` images of a half-life counted in images.

    Early on the half-life is at most a quarter of the images seen, so that the start is forgotten
    and yet short runs are averaged. Half-life 0 copies. Karras et al., arXiv 2206.00364, appendix
    F.3, where it is a twentieth of millions.
    """
    half = min(half_life, seen * 0.25)
    keep = 0.5 ** (images / half) if half > 0 else 0.0
    for target, source in zip(average.parameters(), module.parameters(), strict=True):
        if target is not source:
            target.lerp_(source, 1 - keep)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


def learning_rate(nimg: int, total: int, *, warmup: int, decay_from: float) -> float:
    """Factor in [0, 1]: linear up over `warmup` images, linear to 0 from `decay_from * total`."""
    up = min(1.0, (nimg + 1) / warmup) if warmup else 1.0
    left = (total - nimg) / (total * (1 - decay_from)) if decay_from < 1 else 1.0
    return up * min(1.0, max(0.0, left))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


# --- the loop ------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a training run holds between steps; all of it is in a checkpoint, but for tensors that
    several modules share: those are a frozen base, which the recipe rebuilds."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    nimg: int = 0
    seconds: float = 0.0
    """Time spent in steps: evaluation and input are not counted."""
    sums: Stats = field(default_factory=dict)


def _own(run: Run, name: str) -> dict[str, Tensor]:
    """The tensors of a module that no other module of the run holds too."""
    elsewhere = {
        id(p) for other, module in run.modules.items() if other != name for p in module.parameters()
    }
    module = run.modules[name]
    shared = {key for key, p in module.named_parameters() if id(p) in elsewhere}
    return {key: value for key, value in module.state_dict().items() if key not in shared}


def save(run: Run, folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `folder/state.safetensors` atomically: modules, optimizers, progress."""
    tensors = {
        f"{name}.{key}": value for name in run.modules for key, value in _own(run, name).items()
    }
    for name, optimizer in run.optimizers.items():
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer:{name}.{index}.{k}": v for k, v in entry.items()}
    progress = {"nimg": run.nimg, "seconds": run.seconds, "sums": run.sums}
    meta = {"progress": json.dumps(progress), "identity": json.dumps(identity, sort_keys=True)}
    checkpoints.write_tensors(folder / "state.safetensors", tensors, meta)


def restore(run: Run, folder: Path, identity: Mapping[str, Any]) -> bool:
    """Read what `save` wrote into `run`; False if there is none.

    Raises ValueError if it belongs to another recipe or does not fit.
    """
    path = folder / "state.safetensors"
    if world()[0] == 0:
        for torn in folder.glob(f".{path.name}.*.tmp"):  # of a process killed as it wrote
            torn.unlink(missing_ok=True)
    if not path.exists():
        return False
    tensors, meta = checkpoints.read_tensors(path)
    if json.loads(meta.get("identity", "null")) != json.loads(json.dumps(identity)):
        raise ValueError(
            f"{folder.parent}: holds the state of another recipe; give this run another folder"
            " (out=FOLDER), or start over with --force"
        )
    for name in run.modules:
        part = {
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(name + ".")
        }
        checkpoints.fill(_own(run, name), part, f"{path} ({name})")
    for name, optimizer in run.optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer:{name}."
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, entry = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    progress = json.loads(meta["progress"])
    run.nimg, run.seconds = progress["nimg"], progress["seconds"]
    run.sums = {k: tuple(v) for k, v in progress["sums"].items()}
    return True


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second SIGINT is not held back.

    One that came too late for whoever collects them is sent again at the end. In a thread other
    than the main one Python takes no signals, and none are collected.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


def loop(
    run: Run,
    *,
    step: Callable[[int], Stats],
    total: int,
    batch: int,
    folder: Path,
    identity: Mapping[str, Any],
    tick: int,
    checkpoint: int,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[int, float], None] | None = None,
    on_tick: Callable[[dict[str, float]], None] | None = None,
    device: torch.device,
) -> None:
    """Run `step(nimg)` from `run.nimg` to `total` images, `batch` at a time.

    Every `tick` images the means of the statistics go to `folder/stats.jsonl`; every `checkpoint`
    images, and on a signal, the state goes to `folder/state/`. At each of `snapshots` (in images)
    `on_snapshot(nimg, seconds of training)` is called; where what it draws is not finite, a warning
    says so.

    Raises Stopped: 5 on a value that is not finite (the last checkpoint stays), 130 and 143 on
    SIGINT and SIGTERM (the state is saved).
    """
    log, state = folder / "stats.jsonl", folder / "state"
    chief = world()[0] == 0
    if chief:
        _truncate(log, run.nimg)

    def crossed(every: int) -> bool:
        return run.nimg // every != (run.nimg - batch) // every

    with signals() as caught, devices.threads_for(run.modules.values(), device):
        while run.nimg < total:
            started = time.perf_counter()
            stats = add_stats(step(run.nimg), device)
            bad = [name for name, (value, _) in stats.items() if not math.isfinite(value)]
            if bad:
                kept = (
                    "its last checkpoint is kept"
                    if (state / "state.safetensors").exists()
                    else "nothing was saved yet"
                )
                raise Stopped(
                    f"{', '.join(bad)} is not finite at image {run.nimg} (step"
                    f" {run.nimg // batch}); {kept}; resumed as it is it comes here again: lower"
                    " the learning rate, in another folder (out=FOLDER) or over this one (--force)",
                    5,
                )
            run.seconds += time.perf_counter() - started
            run.nimg += batch
            for name, (value, count) in stats.items():
                before = run.sums.get(name, (0.0, 0.0))
                run.sums[name] = (before[0] + value, before[1] + count)
            done = run.nimg >= total
            if crossed(tick) or done:
                line = {"nimg": run.nimg, "seconds": round(run.seconds, 3)}
                line |= {k: v / n for k, (v, n) in sorted(run.sums.items()) if n}
                run.sums = {}
                if chief:
                    with log.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                if on_tick:
                    on_tick(line)
            due = any(run.nimg - batch < s <= run.nimg for s in snapshots)
            if due and on_snapshot and chief:
                try:
                    on_snapshot(run.nimg, run.seconds)
                except NotFinite as error:
                    # what is learned may yet be finite, and is not to be lost for a sheet
                    warnings.warn(f"no sheet at image {run.nimg}: {error}", stacklevel=2)
            stop = _agreed(caught, device)
            if chief and (stop or done or crossed(checkpoint)):
                save(run, state, identity)
            if stop and not done:
                barrier()  # a launcher that sees one process gone gives the others seconds
                name = signal.Signals(stop).name
                raise Stopped(
                    f"{name}: stopped at image {run.nimg} of {total}, state saved; the same"
                    " command resumes",
                    128 + stop,
                )


def _agreed(caught: list[int], device: torch.device) -> int:
    """The signal that any process caught, or 0: all processes must stop at the same step."""
    number = max(caught, default=0)
    if world()[1] > 1:
        shared = torch.tensor(number, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        number = int(shared)
    return number


def _truncate(log: Path, nimg: int) -> None:
    """Drop lines written after the checkpoint that is resumed, and a torn last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if not log.exists():
        return
    kept = [line for line in log.read_text().splitlines() if _nimg(line) <= nimg]
    content.write_atomic(log, "".join(line + "\n" for line in kept))


def _nimg(line: str) -> float:
    try:
        return json.loads(line)["nimg"]
    except json.JSONDecodeError:
        return math.inf
