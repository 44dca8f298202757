"""Training steps of the official fine-tuning on random rows: LoRA and the official trained parts."""

import torch

from glamm_mini.checkpoints.lora import add_lora
from glamm_mini.dtypes import AUTOCAST
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.training.finetune import store_frozen_as, unfreeze_only
from glamm_mini.training.optimizer import build_optimizer
from glamm_mini.training.parallel import resolve_precision
from glamm_mini.training.recipes import read_recipe
from glamm_mini.training.trainer import layers_recomputed

RECIPE = "gcg"


class TrainingStep:
    """One optimizer step a call, as the recipe `gcg` says for a size: batch, accumulation, optimizer, precision.

    The model changes: LoRA is put in, trained parts become float32. Every row has `text` tokens of a question, the
    picture, and `answer` tokens with `masks` [SEG] among them.
    """

    def __init__(
        self, model: GlammForConditionalGeneration, size: str, device: torch.device, text: int, answer: int, masks: int
    ):
        recipe = read_recipe(RECIPE, size)
        self.settings = recipe.settings
        self.model, self.device = model.train(), device
        self.batch_size, self.accumulation = self.settings.batch_size, self.settings.accumulation
        self.precision = resolve_precision(self.settings.precision, device)
        add_lora(model, **recipe.lora)
        unfreeze_only(model, recipe.trained)
        store_frozen_as(model, AUTOCAST[self.precision])
        self.optimizer = build_optimizer(model, self.settings)
        self.batch = random_batch(model, self.batch_size, text, answer, masks, device)
        self.tokens = self.batch_size * self.accumulation * (text + model.config.image_tokens + answer)

    def __call__(self) -> float:
        """Forward and backward `accumulation` times, clipped, stepped; returns the last loss."""
        half = AUTOCAST[self.precision]
        with layers_recomputed(self.model, self.settings.gradient_checkpointing):
            for _ in range(self.accumulation):
                with torch.autocast(self.device.type, half, enabled=half != torch.float32):
                    loss = self.model(**self.batch).loss / self.accumulation
                loss.backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach()) * self.accumulation


def random_batch(model, rows: int, text: int, answer: int, masks: int, device: torch.device) -> dict:
    """`rows` random rows with a random picture each, for the model's forward; masks at the grounding encoder's size."""
    c = model.config
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(3, c.tokens.im_start, (rows, text + 1 + answer), generator=g)
    ids[:, 1] = IMAGE_TOKEN_INDEX
    ids[:, -masks:] = c.tokens.seg
    labels = ids.clone()
    labels[:, : text + 1] = IGNORE_INDEX
    square, small = c.grounding.image_size, c.vision.image_size
    batch = dict(
        input_ids=ids,
        labels=labels,
        global_images=torch.randn(rows, 3, small, small, generator=g),
        grounding_images=torch.randn(rows, 3, square, square, generator=g),
    )
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["masks"] = [(torch.rand(masks, square, square, generator=g) > 0.5).to(device) for _ in range(rows)]
    return batch | {"resized": [(square, square)] * rows, "original": [(square, square)] * rows}
