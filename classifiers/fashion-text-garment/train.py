"""The run that made these weights (garments), on one thread: `python train.py FOLDER`.

FOLDER is what eval/benchmarks/fashion_text_data.py wrote. Measured on the 10,000 test images.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat"]
NAMES += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]

torch.set_num_threads(1)
x, y, _ = images.read_labelled(f"{sys.argv[1]}/fashion-text-train-garment.npz")
state, card = calibrate.train_classifier(
    x,
    y,
    NAMES,
    name="fashion-text-garment",
    task="classify",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 16,
        "channels": [32, 64, 96, 64],
        "layers": [2, 2, 2, 1],
        "replace_stem_pool": True,
    },
    size=32,
    epochs=6,
    seed=0,
    smoothing=0.05,
    shift=1.0,
    flip=True,
    precision="bf16",
    heldout=images.read_labelled(f"{sys.argv[1]}/fashion-text-test-garment.npz")[:2],
    heldout_data="fashion-text test",
    data="fashion-text train, all 60,000",
    licence="Apache-2.0",
    command="python classifiers/fashion-text-garment/train.py FOLDER",
)
classifiers.save(Path(__file__).parent, card, state)
