"""The run that made these weights, on one thread: `python train.py FOLDER-OF-FASHION-MNIST`.

A feature extractor that judges nothing. FOLDER holds the four idx files. It learns from the first
50,000 training images; the last 10,000 are kept for the real-against-real floor. Without label
smoothing, which would draw every class together into a point and hide what differs within it.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat"]
NAMES += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]

torch.set_num_threads(1)
x, y, _ = images.read_labelled(f"{sys.argv[1]}:train")
state, card = calibrate.train_classifier(
    x[:50_000],
    y[:50_000],
    NAMES,
    name="fashion-features",
    task="features",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 12,
        "channels": [48, 64, 96, 64],
        "layers": [1, 2, 1, 1],
        "avg_down": True,
    },
    size=56,
    epochs=8,
    seed=2,
    smoothing=0.0,
    shift=1.0,
    flip=True,
    precision="bf16",
    heldout=images.read_labelled(f"{sys.argv[1]}:t10k")[:2],
    heldout_data="Fashion-MNIST t10k",
    data="Fashion-MNIST train, rows 0 to 49,999",
    licence="Apache-2.0; learned from Fashion-MNIST (MIT)",
    command="python classifiers/fashion-features/train.py FASHION_MNIST",
    progress=lambda what, done, total: print(f"\r{what}: {done}/{total}", end="", file=sys.stderr),
)
print(classifiers.save(Path(__file__).parent, card, state).calibration)
