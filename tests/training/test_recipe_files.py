"""The recipes' files: complete, equal to the official defaults where they say so, and strict about slips."""

import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glamm_mini.cli.main import build_app
from glamm_mini.model.config import SIZES, GlammConfig, LossConfig
from glamm_mini.training import recipes
from glamm_mini.training.recipes import FOLDER, read_recipe, recipe_names

OFFICIAL = json.loads((Path(__file__).parents[1] / "files" / "training_setup.json").read_text())["args"]
PAPER = ["combined", "gcg", "grand_pretraining", "refseg", "regcap_refcocog", "regcap_vg"]


@pytest.mark.parametrize("name", PAPER)
def test_every_official_recipe_has_the_official_defaults_at_7b(name):
    recipe, s, a = read_recipe(name, "7b"), read_recipe(name, "7b").settings, OFFICIAL
    assert (s.batch_size, s.accumulation, s.lr) == (a["batch_size"], a["grad_accumulation_steps"], a["lr"])
    assert s.betas == (a["beta1"], a["beta2"]) and s.precision == a["precision"]
    assert (s.weight_decay, s.warmup_steps, s.schedule, s.clip) == (0, 100, "linear", 1)
    assert s.gradient_checkpointing == a["gradient_checkpointing"] and not s.save_frozen and s.muon_lr == 0
    lora = {
        "rank": a["lora_r"],
        "alpha": a["lora_alpha"],
        "dropout": a["lora_dropout"],
        "targets": ["q_proj", "v_proj"],
    }
    assert recipe.lora == lora and a["lora_target_modules"] == "q_proj,v_proj"
    assert recipe.losses == {
        "cross_entropy": a["ce_loss_weight"],
        "mask_bce": a["bce_loss_weight"],
        "mask_dice": a["dice_loss_weight"],
    }
    assert LossConfig(**recipe.losses) == GlammConfig.of_size("7b").losses
    assert recipe.max_length == a["model_max_length"] and recipe.samples_per_step == 160
    assert recipe.start == ("parts" if name == "grand_pretraining" else a["version"])
    assert recipe.published.startswith("MBZUAI/GLaMM-")


def test_steps_are_those_that_were_published():
    steps = {name: read_recipe(name, "7b").settings.steps for name in PAPER}
    assert steps["combined"] == steps["gcg"] == OFFICIAL["epochs"] * OFFICIAL["steps_per_epoch"] == 5000
    assert steps["grand_pretraining"] == 35000 and steps["refseg"] == 5 * 350
    assert steps["regcap_refcocog"] == steps["regcap_vg"] == 5 * 500


def test_the_combined_mixture_is_the_official_one():
    recipe = read_recipe("combined", "7b")
    keys = {"caption": ("cap", "cap"), "region": ("reg", "reg"), "segmentation": ("seg", "segm")}
    for kind, (names, rates) in keys.items():
        official = OFFICIAL[f"{names}_dataset"].split("||"), OFFICIAL[f"{rates}_sample_rates"].split(",")
        assert {d.name: d.rate for d in recipe.data if d.kind == kind} == {
            name: float(rate) for name, rate in zip(*official, strict=True)
        }
        assert recipe.weights[kind] == OFFICIAL[f"weight_{rates}"]
    assert set(OFFICIAL["semantic_segm_data"].split("||")) == set(recipe.data[6].sets)
    shares = recipe.shares()
    assert sum(shares.values()) == pytest.approx(1) and shares["CocoCap"] == pytest.approx(0.075)
    assert shares["Refer_Segm"] == pytest.approx(0.45 * 4 / 19)
    assert recipe.mixture() == pytest.approx(
        {"caption": 0.075, "vqa": 0.075, "regcap": 0.4, "refseg": 0.45 * 9 / 19, "gcg": 0.45 * 10 / 19}
    )
    assert read_recipe("gcg").shares() == pytest.approx(
        {"Semantic_Segm": 1 / 11, "RefCoco_GCG": 3 / 11, "PSG_GCG": 3 / 11, "Flickr_GCG": 3 / 11, "GranDf_GCG": 1 / 11}
    )


def json_of(settings) -> dict:
    return json.loads(json.dumps(asdict(settings)))


OPTIONS = {
    **dict.fromkeys(
        ("storybook", "storybook_continue"),
        {"backbones", "start", "tasks", "scenes", "conversations", "absent", "hard"},
    ),
    "backbones": {"only"},
    **dict.fromkeys(PAPER, {"scenes", "conversations", "merge", "frozen"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_show_lists_every_setting_with_its_meaning_and_as_it_was_set(name):
    """What is shown is what `--set` takes, and the other way round."""
    text = recipes.describe(name, "tiny", ["steps=5"])
    shown = tomllib.loads(text)
    assert set(shown["options"]) == OPTIONS[name]
    lines = text.splitlines()
    for key in ("options", "lora", "settings"):
        for name_of_setting, value in shown.get(key, {}).items():
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{name_of_setting} = "))
            assert lines[at - 1].startswith("# ") and len(lines[at - 1]) > 6, name_of_setting
            prefix = "lora." if key == "lora" else ""
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "backbones":
                again = tomllib.loads(recipes.describe(name, "tiny", [f"{prefix}{name_of_setting}={value}"]))
                assert again[key][name_of_setting] == value
    tables = shown["stages"].values() if name == "backbones" else [shown["settings"]]
    assert all(table["steps"] == 5 for table in tables)
    if name in PAPER:
        changed = ["lora.targets=k_proj, v_proj", "merge=no", "frozen=half", "scenes=3"]
        again = tomllib.loads(recipes.describe(name, "tiny", changed, "mine"))
        assert again["lora"]["targets"] == ["k_proj", "v_proj"] and again["start"] == "mine"
        assert again["options"] == {"scenes": 3, "conversations": 4, "merge": False, "frozen": "half"}
    else:
        with pytest.raises(ValueError, match="--from"):
            recipes.describe(name, "tiny", [], "mine")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("wrong", ["nonsense=5", "lora_rank=4", "merge", "steps=many", "scenes=-1"])
def test_show_refuses_what_a_run_would(name, wrong, tmp_path):
    texts = []
    for call in (recipes.describe, lambda *a: recipes.run(a[0], a[1], "storybook", tmp_path / "out", False, a[2])):
        with pytest.raises(ValueError, match=wrong.split("=")[0]) as error:
            call(name, "tiny", [wrong])
        texts.append(str(error.value))
    assert texts[0] == texts[1] and not (tmp_path / "out").exists()
    assert wrong != "lora_rank=4" or name not in PAPER or "Did you mean lora.rank?" in texts[0]


def test_settings_of_a_stage_are_its_own_and_the_later_one_holds():
    shown = tomllib.loads(recipes.describe("backbones", "tiny", ["encoder.steps=7", "steps=5", "language.steps=9"]))
    assert [shown["stages"][name]["steps"] for name in ("encoder", "segmenter", "language")] == [5, 5, 9]


def test_every_recipe_can_be_read_and_shown_at_every_size():
    assert recipe_names() == ["backbones", "storybook", "storybook_continue", *PAPER]
    for name in recipe_names():
        text = (FOLDER / f"{name}.toml").read_text()
        assert text.startswith("# ") and ("ours" in text or "official" in text), f"{name} does not say its sources"
        for size in SIZES:
            recipe = read_recipe(name, size)
            shown = tomllib.loads(recipes.describe(name, size))
            if recipe.stages:
                assert shown["stages"] == {key: json_of(own) for key, own in recipe.stages.items()}
            else:
                assert shown["settings"] == json_of(recipe.settings)
            assert len(shown.get("data", [])) == len(recipe.data) and shown["name"] == name
    assert tomllib.loads(recipes.describe("gcg", "7b", ["lora.rank=4", "steps=9"], "mine"))["lora"]["rank"] == 4
    with pytest.raises(ValueError, match="official.*backbones"):
        read_recipe("official")
    assert read_recipe("refseg", "tiny").settings.steps == 200 and read_recipe("refseg", "colab").start == "parts"


SOUND = """
base = "official"
title = "a recipe"
[settings]
steps = 5
[[data]]
name = "Refer_Segm"
kind = "segmentation"
rate = 1
storybook = "refseg"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title", "tittle", "'tittle' is unknown. Did you mean title?"),
        ('title = "a recipe"', "", "does not say title"),
        ("steps = 5", "step = 5", r"\[settings\]: 'step' is unknown. Did you mean steps?"),
        ("steps = 5", "steps = 0", r"\[settings\]: steps is 0; expected 1 or more"),
        ("steps = 5", 'steps = "many"', r"\[settings\]: steps is 'many'; expected a whole number"),
        ("[settings]", "[lora]\nrang = 4\n[settings]", r"\[lora\]: 'rang' is unknown. Did you mean rank?"),
        ("[settings]", "[losses]\nmask_dise = 4\n[settings]", "Did you mean mask_dice?"),
        ("[settings]", "[weights]\nregion = 4\n[settings]", r"\[weights\] has \['region'\]"),
        ("[settings]", "[size.big.settings]\n[settings]", r"\[size\]: 'big' is unknown"),
        ("rate = 1", "rat = 1", r"\[\[data\]\] Refer_Segm: 'rat' is unknown. Did you mean rate?"),
        ("rate = 1", "", "Refer_Segm does not say rate"),
        ("rate = 1", "rate = 0", r"\[\[data\]\] Refer_Segm: rate is 0"),
        ("rate = 1", 'rate = "often"', "rate is 'often'; expected a finite number"),
        ("[settings]", "[weights]\nsegmentation = 0\n[settings]", "not above 0"),
        ("[settings]", "[lora]\nrank = 0.5\n[settings]", r"\[lora\]: rank is 0.5"),
        ("[settings]", "trained = 3\n[settings]", "trained is 3"),
        ('kind = "segmentation"', 'kind = "masks"', "kind is 'masks'; expected one of caption, region, segmentation"),
        ('storybook = "refseg"', 'storybook = "dance"', "storybook is 'dance'; expected one of gcg"),
        ('base = "official"', 'base = "oficial"', "recipe: 'oficial' is unknown"),
        ('base = "official"', "", "says start, trained and"),
        ("rate = 1", "rate 1", "cannot be read as TOML"),
        ('base = "official"', 'base = "official"\nfrozen = "ice"', "frozen is 'ice'"),
    ],
)
def test_slips_are_named(old, new, words, tmp_path):
    (tmp_path / "official.toml").write_text((FOLDER / "official.toml").read_text())
    (tmp_path / "mine.toml").write_text(SOUND)
    assert read_recipe("mine", "7b", tmp_path).samples_per_step == 160
    assert old in SOUND
    (tmp_path / "mine.toml").write_text(SOUND.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
        read_recipe("mine", "7b", tmp_path)


def test_the_command_lists_and_shows_recipes():
    def command(*arguments):
        done = CliRunner().invoke(build_app("train"), ["train", *arguments], env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return done.output

    listed = command("--list", "--size", "7b")
    assert all(name in listed for name in PAPER) and "backbones" not in listed and "35000" in listed
    assert "backbones" in command("--list")
    shown = tomllib.loads(command("combined", "--show", "--size", "7b", "--from", "my/model", "--set", "lr=0.5"))
    assert shown["start"] == "my/model" and shown["settings"]["lr"] == 0.5 and shown["weights"]["region"] == 0.4
    with pytest.raises(ValueError, match="--list. names all"):
        CliRunner().invoke(build_app("train"), ["train"], catch_exceptions=False)
