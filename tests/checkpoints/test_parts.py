"""A GLaMM from pretrained parts in the formats that they are published in, and what is said when a part is wrong."""

import shutil

import numpy as np
import pytest
import torch
from pretrained_parts import ROWS, parts_config, save_clip, save_llama, save_sam
from safetensors.torch import load_file, save_file

from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.parts import OWN_PARTS, from_parts
from glamm_mini.checkpoints.save import save_model
from glamm_mini.model.tokens import ADDED_TOKENS


@pytest.fixture(scope="module")
def config():
    return parts_config()


@pytest.fixture(scope="module")
def stored(tmp_path_factory, config):
    """A folder with all three parts, and the models that were written."""
    folder = tmp_path_factory.mktemp("parts")
    originals = {
        "clip": save_clip(folder / "clip", config),
        "llama": save_llama(folder / "llama", config),
        "sam": save_sam(folder / "sam.pth", config),
    }
    return folder, originals


@pytest.fixture()
def places(stored, tmp_path):
    """A copy of the parts that a test may spoil, as arguments of from_parts."""
    shutil.copytree(stored[0], tmp_path / "parts")
    return {
        "global_encoder": tmp_path / "parts" / "clip",
        "language_model": tmp_path / "parts" / "llama",
        "grounding_encoder": tmp_path / "parts" / "sam.pth",
    }


@pytest.fixture(scope="module")
def loaded(stored, config):
    folder = stored[0]
    return from_parts(config, folder / "clip", folder / "llama", folder / "sam.pth")


def expected_state(originals) -> dict[str, torch.Tensor]:
    """Our names of all that the parts hold."""
    state = {f"global_encoder.clip.{n}": t for n, t in originals["clip"].state_dict().items()}
    state |= {f"language_model.{n}": t for n, t in originals["llama"].state_dict().items()}
    for name, tensor in originals["sam"].state_dict().items():
        home = "grounding_encoder.vit." if name.startswith("image_encoder.") else "pixel_decoder."
        state[home + name.removeprefix("image_encoder.")] = tensor
    return state


def assert_filled(model, originals, dtype=torch.float32):
    expected, own = expected_state(originals), model.state_dict()
    joined = {name for name in own if name.startswith(OWN_PARTS)}
    assert own.keys() == expected.keys() | joined
    for name, tensor in expected.items():
        assert own[name].dtype == dtype, name
        rows = ROWS if name.endswith(("embed_tokens.weight", "lm_head.weight")) else len(own[name])
        assert torch.equal(own[name][:rows], tensor.to(dtype)), name
    assert all(own[name].isfinite().all() and own[name].dtype == dtype for name in joined)


def test_every_tensor_is_its_source(loaded, stored):
    model, _, report = loaded
    assert_filled(model, stored[1])
    assert not any(p.is_meta for p in model.state_dict().values())
    files = {name: part.files for name, part in report.parts.items()}
    assert len(files["language_model"]) > 3, "the language model is to be in shards"
    assert files["pixel_decoder"] == ["sam.pth"] and all(files[part] == ["starting values"] for part in OWN_PARTS)
    assert report.loaded == len(model.state_dict())
    assert any(name.startswith("text_model.") for name in report.ignored)
    assert "7 new tokens" in str(report) and "starting values" in str(report)


def test_new_tokens_start_at_the_mean(loaded, stored):
    model, processor, _ = loaded
    llama = stored[1]["llama"]
    for ours, theirs in (
        (model.get_input_embeddings().weight, llama.model.embed_tokens.weight),
        (model.language_model.lm_head.weight, llama.lm_head.weight),
    ):
        assert ours.shape == (ROWS + 7, 32)
        torch.testing.assert_close(ours[ROWS:], theirs.mean(0).expand(7, -1), atol=1e-6, rtol=1e-6)
    ids = processor.tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    assert ids == list(range(ROWS, ROWS + 7)) and model.config.tokens.seg == ROWS + 4


def test_settings_that_shapes_do_not_show_are_the_parts_own(loaded, config):
    model = loaded[0]
    assert model.config.text.rms_norm_eps == 3e-5 and model.language_model.model.norm.variance_epsilon == 3e-5
    assert model.config.text.max_position_embeddings == 77
    assert (model.config.text.bos_token_id, model.config.text.eos_token_id, model.config.text.pad_token_id) == (1, 2, 0)
    assert config.text.vocab_size == ROWS + 7 and config.tokens.seg != ROWS + 4, "the caller's own is left alone"


def test_starting_values_follow_the_seed_alone(stored, config, loaded):
    folder = stored[0]
    places = (folder / "clip", folder / "llama", folder / "sam.pth")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again, other = from_parts(config, *places)[0], from_parts(config, *places, seed=1)[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = loaded[0].region_encoder.flatten.weight
    assert torch.equal(again.region_encoder.flatten.weight, weight)
    assert not torch.equal(other.region_encoder.flatten.weight, weight)


def picture(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 255, (30, 40, 3), dtype=np.uint8)


def test_it_answers_and_learns(loaded):
    model, processor, _ = loaded
    prompt = processor.prompts([[("What is there?", None)]]) | processor.images([picture(0)])
    grow = {"max_new_tokens": 4, "bad_words_ids": [[2]]}
    assert model.generate(**prompt, **grow).sequences.shape == (1, 4)
    batch = processor(
        images=[picture(0)],
        conversations=[[("Find <bbox> and draw it.", "<p> it </p> [SEG] .")]],
        boxes=[[[2, 3, 20, 25]]],
        masks=[np.ones((1, 30, 40), bool)],
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        out = model.train()(**batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    model.eval()
    assert losses[-1] < losses[0] and np.isfinite(losses).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_half_the_weights_and_full_positions(stored, config, dtype):
    folder = stored[0]
    model, _, report = from_parts(config, folder / "clip", folder / "llama", folder / "sam.pth", dtype=dtype)
    assert all(part.made == {dtype} for part in report.parts.values())
    assert_filled(model, stored[1], getattr(torch, dtype))
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_auto_is_float32_without_a_gpu(stored, config):
    folder = stored[0]
    model = from_parts(config, folder / "clip", folder / "llama", folder / "sam.pth", dtype="auto", device="cpu")[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_vision_half_and_torch_files_do_as_well(tmp_path, stored, config):
    tower = save_clip(tmp_path / "clip", config, whole=False)
    llama = tmp_path / "llama"
    shutil.copytree(stored[0] / "llama", llama)
    state = {}
    for file in llama.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    (llama / "model.safetensors.index.json").unlink()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as transformers 4 stored it
    torch.save(state, llama / "pytorch_model.bin")
    sam = tmp_path / "buffers.pth"
    torch.save(stored[1]["sam"].state_dict() | {"pixel_mean": torch.zeros(3, 1, 1)}, sam)
    model, _, report = from_parts(config, tmp_path / "clip", llama, sam)
    assert_filled(model, stored[1] | {"clip": tower})
    assert sorted(report.ignored) == ["model.layers.0.self_attn.rotary_emb.inv_freq", "pixel_mean"]


def test_shared_embeddings_stay_shared(tmp_path, stored, config):
    llama = save_llama(tmp_path / "llama", config, tie_word_embeddings=True)
    model, _, _ = from_parts(config, stored[0] / "clip", tmp_path / "llama", stored[0] / "sam.pth")
    embedding, head = model.get_input_embeddings().weight, model.language_model.lm_head.weight
    assert head is embedding and torch.equal(head[:ROWS], llama.lm_head.weight)


def test_it_saves_and_comes_back(tmp_path, loaded):
    model, processor, _ = loaded
    save_model(tmp_path / "joined", model, processor)
    again, reader = load_model(tmp_path / "joined")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert "parts" not in (tmp_path / "joined" / "config.json").read_text(), "no folder of this machine is written"
    turns = [("Find <bbox> .", "<p> it </p> [SEG]")]
    assert reader.encode(turns) == processor.encode(turns)


# ---- bad parts ----


def edit(file, change):
    """Rewrite one file of weights by `change(state)`."""
    safe = file.suffix == ".safetensors"
    state = load_file(file) if safe else torch.load(file, weights_only=True)
    change(state)
    save_file(state, file) if safe else torch.save(state, file)


BAD = [
    (
        "global_encoder",
        lambda p: edit(p / "model.safetensors", lambda s: s.pop("vision_model.pre_layrnorm.bias")),
        r"1 missing \(global_encoder\.clip\.pre_layrnorm",
    ),
    (
        "global_encoder",
        lambda p: (p / "config.json").write_text('{"model_type": "siglip"}'),
        "clip holds a 'siglip'",
    ),
    ("global_encoder", lambda p: (p / "config.json").write_text("{"), "clip.config.json"),
    ("global_encoder", lambda p: (p / "config.json").unlink(), "clip .*config.json"),
    (
        "language_model",
        lambda p: sorted(p.glob("*.safetensors"))[0].unlink(),
        r"llama lacks 1 of the \d+ shards .*model-00001",
    ),
    (
        "language_model",
        lambda p: sorted(p.glob("*.safetensors"))[1].write_bytes(b"12345678"),
        "model-00002.* is damaged",
    ),
    (
        "language_model",
        lambda p: edit(sorted(p.glob("*.safetensors"))[0], lambda s: s.update({"model.more": torch.zeros(1)})),
        r"1 unexpected \(model\.more in model-00001",
    ),
    ("language_model", lambda p: (p / "tokenizer.model").unlink(), "tokenizer.model"),
    (
        "grounding_encoder",
        lambda p: edit(p, lambda s: s.update({"mask_decoder.iou_token.weight": torch.zeros(2, 16)})),
        r"1 of another shape \(mask_decoder\.iou_token.* in sam.pth",
    ),
    ("grounding_encoder", lambda p: p.write_bytes(p.read_bytes()[:-999]), "sam.pth is damaged"),
    (
        "grounding_encoder",
        lambda p: p.unlink(),
        "there is no file .*sam.pth",
    ),
]


@pytest.mark.parametrize(("part", "spoil", "message"), BAD)
def test_a_bad_part_is_named(places, config, part, spoil, message):
    spoil(places[part])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_parts(config, **places)


def test_another_size_is_told_by_its_settings(tmp_path, places, config):
    save_sam(tmp_path / "big.pth", config, image_size=48)
    with pytest.raises(ValueError, match=r"pos_embed in big\.pth"):
        from_parts(config, **places | {"grounding_encoder": tmp_path / "big.pth"})
    wide = parts_config(vision=config.vision.to_dict() | {"hidden_size": 64})
    with pytest.raises(ValueError, match=r"clip has hidden_size 32 \(expected 64\)"):
        from_parts(wide, **places)


def test_arguments_that_cannot_be_meant(places, config, tmp_path):
    with pytest.raises(ValueError, match="int8"):
        from_parts(config, **places, dtype="int8")
    with pytest.raises(ValueError, match="no pretrained parts are published for the size 'tiny'"):
        from_parts("tiny")
    with pytest.raises(FileNotFoundError, match="absent"):
        from_parts(config, **places | {"global_encoder": tmp_path / "absent"})
    with pytest.raises(FileNotFoundError, match="sam.pth is a file"):
        from_parts(config, **places | {"language_model": places["grounding_encoder"]})
    with pytest.raises(FileNotFoundError, match="clip"):
        from_parts(config, **places | {"grounding_encoder": places["global_encoder"]})
