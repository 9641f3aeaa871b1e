"""One thread per process, no user cache touched."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["SFD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _every_audit_is_of_the_schema(monkeypatch):
    """Whatever audit a test makes is checked as `sfd validate` would."""
    from sfd import seal

    written = seal.write

    def write(path, audit):
        sealed = written(path, audit)
        seal.check(seal.read(path), str(path))
        return sealed

    monkeypatch.setattr(seal, "write", write)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _shortened_audits(monkeypatch):
    """Audits need not be of the whole schema, which test_seal tests; all else is checked."""
    from sfd import seal

    monkeypatch.setattr(seal, "_schema_error", lambda audit: "")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory):
    """A folder with a random CLIP of two layers and a tokenizer of bytes."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    end = vocabulary["<|endoftext|>"]
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(
        vocab_size=len(words),
        max_position_embeddings=32,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config=small | text,
                vision_config=small | dict(image_size=16, patch_size=8),
                projection_dim=8,
                logit_scale_init_value=1.0,
            )
        )
    model.save_pretrained(folder)
    crop = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)
    CLIPProcessor(crop, tokenizer).save_pretrained(folder)
    return folder
