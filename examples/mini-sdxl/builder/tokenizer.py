"""CLIP-style byte-level BPE whose merges cover the captions' own words.

The vocabulary is CLIP's layout: 256 byte symbols, the same with "</w>", the merges, then the two
special tokens. They come last because CLIP's pooled output is taken where the id is highest, which
has to be the end of the text. Every byte is a symbol, so any text has tokens.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from .captions import caption
from .scenes import sample_scene

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# As in SDXL: the first tokenizer fills up with the end token, the second with "!" (id 0).
PADDING = {"tokenizer": END, "tokenizer_2": "!"}
CAPTIONS = 8000
FEWEST = 20  # rarer words are the captions' nonsense
PROMPT_WORDS = (  # of prompts that people try, beyond the captions' own
    "toy teal small big little cute my your this his her dog cat robot red blue kitchen table"
    " next to standing sitting with and of from view top under sun moon street garden bed chair"
    " room box"
)
Pair = tuple[str, str]


def write_tokenizers(folder: Path, *, seed: int) -> None:
    """Write FOLDER/tokenizer and FOLDER/tokenizer_2."""
    merges = learn_merges(count_words(np.random.default_rng(seed)))
    symbols = list(bytes_to_unicode().values())
    symbols += [f"{symbol}</w>" for symbol in symbols]
    symbols += ["".join(pair) for pair in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({s: i for i, s in enumerate(symbols)}, ensure_ascii=False))
    merged = folder / "merges.txt"
    merged.write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    for name, padding in PADDING.items():
        tokenizer = CLIPTokenizer(
            str(vocabulary), str(merged), pad_token=padding, model_max_length=MAX_LENGTH
        )
        tokenizer.save_pretrained(folder / name)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in PADDING)
    return first, second


def count_words(rng: np.random.Generator) -> dict[str, int]:
    counts = Counter(PROMPT_WORDS.split())
    for _ in range(CAPTIONS):
        counts.update(re.findall(r"[a-z]+", caption(sample_scene(rng), rng)))
    wanted = set(PROMPT_WORDS.split())
    return {word: n for word, n in counts.items() if n >= FEWEST or word in wanted}


def learn_merges(counts: Mapping[str, int]) -> list[Pair]:
    """Join the most frequent neighbours until every word is one symbol."""
    splits = {word: (*word[:-1], f"{word[-1]}</w>") for word in counts}
    merges: list[Pair] = []
    while pairs := count_pairs(splits, counts):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        splits = {word: join(parts, best) for word, parts in splits.items()}
    return merges


def count_pairs(
    splits: Mapping[str, tuple[str, ...]], counts: Mapping[str, int]
) -> dict[Pair, int]:
    pairs: Counter[Pair] = Counter()
    for word, parts in splits.items():
        for pair in zip(parts, parts[1:], strict=False):
            pairs[pair] += counts[word]
    return pairs


def join(parts: Iterable[str], pair: Pair) -> tuple[str, ...]:
    joined: list[str] = []
    fresh = False  # whether the last symbol was just made: it can't be the first half of another
    for part in parts:
        if joined and not fresh and (joined[-1], part) == pair:
            joined[-1] += part
            fresh = True
        else:
            joined.append(part)
            fresh = False
    return tuple(joined)
