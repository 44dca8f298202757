"""Do two phrases name the same thing? Three answers: `bert`, `storybook`, `trigram`.

Each is a function `(truth, phrase, attributes) -> float`; a value of THRESHOLD or more means "the phrase is right".
`attributes` is what a data set knows beyond the words (storybook: cls, color, pattern, size), or None.
"""

import functools
import zlib
from collections.abc import Callable

import numpy as np

from glamm_mini import registry
from glamm_mini.evaluation.fields import check_choice

THRESHOLD = 0.5
SIMILARITIES = ("bert", "trigram", *registry.names("similarity"))
Similarity = Callable[[str, str, dict | None], float]


def get_similarity(name: str) -> Similarity:
    """The similarity called `name`: one of SIMILARITIES. Raises ValueError for another name, or BERT offline."""
    own = {"bert": bert_similarity, "trigram": trigram_similarity}
    check_choice("similarity", name, (*own, *registry.names("similarity")))
    if name == "bert":
        _bert()  # fail now, not after an hour of decoding masks
    return own.get(name) or registry.find("similarity", name)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors (D,), 0 where one of them is zero."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


@functools.lru_cache(maxsize=65536)
def trigram_vector(text: str) -> np.ndarray:
    """Counts of the three-letter pieces of " text ", hashed by CRC-32 into 512 places."""
    padded = f" {text.lower()} "
    places = [zlib.crc32(padded[start : start + 3].encode()) % 512 for start in range(len(padded) - 2)]
    return np.bincount(places, minlength=512).astype(float)


def trigram_similarity(truth: str, phrase: str, attributes: dict | None = None) -> float:
    """Cosine of letter trigrams: a stand-in for BERT that depends on nothing."""
    return cosine(trigram_vector(truth), trigram_vector(phrase))


@functools.cache
def _bert():
    """Tokenizer and model of BERT-base-uncased, from the local cache first, so that offline fails fast."""
    from transformers import AutoModel, AutoTokenizer

    name = "google-bert/bert-base-uncased"
    for local_only in (True, False):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_only)
            return tokenizer, AutoModel.from_pretrained(name, local_files_only=local_only).eval()
        except Exception as problem:
            last = problem  # offline shows as OSError, or as one of several network errors
    raise ValueError(
        f"The similarity 'bert' needs {name} (440 MB), which is neither in the Hugging Face cache nor reachable. "
        "Run it once with network access, or choose --similarity trigram or storybook."
    ) from last


@functools.lru_cache(maxsize=65536)
def bert_vector(text: str) -> np.ndarray:
    """Mean of BERT's last hidden states over all tokens, [CLS] and [SEP] included, as officially done: (768,)."""
    import torch

    tokenizer, model = _bert()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt", max_length=512, truncation=True)).last_hidden_state
    return states[0].mean(0).float().numpy()


def bert_similarity(truth: str, phrase: str, attributes: dict | None = None) -> float:
    """Cosine of the two BERT embeddings. Unrelated phrases easily reach 0.5: the published threshold is lenient."""
    return cosine(bert_vector(truth), bert_vector(phrase))
