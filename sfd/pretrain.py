"""Train a class-conditional EDM teacher from labelled images (arXiv 2206.00364).

The images are real ones, or another teacher's own.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from sfd.configs import Drawing, SettledRecipe, TeacherRecipe
from sfd.teachers import Teacher, from_uint8, one_hot, to_uint8

DRAWN = "drawn"
"""Where a settled teacher's images lie in its folder."""

PART = 500
"""Images of them that are written at once."""


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


@dataclass(frozen=True)
class Lesson:
    """What a teacher learns from, and as what network."""

    denoiser: nn.Module
    """With the weights that it starts from."""
    spec: dict[str, Any]
    data: np.ndarray
    """uint8 `[N, H, W, C]`."""
    labels: np.ndarray
    """`[N]`."""
    names: Sequence[str]
    without: Sequence[int]
    """Labels of which there are no images."""
    source: dict[str, Any]
    """Where the images are from, for the record."""
    sigma_range: tuple[float, float] = (0.002, 80.0)
    sigma_init: float = 2.5

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, C x H x W."""
        return (self.data.shape[3], self.data.shape[1], self.data.shape[2])


def run(
    recipe: TeacherRecipe | SettledRecipe,
    folder: Path,
    *,
    device: torch.device,
    force: bool,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Train a recipe's teacher into `folder`; the file it is in. Resumes; done if it is there.

    Raises ValueError on data, or a teacher, that do not fit the recipe.
    """
    file, sha = folder / f"{recipe.name}.safetensors", configs.sha256(recipe)
    state.claim(folder, f"{recipe.name}.safetensors", DRAWN, force=force)
    if file.is_file():
        meta = checkpoints.read_meta(file)
        if checkpoints.read_card(meta, str(file))["provenance"]["recipe_sha256"] != sha:
            raise ValueError(f"{file}: is of another recipe; give out=FOLDER, or --force")
        return file
    numbers = recipe.train
    if isinstance(recipe, SettledRecipe):
        lesson = _drawn_lesson(recipe, folder, device=device, progress=progress)
    else:
        lesson = _lesson(recipe)
    shape, names = lesson.shape, lesson.names
    denoiser = lesson.denoiser
    teachers.set_precision(denoiser, numbers.precision)

    def sheet(average: nn.Module, nimg: int, seconds: float) -> None:
        columns, seeds = 8, np.arange(8 * len(names))
        z = sample.initial_noise(seeds, shape, device)
        raw = np.repeat(np.arange(len(names)), columns).tolist()
        cond = one_hot(raw, len(names), device, lesson.without)
        low, high = lesson.sigma_range
        x0 = solvers.heun(
            lambda x, sigma: average(x, sigma, cond), z, steps=18, sigma_min=low, sigma_max=high
        )
        grid = images.sheet(to_uint8(x0), columns, scale=max(1, 48 // shape[1]))
        content.write_atomic(folder / f"samples/{nimg:09d}.png", images.png_bytes(grid))

    steps = range(numbers.sheets, numbers.images + 1, numbers.sheets)
    average = pretrain(
        denoiser,
        lesson.data,
        lesson.labels,
        classes=len(names),
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
        "spec": lesson.spec,
        "shape": list(shape),
        "labels": list(names),
        "without": list(lesson.without),
        "sigma_range": list(lesson.sigma_range),
        "sigma_init": lesson.sigma_init,
        "provenance": {
            **provenance.collect(str(device)),
            "recipe_sha256": sha,
            **lesson.source,
            "data_rows": len(lesson.data),
            "images": numbers.images,
        },
    }
    checkpoints.write_model(file, average, card, half=True)
    return file


def _lesson(recipe: TeacherRecipe) -> Lesson:
    """Real images, and a network of the recipe's seed."""
    data, labels, _ = images.read_as(recipe.data, recipe.labels)
    keep = ~np.isin(labels, recipe.exclude)
    torch.manual_seed(recipe.train.seed)
    spec = recipe.network.spec()
    lesson = Lesson(
        teachers.build_denoiser(spec), spec, data[keep], labels[keep], recipe.labels,
        recipe.exclude, {"data": Path(recipe.data).name},
    )  # fmt: skip
    _check_fit(lesson, recipe)
    return lesson


def _drawn_lesson(
    recipe: SettledRecipe,
    folder: Path,
    *,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> Lesson:
    """The teacher's own guided images, and its own network."""
    teacher = teachers.load(**dict(recipe.teacher), device=device)
    if not teacher.labels:
        raise ValueError(f"{recipe.name}: {teacher.name} is asked in words; only teachers of"
                         " classes are settled")  # fmt: skip
    teachers.check_released(teacher, teacher.name)
    data, labels = draw(teacher, recipe.draw, recipe.train.precision, folder, progress=progress)
    source = {"data": f"drawn by {teacher.name}", "teacher_sha256": teacher.sha256}
    denoiser = teacher.make_student().requires_grad_(True)
    return Lesson(denoiser, teacher.spec, data, labels, teacher.labels, teacher.without, source,
                  teacher.sigma_range, teacher.sigma_init)  # fmt: skip


def draw(
    teacher: Teacher,
    plan: Drawing,
    precision: str,
    folder: Path,
    *,
    progress: Callable[[str, int, int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, H, W, C]` of a teacher, the labels it was taught in turn, and these `[N]`.

    They are written to `folder` a part at a time, by what they were drawn with: what is there is
    not drawn again.
    """
    teachers.set_precision(teacher.denoiser, precision)
    generate = sample.teacher_sampler(
        teacher, solver=plan.solver, steps=plan.steps, sigma_min=plan.sigma_min,
        guidance=plan.guidance,
    )  # fmt: skip
    taught = [i for i in range(len(teacher.labels)) if i not in teacher.without]
    labels = np.resize(taught, plan.images)
    key = content.hash_json({**plan.model_dump(exclude={"images"}), "teacher": teacher.sha256,
                             "precision": precision})[:12]  # fmt: skip
    parts = []
    for start in range(0, plan.images, PART):
        seeds = np.arange(start, min(start + PART, plan.images))
        path = folder / DRAWN / f"{key}-{start:08d}-{len(seeds)}.npy"
        if not path.is_file():
            buffer = io.BytesIO()
            np.save(buffer, generate(labels[seeds].tolist(), seeds))
            content.write_atomic(path, buffer.getvalue())
        parts.append(np.load(path))
        progress("draw", int(seeds[-1]) + 1, plan.images)
    return np.concatenate(parts), labels


def _check_fit(lesson: Lesson, recipe: TeacherRecipe) -> None:
    """Raises ValueError, before any training, if the network is not for images of this shape."""
    network, shape = recipe.network, lesson.shape
    side = network.options.get("img_resolution")
    if side is not None and {side * network.patch} != set(shape[1:]):
        raise ValueError(
            f"{recipe.name}: the network takes {side * network.patch} x {side * network.patch}"
            f" images (img_resolution times patch), the data are {shape[1]} x {shape[2]}"
        )
    x, cond = torch.zeros(1, *shape), torch.zeros(1, len(recipe.labels))
    try:
        with torch.no_grad():
            lesson.denoiser(x, torch.ones(1), cond)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{recipe.name}: the network does not fit the data: {first}") from None


def data_order(size: int, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Data row of each image number: every epoch is a permutation drawn from (seed, epoch)."""
    epochs, places = np.divmod(numbers, size)
    order = np.empty(len(numbers), np.int64)
    for epoch in np.unique(epochs):
        ranks = np.argsort(noise.uniform((seed, "pretrain", "order", int(epoch)), np.arange(size)))
        mine = epochs == epoch
        order[mine] = ranks[places[mine]]
    return order
