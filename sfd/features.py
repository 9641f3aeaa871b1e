"""Feature extractors by name, for distances between sets of images; none of them judges."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sfd import classifiers, content

Extractor = Callable[[np.ndarray], np.ndarray]
"""uint8 images `[N, H, W, C]` -> float32 features `[N, D]`."""

INCEPTION = "inception:"


def load(name: str, device: str = "cpu") -> Extractor:
    """The extractor called `name`.

    - a classifier (by name or path) whose card has the task 'features';
    - `pixels`: the image itself, flattened, in [0, 1] (for tiny analytic images);
    - `inception:WEIGHTS.pt`: the 2,048 pool features of InceptionV3 as in FID, through
      torch-fidelity, with the weights file that the user names. Grey images are repeated.

    Raises ValueError where there is none of that name, where the classifier judges (the network
    that judges forgetting never measures quality), or where the package or the file is missing.
    """
    if name == "pixels":
        return pixels
    if name.startswith(INCEPTION):
        return _inception(Path(name.removeprefix(INCEPTION)).expanduser(), device)
    classifier = classifiers.load(name, device)
    if classifier.card.task != "features":
        raise ValueError(
            f"classifier {name} judges, so it may not measure quality; name one whose task is"
            f" 'features' ({', '.join(names())})"
        )
    return classifier.features


def sha256(name: str) -> str | None:
    """Hash of the weights behind an extractor's name; None for `pixels`, which has none."""
    if name == "pixels":
        return None
    if name.startswith(INCEPTION):
        path = Path(name.removeprefix(INCEPTION)).expanduser()
        if not path.is_file():
            raise ValueError(f"{path}: no such weights file")
        return content.sha256(path)
    return classifiers.read_card(name).weights_sha256


def names() -> list[str]:
    """Names that `load` knows: the classifiers that give features, and `pixels`."""
    known = content.names("classifiers")
    return [n for n in known if classifiers.read_card(n).task == "features"] + ["pixels"]


def pixels(images: np.ndarray) -> np.ndarray:
    """The images, flattened: uint8 `[N, H, W, C]` -> float32 `[N, H W C]` in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _inception(weights: Path, device: str) -> Extractor:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise ValueError(
            "inception features need torch-fidelity: pip install torch-fidelity"
        ) from None
    if not weights.is_file():
        raise ValueError(
            f"{weights}: no such file; give the Inception weights that torch-fidelity publishes"
            " (pt_inception-2015-12-05-6726825d.pth)"
        )
    import torch

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    )
    network = network.to(device).eval()

    def features(images: np.ndarray, batch: int = 64) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for i in range(0, len(images), batch):
                x = torch.from_numpy(np.array(images[i : i + batch])).permute(0, 3, 1, 2)
                x = x.expand(-1, 3, -1, -1).to(device)
                parts.append(network(x)[0].float().cpu().numpy())
        return np.concatenate(parts)

    return features
