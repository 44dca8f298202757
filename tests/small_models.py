"""Random models of a few thousand parameters, and batches for them, for the tests of the model."""

import torch

from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

VOCABULARY = 64
BBOX, SEG, START, END = 59, 61, 57, 58
SIDE, SQUARE = 24, 32  # pixels of the global and of the grounding image


def small_config(**changes) -> GlammConfig:
    """3 x 3 image tokens, grouped-query attention, windows and relative positions: everything on, everything small."""
    settings = dict(
        vision=dict(
            image_size=SIDE,
            patch_size=8,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
        ),
        text=dict(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        region=dict(channels=16, scales=(2, 1, 1), rounds=2, groups=4, roi_size=3, position_hidden=8, hidden=16),
        grounding=dict(
            image_size=SQUARE,
            patch_size=8,
            hidden=16,
            depth=2,
            heads=2,
            global_attention=(1,),
            window=3,
            prompt_dim=16,
            mask_in_channels=4,
            decoder_hidden=32,
            decoder_heads=2,
            iou_hidden=16,
        ),
        tokens=dict(im_start=START, im_end=END, bbox=BBOX, point=60, seg=SEG, phrase_start=62, phrase_end=63),
        level_step=1,
    )
    return GlammConfig(**(settings | changes))


def small_model(seed: int = 0, **changes) -> GlammForConditionalGeneration:
    """A model whose every parameter is random, norms, biases and position tables too; in eval mode."""
    torch.manual_seed(seed)
    model = GlammForConditionalGeneration(small_config(**changes))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def images(count: int, seed: int = 1) -> dict:
    """Global and grounding images of `count` pictures of different sizes."""
    g = torch.Generator().manual_seed(seed)
    resized = [(SQUARE, 20), (24, SQUARE), (SQUARE, SQUARE)]
    original = [(40, 25), (30, 40), (16, 16)]
    return dict(
        global_images=torch.randn(count, 3, SIDE, SIDE, generator=g),
        grounding_images=torch.randn(count, 3, SQUARE, SQUARE, generator=g),
        resized=[resized[i % 3] for i in range(count)],
        original=[original[i % 3] for i in range(count)],
    )


def row(*pieces, image: bool = True) -> torch.Tensor:
    """Ids of one row: begin, the image in its two tokens, then `pieces`: numbers, or the words "bbox" and "seg"."""
    start = [1, START, IMAGE_TOKEN_INDEX, END] if image else [1]
    return torch.tensor(start + [{"bbox": BBOX, "seg": SEG}.get(p, p) for p in pieces])


def padded(rows: list[torch.Tensor], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one (R, L), and its attention mask."""
    length = max(len(r) for r in rows)
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, r in enumerate(rows):
        at = slice(length - len(r), length) if left else slice(0, len(r))
        ids[i, at], mask[i, at] = r, True
    return ids, mask


def answer_labels(ids: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
    """Labels that supervise every token from position `first` on."""
    labels = torch.where(mask & (ids >= 0), ids, IGNORE_INDEX)
    labels[:, :first] = IGNORE_INDEX
    return labels


def box_set(count: int, seed: int = 2) -> torch.Tensor:
    """(N, 4) normalized boxes."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 0.5
    return torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(count, 2, generator=g)], dim=1)


def truths(counts: list[int], original, seed: int = 3) -> list[torch.Tensor]:
    """Random true masks, per image (M, H, W)."""
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, *size, generator=g) > 0.5) for n, size in zip(counts, original, strict=True)]
