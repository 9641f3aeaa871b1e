"""The clip backend: zero-shot labels from prompts, by a CLIP model in a local folder."""

from pathlib import Path

import numpy as np
import torch

from sfd.classifiers import Network, clip_model
from sfd.classifiers.cards import CARD, Card, check_files, options_of, path_of
from sfd.content import Strict


class Options(Strict):
    """What a card of the clip backend says in `options`.

    `folder` holds a CLIP model as transformers saves it, relative to the card's folder; `prompts`
    has one or more for each label.
    """

    folder: str
    prompts: dict[str, list[str]]


def load(card: Card, folder: Path, device: str) -> Network:
    """The network of a card whose backend is clip.

    The probability of a label is the softmax over labels of the scaled cosine between an image and
    the mean of its prompts' unit embeddings (Radford et al., arXiv 2103.00020, 3.1.4); features are
    the images' unit embeddings. Raises ValueError if the folder is no CLIP model in safetensors, a
    label has no prompt, or a prompt is too long.
    """
    where = str(folder / CARD)
    options = options_of(card, where, Options)
    if set(options.prompts) != set(card.labels) or not all(options.prompts.values()):
        raise ValueError(f"{where}: options.prompts needs one for each of {', '.join(card.labels)}")
    path = path_of(folder, options.folder)
    check_files(card, where, clip_model.files(path), path.name)
    clip = clip_model.read(path, device)
    try:
        found = [clip_model.embed_texts(clip, options.prompts[name]) for name in card.labels]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    means = torch.stack([each.mean(0) for each in found])
    text = means / means.norm(dim=-1, keepdim=True)

    def probabilities(images: np.ndarray) -> np.ndarray:
        cosines = clip_model.embed_images(clip, images) @ text.T
        return (clip.scale * cosines).softmax(1).cpu().numpy()

    def features(images: np.ndarray) -> np.ndarray:
        return clip_model.embed_images(clip, images).cpu().numpy()

    return Network(probabilities, features)
