"""LoRA by peft: equal to the official trained and frozen sets, exact when merged, safe against the wrong model."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import answer_labels, box_set, images, padded, row, small_model, truths

from glamm_mini import GlammForConditionalGeneration, paths
from glamm_mini.checkpoints.lora import add_lora, has_lora, load_lora, lora_settings, merge_lora, save_lora
from glamm_mini.checkpoints.official import official_to_ours, ours_to_official
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.training.finetune import store_frozen_as, unfreeze_only

OFFICIAL = ("lora_", "embed_tokens", "lm_head", "region_encoder", "lp_projector", "pixel_decoder.mask_decoder")
SETUP = json.loads((Path(__file__).parents[1] / "files" / "training_setup.json").read_text())


def rows():
    return padded([row(5, 6, 7, 8, image=False), row(9, 10, image=False)])[0]


def stirred(model, seed: int = 5):
    """The model with its LoRA as after training: B no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def official_small_model() -> GlammForConditionalGeneration:
    """The small case's shapes on the meta device."""
    config = ReferenceCase(paths.parity_folder() / "case_small").config()
    with torch.device("meta"):
        return GlammForConditionalGeneration(config)


def official_names(model) -> dict[str, torch.nn.Parameter]:
    names = ((n.replace(".base_layer", ""), p) for n, p in model.named_parameters())
    return {ours_to_official(name): p for name, p in names}


def group(name: str) -> str:
    """The heading under which the official list counts a tensor."""
    if ".lora_" in name:
        return "model.layers.* LoRA"
    if name.startswith("model.layers."):
        return "model.layers.* base"
    known = SETUP["trainable_groups_ntensors_nparams"] | SETUP["frozen_groups_ntensors_nparams"]
    return next(heading for heading in known if name.startswith(heading))


def test_what_is_trained_and_frozen_is_what_the_official_run_trains_and_freezes():
    model = official_small_model()
    assert add_lora(model) == 4
    unfreeze_only(model, OFFICIAL)
    named = official_names(model)
    lora = {n: list(p.shape) for n, p in named.items() if ".lora_" in n}
    assert lora == dict(SETUP["lora"])
    assert {n for n, p in named.items() if p.requires_grad} == set(SETUP["trainable_names_case_S"])
    for trained, key in ((True, "trainable"), (False, "frozen")):
        tensors, numbers = Counter(), Counter()
        for name, p in named.items():
            if p.requires_grad == trained:
                tensors[group(name)] += 1
                numbers[group(name)] += p.numel()
        counted = {g: [tensors[g], numbers[g]] for g in tensors}
        expected = SETUP[f"{key}_groups_ntensors_nparams"]
        assert counted == expected
    first = next(iter(lora))
    assert official_to_ours(first) == "language_model." + first
    layer = model.language_model.model.layers[0].self_attn.q_proj
    assert layer.scaling == {"default": SETUP["lora_scaling"]}


def test_nothing_changes_at_first_and_only_the_language_model_is_touched():
    model, plain, ids = small_model(), small_model(), rows()
    assert not has_lora(model) and add_lora(model, rank=3, alpha=6, dropout=0.0, targets=("k_proj",)) == 2
    assert has_lora(model)
    assert lora_settings(model) == {"rank": 3, "alpha": 6, "dropout": 0.0, "targets": ["k_proj"]}
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert {n for n, p in model.language_model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.language_model.named_parameters() if ".lora_" in n
    }
    outside = [(n, p) for n, p in model.named_parameters() if not n.startswith("language_model.")]
    assert [n for n, _ in outside] == [n for n, _ in plain.named_parameters() if not n.startswith("language_model.")]
    assert all(p.requires_grad for _, p in outside)


def test_merging_keeps_the_answers_and_gives_a_plain_model_back():
    model, plain, ids = small_model(), small_model(), rows()
    add_lora(model)
    stirred(model)
    before = model(ids).logits
    assert (before - plain(ids).logits).abs().max() > 0.1
    assert merge_lora(model) == 4 and not has_lora(model)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == list(plain.state_dict())
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, plain.state_dict()[n])}
    assert moved == {f"language_model.model.layers.{k}.self_attn.{q}_proj.weight" for k in (0, 1) for q in "qv"}
    assert add_lora(model) == 4


def test_saved_lora_is_small_and_loads_onto_its_base_alone(tmp_path):
    model, ids = small_model(), rows()
    add_lora(model, rank=2)
    unfreeze_only(model, ("lora_", "lm_head"))
    stirred(model).language_model.lm_head.weight.data += 0.1
    save_lora(tmp_path, model, base="tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {name.replace(".default.", ".") for name in trained} == {n.removeprefix("base_model.model.") for n in stored}
    assert len(stored) == 9
    again = small_model()
    assert load_lora(again, tmp_path)["base"] == "tiny"
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
    half = small_model().bfloat16()
    load_lora(half, tmp_path)  # the same base in half precision is the same base
    assert {p.dtype for n, p in half.named_parameters() if ".lora_" in n} == {torch.float32}
    stirred(again, seed=9)
    load_lora(again, tmp_path)  # into the LoRA that is there already
    assert torch.equal(again(ids).logits, model(ids).logits)


def asked() -> dict:
    """A batch of one picture with a box and two masks, whose answer begins behind the box."""
    ids, mask = padded([row(5, "bbox", 6, "seg", 7, "seg", 2)])
    batch = dict(input_ids=ids, attention_mask=mask, labels=answer_labels(ids, mask, 6), boxes=[box_set(1)])
    pictures = images(1)
    return batch | pictures | {"masks": truths([2], pictures["original"])}


@pytest.mark.parametrize("trained", [OFFICIAL, ("lora_", "lm_head"), ("lora_", "embed_tokens", "mask_decoder")])
def test_trained_parts_stay_float32_in_a_model_of_half_precision(tmp_path, trained):
    model = small_model()
    add_lora(model)
    unfreeze_only(model, trained)
    for name, parameter in stirred(model).named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            parameter.data *= 1 + 1e-4  # lost in bfloat16
    stored = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    save_lora(tmp_path, model)
    half, batch = small_model().bfloat16(), asked()
    load_lora(half, tmp_path)
    for name, parameter in half.named_parameters():
        assert parameter.requires_grad == (name in stored), name
        assert parameter.dtype == (torch.float32 if name in stored else torch.bfloat16), name
        assert name not in stored or torch.equal(parameter, stored[name]), name
    exact, near = model(**batch, return_logits=True), half(**batch, return_logits=True)
    torch.testing.assert_close(near.logits.float(), exact.logits, rtol=0, atol=0.15)
    torch.testing.assert_close(near.low_res.float(), exact.low_res, rtol=0, atol=0.15)
    question = {k: v for k, v in batch.items() if k not in ("labels", "masks")}
    answer = half.generate(**question, max_new_tokens=4, min_new_tokens=4)
    assert answer.sequences.shape == (1, 4) and answer.last_hidden.isfinite().all()
    half.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = half(**batch).loss
    loss.backward()
    torch.optim.SGD([p for p in half.parameters() if p.requires_grad], 1e-2).step()
    assert loss.isfinite() and all(p.isfinite().all() for p in half.parameters())
    moved = {n for n, p in half.named_parameters() if n in stored and not torch.equal(p, stored[n])}
    assert all(any(piece in name for name in moved) for piece in trained)
    merge_lora(half)
    assert half.eval()(**question).low_res.isfinite().all()


def test_wrong_adapters_are_refused_and_leave_the_model_as_it_was(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match="no LoRA"):
        save_lora(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        load_lora(model, tmp_path)
    add_lora(model, rank=4)
    save_lora(tmp_path, model, base="tiny")
    other = small_model()
    add_lora(other, rank=2)
    with pytest.raises(ValueError, match="does not fit the model's"):
        load_lora(other, tmp_path)
    assert lora_settings(other)["rank"] == 2
    text = small_model().config.text.to_dict()
    wider = small_model(text=text | {"hidden_size": 64, "num_attention_heads": 8})
    deeper = small_model(text=text | {"num_hidden_layers": 3})
    deeper.load_state_dict(small_model().state_dict(), strict=False)  # the same weights, and a layer more
    for wrong, words in ((wider, "of another model"), (deeper, "of another model"), (small_model(1), "other weights")):
        names = list(wrong.state_dict())
        with pytest.raises(ValueError, match=f"{words}.*tiny"):
            load_lora(wrong, tmp_path)
        assert list(wrong.state_dict()) == names and all(p.requires_grad for p in wrong.parameters())
    for text in ("[1", '{"peft_type": "NEVER"}', '{"peft_type": "LORA", "r": 0}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_lora(small_model(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        load_lora(small_model(), tmp_path)


def test_mistakes_are_named(monkeypatch):
    model = small_model()
    with pytest.raises(ValueError, match="no LoRA"):
        merge_lora(model)
    with pytest.raises(ValueError, match="rank 0"):
        add_lora(model, rank=0)
    with pytest.raises(ValueError, match="no linear layer called query"):
        add_lora(model, targets=("q_proj", "query"))
    assert not has_lora(model)
    add_lora(model)
    with pytest.raises(ValueError, match="already"):
        add_lora(model)
    with pytest.raises(ValueError, match="never.*no parameter"):
        unfreeze_only(model, ("lora_", "never"))
    quantized = small_model()
    layer = quantized.language_model.model.layers[0].mlp.up_proj
    layer.__class__ = type("Linear4bit", (torch.nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    with pytest.raises(ValueError, match="quantized"):
        add_lora(quantized)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"glamm-mini\[train\]"):
        add_lora(small_model())


def test_frozen_parts_in_half_precision_trained_parts_in_float32():
    model = small_model()
    add_lora(model)
    unfreeze_only(model, OFFICIAL)
    store_frozen_as(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        float32 = parameter.requires_grad or "prompt_encoder" in name
        assert parameter.dtype == (torch.float32 if float32 else torch.bfloat16), name
    assert all(b.dtype != torch.bfloat16 for b in model.buffers())


# --- peft's own ------------------------------------------------------------------------------------------------------


def test_a_folder_of_ours_is_read_by_peft(tmp_path):
    """Parts trained beside LoRA are its `modules_to_save`."""
    peft = pytest.importorskip("peft")
    model, batch = small_model(), asked()
    add_lora(model)
    unfreeze_only(model, OFFICIAL)
    generator = torch.Generator().manual_seed(7)
    for parameter in stirred(model).parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    save_lora(tmp_path, model, base="tiny")
    wrapped = peft.PeftModel.from_pretrained(small_model(), tmp_path).eval()
    given = {key: value for key, value in batch.items() if key not in ("labels", "masks")}
    expected, found = model(**given), wrapped(**given)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.low_res, expected.low_res, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targets", [r"language_model\..*\.(q_proj|v_proj)", ["q_proj", "up_proj"]])
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_a_folder_of_peft_is_read_and_merged(tmp_path, targets, saved):
    """Also one whose targets lie outside the language model: CLIP has layers called q_proj too."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=3, target_modules=targets, modules_to_save=saved, use_rslora=True)
    wrapped = peft.get_peft_model(small_model(), settings)
    stirred(wrapped)
    if saved:
        wrapped.base_model.model.language_model.lm_head.weight.data += 0.1
    wrapped.eval().save_pretrained(tmp_path)
    ids = rows()
    expected = wrapped(ids).logits
    model = small_model()
    load_lora(model, tmp_path)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
    assert all(
        p.requires_grad == (".lora_" in n or "lm_head" in n and bool(saved)) for n, p in model.named_parameters()
    )
    # Two blocks of the language model; four of CLIP, and SAM's attention between prompts and picture.
    assert merge_lora(model) == (4 if isinstance(targets, str) else 15)
    assert list(model.state_dict()) == list(small_model().state_dict())
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


def test_load_puts_an_adapter_beside_the_weights(tmp_path):
    import glamm_mini

    glamm = glamm_mini.load("tiny", device="cpu")
    add_lora(glamm.model)
    save_lora(tmp_path, stirred(glamm.model), base="tiny")
    again = glamm_mini.load("tiny", device="cpu", lora=tmp_path)
    assert has_lora(again.model) and not any(p.requires_grad for p in again.model.parameters())
    ids = rows()
    assert torch.equal(again.model(ids).logits, glamm.model.eval()(ids).logits)


@pytest.mark.parametrize(
    "change",
    [{"r": "x"}, {"lora_alpha": None}, {"lora_dropout": "x"}, {"lora_dropout": 1.5}, {"target_modules": 5},
     {"target_modules": []}, {"target_modules": [5]}],
    ids=str,
)  # fmt: skip
def test_settings_of_the_wrong_type_are_named(tmp_path, change):
    model = small_model()
    add_lora(model, rank=2)
    save_lora(tmp_path, model)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    fresh = small_model()
    before = fresh.state_dict()
    with pytest.raises(ValueError, match="adapter_config.json|LoRA in"):
        load_lora(fresh, tmp_path)
    assert fresh.state_dict().keys() == before.keys()


def test_half_of_a_module_beside_lora_is_refused(tmp_path):
    model = small_model()
    add_lora(model, rank=2)
    unfreeze_only(model, ("lora_", "lp_projector"))
    save_lora(tmp_path, model)
    load_lora(small_model(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        state, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    gone = next(name for name in state if name.endswith("lp_projector.2.bias"))
    save_file({name: t for name, t in state.items() if name != gone}, path, metadata=about)
    with pytest.raises(ValueError, match="lp_projector.2.bias"):
        load_lora(small_model(), tmp_path)
