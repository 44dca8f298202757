"""A small random assistant whose answers a script decides, for tests of what lies between words and masks."""

from small_models import small_config, small_model

from glamm_mini.assistant.assistant import Assistant
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.language.tokenizer import build_wordpiece

WORDS = "What is this ? It a red kite over the sea . USER ASSISTANT : And Describe image with masks".split()
GROUNDED = "<p> a red kite </p> [SEG] over <p> the sea </p> [SEG] ."


def scripted_assistant(**changes) -> Assistant:
    """An assistant with the vocabulary WORDS; `changes` as those of `small_config`."""
    tokenizer = build_wordpiece(WORDS)
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    processor = GlammProcessor(small_config(text=text, **changes), tokenizer)
    return Assistant(small_model(text=text, tokens=processor.config.tokens, **changes), processor)


def scripting(glamm: Assistant, monkeypatch):
    """For a fixture that yields from it: says(text, text ...) decides what the rows of the next batches answer, each
    followed by </s> where there is room."""
    monkeypatch.setattr(glamm, "max_new_tokens", 16)
    handles = []

    def script(*texts, end=True):
        t = glamm.processor.tokenizer
        ends = [t.eos_token_id] * end
        rows = [t(text, add_special_tokens=False).input_ids + ends for text in texts]
        length = max(map(len, rows))
        rows = [row + [t.eos_token_id] * (length - len(row)) for row in rows]
        step = iter(range(10**6))

        def push(_, __, logits):  # (R, 1, V)
            now = next(step) % length
            logits = logits.clone()
            for r in range(len(logits)):
                logits[r, -1, rows[r % len(rows)][now]] += 1e4
            return logits

        for handle in handles:
            handle.remove()
        handles[:] = [glamm.model.language_model.lm_head.register_forward_hook(push)]

    yield script
    for handle in handles:
        handle.remove()


def seen_prompts(glamm: Assistant, monkeypatch) -> list[list[int]]:
    """A list that will hold the ids of every prompt, without padding, as they reach the model."""
    seen, generate = [], glamm.model.generate

    def spy(input_ids, attention_mask, **kwargs):
        seen.extend(row[mask].tolist() for row, mask in zip(input_ids, attention_mask, strict=True))
        return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(glamm.model, "generate", spy)
    return seen
