"""Write a case folder from OUR model: `python tests/write_case.py --like full --out FOLDER`.

For maintainers. The format is that of the official numbers, the numbers are not: a written case shows only that
nothing changed since it was written (a regression case), and that a case of its sizes runs through the comparison. It
says so in its meta.json (`made_by`).
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np

from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.case import PARTS, ReferenceCase, filled_model
from glamm_mini.checks.parity.case_outputs import Outputs
from glamm_mini.checks.parity.sizes import case_config
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.processing.processor import fitted_size

FULL = {
    "llm": {
        "vocab_size": 32007,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    },
    "clip": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "sam": "build_sam_vit_b",
    "region": "unpatched",
    "out_dim": 256,
    "ids": {name: 32000 + k for k, name in enumerate(("im_start", "im_end", "bbox", "point", "seg", "p", "ep"))},
}
"""The official widths, but 2 of the language model's 32 layers and SAM ViT-B: 1.4 billion parameters."""

STAGES = (
    "vision",
    "region",
    "splice reg",
    "splice reg_boxes",
    "splice reg_no_boxes",
    "train seg",
    "train reg",
    "generate plain_forced",
    "generate boxes_forced",
    "generate teacher_forced0",
)
MASKS, BOXES = (2, 3), (1, 2)
"""How many [SEG] and how many <bbox> the rows of the two images have."""
FROZEN = ("model.vision_tower.", "model.grounding_encoder.image_encoder.", "model.grounding_encoder.prompt_encoder.")
UNUSED = {
    "seg": ("model.region_encoder.", "model.grounding_encoder.mask_decoder.iou_prediction_head."),
    "reg": ("model.grounding_encoder.", "model.text_hidden_fcs."),
}
"""What has no gradient, besides FROZEN: masks do not need the regions, regions need no mask."""
WHOLE = ("model.norm.weight", "model.mm_projector.2.bias")
"""Gradients that are stored whole."""
MADE_BY = "glamm-mini itself: a regression case, no numbers of the official model"


def write_case(folder: str | Path, config: dict, key: str = "W", report=print) -> None:
    """Write meta.json, manifest.json and the five npz files of a case with these sizes (`config` of meta.json).

    key: what the names of the inputs begin with; another key gives other pictures and words. Raises ValueError if the
    folder is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already; give a new folder for the case")
    meta = _meta(config, key)
    region = _region(config)
    model = filled_model(case_config(config, meta["vision"], region, folder.name))
    manifest = _manifest(model)
    for tag in ("seg", "reg"):
        names = [n for n in manifest if not n.startswith((*FROZEN, *UNUSED[tag]))]
        meta["train"][tag]["grad_norms"] = dict.fromkeys(names, 0.0)
    arrays = _inputs(config, key, meta["train"])
    folder.mkdir(parents=True)
    _write(folder, meta, manifest, arrays)
    outputs = Outputs(ReferenceCase(folder), model)
    for stage in STAGES:
        report(f"{folder.name}: {stage}")
        _fill(stage, outputs, meta, arrays)
    _write(folder, meta, manifest, arrays)


def _fill(stage: str, outputs: Outputs, meta: dict, arrays: dict) -> None:
    part, _, tag = stage.partition(" ")
    for name, value in outputs.stage(stage):
        last = name.removeprefix(f"{tag}/")
        if last.startswith("grad_norm/"):
            meta[part][tag]["grad_norms"][last.removeprefix("grad_norm/")] = float(value)
        elif last == "seg_positions":
            meta[part][tag]["seg_positions"] = value.tolist()
        elif last != "clip_hidden_last":
            areas = last == "mask_area"
            arrays[part] |= weights.summarize(name, (value[0] if areas else value).detach().numpy())


def _write(folder: Path, meta: dict, manifest: dict, arrays: dict) -> None:
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for part in PARTS:
        np.savez_compressed(folder / f"{part}.npz", **arrays[part])


def _manifest(model) -> dict:
    from glamm_mini.checkpoints.official import ours_to_official

    return {
        ours_to_official(name): {"shape": list(tensor.shape), "dtype": "float32", "generated": True}
        for name, tensor in model.state_dict().items()
    }


def _region(config: dict) -> dict:
    """What meta.json says of the region encoder, or else the official numbers."""
    own = config["region"] if isinstance(config["region"], dict) else {}
    return dict(
        channels=config["clip"]["hidden_size"],
        scales=(8, 4, 2, 1),
        rounds=5,
        position_hidden=own.get("pos_hidden", 256),
        hidden=own.get("mid_dim", 1024),
    )


def _meta(config: dict, key: str) -> dict:
    states = config["clip"]["num_hidden_layers"] + 1
    side = config["clip"]["image_size"]
    square = config["sam"]["img_size"] if isinstance(config["sam"], dict) else 1024
    original = [(120, 160), (200, 90)]
    resized = [fitted_size(size, square) for size in original]
    return {
        "made_by": MADE_BY,
        "config": config,
        "seed_key_prefix": key,
        "inputs": {
            "global_images": [f'weights.global_image("{key}/img{i}", {side})' for i in range(2)],
            "grounding_images": [
                f'weights.grounding_image("{key}/img{i}", {tuple(resized[i])}, {square})' for i in range(2)
            ],
            "orig_sizes_hw": original,
            "resize_list_hw": resized,
            "boxes": {
                "one_two": [[[0.1, 0.2, 0.6, 0.7]], [[0.05, 0.05, 0.35, 0.95], [0.4, 0.1, 0.9, 0.5]]],
                "edge": [[[-0.2, 0.5, 0.5, 1.3], [0.5, 0.5, 0.5, 0.5]], [[0.9, 0.9, 1.0, 1.0]]],
            },
            "gt_mask_rects_x0y0x1y1": [[[10, 12, 70, 90], [60, 30, 150, 110]], [[5, 10, 60, 100], [20, 90, 85, 190]]],
        },
        "vision": {
            "n_hidden_states": states,
            "feature_level": states - 2,
            "region_levels": [states - 2 - 3 * k for k in (3, 2, 1, 0)],
        },
        "region": {"box_sets": 2},
        "splice": {"rows": 2},
        "train": {tag: {"offset": [0, 1, 2]} for tag in ("seg", "reg")},
        "generate": {
            "plain_forced": {"image": 1, "steps": 8, "forced_seg_at": [2, 5]},
            "boxes_forced": {"image": 1, "steps": 4, "forced_seg_at": [1]},
        },
    }


def _inputs(config: dict, key: str, train: dict) -> dict[str, dict[str, np.ndarray]]:
    """Rows of random words with the special tokens placed by hand; marks where [SEG] stand in `train`."""
    rows = _Rows(config, key)
    seg = [rows.row(f"seg{i}", masks=n) for i, n in enumerate(MASKS)]
    reg = [rows.row(f"reg{i}", boxes=n) for i, n in enumerate(BOXES)]
    arrays = {part: {} for part in PARTS}
    for tag, made in (("seg", seg), ("reg", reg)):
        ids, labels, attention = _padded(made)
        arrays["train"] |= {f"{tag}/input_ids": ids, f"{tag}/labels": labels, f"{tag}/attention_masks": attention}
        arrays["train"] |= {f"{tag}/grad/{name}": np.zeros(1, np.float32) for name in WHOLE}
    found = np.argwhere(arrays["train"]["seg/input_ids"] == config["ids"]["seg"])
    train["seg"]["seg_positions_in_input_ids"] = found.tolist()
    ids, labels, attention = _padded(reg)
    arrays["splice"] = {"reg/input_ids": ids, "reg/labels_in": labels, "reg/attention_in": attention}
    prompts = {"plain_forced": rows.row("plain", masks=0), "boxes_forced": reg[1], "teacher_forced0": seg[0]}
    for tag, (ids, labels) in prompts.items():
        stop = len(ids) if tag == "teacher_forced0" else labels.count(IGNORE_INDEX)
        arrays["generate"][f"{tag}/input_ids"] = np.array([ids[:stop]])
    return arrays


class _Rows:
    def __init__(self, config: dict, key: str):
        self.ids, self.key = config["ids"], key
        self.base = min(config["ids"].values())

    def _words(self, name: str, count: int) -> list[int]:
        stream = np.random.RandomState(zlib.crc32(f"{self.key}/words/{name}".encode()))
        return stream.randint(3, self.base, count).tolist()

    def row(self, name: str, masks: int = 0, boxes: int = 0) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation; labels are the answer's tokens."""
        t, words = self.ids, iter(self._words(name, 100))

        def take(count):
            return [next(words) for _ in range(count)]

        question = [1, *take(12), t["im_start"], IMAGE_TOKEN_INDEX, t["im_end"], *take(8)]
        for _ in range(boxes):
            question += [*take(2), t["bbox"]]
        question += take(4)
        answer = take(3)
        for _ in range(masks):
            answer += [t["p"], *take(2), t["ep"], t["seg"], *take(2)]
        answer.append(2)
        return question + answer, [IGNORE_INDEX] * len(question) + answer


def _padded(rows: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    length = max(len(ids) for ids, _ in rows)
    ids = np.array([row + [0] * (length - len(row)) for row, _ in rows])
    labels = np.array([row + [IGNORE_INDEX] * (length - len(row)) for _, row in rows])
    return ids, labels, np.array([[True] * len(row) + [False] * (length - len(row)) for row, _ in rows])


def main() -> None:
    """The command line: `--like full`, or the folder of a case whose sizes are wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--like", default="full", help='"full", or the folder of a case whose sizes are wanted')
    parser.add_argument("--key", default="W", help="what the names of the inputs begin with")
    parser.add_argument("--out", required=True, help="the new folder")
    given = parser.parse_args()
    config = FULL if given.like == "full" else ReferenceCase(given.like).meta["config"]
    write_case(given.out, config, given.key)


if __name__ == "__main__":
    main()
