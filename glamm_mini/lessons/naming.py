"""What a frozen language model says when all it is given of a picture is one vector a box."""

from glamm_mini.model.splice import put_regions


def word_after(model, prompt, vectors):
    """Logits (N, V) of the word that follows a prompt, once for each vector.

    Args:
        model: a GLaMM. prompt: ids (T,) with one `<bbox>` and no image. vectors: (N, D), put where `<bbox>` stands.

    Gradients reach the vectors. Raises ValueError for a prompt with another number of `<bbox>`.
    """
    rows = prompt.expand(len(vectors), -1)  # (N, T)
    words = model.get_input_embeddings()(rows)
    words = put_regions(words, rows, model.config.tokens.bbox, vectors, [1] * len(vectors))
    states = model.language_model.model(inputs_embeds=words, use_cache=False).last_hidden_state
    return model.language_model.lm_head(states[:, -1])  # (N, T, D) -> (N, V)
