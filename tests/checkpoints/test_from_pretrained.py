"""`from_pretrained` of the model and of the processor, as transformers' users expect it, on our folders and official
ones: what `load` does, and never a random weight."""

import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_files import (
    assert_holds,
    change_shard,
    clip_of,
    released_config,
    released_files,
    write_clip,
    write_official,
)
from safetensors.torch import load_file, save_file
from small_models import small_model

import glamm_mini
from glamm_mini import GlammForConditionalGeneration, GlammProcessor
from glamm_mini.checkpoints.convert import prepare
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.lora import add_lora
from glamm_mini.checkpoints.save import save_model
from glamm_mini.model.tokens import ADDED_TOKENS

ROOT = Path(__file__).resolve().parents[2]


# --- official folders ------------------------------------------------------------------------------------------------


def test_an_official_folder_gives_its_own_weights(files, state):
    model, info = GlammForConditionalGeneration.from_pretrained(
        files, vision_tower=clip_of(files), output_loading_info=True
    )
    assert_holds(model, state)
    assert not any(info.values()) and model.config.mode == "official" and not model.training
    processor = GlammProcessor.from_pretrained(files, vision_tower=clip_of(files))
    both = load_model(files, vision_tower=clip_of(files))
    assert model.config.to_dict() == both[0].config.to_dict()
    turns = [("What is <bbox>?", "<p> a kite </p> [SEG].")]
    assert processor.encode(turns) == both[1].encode(turns) and processor.config.mode == "official"
    with pytest.raises(ValueError, match="llava"):
        glamm_mini.GlammConfig.from_pretrained(files)


def test_one_missing_weight_is_an_error_and_not_a_random_one(files, made, saved, tmp_path):
    copy = shutil.copytree(files, tmp_path / "glamm")
    name = next(iter(torch.load(copy / "pytorch_model-00002-of-00003.bin", weights_only=True)))
    change_shard(copy, lambda part: part.pop(name))
    with pytest.raises(ValueError, match=name):
        GlammForConditionalGeneration.from_pretrained(copy, vision_tower=clip_of(files))
    for change in (lambda s, k: s.pop(k), lambda s, k: s.update({k: torch.ones(9, 9)})):
        state = load_file(saved / "model.safetensors")
        name = sorted(state)[5]
        change(state, name)
        save_file(state, saved / "model.safetensors")
        with pytest.raises(ValueError, match=name):
            GlammForConditionalGeneration.from_pretrained(saved)
        save_model(saved, *made)


def test_buffers_that_no_file_holds_are_computed(saved, files, made, state):
    """transformers fills them with whatever lies in memory, unless the model computes them anew; twice, to meet it."""
    fresh = dict(small_model(text=made[0].config.text, tokens=made[0].config.tokens).named_buffers())
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(2):
            torch.full((2**20,), float("nan"))  # what a fresh block would hold
            model = GlammForConditionalGeneration.from_pretrained(saved, dtype=dtype)
            own = dict(model.named_buffers())
            assert own.keys() == fresh.keys()
            for name, buffer in own.items():
                if name not in model.state_dict():
                    assert torch.equal(buffer, fresh[name]) and buffer.dtype == fresh[name].dtype, name
            assert not any(isinstance(v, torch.Tensor) and v.is_meta for m in model.modules() for v in vars(m).values())


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_type_is_float32_unless_another_is_asked_for(saved, made):
    save_model(saved, *made, dtype=torch.bfloat16)
    read = GlammForConditionalGeneration.from_pretrained
    assert read(saved).dtype == load_model(saved)[0].dtype == torch.float32
    assert read(saved, dtype="auto").dtype == read(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert read(saved, torch_dtype="float16").dtype == torch.float16
    model = read(saved, device_map="cpu", attn_implementation="eager")
    assert {m.config._attn_implementation for m in model.modules() if type(m).__name__ == "LlamaAttention"} == {"eager"}
    assert read(saved, device_map={"": "cpu"}).device == torch.device("cpu")
    with pytest.raises(ValueError, match="device_mop"):
        read(saved, device_mop="cpu")
    assert read(saved, dtype="float16", torch_dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match="dtype and torch_dtype are .*leave torch_dtype out"):
        read(saved, dtype="float32", torch_dtype="float16")


def test_a_folder_has_no_revision(saved):
    for read in (load_model, GlammProcessor.from_pretrained, GlammForConditionalGeneration.from_pretrained):
        for name in (saved, "tiny"):
            with pytest.raises(ValueError, match="revision is 'refs/pr/1', but .* is no repository of the hub"):
                read(name, revision="refs/pr/1")
        read(saved, revision="main")


def test_a_model_that_is_saved_alone_comes_back(made, tmp_path):
    """Without tokenizer: all that the model needs of it are ids, and these are in its configuration."""
    folder, model = tmp_path / "alone", made[0]
    model.save_pretrained(folder)
    assert not list(folder.glob("token*"))
    back = GlammForConditionalGeneration.from_pretrained(folder)
    assert back.config.to_dict() == model.config.to_dict() and back.config.tokens == model.config.tokens
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    for read in (GlammProcessor.from_pretrained, load_model, glamm_mini.load):
        with pytest.raises(FileNotFoundError, match="tokenizer.json"):
            read(folder)
    made[1].save_pretrained(folder)
    assert load_model(folder)[1].encode([("a", "b")]) == made[1].encode([("a", "b")])
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        GlammForConditionalGeneration.from_pretrained(folder)


def test_a_processor_saved_after_a_model_leaves_what_describes_the_weights(tmp_path):
    model, processor = load_model("tiny", dtype="bfloat16")
    processor = GlammProcessor.from_pretrained("tiny")
    rows = len(processor.tokenizer) + 30
    processor.tokenizer.add_tokens(["<mine>", "<yours>"])
    model.resize_token_embeddings(rows + 2)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    processor.config.prompt = replace(processor.config.prompt, max_length=500)
    processor.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after.pop("prompt")["max_length"] == 500 and written.pop("prompt")["max_length"] != 500
    assert after == written and after["text"]["vocab_size"] == rows + 2
    back = load_model(tmp_path)
    assert len(back[1].tokenizer) == len(processor.tokenizer)
    assert processor.config.text.vocab_size != rows + 2, "the processor's own stays as it was"


def test_lora_is_not_saved_as_a_model(tmp_path):
    model, _ = load_model("tiny")
    add_lora(model, rank=2)
    with pytest.raises(ValueError, match="merge_lora.*save_lora"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_subfolder_is_read(saved, made):
    model = GlammForConditionalGeneration.from_pretrained(saved.parent, subfolder="model")
    assert all(torch.equal(t, made[0].state_dict()[n]) for n, t in model.state_dict().items())
    assert GlammProcessor.from_pretrained(saved.parent, subfolder="model").config.mode == made[1].config.mode
    with pytest.raises(FileNotFoundError, match="other"):
        GlammForConditionalGeneration.from_pretrained(saved.parent, subfolder="other")
    assert load_model(saved.parent)[0].config.size_name == model.config.size_name  # a run's folder around its model


def test_settings_of_the_hub_reach_it(saved, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns, **hub):
        weights = any("safetensors" in pattern for pattern in allow_patterns)
        asked.append((name, hub, weights, sorted(allow_patterns)[0]))
        return str(saved.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub = dict(revision="refs/pr/1", token="secret", cache_dir="cache")
    GlammForConditionalGeneration.from_pretrained("some/glamm", subfolder="model", **hub)
    GlammProcessor.from_pretrained("some/glamm", subfolder="model", **hub)
    assert asked == [("some/glamm", hub, True, "model/*.json"), ("some/glamm", hub, False, "model/*.json")]


def test_pieces_on_disk_by_device_map(saved, made, tmp_path):
    model = GlammForConditionalGeneration.from_pretrained(
        saved, device_map="auto", max_memory={"cpu": "20KB"}, offload_folder=tmp_path / "disk"
    )
    assert any(p.is_meta for p in model.parameters())
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(model(ids).logits, made[0](ids).logits)


AUTO = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
import glamm_mini
from glamm_mini import GlammForConditionalGeneration, GlammProcessor
folder = sys.argv[1]
assert type(AutoConfig.from_pretrained(folder)) is glamm_mini.GlammConfig
for kind in (AutoModel, AutoModelForImageTextToText):
    model = kind.from_pretrained(folder)
    assert type(model) is GlammForConditionalGeneration and model.dtype.itemsize == 4, kind
assert type(AutoProcessor.from_pretrained(folder)) is GlammProcessor
print("all four")
"""


def test_auto_classes_know_it_once_its_classes_are_imported(saved):
    command = [sys.executable, "-c", AUTO, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "all four\n", done.stderr[-2000:]


def test_importing_the_package_imports_no_library():
    code = "import sys, glamm_mini; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_may_load_at_the_same_time():
    picture = sorted((ROOT / "data" / "samples").glob("*.png"))[0]
    expected = glamm_mini.load("tiny", device="cpu").caption(picture).text
    seen, barrier = Counter(), threading.Barrier(4)

    def work():
        barrier.wait()
        try:
            model = glamm_mini.load("tiny", device="cpu")
            seen["right" if model.caption(picture).text == expected else "wrong"] += 1
        except Exception as error:
            seen[repr(error)] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == {"right": 4}
    layer = torch.nn.Linear(2, 2)
    assert layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 and layer.weight.abs().sum() > 0


# --- released files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained", "gcg"])
def test_a_folder_in_the_released_form(tmp_path, state, kind):
    """Its tokenizer_config.json says `legacy: false`, which the released code did not know; its generation settings
    are of training. Neither is believed."""
    folder = write_official(tmp_path / "glamm", state)
    plain = load_model(folder, vision_tower=write_clip(tmp_path / "clip", state))
    released_files(folder, kind)
    model, processor = load_model(folder, vision_tower=tmp_path / "clip")
    assert_holds(model, state)
    assert model.config.text.rms_norm_eps == 1e-5 and model.config.mode == "official"
    for text in ("a[SEG]b", "a [SEG] b", "a [SEG]. b", "[SEG]", "<p> a kite </p> [SEG] ."):
        turns = [(text, text)]
        assert processor.encode(turns) == plain[1].encode(turns)
    assert getattr(model.generation_config, "max_length", None) != 4096 if hasattr(model, "generation_config") else True
    assert model.config.text.use_cache
    # Saved in our format the ids are the same, and no file of training comes along.
    save_model(tmp_path / "ours", model, processor)
    again = load_model(tmp_path / "ours")[1]
    assert all(again.encode([(t, t)]) == plain[1].encode([(t, t)]) for t in ("a[SEG]b", "a [SEG]. b", "[SEG]"))


def test_the_released_settings_are_the_released_size(tmp_path):
    from glamm_mini.checkpoints.source import open_checkpoint

    for kind in ("pretrained", "gcg"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(released_config(kind)))
        source, released = open_checkpoint(folder, weights="none"), glamm_mini.GlammConfig.of_size("7b")
        assert source.official and not source.left.notes
        own, expected = source.config.to_dict(), released.to_dict()
        assert own["text"].pop("max_position_embeddings") == 4096 and own["text"].pop("pad_token_id") == 0
        del expected["text"]["max_position_embeddings"], expected["text"]["pad_token_id"]
        assert {k for k in own if own[k] != expected[k]} == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 224, "patch_size": 14}, "image_size 224"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
    ],
)
def test_a_clip_other_than_the_one_named_is_refused(tmp_path, state, change, words):
    """Of the released width, so that the projector's shape does not tell."""
    folder = write_official(tmp_path / "glamm", state, mm_hidden_size=1024)
    clip = write_clip(tmp_path / "clip", state)
    vision = glamm_mini.GlammConfig.of_size("7b").vision.to_dict() | change
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    with pytest.raises(ValueError, match=words):
        load_model(folder, vision_tower=clip)


def test_tiny_becomes_official_and_comes_back(tmp_path):
    """Its image encoder lies on no hub: it goes along in a folder of its own."""
    prepare("tiny", to="official").write(tmp_path / "official", torch_files=True)
    assert (tmp_path / "official" / "clip" / "config.json").is_file()
    prepare(tmp_path / "official").write(tmp_path / "back")
    first, second = (load_model(name, "stored") for name in ("tiny", tmp_path / "back"))
    assert all(torch.equal(tensor, second[0].state_dict()[name]) for name, tensor in first[0].state_dict().items())
    known, again = (model.config.to_dict() | {"architectures": None} for model, _ in (first, second))
    assert known == again  # a converted folder does not name the class
    turns = [("What is <bbox>?", "<p> a kite </p> [SEG].")]
    assert first[1].encode(turns) == second[1].encode(turns)
    glamm = glamm_mini.load(tmp_path / "official", device="cpu")
    picture = sorted((ROOT / "data" / "samples").glob("*.png"))[0]
    assert glamm.caption(picture).text == glamm_mini.load("tiny", device="cpu").caption(picture).text
    report = prepare(tmp_path / "official", need_tower=False).report
    assert not report.kept


# --- a repository that is only looked at -----------------------------------------------------------------------------


class Hub:
    """A stand-in that hands out json files, headers and sizes, and no weights."""

    def __init__(self, folder, safetensors: bool):
        self.folder, self.safetensors = folder, safetensors

    def snapshot_download(self, name, allow_patterns, **_):
        assert not any("safetensors" in pattern or ".bin" in pattern for pattern in allow_patterns)
        return str(self.folder)

    def get_safetensors_metadata(self, name, **_):
        from huggingface_hub.errors import NotASafetensorsRepoError
        from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

        if not self.safetensors:
            raise NotASafetensorsRepoError(name)
        files, places = {}, {}
        for path in self.folder.glob("*.safetensors"):
            header = json.loads(path.read_bytes()[8:].split(b"}}")[0].decode() + "}}")
            header.pop("__metadata__", None)
            tensors = {n: TensorInfo(t["dtype"], t["shape"], tuple(t["data_offsets"])) for n, t in header.items()}
            files[path.name] = SafetensorsFileMetadata({}, tensors)
            places |= dict.fromkeys(tensors, path.name)
        return SafetensorsRepoMetadata(None, len(files) > 1, places, files)


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_repository_is_checked_without_its_weights(tmp_path, state, safetensors, monkeypatch):
    import huggingface_hub

    folder = write_official(tmp_path / "glamm", state, torch_files=not safetensors)
    hub = Hub(folder, safetensors)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    conversion = prepare("some/glamm", need_tower=False, weights="names")
    assert conversion.report.loaded == len([n for n in state if "vision_tower" not in n]) - 2
    notes = " ".join(conversion.report.notes)
    assert ("to download" in notes) == (not safetensors) and ("pytorch_model-00003" in notes) == (not safetensors)
    if safetensors:
        part = load_file(folder / "model-00002-of-00003.safetensors")
        name = next(name for name in part if part[name].ndim == 2)
        save_file(part | {name: torch.ones(3, 5)}, folder / "model-00002-of-00003.safetensors")
        words = "of another shape"
    else:
        index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
        name = next(name for name in index["weight_map"] if "norm" in name)
        del index["weight_map"][name]
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        words = "1 missing"
    with pytest.raises(ValueError, match=words):
        prepare("some/glamm", need_tower=False, weights="names")


# --- config.json -----------------------------------------------------------------------------------------------------

WRONG = [
    ("text", "hidden_size", 10**9),
    ("text", "hidden_size", "wide"),
    ("text", "hidden_size", 32.0),
    ("text", "hidden_size", True),
    ("text", "num_hidden_layers", 0),
    ("text", "num_hidden_layers", 1025),
    ("text", "vocab_size", -1),
    ("text", "rms_norm_eps", "small"),
    ("text", "rms_norm_eps", float("nan")),
    ("text", "tie_word_embeddings", "no"),
    ("vision", "image_size", 10**7),
    ("vision", "patch_size", [8]),
    ("vision", "hidden_act", 3),
    ("region", "scales", "2 1"),
    ("region", "scales", [2, "1", 1]),
    ("region", "roi_size", {}),
    ("grounding", "global_attention", 1),
    ("grounding", "pixel_mean", [1.0, 2.0]),
    ("grounding", "window", -1),
    ("prompt", "max_length", "long"),
    ("prompt", "system", 4),
    ("tokens", "seg", "[SEG]"),
    (None, "text", 7),
    (None, "vision", [1]),
    (None, "feature_layer", "last"),
    (None, "level_step", 0),
    (None, "mode", ["fixed"]),
]


@pytest.mark.parametrize(("part", "name", "value"), WRONG)
def test_a_wrong_setting_is_named_before_anything_is_read(saved, part, name, value):
    config = json.loads((saved / "config.json").read_text())
    (config if part is None else config[part])[name] = value
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").write_bytes(b"not read")
    for read in (load_model, GlammProcessor.from_pretrained, GlammForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match=name) as caught:
            read(saved)
        assert "config.json" in str(caught.value)


def test_the_largest_settings_pass():
    from glamm_mini.checkpoints.official import check_settings

    check_settings({"text": {"num_hidden_layers": 1024, "hidden_size": 2**16, "vocab_size": 1}})
    check_settings(glamm_mini.GlammConfig.of_size("7b").to_dict() | {"pad_token_id": None})
    for kind in ("pretrained", "gcg"):
        check_settings(released_config(kind))


MISSING = "mode seg_state feature_layer size_name tokens losses region.box_image_size prompt.system grounding.window"
MISSING += " text.rms_norm_eps text.rope_parameters vision.layer_norm_eps vision.hidden_act"


@pytest.mark.parametrize("name", MISSING.split())
def test_a_missing_setting_is_named_and_not_the_default_one(saved, name):
    path, (*part, last) = saved / "config.json", name.split(".")
    config = json.loads(path.read_text())
    del (config[part[0]] if part else config)[last]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json.*\({name}.* is missing"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '"a"', "null", "\x00", '{"model_type": "glamm_mini", "text": '])
def test_a_config_that_is_no_table_is_named(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        load_model(saved)


def test_the_added_tokens_are_those_of_the_file(files):
    processor = GlammProcessor.from_pretrained(files)
    assert [processor.tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS] == list(range(512, 519))
