"""A pipeline of several steps that a word was erased from, to try the audit on a rival's model.

ESD (Gandikota et al., arXiv 2303.07345, eq. 4): the denoiser learns to answer the concept's name as
the original does without it, minus `STRENGTH` times what it adds. In our own lines, not the
published code's: images to be noised are the model's own, drawn anew each `DRAWN` steps.

`python eval/benchmarks/erased.py TEACHER CONCEPT OUT [--learn cross|all] [--steps N]` writes OUT, a
diffusers folder, and prints how often the judge still finds the concept at its prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

from sfd import classifiers, concepts, noise, solvers
from sfd.eval import judging
from sfd.teachers import guided, stable_diffusion

STRENGTH, BATCH, DRAWN, LOOK, GUIDANCE, CHAIN = 1.0, 16, 50, 100, 1.5, 13

parser = argparse.ArgumentParser()
parser.add_argument("teacher", help="a pipeline that the package carries, or a folder")
parser.add_argument("concept")
parser.add_argument("out", type=Path)
parser.add_argument("--learn", choices=["cross", "all"], default="cross")
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--rate", type=float, default=2e-4)
arguments = parser.parse_args()

folder = stable_diffusion.embedded(arguments.teacher) or Path(arguments.teacher)
teacher = stable_diffusion.load(folder, device=torch.device("cpu"))
(concept,) = concepts.load_prompts([arguments.concept])
judge = classifiers.load(concept.classifier)
called = judging.judged_by(judge, judge.card.labels.index(concept.label_name))
low, high = teacher.sigma_range
null = teacher.encode([None])
net = teacher.make_student().train(False)
own = [
    parameter.requires_grad_()
    for name, parameter in net.named_parameters()
    if arguments.learn == "all" or ".attn2." in name
]
optimizer = torch.optim.Adam(own, lr=arguments.rate)


def drawn(what: str, numbers: np.ndarray, prompts: Sequence[str]) -> torch.Tensor:
    """Latents of the model as it is now, for prompts drawn of these."""
    u = noise.uniform(("erased", what, "prompt"), numbers)
    cond = teacher.encode([prompts[int(i)] for i in u * len(prompts)])
    z = torch.from_numpy(noise.normal(("erased", what), numbers, teacher.shape))
    predict = guided(net, null, GUIDANCE)
    return solvers.heun(
        lambda x, s: predict(x, s, cond), z, steps=CHAIN, sigma_min=low, sigma_max=high
    )


word = concept.label_name
asked = teacher.encode([word] * BATCH)
without = null.expand_as(asked)
bank = torch.empty(0)
for step in range(arguments.steps + 1):
    if step % LOOK == 0:
        hits, _ = called(teacher.decode(drawn("look", np.arange(100), concept.forget)))
        print(f"{step}: {word} in {(hits == 1).mean():.0%}", flush=True)
    if step == arguments.steps:
        break
    if step % DRAWN == 0:
        bank = drawn("bank", step + np.arange(4 * BATCH), [word])
    numbers = step * BATCH + np.arange(BATCH)
    which = torch.from_numpy(noise.uniform(("erased", "which"), numbers) * len(bank)).long()
    level = noise.uniform(("erased", "level"), numbers)
    sigma = torch.from_numpy(np.exp(np.log(low) + level * np.log(high / low))).float()
    s = sigma[:, None, None, None]
    fresh = torch.from_numpy(noise.normal(("erased", "noise"), numbers, teacher.shape))
    x = bank[which] + s * fresh
    with torch.no_grad():
        plain = teacher.denoiser(x, sigma, without)
        added = teacher.denoiser(x, sigma, asked) - plain
    loss = ((net(x, sigma, asked) - plain + STRENGTH * added) / s).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

pipeline: Any = StableDiffusionPipeline.from_pretrained(
    folder, safety_checker=None, local_files_only=True, use_safetensors=True
)
denoiser: Any = net.model
pipeline.unet.load_state_dict(denoiser.state_dict())
pipeline.save_pretrained(arguments.out)
