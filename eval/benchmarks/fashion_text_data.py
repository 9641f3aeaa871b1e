"""Write the fashion-text benchmark: Fashion-MNIST garments in eight colours, with captions.

`python eval/benchmarks/fashion_text_data.py FOLDER [--source DIR]` reads the idx files of Debian's
`dataset-fashion-mnist` and writes, the same arrays every time, for `train` (60,000) and `test`
(10,000):

- `fashion-text-{train,test}.npz`: `images` uint8 [N, 32, 32, 3] and `captions`;
- `fashion-text-{train,test}-{garment,colour,pair}.npz`: the images with one factor's `labels`
  (a pair is 8 x garment + colour).

A garment is grey on black; its colour and its caption's template are drawn per image.
"""

import argparse
from pathlib import Path

import numpy as np

from sfd import images

GARMENTS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
            "ankle boot"]  # fmt: skip
COLOURS = {
    "red": (230, 30, 30),
    "orange": (245, 140, 20),
    "yellow": (240, 230, 40),
    "green": (40, 180, 60),
    "blue": (40, 80, 235),
    "purple": (150, 40, 200),
    "pink": (250, 130, 190),
    "white": (255, 255, 255),
}
TEMPLATES = [
    "a photo of a {colour} {garment}",
    "a {colour} {garment}",
    "{colour} {garment}",
    "a picture of one {colour} {garment}",
    "an image of a {colour} {garment}",
    "a {garment} in {colour}",
    "one {colour} {garment} on black",
    "product photo: {colour} {garment}",
    "the {garment} is {colour}",
    "a {colour} coloured {garment}",
    "{garment}, {colour}",
    "a single {colour} {garment} for sale",
    "this {garment} comes in {colour}",
    "catalogue picture of a {colour} {garment}",
    "my new {garment} is {colour}",
    "somebody's {colour} {garment}",
]


def tint(grey: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 `[N, 28, 28]` and RGB `[N, 3]` -> uint8 `[N, 32, 32, 3]`, on black."""
    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    return (padded[..., None] / 255 * colours[:, None, None, :]).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="/usr/share/datasets/fashion-mnist")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    palette = np.array(list(COLOURS.values()))
    for seed, (part, prefix) in enumerate({"train": "train", "test": "t10k"}.items()):
        grey, garment, _ = images.read_labelled(f"{arguments.source}:{prefix}")
        rng = np.random.default_rng(seed)
        colour = rng.integers(0, len(COLOURS), len(grey))
        template = rng.integers(0, len(TEMPLATES), len(grey))
        pictures = tint(grey[..., 0], palette[colour])
        captions = [
            TEMPLATES[t].format(colour=list(COLOURS)[c], garment=GARMENTS[g])
            for t, c, g in zip(template, colour, garment, strict=True)
        ]
        stem = arguments.folder / f"fashion-text-{part}"
        np.savez_compressed(f"{stem}.npz", images=pictures, captions=np.array(captions))
        factors = {"garment": garment, "colour": colour, "pair": len(COLOURS) * garment + colour}
        for name, labels in factors.items():
            np.savez_compressed(f"{stem}-{name}.npz", images=pictures, labels=labels)
        print(f"{stem}.npz: {len(grey)} images, such as {captions[0]!r}")


if __name__ == "__main__":
    main()
