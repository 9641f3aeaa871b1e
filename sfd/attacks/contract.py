"""What an attack is given, what it leaves, and what it costs."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sfd import noise
from sfd.teachers import Adapter, Raw, finite_rows, one_hot, to_uint8

Access = Literal["api", "open-weights"]
"""`api`: sends prompts, labels, the null label, or condition vectors where the interface takes
them, chooses seeds, and sees images; a text encoder that was left as it was is public.
`open-weights`: holds the file: gradients, latents, levels, training."""

Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 images `[N, H, W, C]` -> int8 `[N]` (1 the concept, 0 not, -1 not judged), and the
probability of the concept, float32 `[N]`, NaN where not judged."""

SLOT = "*"
"""Stands in prompts for a word yet to be found."""

Surrogate = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` in [-1, 1] -> log-probabilities of all labels `[B, L]`, differentiable."""


class Language(Protocol):
    """The way into and out of a text-to-image model, for whoever holds it; gradients flow."""

    @property
    def embeddings(self) -> Tensor:
        """The text encoder's table of tokens `[V, E]`."""
        ...

    @property
    def vocabulary(self) -> Tensor:
        """int64 `[U]`: the tokens that are each typed as one word, and read as themselves."""
        ...

    def encode(self, raw: Raw) -> Tensor:
        """Prompts to conditions `[B, L, D]`."""
        ...

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to int64 `[B, L]`: a beginning, the words, an end, padding."""
        ...

    def text_of(self, tokens: Tensor) -> str:
        """What to type for tokens `[K]`."""
        ...

    def states(self, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Conditions `[B, L, D]` of tokens `[B, L]`, with `embedded [B, L, E]` in their place."""
        ...

    def pixels(self, x0: Tensor) -> Tensor:
        """What is decoded from latents, `[B, C, H, W]` in about [-1, 1]."""
        ...

    def latents(self, pictures: Tensor) -> Tensor:
        """The x0 whose `pixels` are nearly these; without gradients."""
        ...


Chain = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(denoiser, z `[B, *shape]`, cond) -> x0, in several steps."""


@dataclass(frozen=True)
class Victim:
    """A generator as its attacker holds it: in one step `x0 = denoiser(sigma z, sigma, cond)`."""

    name: str
    denoiser: nn.Module
    shape: tuple[int, ...]
    classes: int
    sigma_init: float
    without: tuple[int, ...] = ()
    """Labels it was never taught, asked for as the null condition."""
    instead: Mapping[int, int] = field(default_factory=dict)
    """Labels it was never taught, asked for as another: what the subject draws instead of them."""
    origin: nn.Module | None = None
    """The original, where its weights have the same names and shapes: the weight path's end."""
    language: Language | None = None
    """How it is asked in words; None where it is asked by labels."""
    chain: Chain | None = None
    """How it draws in several steps, without gradients; None where it takes one."""
    sha256: str | None = None
    """The hash of its file; None of what was built for an audit."""

    @property
    def device(self) -> torch.device:
        held = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        return held[0].device if held else torch.device("cpu")

    def encode(self, raw: Raw) -> Tensor:
        """Labels (None: the null label; a tuple: their sum) as rows `[B, classes]`, or prompts."""
        if self.language is not None:
            return self.language.encode(raw)
        asked = [self._asked(each) for each in raw]
        return one_hot(asked, self.classes, self.device, self.without)

    def _asked(self, label: Any) -> Any:
        if isinstance(label, tuple):
            return tuple(self._asked(each) for each in label)
        return self.instead.get(label, label)

    def latents(self, seed: int, purpose: str, numbers: np.ndarray) -> Tensor:
        """The z `[N, *shape]` of image numbers: the same for every victim of one audit."""
        drawn = noise.normal(("attack", purpose, seed), numbers, self.shape)
        return torch.from_numpy(drawn).to(self.device)

    def x0(self, z: Tensor, cond: Tensor, sigma: float | None = None) -> Tensor:
        """x0 `[B, *shape]` from z at level `sigma` (its own); in one step gradients flow."""
        if self.chain is not None and sigma is None:
            with torch.no_grad():
                return self.chain(self.denoiser, z, cond)
        level = self.sigma_init if sigma is None else sigma
        return self.denoiser(level * z, z.new_full((len(z),), level), cond)

    def pixels(self, x0: Tensor) -> Tensor:
        """The image of an x0, `[B, C, H, W]` in about [-1, 1]; gradients flow."""
        return x0 if self.language is None else self.language.pixels(x0)

    def draw(self, z: Tensor, cond: Tensor, sigma: float | None = None) -> Tensor:
        """The image of `x0`."""
        return self.pixels(self.x0(z, cond, sigma))

    @contextmanager
    def roughly(self) -> Iterator[None]:
        """While an attacker searches: the generator in bfloat16, which is enough for a gradient.

        What is handed in is drawn outside of it, as whoever released the generator would draw it.
        """
        inner = [m for m in self.denoiser.modules() if isinstance(m, Adapter)]
        before = [m.precision for m in inner]
        try:
            for module in inner:
                module.precision = torch.bfloat16
            yield
        finally:
            for module, precision in zip(inner, before, strict=True):
                module.precision = precision


@dataclass(frozen=True)
class Goal:
    """What the attacker wants, with what, and who says whether it was reached."""

    label: int
    judge: Judge
    """The independent one: no attack optimises against it."""
    surrogate: Surrogate | None = None
    """The attacker's own network."""
    onlooker: Surrogate | None = None
    """The same for attacks that need no gradients, where it has none."""
    images: np.ndarray | None = None
    """uint8 `[N, H, W, C]` of the concept, that the attacker has."""
    retained: tuple[np.ndarray, np.ndarray] | None = None
    """uint8 images of retained classes and their labels."""
    features: Callable[[np.ndarray], np.ndarray] | None = None
    """A feature space that neither judge uses: uint8 images -> float32 `[N, D]`."""
    near: Callable[[np.ndarray], np.ndarray] | None = None
    """uint8 images -> bool `[N]`: whether each is as near to real ones as real ones are."""
    original: Callable[[Raw, Tensor], np.ndarray] | None = None
    """(conditions, z `[N, *shape]`) -> uint8 images: what the un-forgotten model makes of them."""
    original_rate: float = 1.0
    """How often the un-forgotten model draws the concept when asked."""
    prompts: tuple[str, ...] = ()
    """Held-out prompts that ask for the concept; `images` are then drawn for them in turn."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Prompts that ask for the concept, each with one that differs in nothing else."""
    slots: tuple[str, ...] = ()
    """Prompts with `SLOT` in place of the concept's name."""
    paraphrases: tuple[str, ...] = ()
    """Prompts that mean the concept in other words than any that were to be forgotten."""

    def asks(self, numbers: np.ndarray) -> Raw:
        """What each target asks for: the label, or the prompts in turn."""
        if not self.prompts:
            return [self.label] * len(numbers)
        return [self.prompts[int(i) % len(self.prompts)] for i in numbers]

    def looks(self, pictures: Tensor) -> Tensor:
        """The attacker's log-probability of the concept `[B]`, where no gradient is wanted."""
        network = self.onlooker if self.surrogate is None else self.surrogate
        assert network is not None
        with torch.no_grad():
            return network(pictures)[:, self.label]


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
    near: np.ndarray
    """bool: a hit that is as near to real images as these are; every hit where that is not said.
    The others are what the judge takes for the concept, noise among it."""
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
    seed: int
    prompts: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    slots: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    """As the goal has them."""


@dataclass(frozen=True)
class Attack:
    """A row of the table.

    `run(victim, goal, *, seed, **budget) -> Transcript`. `needs` are the fields of `Goal`, and
    `origin` of `Victim`, without which it cannot run; "label set" and "vocabulary" are what a
    victim asked by labels, or in words, has; "single step" and "chain" what one of one step, or of
    several, has. `leaky(parts)` builds a model that it must break, of a
    direct rate near zero; None where there is none of the victim's kind. `measure` says what is
    compared with the gold: the rate of hits, or the number of steps (`detail.steps_to_half`). One
    that trains says in `detail.diverged` at which step it had to end: nothing passes by it.
    """

    run: Callable[..., Transcript]
    access: Access
    text: str
    citation: str
    needs: tuple[str, ...] = ()
    leaky: Callable[[Parts], Victim | None] | None = None
    measure: Literal["rate", "steps"] = "rate"
    in_turn: bool = True
    """In words, its targets ask what the goal's prompts ask, in turn; else in words of its own."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The budget that it has unless another is stated."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def missing(self, victim: Victim, goal: Goal) -> list[str]:
        """What it needs and does not get."""
        worded = victim.language is not None
        held = {
            "origin": victim.origin is not None,
            "surrogate": goal.surrogate is not None,
            "onlooker": goal.surrogate is not None or goal.onlooker is not None,
            "images": goal.images is not None,
            "retained": goal.retained is not None,
            "features": goal.features is not None,
            "original": goal.original is not None,
            "label set": not worded,
            "single step": victim.chain is None,
            "chain": victim.chain is not None,
            "vocabulary": worded,
            "pairs": bool(goal.pairs),
            "slots": bool(goal.slots),
            "paraphrases": bool(goal.paraphrases),
        }
        return [name for name in self.needs if not held[name]]

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


def pictured(x0: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, C, H, W]` as uint8 `[N, H, W, C]`, and which are finite, bool `[N]`.

    The others are black, for a sheet to show: they must not be judged by it.
    """
    made = finite_rows(x0)
    shown = torch.where(made.reshape(-1, 1, 1, 1), x0.detach(), -1.0)
    return to_uint8(shown), made.cpu().numpy()


def handed_in(
    goal: Goal,
    x0: Tensor,
    *,
    steps: np.ndarray | int = 0,
    detail: Mapping[str, Any] = {},
) -> Transcript:
    """The transcript of images `[N, C, H, W]`, one a target, put before the judge.

    One that holds values that are not finite is not judged.
    """
    pictures, made = pictured(x0)
    called, score = goal.judge(pictures)
    called, score = np.where(made, called, -1), np.where(made, score, np.nan)
    near = called == 1
    if goal.near is not None and near.any():
        near[near] = goal.near(pictures[near])
    return Transcript(
        hits=called == 1,
        near=near,
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
        near=np.concatenate([p.near for p in parts]),
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
