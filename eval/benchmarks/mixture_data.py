"""Exact samples of the analytic mixture teacher: `python mixture_data.py FOLDER`.

Writes mixture-train.npz (2,000 a class), mixture-heldout.npz (500 a class) and mixture-floor.npz
(500 a class).
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sfd import teachers
from sfd.teachers.mixture import Mixture

teacher = teachers.load(name="mixture", device=torch.device("cpu"))
assert isinstance(teacher.denoiser, Mixture)
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for part, seed, count in (("train", 0, 2000), ("heldout", 100, 500), ("floor", 200, 500)):
    classes = range(len(teacher.labels))
    flat = [teacher.denoiser.draw(label, count, seed + label) for label in classes]
    images = teachers.to_uint8(torch.cat(flat).reshape(-1, *teacher.shape))
    labels = np.repeat(np.arange(len(classes)), count)
    np.savez_compressed(folder / f"mixture-{part}.npz", images=images, labels=labels)
