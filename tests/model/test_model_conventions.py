"""What users of transformers and peft expect of a model."""

import copy
import inspect
import typing
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import SEG, answer_labels, box_set, images, padded, row, small_model, truths
from transformers import GenerationConfig, Qwen2Config

import glamm_mini.model
from glamm_mini.dtypes import across_types
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.losses import mask_dice_sum
from glamm_mini.model.splice import language_states
from glamm_mini.processing.processor import GlammProcessor

IDS, MASK = padded([row(5, "bbox", 9, "seg"), row(7, 8, "seg")])
BOXES = [box_set(1), None]


def run(model, **more):
    return model(IDS, MASK, **images(2), boxes=BOXES, **more)


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_embeddings_and_generation_settings_are_found(model):
    language = model.language_model
    assert model.get_input_embeddings() is language.model.embed_tokens
    assert model.get_output_embeddings() is language.lm_head
    assert model.config.get_text_config() is model.config.text
    assert model.can_generate() and model.generation_config is language.generation_config
    assert model.generation_config.eos_token_id == 2 and callable(model.prepare_inputs_for_generation)
    other = small_model()
    other.generation_config = GenerationConfig(max_new_tokens=3)
    assert len(other.generate(row(5)[None], **images(1)).sequences[0]) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary_comes_back(tmp_path, processor, tied):
    text = processor.config.text.to_dict() | {"tie_word_embeddings": tied}
    model, length = small_model(text=text, tokens=processor.config.tokens), len(processor.tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["[NEW]", "[NEWER]"])
    model.resize_token_embeddings(len(tokenizer))
    assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == length + 2
    assert model.config.text.vocab_size == model.language_model.vocab_size == length + 2
    assert torch.equal(model.get_input_embeddings().weight[:length], before)
    GlammProcessor(model.config, tokenizer).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    back, words = GlammForConditionalGeneration.from_pretrained(tmp_path), GlammProcessor.from_pretrained(tmp_path)
    assert words.tokenizer.convert_tokens_to_ids("[NEWER]") == length + 1 < back.config.text.vocab_size
    ids = words.prompts([[("What is [NEW]?", None)]])["input_ids"]
    assert back(ids, **images(1)).logits.shape[-1] == length + 2
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    assert torch.isfinite(back.language_model(ids.clamp(min=0), labels=ids.clamp(min=0)).loss)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_reaches_every_block_and_changes_no_gradient(reentrant):
    def gradients(checkpointing):
        model, counts = small_model().train(), {}
        for name, module in model.named_modules():
            if type(module).__name__ in ("CLIPEncoderLayer", "LlamaDecoderLayer", "Block", "Round"):
                module.register_full_backward_pre_hook(lambda *_: None)
                inner = next(iter(module.children()))
                inner.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": reentrant})
        batch = images(2)
        # Checkpointing of the older kind asks for inputs that need a gradient.
        batch["global_images"].requires_grad_(True), batch["grounding_images"].requires_grad_(True)
        masks = truths([1, 1], batch["original"])
        model(IDS, MASK, answer_labels(IDS, MASK, 5), **batch, boxes=BOXES, masks=masks).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, counts

    (plain, once), (again, twice) = gradients(False), gradients(True)
    assert set(plain) == set(again) and len(plain) > 100
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    # All layers of CLIP but the last, which nothing reads, are computed twice; and all blocks of the other three.
    unread = "global_encoder.clip.encoder.layers.3"
    assert {name for name in once if twice[name] != 2 * once[name]} <= {unread}
    assert len(once) == 4 + 2 + 2 + 2


def test_a_tuple_instead_of_names(model):
    with torch.no_grad():
        named, plain = run(model), run(model, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named)
    assert torch.equal(plain[0], named[0]) and named["logits"] is named.logits


def test_what_every_layer_thinks_is_told_on_request():
    model = small_model()
    model.set_attn_implementation("eager")
    out = run(model, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden)
    assert out.attentions[0].shape[-1] == out.last_hidden.shape[1]


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_peft_wraps_the_model(task):
    settings = LoraConfig(r=2, target_modules=r"language_model\..*\.(q_proj|v_proj)", task_type=task)
    wrapped = get_peft_model(small_model(), settings)
    batch = images(2)
    labels, masks = answer_labels(IDS, MASK, 5), truths([1, 1], batch["original"])
    loss = wrapped(input_ids=IDS, attention_mask=MASK, labels=labels, **batch, boxes=BOXES, masks=masks).loss
    loss.backward()
    trained = [n for n, p in wrapped.named_parameters() if p.grad is not None]
    assert torch.isfinite(loss) and trained and all("lora_" in n for n in trained)
    out = wrapped.eval().generate(input_ids=row(5)[None], **images(1), max_new_tokens=3)
    assert len(out.sequences) == 1 and wrapped.merge_and_unload() is not None
    with pytest.raises(ValueError, match="input_ids"):
        wrapped(inputs_embeds=torch.zeros(1, 3, 32))


def test_attention_of_every_kind_keeps_packed_conversations_apart(model):
    """Eager attention adds its mask, the fused one asks it, flash attention knows none."""
    rows = torch.cat([row(5, 6, 7), torch.tensor([8, 9])])[None]
    segments = torch.tensor([[0] * 4 + [1] * 3 + [2] * 2])
    batch, seen = images(1), {}
    for kind in ("sdpa", "eager"):
        own = small_model()
        own.set_attn_implementation(kind)
        with torch.no_grad():
            seen[kind] = own(rows, segment_ids=segments, **batch).last_hidden
    torch.testing.assert_close(seen["eager"], seen["sdpa"], atol=1e-5, rtol=1e-5)
    features = model.encode_images(batch["global_images"])
    spliced = model.splice(rows, None, None, features, None, None, segments)
    own = small_model()
    own.config.text._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        language_states(own.language_model, spliced)


def test_a_seg_in_a_row_without_image_has_no_mask(model):
    ids, mask = padded([row(5, "seg"), row(6, "seg", "seg", image=False)])
    with torch.no_grad():
        out = model(ids, mask, **images(1), image_index=[0, -1])
        alone = model(row(5, "seg")[None], **images(1))
    assert len(out.low_res) == len(out.mask_logits[0]) == 1 and out.seg_positions[:, 0].tolist() == [0]
    torch.testing.assert_close(out.mask_logits[0], alone.mask_logits[0], atol=1e-5, rtol=0)


def test_true_masks_of_another_size_are_named(model):
    batch = images(2)
    masks = truths([1, 1], [batch["original"][0], (7, 9)])
    with pytest.raises(ValueError, match=r"image 1 .*\(1, 7, 9\).*\(1, 30, 40\)"):
        model(IDS, MASK, answer_labels(IDS, MASK, 5), **batch, boxes=BOXES, masks=masks)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_dice_by_hand(scale):
    """Two masks of four pixels: predicted {0, 1} (all but surely) against {1, 2, 3}; and both empty."""
    logits = torch.tensor([[[40.0, 40.0], [-40.0, -40.0]], [[-40.0, -40.0], [-40.0, -40.0]]])
    truth = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]]).bool()
    eps = 1e-6
    first = 1 - (2 * 1 / scale + eps) / ((2 + 3) / scale + eps)
    torch.testing.assert_close(mask_dice_sum(logits, truth, scale, eps), torch.tensor(first), atol=1e-5, rtol=0)


def test_float32_beside_half_is_computed_in_half_and_lora_does_not_count():
    language = small_model().language_model
    ids = torch.tensor([[5, 6, 7]])

    def inside():
        with across_types(language), torch.no_grad():
            return torch.is_autocast_enabled("cpu"), language(ids).logits

    assert inside()[0] is False
    language.model.layers.to(torch.bfloat16)
    mixed, logits = inside()
    assert mixed and logits.isfinite().all()
    language.to(torch.bfloat16)
    assert inside()[0] is False
    # peft casts for its own matrices, which stay in float32.
    get_peft_model(language, LoraConfig(r=2, target_modules=["q_proj"]))
    lora = [p for n, p in language.named_parameters() if ".lora_" in n]
    assert lora and all(p.dtype == torch.float32 for p in lora)
    assert inside()[0] is False


@pytest.mark.parametrize("settings", [dict(hidden=3), dict(modes="fixed"), dict(text=Qwen2Config())])
def test_a_setting_that_is_not_there_is_named(settings):
    with pytest.raises(ValueError, match="hidden|modes|qwen2"):
        GlammConfig(**settings)


def test_every_parameter_of_the_model_is_typed():
    """Functions and methods of the room, and what they return."""
    missing, seen = [], 0
    for file in Path(glamm_mini.model.__file__).parent.glob("*.py"):
        module = __import__(f"glamm_mini.model.{file.stem}", fromlist=["x"]) if file.stem != "__init__" else None
        for owner in [module, *vars(module).values()] if module else []:
            if owner is not module and not (inspect.isclass(owner) and owner.__module__ == module.__name__):
                continue
            for name, thing in vars(owner).items():
                thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
                if not inspect.isfunction(thing) or thing.__module__ != module.__name__ or "<lambda>" in str(thing):
                    continue
                parameters = list(inspect.signature(thing).parameters.values())
                if not thing.__code__.co_filename.endswith(file.name):  # what dataclasses write
                    continue
                untyped = [p.name for p in parameters if p.annotation is p.empty and p.name not in ("self", "cls")]
                if inspect.signature(thing).return_annotation is inspect.Signature.empty and name != "__init__":
                    untyped.append("return")
                missing += [f"{module.__name__}.{thing.__qualname__}: {u}" for u in untyped]
                seen += len(parameters)
    assert not missing and seen > 200 and typing is not None


def test_the_whole_pass_in_the_rooms_docstring_is_what_the_model_does(model):
    """The ten lines that open the room, run as they stand there."""
    text = glamm_mini.model.__doc__
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    batch, ids = images(1), row(5, "seg", 6, "seg")[None]
    names = dict(torch=torch, glamm=model, ids=ids, images=batch, IMAGE=-200, SEG=SEG)
    with torch.no_grad():
        exec("\n".join(lines), names)
        whole = model(ids, **batch)
    torch.testing.assert_close(names["low_res"], whole.low_res, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(names["logits"], whole.logits, atol=1e-5, rtol=1e-5)
