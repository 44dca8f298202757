"""Words and tokens: the special tokens, the conversation template and its labels, tagged answers."""
