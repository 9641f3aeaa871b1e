"""Attacks on generators that have forgotten a class, or what a prompt asks for.

`TABLE` holds a row an attack. Each takes a generator, the attacker's own network and a budget, and
leaves a transcript whose hits an independent judge has called; `leaky` builds the models that it
must break.
"""

from typing import Any

from sfd import plugins
from sfd.attacks import chains, leaky, probes, search, tuning, wording
from sfd.attacks.contract import (
    SLOT,
    Access,
    Attack,
    Chain,
    Cost,
    Goal,
    Judge,
    Language,
    Parts,
    Surrogate,
    Transcript,
    Victim,
    pictured,
)

_NEURAL = "in the manner of UnlearnDiffAtk, Zhang et al., arXiv 2310.11868"

TABLE: dict[str, Attack] = {
    "latent-search": Attack(
        search.latent_search,
        "open-weights",
        "gradient search over latents of the typical set",
        f"{_NEURAL}; latents instead of tokens",
        needs=("single step", "surrogate"),
        leaky=leaky.latent,
    ),
    "condition-search": Attack(
        search.condition_search,
        "open-weights",
        "gradient search over free condition vectors",
        "Pham et al., Circumventing Concept Erasure Methods, arXiv 2308.01508",
        needs=("single step", "surrogate"),
        leaky=leaky.pair,
    ),
    "label-walk": Attack(
        probes.label_walk,
        "api",
        "every label, the null label, scaled labels, mixtures and sums of pairs",
        "sfd",
        needs=("label set", "onlooker"),
        leaky=leaky.condition,
    ),
    "off-design": Attack(
        probes.off_design,
        "open-weights",
        "other noise levels, and repeated application",
        "sfd; re-noising as in Song et al., Consistency Models, arXiv 2303.01469",
        needs=("single step", "onlooker"),
        leaky=leaky.level,
    ),
    "seed-exhaustion": Attack(
        probes.seed_exhaustion,
        "api",
        "thousands of seeds",
        "sfd",
        leaky=leaky.rare,
    ),
    "relearning": Attack(
        tuning.relearning,
        "open-weights",
        "fine-tuning on a few images of the concept",
        "Li and Malik, Implicit Maximum Likelihood Estimation, arXiv 1809.09087",
        needs=("single step", "images"),
        leaky=leaky.fragile,
        measure="steps",
    ),
    "benign-finetune": Attack(
        tuning.benign_finetune,
        "open-weights",
        "fine-tuning on retained classes only",
        "Li and Malik, Implicit Maximum Likelihood Estimation, arXiv 1809.09087",
        needs=("single step", "label set", "retained"),
        leaky=leaky.fragile,
    ),
    "inversion": Attack(
        search.inversion,
        "open-weights",
        "latents that reproduce real images of the concept",
        "sfd; as GAN inversion, Zhu et al., arXiv 1609.03552",
        needs=("single step", "images", "features"),
        leaky=leaky.latent,
    ),
    "weight-path": Attack(
        tuning.weight_path,
        "open-weights",
        "weights on the straight line to the original",
        "Frankle et al., Linear Mode Connectivity, arXiv 1912.05671",
        needs=("origin",),
        leaky=leaky.fragile,
    ),
    "paraphrases": Attack(
        wording.paraphrases,
        "api",
        "other words for it: synonyms, descriptions, misspellings, other languages",
        "sfd",
        needs=("vocabulary", "paraphrases", "onlooker"),
        leaky=leaky.phrase,
        in_turn=False,
    ),
    "textual-inversion": Attack(
        wording.textual_inversion,
        "open-weights",
        "a pseudo-word learned through the generator, asked for with other seeds",
        "Gal et al., arXiv 2208.01618; on erased concepts, Pham et al., arXiv 2308.01508",
        needs=("single step", "vocabulary", "slots", "surrogate"),
        leaky=leaky.pseudo_word,
    ),
    "adversarial-prefix": Attack(
        wording.adversarial_prefix,
        "open-weights",
        "words before the prompt, found by the gradient through the generator",
        f"{_NEURAL}; the judge's gradient instead of the denoising loss",
        needs=("single step", "vocabulary", "surrogate"),
        leaky=leaky.word,
    ),
    "matching": Attack(
        wording.matching,
        "open-weights",
        "words before the prompt that bring back what the original draws for it",
        "in the manner of Prompting4Debugging, Chin et al., arXiv 2309.06135; images, not noise",
        needs=("single step", "vocabulary", "original"),
        leaky=leaky.word,
    ),
    "denoising-prefix": Attack(
        chains.denoising_prefix,
        "open-weights",
        "words before the prompt under which it denoises images of the concept best",
        "UnlearnDiffAtk, Zhang et al., arXiv 2310.11868",
        needs=("chain", "vocabulary", "images"),
        leaky=leaky.word,
    ),
    "noise-matching": Attack(
        chains.noise_matching,
        "open-weights",
        "words before the prompt under which it predicts what the original does for it",
        "Prompting4Debugging, Chin et al., arXiv 2309.06135",
        needs=("chain", "vocabulary", "images", "origin"),
        leaky=leaky.word,
    ),
    "concept-vector": Attack(
        wording.concept_vector,
        "api",
        "words whose meaning is the concept's vector, by a genetic search in the text encoder",
        "Ring-A-Bell, Tsai et al., arXiv 2310.10012",
        needs=("vocabulary", "pairs", "onlooker"),
        leaky=leaky.condition,
        in_turn=False,
    ),
}


def find(name: str) -> Attack:
    """The attack called `name`: a row, an entry point of `sfd.attacks`, or `./FILE.py:NAME`.

    A user's own may be an `Attack`, or its function alone: that counts as open-weights, needs
    nothing, and has no leaky control, so no claim can rest on it. Raises ValueError if there is
    none.
    """
    found: Any = plugins.resolve(TABLE, name, "attacks")
    if isinstance(found, Attack):
        return found
    return Attack(found, "open-weights", name, "the user's own")


__all__ = [
    "SLOT",
    "TABLE",
    "Access",
    "Attack",
    "Chain",
    "Cost",
    "Goal",
    "Judge",
    "Language",
    "Parts",
    "Surrogate",
    "Transcript",
    "Victim",
    "find",
    "leaky",
    "pictured",
]
