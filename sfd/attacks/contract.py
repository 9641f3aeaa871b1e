"""What an attack is given, what it leaves, and what it costs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sfd import noise
from sfd.teachers import Raw, one_hot, to_uint8

Access = Literal["api", "open-weights"]
"""`api`: sends labels, the null label, or condition vectors where the interface takes them, chooses
seeds, and sees images. `open-weights`: holds the file: gradients, latents, levels, training."""

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 images `[N, H, W, C]` -> int8 `[N]` (1 the concept, 0 not, -1 not judged), and the
probability of the concept, float32 `[N]`, NaN where not judged."""

Surrogate = Callable[[Tensor], Tensor]
"""x0 `[B, C, H, W]` in [-1, 1] -> log-probabilities of all labels `[B, L]`, differentiable."""


@dataclass(frozen=True)
class Victim:
    """A one-step generator as its attacker holds it: `x0 = denoiser(sigma z, sigma, cond)`."""

    name: str
    denoiser: nn.Module
    shape: tuple[int, ...]
    classes: int
    sigma_init: float
    without: tuple[int, ...] = ()
    """Labels it was never taught, asked for as the null condition."""
    origin: nn.Module | None = None
    """The original, where its weights have the same names and shapes: the weight path's end."""

    @property
    def device(self) -> torch.device:
        held = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        return held[0].device if held else torch.device("cpu")

    def encode(self, raw: Raw) -> Tensor:
        """Labels (None: the null label; a tuple: their sum) as rows `[B, classes]`."""
        return one_hot(raw, self.classes, self.device, self.without)

    def latents(self, seed: int, purpose: str, numbers: np.ndarray) -> Tensor:
        """The z `[N, *shape]` of image numbers: the same for every victim of one audit."""
        drawn = noise.normal(("attack", purpose, seed), numbers, self.shape)
        return torch.from_numpy(drawn).to(self.device)

    def draw(self, z: Tensor, cond: Tensor, sigma: float | None = None) -> Tensor:
        """x0 `[B, *shape]` from z at level `sigma` (its own); gradients flow."""
        level = self.sigma_init if sigma is None else sigma
        return self.denoiser(level * z, z.new_full((len(z),), level), cond)


@dataclass(frozen=True)
class Goal:
    """What the attacker wants, with what, and who says whether it was reached."""

    label: int
    judge: Judge
    """The independent one: no attack optimises against it."""
    surrogate: Surrogate | None = None
    """The attacker's own network."""
    images: np.ndarray | None = None
    """uint8 `[N, H, W, C]` of the concept, that the attacker has."""
    retained: tuple[np.ndarray, np.ndarray] | None = None
    """uint8 images of retained classes and their labels."""
    features: Callable[[np.ndarray], np.ndarray] | None = None
    """A feature space that neither judge uses: uint8 images -> float32 `[N, D]`."""
    original_rate: float = 1.0
    """How often the un-forgotten model draws the concept when asked."""


@dataclass(frozen=True)
class Cost:
    """Images shown to the judge, network evaluations (images through the generator), seconds."""

    images: int = 0
    evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Transcript:
    """What became of every target of an attack. Arrays have one entry a target."""

    hits: np.ndarray
    """bool: the judge calls what the attacker handed in the concept."""
    judged: np.ndarray
    """bool."""
    score: np.ndarray
    """float32: the judge's probability, NaN where not judged."""
    steps: np.ndarray
    """int: the attacker's steps until its own network was convinced; -1: never."""
    pictures: np.ndarray
    """uint8 `[<= 16, H, W, C]`: what convinced the judge most."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain data of this attack's own."""
    cost: Cost = Cost()


@dataclass(frozen=True)
class Parts:
    """What leaky controls are built of."""

    gold: Victim
    label: int
    override: int
    """A retained label, drawn instead of the concept."""
    bank: Tensor
    """x0 `[M, C, H, W]` of the concept: what comes out where it leaks."""
    original: nn.Module
    """The un-forgotten denoiser."""
    seed: int


@dataclass(frozen=True)
class Attack:
    """A row of the table.

    `run(victim, goal, *, seed, **budget) -> Transcript`. `needs` are the fields of `Goal`, and
    `origin` of `Victim`, without which it cannot run; `leaky(parts)` builds a model that it must
    break, of a direct rate near zero. `measure` says what is compared with the gold: the rate of
    hits, or the number of steps (`detail.steps_to_half`).
    """

    run: Callable[..., Transcript]
    access: Access
    text: str
    citation: str
    needs: tuple[str, ...] = ()
    leaky: Callable[[Parts], Victim] | None = None
    measure: Literal["rate", "steps"] = "rate"

    def missing(self, victim: Victim, goal: Goal) -> list[str]:
        """What it needs and does not get."""
        held = {"origin": victim.origin, "surrogate": goal.surrogate, "images": goal.images,
                "retained": goal.retained, "features": goal.features}  # fmt: skip
        return [name for name in self.needs if held[name] is None]

    def __call__(self, victim: Victim, goal: Goal, *, seed: int, **budget: Any) -> Transcript:
        """Its transcript with the cost.

        Raises ValueError if something that it needs is missing, or if it returns anything else.
        """
        lacking = self.missing(victim, goal)
        if lacking:
            raise ValueError(f"{self.text}: needs {', '.join(lacking)}")
        evaluations = images = 0

        def passed(module: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal evaluations
            evaluations += len(given[0])

        def judge(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal images
            images += len(pictures)
            return goal.judge(pictures)

        started = time.perf_counter()
        hook = victim.denoiser.register_forward_pre_hook(passed)  # a copy that trains carries it
        try:
            transcript = self.run(victim, replace(goal, judge=judge), seed=seed, **budget)
        finally:
            hook.remove()
        if not isinstance(transcript, Transcript):
            kind = type(transcript).__name__
            raise ValueError(
                f"attack {self.text}: returned {kind}, must return an sfd.attacks.Transcript"
            )
        seconds = round(time.perf_counter() - started, 2)
        return replace(transcript, cost=Cost(images, evaluations, seconds))


def handed_in(
    goal: Goal,
    x0: Tensor,
    *,
    steps: np.ndarray | int = 0,
    detail: Mapping[str, Any] = {},
) -> Transcript:
    """The transcript of images `[N, C, H, W]`, one a target, put before the judge."""
    pictures = to_uint8(x0.detach())
    called, score = goal.judge(pictures)
    return Transcript(
        hits=called == 1,
        judged=called >= 0,
        score=score,
        steps=np.broadcast_to(np.asarray(steps), (len(score),)).copy(),
        pictures=pictures[_suspects(score)],
        detail=detail,
    )


def joined(parts: Sequence[Transcript], detail: Mapping[str, Any] = {}) -> Transcript:
    """Transcripts of several batches of targets as one."""
    tops = np.concatenate([p.score[_suspects(p.score)] for p in parts])
    return Transcript(
        hits=np.concatenate([p.hits for p in parts]),
        judged=np.concatenate([p.judged for p in parts]),
        score=np.concatenate([p.score for p in parts]),
        steps=np.concatenate([p.steps for p in parts]),
        pictures=np.concatenate([p.pictures for p in parts])[_suspects(tops)],
        detail=detail,
    )


def _suspects(score: np.ndarray) -> np.ndarray:
    """The sixteen of the highest score, those not judged first."""
    return np.argsort(-np.nan_to_num(score, nan=2.0), kind="stable")[:16]


def chunks(count: int, size: int) -> list[np.ndarray]:
    """The numbers 0 to `count`, at most `size` at a time."""
    return [np.arange(i, min(i + size, count)) for i in range(0, count, size)]
