"""Official checkpoints on disk, as the hub has them: small ones with values made from names, and 7B ones that hold
shapes alone."""

import json
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

from glamm_mini.checkpoints.official import official_to_ours, ours_to_official
from glamm_mini.checks.parity.weights import fill_
from glamm_mini.paths import parity_folder

TOWER = "model.vision_tower.vision_tower."
SIZES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "int64": ("I64", 8)}


def small_meta() -> dict:
    """What the small reference case says about itself."""
    return json.loads((parity_folder() / "case_small" / "meta.json").read_text())


def small_state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The whole official state dict of the small case; its computed buffers are computed."""
    manifest = json.loads((parity_folder() / "case_small" / "manifest.json").read_text())
    state = {name: torch.zeros(entry["shape"]) for name, entry in manifest.items()}
    fill_(state)
    for name, tensor in state.items():
        if name.endswith("inv_freq"):
            half = len(tensor)
            state[name] = 1.0 / 10000 ** (torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half))
        elif name.endswith("position_ids"):
            state[name] = torch.arange(tensor.shape[1])[None]
        else:
            state[name] = tensor.to(dtype)
    return state


def small_config() -> dict:
    """An official config.json of the small case; what no shape tells stands under `glamm_mini`."""
    given = small_meta()["config"]
    grounding = dict(image_size=256, hidden=64, depth=2, heads=4, global_attention=[1], prompt_dim=64)
    grounding |= dict(decoder_hidden=128, decoder_heads=4, iou_hidden=64)
    region = dict(channels=64, groups=16, position_hidden=48, hidden=96, box_image_size=224)
    return {
        "model_type": "llava",
        "architectures": ["GLaMMForCausalLM"],
        **given["llm"],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": given["clip"]["hidden_size"],
        "mm_vision_select_layer": -2,
        "glamm_mini": {"region": region, "grounding": grounding},
    }


def write_official(folder: Path, state: dict, torch_files: bool = True, shards: int = 3, **changes) -> Path:
    """A folder as the hub has it: all but CLIP of `state`, in so many shards, with config.json and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(small_config() | changes))
    for path in (parity_folder() / "tokenizer").iterdir():
        shutil.copy2(path, folder)
    saved = {name: tensor for name, tensor in state.items() if "vision_tower" not in name}
    write_shards(folder, saved, torch_files, shards)
    return folder


def write_shards(folder: Path, state: dict, torch_files: bool, shards: int) -> None:
    """Weights with an index, or one file for shards=1."""
    stem, ending = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
    names = list(state)
    places = {}
    for k in range(shards):
        part = {name: state[name] for name in names[k::shards]}
        number = f"-{k + 1:05d}-of-{shards:05d}" if shards > 1 else ""
        path = folder / f"{stem}{number}.{ending}"
        torch.save(part, path) if torch_files else save_file(part, path)
        places |= dict.fromkeys(part, path.name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def write_clip(folder: Path, state: dict, old: bool = True, torch_files: bool = True) -> Path:
    """CLIP's own checkpoint: with the level `vision_model.`, a text encoder beside it and position ids, or without."""
    folder.mkdir(parents=True)
    vision = small_meta()["config"]["clip"]
    config = {"model_type": "clip", "vision_config": vision} if old else {"model_type": "clip_vision_model", **vision}
    (folder / "config.json").write_text(json.dumps(config))
    inner = {name.removeprefix(TOWER): t for name, t in state.items() if name.startswith(TOWER)}
    if old:
        inner |= {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}
    else:
        inner = {name.removeprefix("vision_model."): t for name, t in inner.items() if "position_ids" not in name}
    write_shards(folder, inner, torch_files, 1)
    return folder


def clip_of(folder: Path) -> Path:
    """Where the tests keep CLIP's folder of an official one."""
    return folder.with_name("clip")


def write_shapes(path: Path, tensors: dict[str, tuple[list[int], str]]) -> None:
    """A safetensors file of real names, shapes and types whose values are a hole: gigabytes that take no room."""
    header, at = {}, 0
    for name, (shape, dtype) in tensors.items():
        kind, width = SIZES[dtype]
        end = at + width * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def change_shard(folder, change, number=2):
    """Let `change` alter the state dict of one of three shards in place."""
    path = folder / f"pytorch_model-{number:05d}-of-00003.bin"
    part = torch.load(path, weights_only=True)
    change(part)
    torch.save(part, path)


def assert_holds(model, state, dtype=torch.float32):
    """All of the official `state`, and nothing else, is the model's, value by value."""
    own = model.state_dict()
    assert {official_to_ours(name) for name in state} - {None} == own.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, state[ours_to_official(name)].to(dtype)), name


def released_config(kind: str) -> dict:
    """config.json as the hub's pages show it, of GLaMM-GranD-Pretrained or of GLaMM-GCG."""
    given = {
        "_name_or_path": "./trained_checkpoints/exp1_grand_pretrain_v15_gs4488_ckpt_25000_hf",
        "architectures": ["LISAForCausalLM"],
        "bbox_token_idx": 32002,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": True,
        "freeze_mm_vision_resampler": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "image_aspect_ratio": "square",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_length": 4096,
        "max_position_embeddings": 4096,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": True,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "llava",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "num_level_reg_features": 4,
        "out_dim": 256,
        "pad_token_id": 0,
        "pretrain_mm_mlp_adapter": None,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "train_mask_decoder": True,
        "transformers_version": "4.28.0.dev0",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": False,
        "use_mm_proj": True,
        "vision_tower": "openai/clip-vit-large-patch14-336",
    }
    if kind == "pretrained":
        return given
    newer = dict(freeze_mlp_adapter=True, image_aspect="square", image_grid_points=None, mm_use_image_start_end=True)
    newer |= dict(mm_vision_module=given["vision_tower"], num_reg_features=4, select_feature_type="patch")
    return given | newer | {"architectures": ["GLaMMForCausalLM"], "freeze_mm_mlp_adapter": False}


def released_files(folder: Path, kind: str) -> None:
    """Bring the small json files of a folder into the released form, the sizes aside."""
    own = json.loads((folder / "config.json").read_text())
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    kept = {name: own[name] for name in (*sizes, "mm_hidden_size", "vocab_size", "glamm_mini") if name in own}
    kept.setdefault("num_key_value_heads", own["num_attention_heads"])
    (folder / "config.json").write_text(json.dumps(released_config(kind) | kept, indent=2))
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer = {
        "bos_token": token | {"content": "<s>"},
        "clean_up_tokenization_spaces": False,
        "eos_token": token | {"content": "</s>"},
        "legacy": False,
        "model_max_length": 1536,
        "pad_token": None,
        "padding_side": "right",
        "special_tokens_map_file": "./checkpoints/llava-v1.5-7b/special_tokens_map.json",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": token | {"content": "<unk>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096}
    generation |= {"pad_token_id": 0, "transformers_version": "4.28.0.dev0", "use_cache": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
