"""One training step on a UNet of Stable Diffusion 1.5's shape: memory against `sfd plan`, seconds.

`python eval/benchmarks/text_step.py [--out RESULT.json]`. On CUDA the full network (random weights,
64 x 64 latents, bf16) with adapters, then with all parameters if the card holds them; on a CPU a
fifth of the width at 32 x 32. Each mode runs in a process of its own. Memory is CUDA's peak of
allocated bytes, or on a CPU the most bytes of tensors alive at once (kernels' workspaces are not
seen there).
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from sfd import forgetting, objectives, plan, provenance, teachers, train
from sfd.teachers import Teacher, lora

CUDA = torch.cuda.is_available()
WIDTH, SIDE, EMBEDDING = (320, 64, 768) if CUDA else (64, 32, 768)
BATCH = 2
GUIDANCE = {"train": 4.5, "fake": 4.5, "target": 4.5}
ADAPTERS = {"rank": 64 if CUDA else 16, "alpha": 64.0}
MODES = {
    "adapters": {"adapters": ADAPTERS, "checkpointing": True},
    "full": {"adapters": None, "checkpointing": True},
}
SPEC = {
    "kind": "stable-diffusion",
    "prediction": "epsilon",
    "betas": {"name": "scaled_linear", "start": 0.00085, "end": 0.012, "steps": 1000},
    "config": {
        "sample_size": SIDE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH],
        "layers_per_block": 2,
        "cross_attention_dim": EMBEDDING,
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
}


def measure(mode: str) -> dict:
    """Run two steps; the memory and the second one's seconds."""
    options = MODES[mode]
    phases = objectives.sid(sigma_init=2.5, alpha=1.0)
    shape = plan.Shape(SPEC, (4, SIDE, SIDE), (77, EMBEDDING), 2.5, (0.03, 14.6))
    planned = plan.memory(
        shape,
        phases,
        batch=BATCH,
        precision="bf16",
        guidance=GUIDANCE,
        fused=CUDA,
        **options,
    )
    device = torch.device("cuda" if CUDA else "cpu")
    denoiser = teachers.build_denoiser(SPEC).eval().requires_grad_(False).to(device)
    teachers.checkpoint_activations(denoiser)
    if options["adapters"]:
        student, fake = (lora.adapted(denoiser, seed=s, **ADAPTERS) for s in (0, 1))
    else:
        student, fake = (copy.deepcopy(denoiser).requires_grad_(True) for _ in range(2))
    for net in (denoiser, student, fake):
        teachers.set_precision(net, "bf16")
    rows = torch.randn(8, 77, EMBEDDING, device=device)
    teacher = Teacher(
        name="random",
        denoiser=denoiser,
        encode=lambda raw: rows[[0 if r is None else r for r in raw]],
        make_student=lambda: student,
        shape=(4, SIDE, SIDE),
        labels=(),
        spec=SPEC,
        sha256="",
    )
    null = teacher.encode([None])
    guided = replace(teacher, denoiser=teachers.guided(denoiser, null, GUIDANCE["target"]))
    ticks: list[float] = []
    weights = sum(planned[role] for role in ("teacher", "student", "fake"))
    with tempfile.TemporaryDirectory() as folder, plan.Peak() as peak:
        train.train(
            teacher, forgetting.none(guided, []), phases, student=student, fake=fake,
            guidance_train=GUIDANCE["train"], guidance_fake=GUIDANCE["fake"],
            retained=list(range(8)), concepts=[], share=0.0, weight_student=1.0, weight_fake=1.0,
            total=2 * BATCH, batch=BATCH, lr_student=1e-6, lr_fake=3e-6, ema_images=100.0, seed=0,
            folder=Path(folder), identity={}, tick=BATCH, checkpoint=10**9, device=device,
            on_tick=lambda line: ticks.append(time.perf_counter()),
        )  # fmt: skip
    used = torch.cuda.max_memory_allocated() if CUDA else weights + peak.most
    return {"planned": planned, "measured_bytes": used, "ratio": used / planned["total"],
            "seconds_a_step": ticks[1] - ticks[0]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode)))
        return
    found = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--mode", mode]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[mode] = (
            json.loads(done.stdout.splitlines()[-1])
            if done.returncode == 0
            else {"failed": done.stderr.strip().splitlines()[-1]}
        )
    result = {
        "what": "one training step on SD 1.5's shape, against sfd plan",
        "command": "python eval/benchmarks/text_step.py",
        "width": WIDTH,
        "latents": SIDE,
        "batch": BATCH,
        "modes": found,
        "provenance": provenance.collect("cuda" if CUDA else "cpu"),
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if any("failed" in row for row in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
