"""The recipes from end to end, two steps each: backbones, GLaMM from them, a model that loads and answers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.load import load_model
from glamm_mini.paths import checkpoint_folder
from glamm_mini.storybook.pretrain import run as storybook
from glamm_mini.training import recipes

QUICK = ["steps=2", "batch_size=2", "workers=0", "threads=1", "tensorboard=false"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("backbones")
    return recipes.run("backbones", "tiny", "storybook", out, overrides=QUICK)


@pytest.fixture(scope="module")
def trained(backbones, tmp_path_factory):
    out, seen = tmp_path_factory.mktemp("storybook"), []

    def figures(assistant, scenes):
        seen.append((type(assistant.model).__name__, assistant.model.training, scenes))
        return {"gcg_miou": 0.25}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storybook, "storybook_figures", figures)
        overrides = [*QUICK, f"backbones={backbones}", "scenes=3"]
        folder = recipes.run("storybook", "tiny", "storybook", out, overrides=overrides)
    assert seen == [("GlammForConditionalGeneration", False, 3)]
    return folder


def test_backbones_are_stored_in_bfloat16_with_a_record_each(backbones):
    for name in ("encoder", "segmenter", "language"):
        state = load_file(backbones / f"{name}.safetensors")
        assert {t.dtype for t in state.values()} == {torch.bfloat16}
        record = json.loads((backbones / f"{name}.training.json").read_text())
        assert record["settings"]["steps"] == 2 and record["last"]["step"] == 2
        assert record["last"]["loss"] > 0
    assert (backbones / "tokenizer.json").is_file()


def test_backbones_are_put_into_a_glamm(backbones):
    glamm, _ = storybook.untrained("tiny")
    before = {k: v.clone() for k, v in glamm.state_dict().items()}
    joint = storybook.load_backbones(backbones, glamm)
    assert joint.glamm is glamm
    state = glamm.state_dict()
    for name, part in (("encoder", "heads"), ("encoder", "region_heads"), ("language", "box"), ("language", "point")):
        stored = load_file(backbones / f"{name}.safetensors")
        for key, value in getattr(joint, part).state_dict().items():
            assert torch.equal(value, stored[f"{part}.{key}"].float()), key
    sources = {"encoder": ("global_encoder", "vl_projector", "region_encoder"),
               "segmenter": ("grounding_encoder", "pixel_decoder"),
               "language": ("language_model", "lp_projector")}  # fmt: skip
    assert {child for children in sources.values() for child in children} == {n for n, _ in glamm.named_children()}
    aids = ("heads.", "region_heads.", "pixel_head.", "box.", "point.")
    for name, children in sources.items():
        stored = load_file(backbones / f"{name}.safetensors")
        own = {k: v for k, v in state.items() if k.startswith(children)}
        assert {k for k in stored if not k.startswith(aids)} == set(own)
        for key, value in own.items():
            assert torch.equal(value, stored[key].to(value.dtype)), key
        assert any(not torch.equal(v, before[k]) for k, v in own.items())


def test_a_trained_model_loads_and_answers(trained, monkeypatch):
    monkeypatch.setattr("glamm_mini.assistant.assistant.MAX_NEW_TOKENS", dict.fromkeys(("fixed", "official"), 6))
    model, processor = load_model(trained)
    assert (model.config.size_name, model.config.mode) == ("tiny", "fixed")
    assert model.config.text.vocab_size == len(processor.tokenizer)
    answer = Assistant(model, processor).describe(torch.zeros(30, 40, 3, dtype=torch.uint8).numpy())
    assert len(answer.phrases) == answer.text.count("[SEG]") and answer.image.shape == (30, 40, 3)
    record = json.loads((trained / "training.json").read_text())
    assert record["validation"] == [{"step": 2, "gcg_miou": 0.25}] and record["settings"]["batch_size"] == 2
    assert {"ce", "mask_bce", "mask_dice", "dense", "regions", "box"} <= set(record["last"])
    assert not any(name.startswith(("heads", "region_heads", "box")) for name in model.state_dict())


def test_training_changed_every_part_that_learns(trained, backbones):
    start, _ = storybook.untrained("tiny")
    storybook.load_backbones(backbones, start)
    before, after = start.state_dict(), load_model(trained)[0].state_dict()
    for child, _ in start.named_children():
        names = [n for n in before if n.startswith(f"{child}.")]
        assert any(not torch.equal(before[n], after[n]) for n in names), child


def test_a_stage_alone_and_settings_of_one_stage(tmp_path):
    overrides = ["only=language", *QUICK, "language.steps=1", "encoder.steps=99"]
    folder = recipes.run("backbones", "tiny", "storybook", tmp_path, overrides=overrides)
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["language.safetensors"]
    assert json.loads((tmp_path / "language" / "settings.json").read_text())["steps"] == 1
    with pytest.raises(ValueError, match="already holds a run"):
        recipes.run("backbones", "tiny", "storybook", tmp_path, overrides=overrides)
    assert recipes.run("backbones", "tiny", "storybook", tmp_path, resume=True, overrides=overrides) == folder
    with pytest.raises(FileNotFoundError, match="encoder.safetensors"):
        storybook.load_backbones(folder, storybook.untrained("tiny")[0])


def test_a_training_goes_on_from_a_model_or_from_a_run(trained, backbones, tmp_path):
    """From a model: its GLaMM, and the backbones' aids. From a run: its aids too."""
    ran = trained.parent
    for start, same in ((trained, False), (ran, True)):
        glamm, processor = storybook.untrained("tiny")
        stage = storybook.load_backbones(backbones, glamm)
        fresh = {k: v.clone() for k, v in stage.state_dict().items()}
        storybook._go_on(stage, str(start), processor)
        kept = load_file(ran / "last" / "model.safetensors")
        for name, value in stage.state_dict().items():
            if name.startswith("glamm."):
                torch.testing.assert_close(value, kept[name], rtol=1e-2, atol=1e-3)
            else:
                assert torch.equal(value, kept[name] if same else fresh[name]), name
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storybook._go_on(stage, "nowhere", processor)
    other = shutil.copytree(trained, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="other speaks other words"):
        storybook._go_on(stage, str(other), processor)
    shutil.copytree(ran / "last", tmp_path / "ran" / "last")
    storybook._go_on(stage, str(tmp_path / "ran"), processor)  # it was stopped: there is no model in it yet
    shutil.copytree(other, tmp_path / "ran" / "model")
    with pytest.raises(ValueError, match="ran speaks other words"):
        storybook._go_on(stage, str(tmp_path / "ran"), processor)
    overrides = [*QUICK, "steps=1", "scenes=0", "tasks=gcg:9,vqa"]
    folder = recipes.run("storybook_continue", "tiny", "storybook", tmp_path / "run", overrides=overrides)
    record = json.loads((folder / "training.json").read_text())
    assert (record["start"], record["absent"], record["hard"]) == ("tiny", 0.12, 0.4)
    assert record["mixture"] == {"gcg": 9.0, "vqa": 12.0}
    bundled, after = (load_file(place / "model.safetensors") for place in (checkpoint_folder("tiny"), folder))
    assert all((after[name] - value).abs().max() < 0.1 for name, value in bundled.items()), "one step away"
    _, ((_, options), _) = recipes.chosen("storybook_continue", "tiny", [])
    assert (options.start, options.absent, options.hard) == ("tiny", 0.12, 0.4)


def test_backbones_of_another_world_are_refused(backbones, tmp_path):
    state = load_file(backbones / "encoder.safetensors")
    save_file(state | {"heads.heads.kind.weight": torch.zeros(2, 3)}, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="encoder.safetensors does not fit: .*heads.heads.kind.weight"):
        storybook.load_backbones(tmp_path, storybook.untrained("tiny")[0])


def test_untrained_models_are_equal_and_match_their_tokenizer():
    (a, processor), (b, _) = storybook.untrained("tiny"), storybook.untrained("tiny")
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    tokenizer = processor.tokenizer
    assert a.config.text.vocab_size == len(tokenizer) == a.get_input_embeddings().weight.shape[0]
    c = a.config.text
    assert (c.pad_token_id, c.bos_token_id, c.eos_token_id) == (0, 1, 2)
    assert a.config.tokens.seg == tokenizer.convert_tokens_to_ids("[SEG]")


@pytest.mark.parametrize(
    ("recipe", "size", "data", "overrides", "words"),
    [
        ("backbone", "tiny", "storybook", [], "'backbone' is unknown. Did you mean backbones"),
        ("storybook", "tiny", "coco", [], "data 'coco': .* recipe 'storybook'"),
        ("gcg", "colab", "storybook", ["merge=false"], "merge=false.*parts"),
        ("backbones", "huge", "storybook", [], "size 'huge' is unknown; expected one of tiny, colab, 7b"),
        ("backbones", "7b", "storybook", [], "size '7b' starts from pretrained parts"),
        ("backbones", "tiny", "storybook", ["only=eyes"], "only=eyes names no backbone; expected one of encoder"),
        ("backbones", "tiny", "storybook", ["only"], "cannot read the setting 'only'"),
        ("backbones", "tiny", "storybook", ["stepz=3"], "'stepz' is unknown. Did you mean steps"),
        ("backbones", "tiny", "storybook", ["only=encoder", "language.lr=fast"], "language.lr is 'fast'"),
        ("backbones", "tiny", "storybook", ["eyes.steps=3"], "'eyes.steps' is unknown"),
        ("storybook", "tiny", "storybook", ["scenes=many"], "scenes is 'many'"),
        ("storybook", "tiny", "storybook", ["tasks=gcg,dance"], "unknown|among"),
        ("storybook", "tiny", "storybook", ["tasks=gcg:many"], "tasks='gcg:many': 'many' is not a number"),
        ("storybook", "tiny", "storybook", ["tasks=gcg:1,vqa:inf"], "mixture"),
        ("storybook", "tiny", "storybook", ["tasks=gcg:0"], "mixture"),
        ("storybook", "tiny", "storybook", ["tasks=gcg:nan"], "mixture"),
        ("storybook", "tiny", "storybook", ["conversations=0"], "conversations is 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(recipe, size, data, overrides, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        recipes.run(recipe, size, data, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_missing_backbones_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="encoder.safetensors"):
        recipes.run("storybook", "tiny", "storybook", tmp_path / "out", overrides=[f"backbones={tmp_path}"])
