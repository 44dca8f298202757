"""What notebook 03 builds: its vision transformer equals the library's, the LLaVA step is the model's own pass, and its
graders see near misses."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

from glamm_mini.course.room_03 import grader as projector
from glamm_mini.course.room_03 import pictures as views
from glamm_mini.course.room_03.lesson import (
    answer_logits,
    clip_states,
    cut_patches,
    embed_patches,
    sight_accuracy,
    sight_words,
    spoken_rows,
)
from glamm_mini.data.collate import Collate
from glamm_mini.storybook.dataset import StorybookDataset
from glamm_mini.storybook.pretrain.run import untrained


def test_patches_are_those_of_unfold_and_their_embedding_is_the_convolution():
    torch.manual_seed(3)
    images, weight = torch.randn(2, 3, 12, 20), torch.randn(7, 3, 4, 4)
    assert_close(cut_patches(images, 4), F.unfold(images, 4, stride=4).transpose(1, 2))
    theirs = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    assert_close(embed_patches(images, weight), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_every_state_and_every_look_is_that_of_clip(act):
    torch.manual_seed(4)
    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3)
    config = CLIPVisionConfig(image_size=16, patch_size=4, hidden_act=act, **sizes)
    clip = CLIPVisionModel(config).eval()
    clip.set_attn_implementation("eager")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        states, looks = clip_states(images, clip)
        theirs = clip(images, output_hidden_states=True, output_attentions=True)
    assert len(states) == len(theirs.hidden_states) == 4 and len(looks) == 3
    for mine, right in zip([*states, *looks], [*theirs.hidden_states, *theirs.attentions], strict=True):
        assert_close(mine, right, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    model, processor = untrained("tiny")
    return model.eval().requires_grad_(False), processor


def test_the_llava_step_is_the_pass_of_the_whole_model(tiny):
    model, processor = tiny
    dataset = StorybookDataset("train", 0, size=2, mixture={"caption": 1, "vqa": 1}, conversations=4)
    samples = [dataset[index] for index in range(2)]
    for sample in samples:
        sample.conversations = [turns for turns in sample.conversations if not any(len(t.boxes) for t in turns)]
    batch = Collate(processor)(samples)
    tokens = model.vl_projector(model.global_encoder(batch["global_images"]).tokens)
    logits, words = answer_logits(model, spoken_rows(samples, processor), tokens)
    wanted = ("input_ids", "attention_mask", "labels", "segment_ids", "image_index", "boxes", "global_images")
    assert_close(F.cross_entropy(logits, words), model(**{k: batch[k] for k in wanted}).loss, rtol=1e-5, atol=1e-5)
    asked = sight_words(processor.tokenizer)
    assert 0 <= sight_accuracy(model, spoken_rows(samples, processor), tokens, asked) <= 1
    spelled = set(processor.tokenizer.convert_ids_to_tokens(asked.tolist()))
    assert {"kite", "kites", "red"} <= spelled and "the" not in spelled and len(asked) > 40


def test_rows_hold_no_conversation_with_boxes(tiny):
    sample = StorybookDataset("train", 0, size=1, mixture={"regcap": 1}, conversations=2)[0]
    with pytest.raises(ValueError, match="no conversation in words alone"):
        spoken_rows([sample], tiny[1])


def test_graders_see_what_is_nearly_right():
    def from_the_shorter_side(x, y, width, height, grid):
        cell = min(width, height) / grid
        return int(y // cell) * grid + int(x // cell)

    def right_join(patches, height, width):
        side = round((patches.shape[2] / 3) ** 0.5)
        six = patches.reshape(len(patches), height // side, width // side, 3, side, side)
        return six.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), 3, height, width)

    def right_splice(ids, labels, embeds, features):
        at = ids.tolist().index(-200)
        embeds = torch.cat([embeds[:at], features, embeds[at + 1 :]])
        return embeds, torch.cat([labels[:at], labels.new_full((len(features),), -100), labels[at + 1 :]])

    assert not projector.grade_patch_of(from_the_shorter_side)
    assert projector.grade_join(right_join)
    turned = projector.grade_join(lambda patches, height, width: right_join(patches, height, width).mT)
    assert not turned and "shape" in turned.message
    flat = projector.grade_join(lambda patches, height, width: patches.reshape(len(patches), 3, height, width))
    assert not flat and "element [" in flat.message
    assert projector.grade_splice(right_splice)
    float_labels = projector.grade_splice(lambda *row: (right_splice(*row)[0], right_splice(*row)[1].float()))
    assert "the labels: expected dtype" in float_labels.message
    kept = projector.grade_splice(lambda ids, labels, embeds, features: (torch.cat([embeds, features]), labels))
    assert "the embeddings: expected shape" in kept.message
    assert "two tensors" in projector.grade_splice(lambda ids, labels, embeds, features: embeds).message


def test_views_show_what_they_say():
    square = Image.fromarray(np.full((48, 48, 3), 200, np.uint8))
    assert views.patch_grid(square, 4, lit=[5]).width > 48
    features = torch.zeros(16, 8)
    features[:8, 0] = 5.0
    features[::2, 1] = 1.0
    colors = np.asarray(views.feature_colors(features, 4, 16))
    assert (colors[0] != colors[-1]).any(), "upper and lower half have other features"
    assert np.array_equal(colors, np.asarray(views.feature_colors(copy.deepcopy(features), 4, 16)))
    weights = torch.zeros(16)
    weights[3] = 1
    lit = np.asarray(views.lit_by(square, weights, 4, marked=0))
    assert lit[6, 42].mean() == 200 and lit[30, 6].mean() < 60 and tuple(lit[0, 0]) == (230, 159, 0)
    ids, labels = torch.tensor([1, -200, 5, 6]), torch.tensor([-100, -100, 5, 6])
    spliced = torch.tensor([1, -200, -200, -200, 5, 6])
    strip = views.spliced_rows(ids, labels, spliced, torch.tensor([-100, -100, -100, -100, 5, 6]))
    assert strip.width == 1600
    seen = views.as_seen(torch.zeros(3, 4, 4), [0.5] * 3, [0.2] * 3, 8)
    assert seen.size == (8, 8) and abs(np.asarray(seen).mean() - 127.5) < 1


def test_a_click_names_the_patch_and_the_words_that_look_at_it():
    square = Image.new("RGB", (48, 48), "white")
    looks = torch.zeros(2, 16, 16)
    looks[1, 6, 9] = 1.0  # in layer 2, patch 6 looks at patch 9
    word_looks = torch.zeros(2, 16)
    word_looks[1, 6] = 0.25
    draw = views.attention_view(square, looks, ["red", "kite"], word_looks)
    picture, said = draw({"layer": 2, "show": "it looks at", "point": (0.6, 0.3)})
    assert "patch 6: row 1, column 2, layer 2" in said and "kite 25.0%" in said
    assert np.asarray(picture)[30, 18].mean() == 255 and np.asarray(picture)[30, 42].mean() < 60
    _, edge = draw({"layer": 1, "show": "it is seen by", "point": (1.0, 1.0)})
    assert "patch 15" in edge
