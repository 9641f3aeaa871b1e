"""Train a class-conditional EDM teacher from labelled images (arXiv 2206.00364)."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sfd import (
    checkpoints,
    configs,
    content,
    images,
    noise,
    objectives,
    provenance,
    sample,
    schedules,
    solvers,
    state,
    teachers,
)
from sfd.configs import TeacherRecipe
from sfd.teachers import from_uint8, one_hot, to_uint8


def pretrain(
    denoiser: nn.Module,
    data: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    folder: Path,
    identity: Mapping[str, Any],
    total: int,
    batch: int,
    lr: float,
    warmup: int = 0,
    decay_from: float = 1.0,
    ema_images: float,
    label_dropout: float,
    flip: bool = False,
    sigma: Mapping[str, Any],
    seed: int,
    clip: float = 1.0,
    tick: int = 5_000,
    checkpoint: int = 50_000,
    on_tick: Callable[[dict[str, float]], None] | None = None,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[nn.Module, int, float], None] | None = None,
    device: torch.device,
) -> nn.Module:
    """The EMA of a denoiser trained on `data` uint8 `[N, H, W, C]` with `labels [N]`.

    `total`, `warmup` and `ema_images` (a half-life) are counted in images. A share `label_dropout`
    of the images trains the null condition. Image number n of the run draws its data row, flip,
    label dropout, sigma and noise from `(seed, n)` alone. Resumes from `folder`.
    """
    net = denoiser.to(device).train()
    average = state.frozen_copy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    run = state.Run({"net": net, "ema": average}, {"net": optimizer})
    state.restore(run, folder / "state", identity)
    sample_sigma = schedules.sampler(**sigma)

    def step(nimg: int) -> state.Stats:
        rows = state.own_rows(nimg, batch)
        torch.manual_seed(seed + rows.start)  # dropout
        numbers = np.arange(rows.start, rows.stop)
        index = data_order(len(data), numbers, seed)
        u = {k: noise.uniform((seed, "pretrain", k), numbers) for k in ("flip", "drop", "sigma")}
        chosen = data[index]
        if flip:
            chosen = np.where((u["flip"] < 0.5)[:, None, None, None], chosen[:, :, ::-1], chosen)
        dropped = u["drop"] < label_dropout
        cond = one_hot(
            [None if drop else int(labels[i]) for i, drop in zip(index, dropped, strict=True)],
            classes,
            device,
        )
        x0 = from_uint8(np.ascontiguousarray(chosen)).to(device)
        s = sample_sigma(torch.from_numpy(u["sigma"])).to(device)
        eps = noise.normal((seed, "pretrain", "noise"), numbers, tuple(x0.shape[1:]))
        x = x0 + s.reshape(-1, 1, 1, 1) * torch.from_numpy(eps).to(device)
        loss = objectives.dsm_loss(net(x, s, cond), x0, s) / x0[0].numel()
        optimizer.param_groups[0]["lr"] = lr * state.learning_rate(
            nimg, total, warmup=warmup, decay_from=decay_from
        )
        optimizer.zero_grad(set_to_none=True)
        (loss.sum() / batch).backward()
        state.add_gradients(net.parameters())
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        if torch.isfinite(norm):
            optimizer.step()
            state.update_ema(average, net, images=batch, seen=nimg + batch, half_life=ema_images)
        return {"loss": (float(loss.detach().sum()), len(rows)), "grad_norm": (float(norm), 1)}

    state.loop(
        run,
        step=step,
        total=total,
        batch=batch,
        folder=folder,
        identity=identity,
        tick=tick,
        checkpoint=checkpoint,
        snapshots=snapshots,
        on_snapshot=(lambda n, s: on_snapshot(average, n, s)) if on_snapshot else None,
        on_tick=on_tick,
        device=device,
    )
    return average


def run(
    recipe: TeacherRecipe,
    folder: Path,
    *,
    device: torch.device,
    force: bool,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Train a recipe's teacher into `folder`; the file it is in. Resumes; done if it is there.

    Raises ValueError on data that do not fit the recipe.
    """
    file, sha = folder / f"{recipe.name}.safetensors", configs.sha256(recipe)
    state.claim(folder, f"{recipe.name}.safetensors", force=force)
    finished = file.is_file()
    state.barrier()  # before the first of the processes writes another
    if finished:
        _, meta = checkpoints.read_tensors(file)
        if checkpoints.read_card(meta, str(file))["provenance"]["recipe_sha256"] != sha:
            raise ValueError(f"{file}: is of another recipe; give out=FOLDER, or --force")
        return file
    data, labels, _ = images.read_as(recipe.data, recipe.labels)
    keep = ~np.isin(labels, recipe.exclude)
    data, labels = data[keep], labels[keep]
    numbers = recipe.train
    torch.manual_seed(numbers.seed)
    denoiser = teachers.build_denoiser(recipe.network.spec())
    teachers.set_precision(denoiser, numbers.precision)
    shape = (data.shape[3], data.shape[1], data.shape[2])
    _check_fit(denoiser, shape, recipe)
    _check_labels(labels, recipe)

    def sheet(average: nn.Module, nimg: int, seconds: float) -> None:
        columns, classes = 8, len(recipe.labels)
        shown = np.linspace(0, classes - 1, min(classes, sample.ROWS)).astype(int)
        raw = np.repeat(shown, columns).tolist()

        def draw(rows: slice) -> np.ndarray:
            z = sample.initial_noise(np.arange(len(raw))[rows], shape, device)
            cond = one_hot(raw[rows], classes, device, recipe.exclude)
            x0 = solvers.heun(
                lambda x, sigma: average(x, sigma, cond), z, steps=18, sigma_min=0.002,
                sigma_max=80.0,
            )  # fmt: skip
            return to_uint8(x0)

        # no more at once than training holds: it would run out before the state is saved
        drawn = sample.in_batches(draw, len(raw), numbers.batch)
        grid = images.sheet(drawn, columns, scale=max(1, 48 // shape[1]))
        content.write_atomic(folder / f"samples/{nimg:09d}.png", images.png_bytes(grid))

    steps = range(numbers.sheets, numbers.images + 1, numbers.sheets)
    average = pretrain(
        denoiser,
        data,
        labels,
        classes=len(recipe.labels),
        folder=folder,
        identity={"recipe": sha},
        total=numbers.images,
        batch=numbers.batch,
        lr=numbers.lr,
        warmup=numbers.warmup,
        decay_from=numbers.decay_from,
        ema_images=numbers.ema_images,
        label_dropout=numbers.label_dropout,
        flip=numbers.flip,
        sigma=numbers.sigma.model_dump(),
        seed=numbers.seed,
        checkpoint=numbers.checkpoint,
        snapshots=[*steps, numbers.images],
        on_snapshot=sheet,
        on_tick=lambda line: progress("pretrain", int(line["nimg"]), numbers.images),
        device=device,
    )
    card = {
        "schema": "sfd/model/1",
        "role": "teacher",
        "name": recipe.name,
        "spec": recipe.network.spec(),
        "shape": list(shape),
        "labels": recipe.labels,
        "without": recipe.exclude,
        "sigma_range": [0.002, 80.0],
        "sigma_init": 2.5,
        "knows_null": numbers.label_dropout > 0,
        "provenance": {
            **provenance.collect(str(device)),
            "recipe_sha256": sha,
            "data": Path(recipe.data).name,
            "data_rows": len(data),
            "images": numbers.images,
        },
    }
    if state.world()[0] == 0:
        checkpoints.write_model(file, average, card, half=True)
    state.barrier()  # no process returns a file that is not yet whole
    return file


def _check_fit(denoiser: nn.Module, shape: tuple[int, int, int], recipe: TeacherRecipe) -> None:
    """Raises ValueError, before any training, if the network is not for images of this shape."""
    network = recipe.network
    side = network.options.get("img_resolution")
    if side is not None and {side * network.patch} != set(shape[1:]):
        raise ValueError(
            f"{recipe.name}: the network takes {side * network.patch} x {side * network.patch}"
            f" images (img_resolution times patch), the data are {shape[1]} x {shape[2]}"
        )
    x = torch.zeros(1, *shape)
    cond = torch.zeros(1, len(recipe.labels), requires_grad=True)
    try:
        x0 = denoiser(x, torch.ones(1), cond)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{recipe.name}: the network does not fit the data: {first}") from None
    if torch.autograd.grad(x0.sum(), cond, allow_unused=True)[0] is None and len(recipe.labels) > 1:
        raise ValueError(
            f"{recipe.name}: the network does not look at its label, so all {len(recipe.labels)}"
            " classes would be one: say how many in its options (label_dim)"
        )


def _check_labels(labels: np.ndarray, recipe: TeacherRecipe) -> None:
    """Raises ValueError on a class that nothing would teach, and that the card would yet name."""
    there = {*labels.tolist(), *recipe.exclude}
    missing = next((name for i, name in enumerate(recipe.labels) if i not in there), None)
    if missing is not None:
        raise ValueError(f"labels: no image of {missing!r} in the data: exclude it, or add images"
                         " of it")  # fmt: skip


def data_order(size: int, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Data row of each image number: every epoch is a permutation drawn from (seed, epoch)."""
    epochs, places = np.divmod(numbers, size)
    order = np.empty(len(numbers), np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        order[mine] = _ranks(size, seed, int(epoch))[places[mine]]
    return order


@lru_cache(maxsize=2)
def _ranks(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.argsort(noise.uniform((seed, "pretrain", "order", epoch), np.arange(size)))
