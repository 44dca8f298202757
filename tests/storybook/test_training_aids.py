"""Aids of the language model: boxes of phrases, and the patches that a question's nouns speak of."""

import torch
from torch.nn import functional as F

from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX
from glamm_mini.storybook.language import vocabulary
from glamm_mini.storybook.pretrain.auxiliary_heads import BOX_WEIGHT, POINT_WEIGHT, BoxAid, PointAid
from glamm_mini.storybook.pretrain.dense_labels import ATTRIBUTES, IGNORE, KINDS, DenseLabels
from glamm_mini.storybook.pretrain.mentions import Mention, MentionFinder, mentioned_patches


def test_the_box_aid_asks_every_state_of_a_phrase(glamm):
    """Wrong truth for one mask changes the loss by that mask's error alone, averaged over its phrase's states."""
    aid, t = BoxAid(glamm.config), glamm.config.tokens
    #                 0   1                 2  3             4       5  6                 7             8
    ids = torch.tensor([[9, t.phrase_start, 9, t.phrase_end, t.seg, 9, t.phrase_start, t.phrase_end, t.seg],
                        [9, 9, t.seg, 9, t.phrase_start, 9, t.phrase_end, t.seg, 9]])  # fmt: skip
    hidden, boxes = torch.randn(2, 9, glamm.config.text.hidden_size), torch.rand(4, 4)
    states = [[(0, 1), (0, 2), (0, 3)], [(0, 6), (0, 7)], [(1, 1)], [(1, 4), (1, 5), (1, 6)]]
    with torch.no_grad():
        guess = aid.net(hidden).sigmoid()
        errors = [
            torch.stack([(guess[at] - box).abs().sum() for at in own]).mean()
            for own, box in zip(states, boxes, strict=True)
        ]
        torch.testing.assert_close(aid(hidden, ids, boxes), BOX_WEIGHT * sum(errors) / 4)
        torch.testing.assert_close(aid(hidden, ids, boxes, 8), BOX_WEIGHT * sum(errors) / 8)
        assert float(aid(hidden, torch.full_like(ids, 9), boxes[:0])) == 0


def found_in(processor, *turns):
    """Mentions of one conversation: (the words up to the place, what is stated by name)."""
    ids, labels = processor.encode(list(turns))
    words = processor.tokenizer.convert_ids_to_tokens([max(i, 0) for i in ids])
    mentions = MentionFinder(processor.tokenizer)(torch.tensor([ids]), torch.tensor([labels]))
    return [(words[m.place], {f: ATTRIBUTES[f][k] for f, k in m.stated.items()}) for m in mentions]


def test_nouns_of_questions_are_found_with_the_adjectives_before_them(processor):
    turns = ("Is the little spotted red cottage left of the boats?", "Yes.")
    house = {"kind": "house", "colour": "red", "pattern": "dotted", "size": "small"}
    assert found_in(processor, turns) == [("cottage", house), ("boats", {"kind": "boat"})]
    # One thing alone is also what the last position before the answer is about; the answer's nouns are not searched.
    alone = found_in(
        processor, ("Show me the blue kite.", "Here is <p> the blue kite </p> [SEG]."), ("And the sea?", "No.")
    )
    kite, sea = {"kind": "kite", "colour": "blue"}, {"kind": "sea"}
    assert [stated for _, stated in alone] == [kite, kite, sea, sea] and [w for w, _ in alone][::2] == [":", ":"]
    assert found_in(processor, ("Where is the dark sky?", "No."))[1] == ("sky", {"kind": "night sky"})
    assert found_in(processor, ("What is this?", "No.")) == []


def test_every_name_of_the_world_is_a_mention(processor):
    from glamm_mini.storybook.language.words import names_of, plural

    for kind in KINDS:
        for name in names_of(kind):
            assert found_in(processor, (f"Do you see the {name} or not?", "No."))[1][1] == {"kind": kind}
            if kind in vocabulary.CLASSES:
                assert found_in(processor, (f"Count {plural(name)} now.", "No."))[1][1] == {"kind": kind}


def test_a_mention_speaks_of_the_patches_of_which_all_is_true():
    kinds = torch.tensor([[[3, 3], [5, IGNORE]], [[5, 3], [5, 5]]])
    colours = torch.tensor([[[1, 2], [1, IGNORE]], [[1, 1], [2, 1]]])
    nothing = torch.full_like(kinds, IGNORE)
    labels = DenseLabels(
        {"kind": kinds, "colour": colours, "pattern": nothing, "size": nothing}, torch.zeros(2, 2, 2, 4), kinds >= 0
    )
    mentions = [Mention(0, 7, {"kind": 3}), Mention(1, 4, {"kind": 5, "colour": 1}), Mention(0, 9, {"kind": 8})]
    assert mentioned_patches(mentions, labels).tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert mentioned_patches([], labels).shape == (0, 4)


def test_the_point_aid_compares_a_mentions_state_with_its_own_pictures_patches(glamm):
    aid = PointAid(glamm.config)
    ids = torch.tensor([[1, *[IMAGE_TOKEN_INDEX] * 4, 5, 6, 7]] * 2)
    width, layers = glamm.config.text.hidden_size, glamm.config.text.num_hidden_layers
    states = [torch.zeros(2, 8, width) for _ in range(layers + 1)]
    states[layers // 2] = torch.randn(2, 8, width)
    # Place 3 among the ids before the image made room: <s> <image> 5 6, that is position 6 of the states.
    at = torch.tensor([[1, 3], [0, 2], [1, 4]])
    patches = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    with torch.no_grad():
        inner = aid.norm(states[layers // 2])
        errors = []
        for (row, position), patch in zip([(1, 6), (0, 5), (1, 7)], patches, strict=True):
            logits = aid.shows(inner[row, 1:5]) @ aid.asks(inner[row, position]) / width**0.5 + aid.bias
            errors.append(POINT_WEIGHT * F.binary_cross_entropy_with_logits(logits, patch))
        expected = (errors[0] + errors[2]) / 2 + errors[1]
        torch.testing.assert_close(aid(states, ids, at, patches), expected / 2)
        torch.testing.assert_close(aid(states, ids, at, patches, 5), expected / 5)
        assert float(aid(states, ids, at[:0], patches[:0])) == 0


def test_pointing_can_be_learned(glamm):
    aid = PointAid(glamm.config)
    ids = torch.tensor([[IMAGE_TOKEN_INDEX] * 4 + [5]] * 3)
    states = [torch.randn(3, 5, glamm.config.text.hidden_size)] * 3
    at, patches = torch.tensor([[r, 1] for r in range(3)]), torch.eye(4)[:3]
    optimizer = torch.optim.AdamW(aid.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = aid(states, ids, at, patches)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
