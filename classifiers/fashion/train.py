"""The run that made these weights, on one thread: `python train.py FOLDER-OF-FASHION-MNIST`.

FOLDER holds the four idx files. Learns from the 60,000 training images, is measured on the 10,000
of t10k.
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
    x,
    y,
    NAMES,
    name="fashion",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 16,
        "channels": [32, 64, 128, 64],
        "layers": [2, 2, 2, 1],
    },
    size=56,
    epochs=9,
    seed=0,
    smoothing=0.05,
    shift=1.0,
    flip=True,
    precision="bf16",
    heldout=images.read_labelled(f"{sys.argv[1]}:t10k")[:2],
    heldout_data="Fashion-MNIST t10k",
    data="Fashion-MNIST train, all 60,000",
    licence="Apache-2.0; learned from Fashion-MNIST (MIT)",
    command="python classifiers/fashion/train.py FASHION_MNIST",
    progress=lambda what, done, total: print(f"\r{what}: {done}/{total}", end="", file=sys.stderr),
)
print(classifiers.save(Path(__file__).parent, card, state).calibration)
