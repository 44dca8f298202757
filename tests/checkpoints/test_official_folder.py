"""Official checkpoints from disk: every value arrives, in every format; whatever does not fit is named."""

import json
import shutil

import pytest
import torch
from official_files import (
    assert_holds,
    change_shard,
    clip_of,
    small_config,
    write_clip,
    write_official,
    write_shapes,
    write_shards,
)

import glamm_mini
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.convert import prepare
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.official import ours_to_official
from glamm_mini.checkpoints.save import save_model
from glamm_mini.checkpoints.source import open_checkpoint
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.paths import parity_folder

# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torch_files", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_value_arrives_whatever_the_format(tmp_path, state, torch_files, shards):
    folder = write_official(tmp_path / "glamm", state, torch_files, shards)
    clip = write_clip(tmp_path / "clip", state, old=torch_files, torch_files=torch_files)
    model, processor = load_model(folder, vision_tower=clip)
    assert_holds(model, state)
    assert model.config.mode == "official" and model.config.text.rms_norm_eps == 1e-5
    assert model.config.tokens.seg == processor.tokenizer.convert_tokens_to_ids("[SEG]") == 516
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_the_report_tells_what_came_from_where(files, state):
    report = load_model(files, "bfloat16", vision_tower=clip_of(files))[0].load_report
    assert report.loaded == len(state) - 3
    ignored = [name for name in report.ignored if name.endswith(("inv_freq", "position_ids"))]
    assert len(ignored) == 3 and {"logit_scale", "text_model.final_layer_norm.weight"} < set(report.ignored)
    clip = report.parts["global_encoder"]
    assert clip.files == ["pytorch_model.bin"] and clip.made == {"bfloat16"}
    assert clip.bytes == sum(t.nbytes for n, t in state.items() if "vision_tower" in n and t.is_floating_point())
    assert len(report.parts["language_model"].files) == 3 and not report.kept and not report.notes
    assert "language_model" in str(report) and "float32 to bfloat16" in str(report)


def test_the_vision_tower_may_lie_in_the_checkpoint_itself(tmp_path, state):
    folder = write_official(tmp_path / "glamm", state)
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    write_shards(folder, state, True, 1)
    assert_holds(load_model(folder, config=glamm_mini.GlammConfig(**own_settings(folder)))[0], state)


def own_settings(folder):
    """Settings of the small case, CLIP's among them."""
    from official_files import small_meta

    config = open_checkpoint(folder).config.to_dict()
    kept = ("text", "region", "grounding", "prompt", "tokens", "mode", "feature_layer", "level_step")
    return {name: config[name] for name in kept} | {"vision": small_meta()["config"]["clip"]}


def test_types_are_kept_on_request(tmp_path, state, monkeypatch):
    """As the hub has them: SAM, the L-P projector and CLIP's own file in float32, all else in bfloat16."""
    whole = ("model.grounding_encoder", "model.text_hidden_fcs", "model.vision_tower.")
    mixed = {n: t if n.startswith(whole) or n.endswith("inv_freq") else t.bfloat16() for n, t in state.items()}
    folder, clip = write_official(tmp_path / "glamm", mixed), write_clip(tmp_path / "clip", mixed)
    model, processor = load_model(folder, "stored", vision_tower=clip)
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16
    assert model.vl_projector[0].weight.dtype == model.region_encoder.out.weight.dtype == torch.bfloat16
    assert model.lp_projector[0].weight.dtype == model.global_encoder.clip.dtype == torch.float32
    matrix = "pixel_decoder.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert model.state_dict()[matrix].dtype == torch.float32
    picture = torch.zeros(300, 200, 3, dtype=torch.uint8).numpy()
    glamm = Assistant(model, processor)
    [mask] = glamm.teacher_force(picture, [("Where is it?", "Here [SEG].")])
    assert mask.shape == (300, 200)
    monkeypatch.setattr("glamm_mini.assistant.assistant.MAX_NEW_TOKENS", dict.fromkeys(("fixed", "official"), 4))
    assert glamm.ask(picture, "What is it?").image.shape == (300, 200, 3)
    # On a small grid: a CPU without instructions for bfloat16 takes 30 times longer to convolve in it.
    levels = [torch.zeros(1, model.config.vision.hidden_size, 3, 3, dtype=torch.bfloat16)] * 4
    [vector] = model.region_encoder(levels, [torch.tensor([[0.1, 0.2, 0.8, 0.9]])])
    assert vector.dtype == torch.bfloat16 and bool(vector.isfinite().all())
    # As the released code does: all is cast, SAM's matrix of frequencies too; computed buffers are not.
    model = load_model(folder, "bfloat16", vision_tower=clip)[0]
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_loaded_by_its_hub_id(files, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns, **_):
        asked.append((name, "pytorch_model*.bin" in allow_patterns))
        return str(files if name == "MBZUAI/GLaMM-GCG" else clip_of(files))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    glamm = glamm_mini.load("MBZUAI/GLaMM-GCG", device="cpu")
    clip = "openai/clip-vit-large-patch14-336"
    # Torch's files are asked for only where there are no safetensors.
    assert asked == [("MBZUAI/GLaMM-GCG", False), ("MBZUAI/GLaMM-GCG", True), (clip, False), (clip, True)]
    assert glamm.config.mode == "official" and glamm.wording is not None


# --- config.json -----------------------------------------------------------------------------------------------------


def test_what_config_json_leaves_out_is_the_released_size_and_said(tmp_path, state):
    folder = write_official(tmp_path / "glamm", state)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    source = open_checkpoint(folder, need_tower=False)
    released = glamm_mini.GlammConfig.of_size("7b")
    assert source.config.region == released.region and source.config.grounding == released.grounding
    text = source.config.text
    assert (text.vocab_size, text.hidden_size, text.num_attention_heads) == (519, 4096, 32)
    assert {"num_attention_heads", "rms_norm_eps"} <= set(" ".join(source.left.notes).replace(":", "").split())
    with pytest.raises(ValueError, match="of another shape"):
        source.check(source.empty_model(), without_tower=True)


def test_settings_of_config_json_are_taken(tmp_path, state):
    scaling = {"type": "linear", "factor": 2.0}
    settings = dict(rms_norm_eps=1e-6, rope_theta=5000.0, rope_scaling=scaling, vocab_size=512)
    source = open_checkpoint(write_official(tmp_path / "glamm", state, **settings), need_tower=False)
    assert source.config.text.rms_norm_eps == 1e-6 and source.config.text.vocab_size == 519
    assert source.config.text.rope_parameters == {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}
    assert source.left.notes == ["config.json says 512 words, the weights have 519: taken so"]


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_one_error_names_all_keys_and_their_shards(files, copy):
    names = list(torch.load(copy / "pytorch_model-00002-of-00003.bin", weights_only=True))

    def change(part):
        del part[names[0]]
        part["model.odd"] = torch.ones(2)
        part[names[1]] = torch.ones(7, 7)

    change_shard(copy, change)
    with pytest.raises(ValueError) as caught:
        load_model(copy, vision_tower=clip_of(files))
    text = str(caught.value)
    assert str(copy) in text and f"1 missing ({names[0]})" in text
    assert "1 unexpected (model.odd in pytorch_model-00002-of-00003.bin)" in text
    assert f"{names[1]} in pytorch_model-00002-of-00003.bin is (7, 7), the model has" in text


def test_lora_matrices_are_explained(files, copy):
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    change_shard(copy, lambda part: part.update({name: torch.ones(8, 128)}))
    with pytest.raises(ValueError, match="LoRA matrices: merge them first"):
        load_model(copy, vision_tower=clip_of(files))


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_shard_is_named(files, copy, keep):
    path = copy / "pytorch_model-00003-of-00003.bin"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match="pytorch_model-00003-of-00003.bin is damaged, truncated"):
        load_model(copy, vision_tower=clip_of(files))


def test_a_missing_shard_is_named(files, copy):
    (copy / "pytorch_model-00001-of-00003.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of the 3 shards .*pytorch_model-00001-of-00003.bin"):
        load_model(copy, vision_tower=clip_of(files))


def test_missing_files_are_named(files, copy):
    with pytest.raises(FileNotFoundError, match="leave out CLIP, and openai/clip.* was not found.*vision_tower"):
        load_model(copy)
    (copy / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json"):
        load_model(copy, vision_tower=clip_of(files))


def test_a_clip_of_another_size_is_named(tmp_path, state, files):
    clip = write_clip(tmp_path / "clip", state)
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 32
    (clip / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="in pytorch_model.bin is .*, the model has"):
        load_model(files, vision_tower=clip)
    with pytest.raises(ValueError, match="holds its own image encoders"):
        load_model("tiny", vision_tower=clip)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        from pathlib import Path

        return Path.touch, (self.path,)


def test_code_in_a_shard_is_never_run(files, copy, tmp_path):
    change_shard(copy, lambda part: part.update({"model.norm.weight": Trap(tmp_path / "sprung")}))
    with pytest.raises(ValueError, match="pytorch_model-00002-of-00003.bin is damaged, .*none of it was run"):
        load_model(copy, vision_tower=clip_of(files))
    assert not (tmp_path / "sprung").exists()


def test_a_broken_config_is_named(files, copy):
    (copy / "config.json").write_text(json.dumps(small_config() | {"num_attention_heads": 7}))
    with pytest.raises(ValueError, match=f"{copy}: config.json or the tokenizer cannot be used"):
        load_model(copy, vision_tower=clip_of(files))


# --- saved in our format ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["4GB", "5MB"])
def test_saved_in_our_format_it_reloads_alone_and_by_from_pretrained(files, state, tmp_path, size):
    model, processor = load_model(files, vision_tower=clip_of(files))
    folder = save_model(tmp_path / "ours", model, processor, max_shard_size=size)
    assert (len(list(folder.glob("*.safetensors"))) == 1) == (size == "4GB")
    assert (folder / "model.safetensors.index.json").exists() == (size != "4GB")
    assert all(path.stat().st_size < 5.1e6 for path in folder.glob("model-*.safetensors"))
    assert_holds(load_model(folder)[0], state)
    assert_holds(GlammForConditionalGeneration.from_pretrained(folder), state)
    turns = [("What is <bbox>?", "<p> a kite </p> [SEG].")]
    assert load_model(folder)[1].encode(turns) == processor.encode(turns)


# --- the real size ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """GLaMM 7B and its CLIP: real names, shapes and types in two shards of 16 GB; the values are a hole in the file."""
    folder = tmp_path_factory.mktemp("big")
    tensors = json.loads((parity_folder() / "manifest_7b.json").read_text())["tensors"]
    glamm, clip = folder / "glamm", folder / "clip"
    for path in (glamm, clip):
        path.mkdir()
    saved = {name: (entry["shape"], entry["dtype"]) for name, entry in tensors.items() if entry["saved"]}
    names, places = list(saved), {}
    for k in range(2):
        file = glamm / f"model-0000{k + 1}-of-00002.safetensors"
        part = {name: saved[name] for name in names[k * 500 : (k + 1) * 500]}
        write_shapes(file, part)
        places |= dict.fromkeys(part, file.name)
    (glamm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (glamm / "config.json").write_text(json.dumps({"model_type": "llava", "rms_norm_eps": 1e-5}))
    shutil.copy2(parity_folder() / "tokenizer" / "tokenizer.model", glamm)
    tower = "model.vision_tower.vision_tower."
    inner = {n.removeprefix(tower): e["shape"] for n, e in tensors.items() if n.startswith(tower)}
    types = {name: "int64" if name.endswith("position_ids") else "float32" for name in inner}
    write_shapes(clip / "model.safetensors", {name: (shape, types[name]) for name, shape in inner.items()})
    settings = glamm_mini.GlammConfig.of_size("7b").vision.to_dict()
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": settings}))
    return glamm, tensors


def test_the_real_size_has_a_place_for_every_name(big):
    folder, tensors = big
    source = open_checkpoint(folder, folder.with_name("clip"))
    model = source.empty_model()
    source.check(model)
    parameters = dict(model.named_parameters())
    assert len(parameters) == 1326 and sum(p.numel() for p in parameters.values()) == 8_021_023_792
    own = {ours_to_official(name): entry for name, entry in source.places.items()}
    assert own.keys() - {ours_to_official(name) for name in parameters} == {
        "model.grounding_encoder.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    }
    for name, entry in own.items():
        assert list(entry.shape) == tensors[name]["shape"], name
        assert str(entry.dtype) == f"torch.{tensors[name].get('dtype', 'float32')}", name
    computed = {name.removeprefix("model.vision_tower.vision_tower.") for name in tensors.keys() - own.keys()}
    assert set(source.left.ignored) == computed and len(computed) == 33


@pytest.mark.parametrize("dtype", [None, "official"])
def test_the_real_size_is_written_back_as_it_was(big, dtype):
    folder, tensors = big
    conversion = prepare(folder, to="official", dtype=dtype)
    saved = {name: (tuple(e["shape"]), e["dtype"]) for name, e in tensors.items() if e["saved"]}
    assert len(saved) == 968
    types = {name: str(dtype).removeprefix("torch.") for name, dtype in conversion.types.items()}
    found = {name: (tuple(tensor.shape), types[name]) for name, tensor in conversion.weights.items()}
    assert found == saved
