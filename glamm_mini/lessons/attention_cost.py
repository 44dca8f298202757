"""What attention on a grid costs, counted: multiply-adds and bytes, for windows and for the whole grid."""


def padded_side(grid, window=0):
    """Side in patches of what is computed: the grid, filled up to whole windows; window 0 is the whole grid."""
    return -(-grid // window) * window if window else grid


def attention_cost(grid, channels, window=0, positions=True):
    """Multiply-adds of one attention layer on a grid x grid picture, in three parts.

    Returns (projections, pairs, positions): making q, k, v and the output; scores and mixing of all pairs that look at
    each other; the decomposed relative positions. Padding is counted, for it is computed.
    """
    side = window or grid
    tokens = padded_side(grid, window) ** 2
    placed = 2 * tokens * side * channels if positions else 0
    return 4 * tokens * channels**2, 2 * tokens * side**2 * channels, placed


def score_bytes(grid, heads, window=0):
    """Bytes that the scores of one layer take in float32: one number for each head and pair."""
    return 4 * heads * padded_side(grid, window) ** 2 * (window or grid) ** 2


def encoder_cost(grounding):
    """Multiply-adds of a whole grounding encoder for one picture; `grounding`: a config's GroundingConfig."""
    g, patches = grounding, grounding.grid**2
    total = patches * 3 * g.patch_size**2 * g.hidden  # the patch embedding
    for number in range(g.depth):
        window = 0 if number in g.global_attention else g.window
        total += sum(attention_cost(g.grid, g.hidden, window, g.relative_positions))
        total += 8 * patches * g.hidden**2  # the MLP, four times as wide inside
    return total + patches * g.prompt_dim * (g.hidden + 9 * g.prompt_dim)  # the neck: 1 x 1, then 3 x 3
