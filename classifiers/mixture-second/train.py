"""The run that made these weights: `python train.py FOLDER` on what mixture_data.py wrote."""

import sys
from pathlib import Path

import torch

from sfd import calibrate, classifiers, images

torch.set_num_threads(1)
NAMES = ["left", "right", "top", "bottom"]
pictures, labels, _ = images.read_labelled(f"{sys.argv[1]}/mixture-train.npz")
heldout = images.read_labelled(f"{sys.argv[1]}/mixture-heldout.npz")
state, card = calibrate.train_classifier(
    pictures,
    labels,
    NAMES,
    name="mixture-second",
    arch="resnet18",
    kwargs={"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]},
    size=24,
    epochs=3,
    seed=1,
    heldout=heldout[:2],
    heldout_data="mixture-heldout.npz, 500 exact samples a class",
    data="mixture-train.npz, 2,000 exact samples a class",
    licence="Apache-2.0",
    command="python classifiers/mixture-second/train.py FOLDER",
)
print(classifiers.save(Path(__file__).parent, card, state).calibration)
