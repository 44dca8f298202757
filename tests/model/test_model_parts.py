"""Parts of the model against the library they come from, and against themselves in another order."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from small_models import box_set, images, padded, row, small_config, small_model
from torch import nn

from glamm_mini.model.config import GroundingConfig
from glamm_mini.model.sam import GroundingImageEncoder, upscale_logits


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model()


@pytest.mark.parametrize("window, everywhere", [(3, False), (2, False), (0, True)])
@pytest.mark.parametrize("relative", [True, False])
def test_fused_attention_equals_the_library(window, everywhere, relative):
    c = GroundingConfig(
        image_size=40, patch_size=8, hidden=24, depth=3, heads=3, window=window, relative_positions=relative,
        global_attention=(0, 1, 2) if everywhere else (1,), prompt_dim=16, mask_in_channels=4, decoder_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    ours = GroundingImageEncoder(small_config(grounding=c))
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(0, 0.3)
    library = ImageEncoderViT(
        img_size=40, patch_size=8, embed_dim=24, depth=3, num_heads=3, out_chans=16, window_size=window,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=relative, global_attn_indexes=c.global_attention,
    )  # fmt: skip
    library.load_state_dict(ours.vit.state_dict())
    x = torch.randn(2, 3, 40, 40)
    got, expected = ours(x), library(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    got.square().mean().backward()
    expected.square().mean().backward()
    for (name, a), b in zip(ours.vit.named_parameters(), library.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_pixel_decoder_equals_the_library_image_by_image(model):
    c = model.config.grounding
    library = MaskDecoder(
        transformer_dim=c.prompt_dim,
        transformer=TwoWayTransformer(
            depth=c.decoder_depth, embedding_dim=c.prompt_dim, num_heads=c.decoder_heads, mlp_dim=c.decoder_hidden
        ),
        iou_head_hidden_dim=c.iou_hidden,
    )
    library.load_state_dict(model.pixel_decoder.mask_decoder.state_dict())
    torch.manual_seed(1)
    embeddings, prompts = torch.randn(3, c.prompt_dim, c.grid, c.grid), torch.randn(5, 1, c.prompt_dim)
    which = torch.tensor([2, 0, 0, 2, 1])
    encoder = model.pixel_decoder.prompt_encoder
    with torch.no_grad():
        masks, quality = model.pixel_decoder(embeddings, prompts, which)
        for image in range(3):
            mine = which == image
            _, dense = encoder(points=None, boxes=None, masks=None)
            expected, score = library(
                image_embeddings=embeddings[image : image + 1],
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[mine],
                dense_prompt_embeddings=dense.expand(int(mine.sum()), -1, -1, -1),
                multimask_output=False,
            )
            torch.testing.assert_close(masks[mine], expected[:, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(quality[mine], score[:, 0], atol=1e-5, rtol=1e-5)


def test_no_prompts_give_no_masks(model):
    c = model.config.grounding
    masks, quality = model.pixel_decoder(
        torch.randn(1, c.prompt_dim, c.grid, c.grid), torch.zeros(0, 1, c.prompt_dim), torch.zeros(0, dtype=torch.long)
    )
    assert masks.shape == (0, 4 * c.grid, 4 * c.grid) and quality.shape == (0,)


def test_upscaled_mask_lies_where_the_object_was():
    """A square in the top-left quarter of a wide picture, padded below: the padding must not shift it."""
    logits = torch.full((1, 16, 16), -5.0)
    logits[:, :4, :8] = 5.0  # the picture fills the upper half of the square
    mask = upscale_logits(logits, 64, (32, 64), (100, 200))[0] > 0
    assert mask.shape == (100, 200)
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    assert rows.min() == 0 and columns.min() == 0
    assert abs(int(rows.max()) - 49) <= 1 and abs(int(columns.max()) - 99) <= 1


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_regions_do_not_depend_on_the_order_of_rows(model, order):
    """Rows of two images, mixed; region vectors come back to the row they belong to."""
    rows = [row(5, "bbox"), row(6, "bbox", 7, "bbox"), row(8, 9), row(10, "bbox", "bbox", "bbox")]
    which, boxes = [0, 1, 0, 0], [box_set(1, 4), box_set(2, 5), None, box_set(3, 6)]
    expected = _spliced(model, rows, which, boxes)
    got = _spliced(model, [rows[i] for i in order], [which[i] for i in order], [boxes[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(got[place], expected[i], atol=1e-6, rtol=1e-6)


def test_regions_do_not_depend_on_the_grouping_into_rows(model):
    boxes = box_set(3)
    together = _spliced(model, [row("bbox", "bbox", "bbox")], [0], [boxes])[0]
    apart = _spliced(model, [row("bbox")] * 3, [0] * 3, list(boxes.split(1)))
    behind_image = 4 + model.config.image_tokens - 1
    for k in range(3):
        torch.testing.assert_close(together[behind_image + k], apart[k][behind_image], atol=1e-6, rtol=1e-6)


def _spliced(model, rows, which, boxes):
    ids, mask = padded(rows)
    with torch.no_grad():
        features = model.encode_images(images(2)["global_images"])
        return model.splice(ids, mask, None, features, torch.tensor(which), boxes).embeds


def test_own_box_scale_is_the_image_and_the_official_one_is_not():
    own, official = small_model(), small_model(region=dict(small_config().region.__dict__, box_image_size=16))
    assert own.region_encoder.box_size == 24 and official.region_encoder.box_size == 16
    official.load_state_dict(own.state_dict())
    boxes, whole = [torch.tensor([[0.0, 0.0, 2 / 3, 2 / 3]])], [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    with torch.no_grad():
        levels = own.global_encoder(images(1)["global_images"]).levels
        maps = own.region_encoder.pyramid(levels)
        a, b = own.region_encoder.cut_out(maps, boxes), official.region_encoder.cut_out(maps, whole)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
