#!/usr/bin/env bash
# transformers 5.24.0 (tokenizers 0.23.3, sentencepiece 0.2.1): a Llama tokenizer forgets `legacy=True` on saving.
#
# `legacy` decides how text behind an added token is cut: True puts a word mark before it, False does not. It is a
# setting of the tokenizer that changes ids, so one would expect save_pretrained to write it down. It does not: the
# saved tokenizer_config.json lacks the key, the loaded tokenizer has another value, and "a[SEG]b" has other ids. A
# model that was trained with one cut then reads the other, without a warning.
#
# Prints both lists of ids and "legacy in the file: False"; exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.1 protobuf
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - << 'PYTHON' 2> log
import io, json, sys
import sentencepiece
from transformers import LlamaTokenizer

words = ["the boat and the sea and a bird over the sea", "a house by the sea and a boat by the house"] * 20
with open("tokenizer.model", "wb") as model:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2,
        model_type="bpe", byte_fallback=False,
    )
first = LlamaTokenizer.from_pretrained(".", legacy=True)
first.add_tokens(["[SEG]"])
before = first("a[SEG]a boat", add_special_tokens=False).input_ids
first.save_pretrained("saved")
again = LlamaTokenizer.from_pretrained("saved")
after = again("a[SEG]a boat", add_special_tokens=False).input_ids
written = "legacy" in json.load(open("saved/tokenizer_config.json"))
print("before", before)
print("after ", after)
print("legacy in the file:", written)
sys.exit(written or before == after)
PYTHON
