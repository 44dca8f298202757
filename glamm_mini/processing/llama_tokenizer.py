"""The official tokenizer: Llama's pieces and GLaMM's seven tokens, cut and joined as the released code did.

The released code used transformers 4.28 with a slow tokenizer, which hands every stretch of text between two added
tokens to SentencePiece on its own. Today's classes cut differently around added tokens and leading blanks, so the same
steps are written down here for the tokenizers library. They are all kept by `save_pretrained` in one file,
tokenizer.json, and come back with `PreTrainedTokenizerFast.from_pretrained`.
"""

import json
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from glamm_mini.model.tokens import ADDED_TOKENS, SEG

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BLANK = "\u2581"
"""How SentencePiece writes a blank."""


def official_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """A Llama tokenizer from a folder as the hub has it, with GLaMM's seven added tokens.

    Reads `tokenizer.model` (SentencePiece) or else `tokenizer.json`, and the ids in `added_tokens.json` if that file
    is there; tokens that the folder does not know are numbered behind its vocabulary in the official order (32000 to
    32006 for Vicuna). Blanks on both sides of an added token belong to the token, and the text behind it begins with
    a blank again. Padding is `<unk>`, as in the released code.
    Raises FileNotFoundError if there is neither file; ValueError for a file that holds no Llama tokenizer.
    """
    folder = Path(folder)
    if (folder / "tokenizer.model").is_file():
        vocabulary, merges = _read_sentencepiece(folder / "tokenizer.model")
        given = {}
    elif (folder / "tokenizer.json").is_file():
        vocabulary, merges, given = _read_json(folder / "tokenizer.json")
    else:
        hint = "give the folder of a Llama tokenizer, such as that of an official checkpoint"
        raise FileNotFoundError(f"{folder} holds neither tokenizer.model nor tokenizer.json; {hint}")
    if (folder / "added_tokens.json").is_file():
        given |= json.loads((folder / "added_tokens.json").read_text("utf-8"))
    return _build(vocabulary, merges, _numbered(vocabulary, given, folder))


def strips_blanks(tokenizer) -> bool:
    """Whether added tokens swallow the blanks around them, so that joining has to put them back."""
    return any(str(token) == SEG and token.lstrip and token.rstrip for token in tokenizer.added_tokens_decoder.values())


def official_decode(tokenizer, ids) -> str:
    """Ids to text as the released code joined them: a blank on both sides of every added token.

    `<s>` and `</s>` are no added tokens; one that follows other pieces puts a blank in front of those (an official
    oddity: "[SEG] ." ends as "[SEG]  .</s>").
    """
    added = {tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS}
    special, words, parts = set(tokenizer.all_special_ids) - added, tokenizer.convert_ids_to_tokens, []
    for is_added, stretch in groupby(map(int, ids), added.__contains__):
        if is_added:
            parts += words(list(stretch))
            continue
        runs, text = [(is_special, list(run)) for is_special, run in groupby(stretch, special.__contains__)], ""
        for k, (is_special, run) in enumerate(runs, 1):
            blank = " " if not is_special and k < len(runs) else ""
            plain = tokenizer.backend_tokenizer.decode
            text += blank + ("".join(words(run)) if is_special else plain(run, skip_special_tokens=False))
        parts.append(text)
    return " ".join(parts)


def _build(vocabulary: dict, merges: list, added: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    # Normalization runs on every stretch between two added tokens: each begins with a blank, even one that has its own.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (UNK, BOS, EOS)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=UNK, pad_token=UNK, bos_token=BOS, eos_token=EOS, padding_side="right"
    )
    wrapped.add_tokens([AddedToken(t, lstrip=True, rstrip=True, special=True, normalized=False) for t in added])
    return wrapped


def _numbered(vocabulary: dict, given: dict, folder: Path) -> list[str]:
    """Added tokens in the order of their ids: those the folder numbers, then the rest of GLaMM's."""
    known = sorted((i, token) for token, i in given.items() if token not in vocabulary)
    first = len(vocabulary)
    if [i for i, _ in known] != list(range(first, first + len(known))):
        found = f"{folder} numbers its added tokens {dict((t, i) for i, t in known)}"
        raise ValueError(f"{found}; expected them to follow the vocabulary of {first} without a gap")
    names = [token for _, token in known]
    return names + [token for token in ADDED_TOKENS if token not in names]


def _read_sentencepiece(path: Path) -> tuple[dict, list]:
    """Vocabulary and merges of a SentencePiece BPE model; merges in the order of scores, as SentencePiece joins."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error}); download it again") from error
    if model.normalize("  a  b") != f"{BLANK * 3}a{BLANK * 2}b":
        raise ValueError(f"{path} does not keep blanks as Llama's tokenizer does; give the folder of a Llama tokenizer")
    vocabulary = {model.id_to_piece(i): i for i in range(len(model))}
    words = {
        piece: model.get_score(i)
        for piece, i in vocabulary.items()
        if not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i) or model.is_unused(i))
    }
    _check_special(vocabulary, path)
    pairs = [
        (-score, vocabulary[piece[:k]], vocabulary[piece[k:]], piece[:k], piece[k:])
        for piece, score in words.items()
        for k in range(1, len(piece))
        if piece[:k] in words and piece[k:] in words
    ]
    return vocabulary, [pair[3:] for pair in sorted(pairs)]


def _read_json(path: Path) -> tuple[dict, list, dict]:
    """Vocabulary, merges and numbered added tokens of a tokenizers file."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        model = stored["model"]
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        added = {token["content"]: token["id"] for token in stored.get("added_tokens", [])}
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no BPE tokenizer ({error!r}); give the folder of a Llama tokenizer") from error
    _check_special(model["vocab"], path)
    return dict(model["vocab"]), merges, added


def _check_special(vocabulary: dict, path: Path) -> None:
    found = {token: vocabulary.get(token) for token in (UNK, BOS, EOS)}
    if list(found.values()) != [0, 1, 2]:
        raise ValueError(f"{path} numbers {found}; a Llama tokenizer has {UNK} 0, {BOS} 1 and {EOS} 2")
