"""A CLIP model in a local folder, as transformers saves it: where images and texts meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.utils import logging

WEIGHTS = "*.safetensors"
READ = (".json", ".safetensors", ".txt")


@dataclass(frozen=True)
class Clip:
    """Model and processor, in float32."""

    model: CLIPModel
    processor: CLIPProcessor
    scale: float
    """What the model multiplies cosines by."""


def files(path: Path) -> list[Path]:
    """The files that a CLIP model is read from. Raises ValueError where one is missing."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of a CLIP model")
    for pattern in ("config.json", "*processor_config.json", "tokenizer_config.json", WEIGHTS):
        if not list(path.glob(pattern)):
            raise ValueError(
                f"{path}: no {pattern} in it; CLIPModel and CLIPProcessor write such a folder with"
                " save_pretrained"
            )
    return [p for p in path.iterdir() if p.suffix in READ]


def read(path: Path, device: str) -> Clip:
    """The model in a folder. Raises ValueError if it is no CLIP model in whole safetensors."""
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
    model = model.to(device=device, dtype=torch.float32).eval()
    return Clip(model, processor, float(model.logit_scale.detach().exp()))


@torch.inference_mode()
def embed_images(clip: Clip, images: np.ndarray) -> Tensor:
    """Unit embeddings `[N, D]` of uint8 images `[N, H, W, C]`; grey ones are repeated."""
    colour = images.repeat(3 // images.shape[-1], -1)
    x = clip.processor.image_processor(
        images=list(colour), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        hidden = clip.model.vision_model(pixel_values=x.to(clip.model.device)).pooler_output
        return _unit(clip.model.visual_projection(hidden))


@torch.inference_mode()
def embed_texts(clip: Clip, texts: Sequence[str], *, cut: bool = False) -> Tensor:
    """Unit embeddings `[N, D]`. Raises ValueError on a text too long, unless it may be `cut`."""
    limit = clip.model.text_model.embeddings.position_embedding.num_embeddings
    short = {"truncation": True, "max_length": limit} if cut else {}
    tokens = clip.processor.tokenizer(list(texts), padding=True, return_tensors="pt", **short)
    tokens = tokens.to(clip.model.device)
    for text, mask in zip(texts, tokens["attention_mask"], strict=True):
        if int(mask.sum()) > limit:
            raise ValueError(
                f"prompt {text[:40]!r} has {int(mask.sum())} tokens, the model takes {limit};"
                " shorten it"
            )
    hidden = clip.model.text_model(**tokens).pooler_output
    return _unit(clip.model.text_projection(hidden))


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
