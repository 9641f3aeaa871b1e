"""The run that made these weights (colour and garment), on one thread: `python train.py FOLDER`.

FOLDER is what eval/benchmarks/fashion_text_data.py wrote. Measured on the 10,000 test images.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]
GARMENTS = ["t-shirt", "trouser", "pullover", "dress", "coat"]
GARMENTS += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
NAMES = [f"{colour} {garment}" for garment in GARMENTS for colour in COLOURS]

torch.set_num_threads(1)
x, y, _ = images.read_labelled(f"{sys.argv[1]}/fashion-text-train-pair.npz")
state, card = calibrate.train_classifier(
    x[:50000],
    y[:50000],
    NAMES,
    name="fashion-text-features",
    task="features",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 12,
        "channels": [48, 64, 96, 64],
        "layers": [1, 2, 1, 1],
        "replace_stem_pool": True,
    },
    size=32,
    epochs=5,
    seed=2,
    smoothing=0.05,
    shift=1.0,
    flip=True,
    precision="bf16",
    heldout=images.read_labelled(f"{sys.argv[1]}/fashion-text-test-pair.npz")[:2],
    heldout_data="fashion-text test",
    data="fashion-text train, rows 0 to 49,999",
    licence="Apache-2.0",
    command="python classifiers/fashion-text-features/train.py FOLDER",
)
classifiers.save(Path(__file__).parent, card, state)
