"""The clip backend: zero-shot labels from prompts, by a CLIP model in a local folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging

from sfd.classifiers import Network
from sfd.classifiers.cards import CARD, Card, check_files, options_of, path_of
from sfd.content import Strict

WEIGHTS = "*.safetensors"
READ = (".json", ".safetensors", ".txt")


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
    check_files(card, where, _files(path), path.name)
    model, processor = _read(path)
    model = model.to(device=device, dtype=torch.float32).eval()  # pyright: ignore
    with torch.inference_mode():
        means = [_mean_embedding(model, processor, options.prompts[n], where) for n in card.labels]
        text = torch.stack(means)
        scale = model.logit_scale.exp()

    def embedded(images: np.ndarray) -> Tensor:
        colour = images.repeat(3 // images.shape[-1], -1)
        x = processor.image_processor(
            images=list(colour), return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        hidden = model.vision_model(pixel_values=x.to(device)).pooler_output
        return _unit(model.visual_projection(hidden))

    def run(images: np.ndarray, features: bool) -> np.ndarray:
        exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            y = embedded(images)
            return (y if features else (scale * y @ text.T).softmax(1)).cpu().numpy()

    return Network(lambda images: run(images, False), lambda images: run(images, True))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of a CLIP model")
    for pattern in ("config.json", "*processor_config.json", "tokenizer_config.json", WEIGHTS):
        if not list(path.glob(pattern)):
            raise ValueError(
                f"{path}: no {pattern} in it; CLIPModel and CLIPProcessor write such a folder with"
                " save_pretrained"
            )
    return [p for p in path.iterdir() if p.suffix in READ]


def _read(path: Path) -> tuple[CLIPModel, CLIPProcessor]:
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of, missing weights, is refused below
    try:
        loaded: Any = CLIPModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: not a CLIP model: {' '.join(str(error).split())}") from None
    finally:
        logging.set_verbosity(loud)
    model, info = loaded
    wrong = [*info["missing_keys"], *info["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"{path}: its weights lack {len(wrong)} tensors of a CLIP model: {wrong[0]}"
        )
    return model, processor


def _mean_embedding(
    model: CLIPModel, processor: CLIPProcessor, prompts: list[str], where: str
) -> Tensor:
    tokens = processor.tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    limit = model.text_model.embeddings.position_embedding.num_embeddings
    for prompt, mask in zip(prompts, tokens["attention_mask"], strict=True):
        if int(mask.sum()) > limit:
            raise ValueError(
                f"{where}: prompt {prompt[:40]!r} has {int(mask.sum())} tokens, the model takes"
                f" {limit}; shorten it"
            )
    hidden = model.text_model(**tokens).pooler_output
    return _unit(_unit(model.text_projection(hidden)).mean(0))


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
