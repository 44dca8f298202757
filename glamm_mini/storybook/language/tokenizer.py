"""The tiny model's tokenizer: whole words of a small world, and characters for everything else."""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from glamm_mini.model.tokens import ADDED_TOKENS

UNK, BOS, EOS = "<unk>", "<s>", "</s>"


def build_wordpiece(words: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over `words`; any other word is spelled: its longest known beginning, then characters.
    Unknown are words with a character outside ASCII, and words of more than 60 characters.

    Ids: 0 unknown and padding, 1 begin, 2 end (as in Llama's vocabulary), then words and characters, then the seven
    added tokens of GLaMM.
    """
    characters = string.ascii_letters + string.digits
    pieces = [UNK, BOS, EOS, *words, *characters, *string.punctuation, *(f"##{c}" for c in characters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=60))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNK, pad_token=UNK, bos_token=BOS, eos_token=EOS
    )
    wrapped.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED_TOKENS])
    return wrapped
