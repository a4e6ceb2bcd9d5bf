"""Captions as the generator reads them: its tokenizer, its text encoder, and what a scene is learned with."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lvd.demo.scenes import Scene, all_captions, captions_of

MAX_TOKENS = 20
TEXT_WIDTH = 64
SHARES = {"named": 3, "hinted": 2, "open": 5}  # of ten captions that a scene is learned with, by kind


def build_tokenizer(words: Iterable[str], max_tokens: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer built from the words of the captions: one token each."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [f"{char}</w>" for char in alphabet]
    merges: list[str] = []
    for word in sorted(set(words), key=lambda word: (-len(word), word)):  # a short word cannot cut a long one
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        merged = symbols[0]
        for symbol in symbols[1:]:
            if f"{merged} {symbol}" not in merges:
                merges.append(f"{merged} {symbol}")
                tokens.append(merged + symbol)
            merged += symbol
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=[tuple(merge.split(" ")) for merge in merges],
        model_max_length=max_tokens,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random text encoder, for use as it is: every word keeps a direction of its own.

    Trained together with a small UNet, it gives all its room to the words that lower the loss first.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder.eval().requires_grad_(False)


def build_text() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The captions' tokenizer, and a random text encoder, the same one in every run, that stays as it is.

    What all captions have in common is taken out of its output.
    """
    texts = all_texts()
    words = {word for text in texts for word in text.replace(",", " ,").split()}
    tokenizer = build_tokenizer(words, MAX_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = build_text_encoder(tokenizer)
    common = encode_captions(encoder, tokenizer, texts).mean(dim=(0, 1))
    encoder.final_layer_norm.bias -= common
    return tokenizer, encoder


def all_texts() -> list[str]:
    """The text of every caption once, the empty one first."""
    return ["", *sorted(caption.text for caption in all_captions())]


def caption_table(scenes: Sequence[Scene], texts: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Indices `[N, 10]` into `texts` of ten captions of each scene, of its kinds as `SHARES` says."""
    at = {text: index for index, text in enumerate(texts)}
    rows = []
    for scene in scenes:
        captions = captions_of(scene)
        drawn = [rng.integers(len(captions[kind]), size=size) for kind, size in SHARES.items()]
        rows.append(
            [at[captions[kind][i].text] for kind, of_kind in zip(SHARES, drawn, strict=True) for i in of_kind]
        )
    return torch.tensor(rows)


@torch.no_grad()
def encode_captions(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden: Tensor = encoder(tokens).last_hidden_state
    return hidden
