"""Trainings of small GLaMMs for test_sharding.py, one after the other, in one process or, by torchrun, in several.

python sharded_glamm.py OUT BATCH_SIZE
"""

import os
import sys
from pathlib import Path

import torch
from small_models import answer_labels, box_set, images, padded, row, small_model, truths

from glamm_mini.checkpoints.lora import add_lora
from glamm_mini.training.finetune import store_frozen_as
from glamm_mini.training.parallel import check_alike, check_equal
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer

BASE = TrainSettings(
    steps=3, batch_size=4, lr=1e-2, warmup=0, log_every=1, threads=1, workers=0, tensorboard=False, cpu=True, clip=0.5
)
CASES = {
    "everything": ["shard=full"],
    "lora": ["shard=full", "gradient_checkpointing=true"],
    "bf16": ["shard=full", "gradient_checkpointing=true", "precision=bf16", "steps=2"],
}


class Scenes:
    """Every fourth sample asks about two boxes and has no mask, every other has one or two masks and no box."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict:
        picture = {name: value[0] for name, value in images(1, seed=i).items()}
        boxes, masks = (2, 0) if i % 4 == 0 else (0, 1 + i % 2)
        ids = row(9, 30 + i, *["bbox"] * boxes, *["seg", 8] * masks, 20 + i)
        sample = {"ids": ids, "boxes": box_set(boxes, seed=i) if boxes else None, **picture}
        return {**sample, "masks": truths([masks], [picture["original"]], seed=i)[0]}


def collate(samples: list[dict]) -> dict:
    """One row and one picture a sample."""
    ids, mask = padded([sample["ids"] for sample in samples])
    batch = {name: [sample[name] for sample in samples] for name in ("boxes", "masks", "resized", "original")}
    batch |= {name: torch.stack([sample[name] for sample in samples]) for name in ("global_images", "grounding_images")}
    batch |= {"input_ids": ids, "attention_mask": mask, "labels": answer_labels(ids, mask, 6)}
    counts = {"num_tokens": int((batch["labels"][:, 1:] >= 0).sum()), "num_masks": sum(len(m) for m in batch["masks"])}
    return batch | counts


def generated(model) -> dict[str, float]:
    """Validation by `generate`, which reads weights without the model's own forward."""
    with torch.no_grad():
        ids, _ = padded([row("bbox", 9, 8)])
        found = model.generate(ids, boxes=[box_set(1)], max_new_tokens=4, do_sample=False, **images(1))
    return {"ids": sum(int(x) * 64**k for k, x in enumerate(found.sequences[0]))}


class Watched(Trainer):
    """Keeps the whole gradient of every optimizer step, and how the parameters lie."""

    def _start(self, *how) -> None:
        super()._start(*how)
        self.gradients: list[dict] = []
        self.layout = {n: [str(x) for x in getattr(p, "placements", ())] for n, p in self.model.named_parameters()}
        self.optimizer.optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_) -> None:
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for name, g in found.items()}
        self.gradients.append(whole)


def train(name: str, out: Path, batch_size: int) -> None:
    """One case; writes gradients, layout and final weights into its folder."""
    model = small_model()
    if name != "everything":
        model.requires_grad_(False)
        add_lora(model, rank=2, dropout=0.0)
        for part in (model.region_encoder, model.pixel_decoder.mask_decoder, model.lp_projector):
            part.requires_grad_(True)
    if name == "bf16":
        store_frozen_as(model, torch.bfloat16)
    validate = generated if name != "bf16" else None
    settings = BASE.with_overrides([*CASES[name], f"batch_size={batch_size}"])
    run = Watched(model, Scenes(), collate, settings, out / name, validate)
    run.fit()
    rank = os.environ.get("RANK", "0")
    found = {"gradients": run.gradients, "layout": run.layout, "weights": dict(run.model.state_dict())}
    found |= {"requires_grad": {name: p.requires_grad for name, p in run.model.named_parameters()}}
    found |= {"buffers": dict(run.model.named_buffers()), "same": run.model is model}
    torch.save(found, out / f"{name}_{rank}.pt")


def refused(call, *arguments) -> str:
    """The text of the ValueError that a call raises."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for case in CASES:
        train(case, out, int(sys.argv[2]))
    alike = [{"global_images": 1, "boxes": [rank]}, {}]
    check_alike(alike, torch.device("cpu"))
    different = [{"global_images": 1}, {"grounding_images": 1} if rank else {}]
    words = [refused(check_alike, different, torch.device("cpu")), refused(check_equal, small_model(seed=rank), "cpu")]
    (out / f"refused_{rank}.txt").write_text("\n".join(words))
