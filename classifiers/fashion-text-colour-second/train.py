"""The run that made these weights (colours), on one thread: `python train.py FOLDER`.

FOLDER is what eval/benchmarks/fashion_text_data.py wrote. Measured on the 10,000 test images.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

NAMES = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]

torch.set_num_threads(1)
x, y, _ = images.read_labelled(f"{sys.argv[1]}/fashion-text-train-colour.npz")
state, card = calibrate.train_classifier(
    x,
    y,
    NAMES,
    name="fashion-text-colour-second",
    task="classify",
    arch="resnet18",
    kwargs={
        "stem_type": "deep_tiered",
        "stem_width": 12,
        "channels": [12, 16, 24, 32],
        "layers": [1, 1, 1, 1],
    },
    size=32,
    epochs=2,
    seed=1,
    smoothing=0.05,
    flip=True,
    precision="bf16",
    heldout=images.read_labelled(f"{sys.argv[1]}/fashion-text-test-colour.npz")[:2],
    heldout_data="fashion-text test",
    data="fashion-text train, all 60,000",
    licence="Apache-2.0",
    command="python classifiers/fashion-text-colour-second/train.py FOLDER",
)
classifiers.save(Path(__file__).parent, card, state)
