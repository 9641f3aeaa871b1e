"""Attacks on generators that are asked in words: paraphrases, tokens, pseudo-words."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sfd import noise
from sfd.attacks.contract import SLOT, Goal, Language, Transcript, Victim, chunks, handed_in, joined
from sfd.attacks.probes import Way, best_of
from sfd.attacks.search import ascend, ball, log_probability
from sfd.teachers import from_uint8

Score = Callable[[Tensor, np.ndarray], Tensor]
"""(cond `[B, L, D]`, rows of targets) -> `[B]`, the higher the better; gradients flow."""

TOLD = 16
"""Prompts that a transcript tells of."""


def _draw(victim: Victim) -> Callable[[str, Tensor, np.ndarray], Tensor]:
    def draw(prompt: str, z: Tensor, numbers: np.ndarray) -> Tensor:
        return victim.draw(z, victim.encode([prompt] * len(z)))

    return draw


def paraphrases(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    explore: int = 8,
    batch: int = 250,
) -> Transcript:
    """Every paraphrase of the pack, `explore` times: the best of them, `n` times.

    Black box: the attacker looks at images only.
    """
    ways: list[Way] = [(prompt, prompt) for prompt in goal.paraphrases]
    return best_of(ways, _draw(victim), victim, goal, seed=seed, purpose="phrase", n=n,
                   explore=explore, batch=batch)  # fmt: skip


# --- pseudo-words --------------------------------------------------------------------------------


def textual_inversion(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    steps: int = 60,
    tried: int = 128,
    starts: int = 4,
    learn: int = 8,
    norm: float = 2.0,
    rate: float = 0.2,
    batch: int = 100,
) -> Transcript:
    """One pseudo-word's embedding, in place of the concept's name, climbs the surrogate's mean
    log-probability over `learn` prompts and latents; it is then asked for `n` times on others.

    It climbs from the `starts` words that the surrogate likes best of `tried` of the vocabulary,
    within `norm` of the longest word's length, by steps of `rate` times a word's mean length; the
    best on what it learned from is kept. Others stand in for prompts that do not show it once.
    Raises ValueError where these are most.
    """
    language = language_of(victim)
    words = language.embeddings.detach()
    lengths = words[language.vocabulary].norm(dim=1)
    slot = int(language.tokens([SLOT])[0, 1])
    once = [p for p in goal.slots if int((language.tokens([p]) == slot).sum()) == 1]
    if 2 * len(once) < len(goal.slots):  # intervals are over all prompts, in turn
        raise ValueError(
            f"textual-inversion: {len(once)} of {len(goal.slots)} prompts show {SLOT!r} once as one"
            " token"
        )
    known = set(once)
    asked = [p if p in known else once[i % len(once)] for i, p in enumerate(goal.slots)]

    def draw(vector: Tensor, z: Tensor, numbers: np.ndarray) -> Tensor:
        tokens = language.tokens([asked[int(i) % len(asked)] for i in numbers])
        embedded = torch.where((tokens == slot)[..., None], vector[:, None], words[tokens])
        return victim.draw(z, language.states(tokens, embedded))

    taught = np.arange(n, n + learn)  # others than those it is asked for with
    z = victim.latents(seed, "inverted", taught)

    def score(vectors: Tensor) -> Tensor:
        wide = vectors.repeat_interleave(learn, 0)
        pictures = draw(wide, z.repeat(len(vectors), 1, 1, 1), np.tile(taught, len(vectors)))
        return log_probability(goal, pictures).reshape(-1, learn).mean(1)

    drawn = noise.uniform(("attack", "word", seed), np.arange(len(lengths)))
    candidates = words[language.vocabulary[np.argsort(drawn)[:tried].tolist()]]
    with torch.no_grad(), victim.roughly():
        liked = torch.cat([score(part) for part in candidates.split(16)])
    start = candidates[liked.nan_to_num(nan=-math.inf).topk(min(starts, len(liked))).indices]
    inside = ball(norm * float(lengths.max()))
    with victim.roughly():
        far = rate * float(lengths.mean())
        best, top, first = ascend(start, score, inside, steps=steps, rate=far)
    chosen = int(top.argmax())
    vector = best[chosen]
    parts = []
    with torch.no_grad():
        for numbers in chunks(n, batch):
            fresh = victim.latents(seed, "inverted", numbers)
            pictures = draw(vector.expand(len(fresh), -1), fresh, numbers)
            parts.append(handed_in(goal, pictures, steps=int(first[chosen])))
    near = language.vocabulary[torch.cdist(vector[None], words[language.vocabulary])[0].argmin()]
    length = float(vector.norm() / lengths.max())
    told = {"nearest_word": language.text_of(near[None]), "norm": length}
    return joined(parts, told | {"learned": float(top[chosen])})


# --- tokens --------------------------------------------------------------------------------------


def adversarial_prefix(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 50,
    length: int = 3,
    steps: int = 20,
    tries: int = 8,
    top: int = 32,
    batch: int = 50,
) -> Transcript:
    """With each of `n` latents fixed, `length` words before its prompt climb the surrogate's
    log-probability of the concept (`spell`). What is handed in was typed."""

    def scored(z: Tensor, numbers: np.ndarray) -> Score:
        return lambda cond, rows: log_probability(goal, victim.draw(z[rows], cond))

    return spelled(victim, goal, scored, seed=seed, n=n, length=length, steps=steps, tries=tries,
                    top=top, batch=batch)  # fmt: skip


def matching(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 50,
    length: int = 3,
    steps: int = 20,
    tries: int = 8,
    top: int = 32,
    batch: int = 50,
) -> Transcript:
    """The same search towards what the original draws for the prompt from the same latent, of which
    the generator may have been made: the image's mean square distance falls. No network of the
    attacker's takes part."""
    original = goal.original
    assert original is not None

    def scored(z: Tensor, numbers: np.ndarray) -> Score:
        wanted = from_uint8(original(goal.asks(numbers), z)).to(victim.device)

        def score(cond: Tensor, rows: np.ndarray) -> Tensor:
            return -(victim.draw(z[rows], cond) - wanted[rows]).square().flatten(1).mean(1)

        return score

    return spelled(victim, goal, scored, seed=seed, n=n, length=length, steps=steps, tries=tries,
                    top=top, batch=batch, distance=True)  # fmt: skip


def spelled(
    victim: Victim,
    goal: Goal,
    scored: Callable[[Tensor, np.ndarray], Score],
    *,
    seed: int,
    n: int,
    batch: int,
    known: int | None = None,
    distance: bool = False,
    **search: int,
) -> Transcript:
    """The transcript of `spell`, with its numbers in `search`, on `n` targets by `scored(z,
    numbers)`.

    `known`: of the prompts the first so many alone. `distance`: what is scored is none of a
    network's opinion, and nobody is convinced on the way.
    """
    language = language_of(victim)
    parts, told = [], []
    for numbers in chunks(n, batch):
        asked = goal.asks(numbers if known is None else numbers % known)
        z = victim.latents(seed, "prefix", numbers)
        typed, _, first = spell(
            language,
            [str(prompt) for prompt in asked],
            scored(z, numbers),
            numbers,
            seed=seed,
            **search,
        )
        with torch.no_grad():
            drawn = victim.draw(z, victim.encode(typed))
        made = handed_in(goal, drawn, steps=-1 if distance else first)
        order = np.argsort(-np.nan_to_num(made.score, nan=-1.0), kind="stable")[:TOLD]
        told += [(float(made.score[i]), typed[i]) for i in order]
        parts.append(made)
    told.sort(key=lambda pair: -np.nan_to_num(pair[0], nan=-1.0))
    return joined(parts, {"prompts": [prompt for _, prompt in told[:TOLD]]})


def spell(
    language: Language,
    prompts: Sequence[str],
    score: Score,
    numbers: np.ndarray,
    *,
    seed: int,
    length: int,
    steps: int,
    tries: int,
    top: int,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Prompts with `length` words before each that raise `score(cond [B, L, D], rows) -> [B]`.

    Greedy coordinate search (Zou et al., arXiv 2307.15043, algorithm 1, a row at a time): a step
    takes `tries` exchanges of one word by one of the `top` that the gradient promises most of, and
    keeps the best if it is better. Returns what to type, its score, and the step that first passed
    log 1/2 (-1: never). Scores that are not finite count as no progress.
    """
    words, usable = language.embeddings.detach(), language.vocabulary
    rows = np.arange(len(prompts))
    drawn = [noise.uniform(("attack", "prefix", i, seed), numbers) for i in range(length)]
    at = torch.from_numpy((np.stack(drawn, 1) * len(usable)).astype(np.int64)).to(usable.device)

    def typed(at: Tensor) -> list[str]:
        return [f"{language.text_of(usable[row])} {prompt}"
                for row, prompt in zip(at, prompts, strict=True)]  # fmt: skip

    def valued(at: Tensor) -> Tensor:
        with torch.no_grad():
            return score(language.states(language.tokens(typed(at))), rows).nan_to_num(
                -math.inf, -math.inf, -math.inf
            )

    each = torch.arange(len(prompts), device=at.device)
    best = valued(at)
    first = np.where(best.cpu().numpy() > math.log(0.5), 0, -1)
    for step in range(1, steps + 1):
        tokens = language.tokens(typed(at))
        embedded = words[tokens].requires_grad_()
        value = score(language.states(tokens, embedded), rows)
        (gradient,) = torch.autograd.grad(value.sum(), embedded)
        # what the exchange of a word promises to first order; a beginning stands before the words
        promise = gradient[:, 1 : length + 1].nan_to_num(0.0, 0.0, 0.0) @ words[usable].T
        ranked = promise.topk(min(top, len(usable)), dim=2).indices
        before, leading = best, at
        for number in range(tries):
            place, rank = (
                noise.uniform(("attack", what, step, number, seed), numbers)
                for what in ("place", "rank")
            )
            where = torch.from_numpy((place * length).astype(np.int64)).to(at.device)
            which = torch.from_numpy((rank * ranked.shape[2]).astype(np.int64)).to(at.device)
            other = at.clone()
            other[each, where] = ranked[each, where, which]
            now = valued(other)
            better = now > best
            best = torch.where(better, now, best)
            leading = torch.where(better[:, None], other, leading)
        at = leading
        passed = (before <= math.log(0.5)) & (best > math.log(0.5))
        first[(first < 0) & passed.cpu().numpy()] = step
    return typed(at), best.cpu().numpy(), first


# --- concept vectors -----------------------------------------------------------------------------


def concept_vector(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    explore: int = 16,
    prompts: int = 8,
    length: int = 8,
    population: int = 64,
    generations: int = 60,
    mutation: float = 0.2,
    batch: int = 250,
) -> Transcript:
    """`length` words whose states are those of a prompt with the concept's vector added: the best
    of what is found from `prompts` held-out prompts at strengths 0, 1, 2 and 3, `n` times.

    The vector is the mean difference that naming the concept makes (Ring-A-Bell, arXiv 2310.10012,
    eq. 3); words are found by a genetic search (eq. 5) in the text encoder alone. Black box: the
    attacker looks at images only.
    """
    language = language_of(victim)
    with torch.no_grad():
        within, without = (language.encode(list(s)) for s in zip(*goal.pairs, strict=True))
        vector = (within - without).mean(0)
        asked = [str(prompt) for prompt in goal.asks(np.arange(prompts))]
        wanted = torch.cat([language.encode(asked) + k * vector for k in STRENGTHS])
        found = evolve(language, wanted, seed=seed, length=length, population=population,
                       generations=generations, mutation=mutation)  # fmt: skip
    ways: list[Way] = [(prompt, prompt) for prompt in dict.fromkeys(found)]
    return best_of(ways, _draw(victim), victim, goal, seed=seed, purpose="vector", n=n,
                   explore=explore, batch=batch)  # fmt: skip


STRENGTHS = (0.0, 1.0, 2.0, 3.0)


@torch.no_grad()
def evolve(
    language: Language,
    wanted: Tensor,
    *,
    seed: int,
    length: int,
    population: int,
    generations: int,
    mutation: float,
) -> list[str]:
    """For each of states `[P, L, D]` the `length` words found whose own states are the nearest.

    A genetic search: the better half survives; children take the beginning of one survivor and the
    end of another, and a share `mutation` of their words is new.
    """
    usable, count = language.vocabulary, len(wanted)
    size = (count, population, length)

    def random(what: str, generation: int) -> Tensor:
        drawn = noise.uniform(("attack", what, generation, seed), np.arange(np.prod(size)))
        return torch.from_numpy(drawn.reshape(size)).to(usable.device)

    empty = language.tokens([""])[0]
    if length + 2 > len(empty):
        raise ValueError(f"concept-vector: length={length} is beyond the {len(empty) - 2} words"
                         " that the text encoder reads")  # fmt: skip

    def distance(at: Tensor) -> Tensor:
        tokens = empty.repeat(at.shape[0] * at.shape[1], 1)
        tokens[:, 1 : length + 1] = usable[at.reshape(-1, length)]
        tokens[:, length + 1] = empty[1]
        parts = [
            (language.states(part).reshape(-1, at.shape[1], *wanted.shape[1:]) - goal[:, None])
            .square().flatten(2).sum(2)
            for part, goal in zip(tokens.split(at.shape[1]), wanted.split(1), strict=True)
        ]  # fmt: skip
        return torch.cat(parts)

    at = (random("first", 0) * len(usable)).long()
    far = distance(at)
    half = population // 2
    for generation in range(1, generations + 1):
        order = torch.argsort(far, dim=1, stable=True)[:, :half]
        alive = at.gather(1, order[..., None].expand(-1, -1, length))
        u = random("parents", generation)[:, half:]
        mother, father = ((u[..., i] * half).long() for i in (0, -1))
        cut = 1 + (random("cut", generation)[:, half:, :1] * (length - 1)).long()
        ends = torch.arange(length, device=at.device) >= cut
        one, other = (alive.gather(1, p[..., None].expand(-1, -1, length))
                      for p in (mother, father))  # fmt: skip
        child = torch.where(ends, other, one)
        new = (random("new", generation)[:, half:] * len(usable)).long()
        child = torch.where(random("mutate", generation)[:, half:] < mutation, new, child)
        at = torch.cat([alive, child], 1)
        far = torch.cat([far.gather(1, order), distance(child)], 1)
    nearest = at[torch.arange(count, device=at.device), far.argmin(1)]
    return [language.text_of(usable[row]) for row in nearest]


def language_of(victim: Victim) -> Language:
    assert victim.language is not None
    return victim.language
