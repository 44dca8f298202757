"""Folders, names and keywords from which no model comes: one error that names what is wrong."""

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model
from transformers import GPT2Config

import glamm_mini
from glamm_mini import GlammForConditionalGeneration, GlammProcessor, paths
from glamm_mini.checkpoints.lora import add_lora, load_lora, merge_lora, save_lora

TINY = paths.checkpoint_folder("tiny")
BAD = (ValueError, FileNotFoundError)
NAN = float("nan")


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    """The tiny model, one picture, and an adapter in a folder."""
    glamm, t = glamm_mini.load("tiny", device="cpu"), tmp_path_factory.mktemp("bad")
    with_lora = glamm_mini.load("tiny", device="cpu").model
    add_lora(with_lora, rank=2)
    save_lora(t / "lora", with_lora, "tiny")
    return SimpleNamespace(g=glamm, pic=np.full((48, 64, 3), 90, np.uint8), t=t)


def check(call, named: str) -> None:
    with pytest.raises(BAD) as error:
        call()
    assert named in str(error.value), str(error.value)


LOADS = [
    ("name", {"name": 3}),
    ("tinny", {"name": "tinny"}),
    ("x/y/z", {"name": "x/y/z"}),
    ("file", {"name": TINY / "README.md"}),
    ("device", {"device": "meta"}),
    ("device", {"device": ["cpu"]}),
    ("dtype", {"dtype": "int8"}),
    ("dtype", {"dtype": {}}),
    ("quantiz", {"quantize": True}),
    ("quantize", {"quantize": "2bit"}),
    ("max_memory", {"max_memory": {"cpu": "1GB"}}),
    ("max_memory", {"device": "auto", "max_memory": {"cpu": "much"}}),
    ("max_memory", {"device": "auto", "max_memory": "1GB"}),
    ("vision_tower", {"vision_tower": 3}),
    ("config", {"config": 3}),
    ("config", {"config": {}}),
    ("drop", {"drop": 3}),
    ("drop", {"drop": [3]}),
    ("drop", {"drop": "model."}),
    ("adapter", {"lora": TINY}),
    ("lora", {"lora": 3}),
    ("subfolder", {"subfolder": 3}),
    ("nope", {"subfolder": "nope"}),
    ("subfolder", {"subfolder": "../tiny"}),
    ("subfolder", {"subfolder": "/tmp"}),
]


@pytest.mark.parametrize(("named", "given"), LOADS, ids=str)
def test_what_load_cannot_do(named, given):
    check(lambda: glamm_mini.load(**{"name": "tiny", "device": "cpu"} | given), named)


PRETRAINED = [
    ("None", {"name": None}),
    ("3", {"name": 3}),
    ("int8", {"dtype": "int8"}),
    ("zzz", {"zzz": 1}),
    ("quantiz", {"quantization_config": {}}),
    ("config", {"config": GPT2Config()}),
    ("load_in_4bit", {"load_in_4bit": True}),
    ("foo", {"device_map": {"foo": "cpu"}}),
    ("{}", {"device_map": {}}),
    ("offload_folder", {"device_map": {"": "disk"}, "offload_folder": ""}),
    ("offload_folder", {"device_map": {"": "disk"}, "offload_folder": 5}),
    ("[]", {"device_map": []}),
    ("meta", {"device_map": {"": "meta"}}),
    ("nope", {"device_map": {"": "nope"}}),
    ("max_memory", {"max_memory": {"cpu": "1GB"}}),
    ("nope", {"attn_implementation": {"nope": "sdpa"}}),
]


@pytest.mark.parametrize(("named", "given"), PRETRAINED, ids=str)
def test_what_from_pretrained_cannot_do(named, given):
    given = {"name": "tiny"} | given
    check(lambda: GlammForConditionalGeneration.from_pretrained(given.pop("name"), **given), named)


@pytest.mark.parametrize(
    ("named", "given"), [("revison", {"revison": "main"}), ("3", {"name": 3}), ("tinny", {"name": "tinny"})]
)
def test_what_the_processors_from_pretrained_cannot_do(named, given):
    given = {"name": "tiny"} | given
    check(lambda: GlammProcessor.from_pretrained(given.pop("name"), **given), named)


def test_no_model_is_loaded_where_new_tensors_have_no_values():
    with torch.device("meta"):
        check(lambda: glamm_mini.load("tiny", device="cpu"), "meta")


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu", torch.device("cpu"), "auto"], ids=str)
@pytest.mark.parametrize("attention", [{"text": "eager"}, {"": "eager"}, "sdpa"], ids=str)
def test_what_from_pretrained_can_do(device_map, attention):
    given = dict(device_map=device_map, attn_implementation=attention)
    assert GlammForConditionalGeneration.from_pretrained("tiny", **given).device.type != "meta"


def changed(name: str, *path, to=None):
    """A change of a JSON file: the value at `path` becomes `to`."""

    def change(folder):
        content = table = json.loads((folder / name).read_text("utf-8"))
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = to
        (folder / name).write_text(json.dumps(content), "utf-8")

    return change


def weights(change):
    def changed(folder):
        state = load_file(folder / "model.safetensors")
        save_file(change(state) or state, folder / "model.safetensors")

    return changed


def header(change):
    """A change of what a safetensors file says of its tensors."""

    def changed(folder):
        data = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        table = json.loads(data[8 : 8 + length])
        change(next(value for name, value in table.items() if name != "__metadata__"))
        words = json.dumps(table).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(words)) + words + data[8 + length :])

    return changed


def index(content: str):
    def changed(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return changed


CONFIG = "config.json"
FOLDERS = {
    "weights cut": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors"),
    "a pointer to weights": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "lfs",
    ),
    "a type that there is not": (header(lambda e: e.update(dtype="Q9")), "model.safetensors"),
    "a shape of another size": (header(lambda e: e.update(shape=[1, 1])), "model.safetensors"),
    "a shape beyond all memory": (header(lambda e: e.update(shape=[2**40, 2**40])), "model.safetensors"),
    "a place behind the end": (header(lambda e: e.update(data_offsets=[10**12, 10**12 + 4])), "model.safetensors"),
    "a name too many": (weights(lambda s: {**s, "zzz": torch.zeros(2)}), "zzz"),
    "a shape of another model": (weights(lambda s: {**s, next(iter(s)): torch.zeros(3, 3)}), "shape"),
    "weights of whole numbers": (weights(lambda s: {n: t.to(torch.int8) for n, t in s.items()}), "int8"),
    "shards outside": (index('{"weight_map": {"a": "../x.safetensors"}}'), "../x.safetensors"),
    "shards that are not there": (index('{"weight_map": {"a": "model-2.safetensors"}}'), "model-2.safetensors"),
    "shards that are numbers": (index('{"weight_map": {"a": 3}}'), "index.json"),
    "an index that is a list": (index("[]"), "index.json"),
    "an index of nothing": (index("{}"), "index.json"),
    "settings without end": (lambda f: (f / CONFIG).write_text("[" * 100_000), CONFIG),
    "settings in a list": (lambda f: (f / CONFIG).write_text("[]"), CONFIG),
    "settings of another model": (changed(CONFIG, "model_type", to="llama"), "llama"),
    "no mode": (changed(CONFIG, "mode"), "mode"),
    "no layer": (changed(CONFIG, "feature_layer"), "feature_layer"),
    "a layer beyond the last": (changed(CONFIG, "feature_layer", to=50), "feature_layer"),
    "a layer that is none": (changed(CONFIG, "feature_layer", to=0), "feature_layer"),
    "no levels": (changed(CONFIG, "region", "scales", to=[]), "scales"),
    "an activation that there is not": (changed(CONFIG, "text", "hidden_act", to="zzz"), "hidden_act"),
    "a width in words": (changed(CONFIG, "text", "hidden_size", to="64"), "hidden_size"),
    "a width of half": (changed(CONFIG, "text", "hidden_size", to=1.5), "hidden_size"),
    "a huge width": (changed(CONFIG, "text", "hidden_size", to=10**9), "hidden_size"),
    "a huge depth": (changed(CONFIG, "grounding", "depth", to=10**6), "depth"),
    "heads that do not divide": (changed(CONFIG, "grounding", "heads", to=7), "heads"),
    "a picture less than a patch": (changed(CONFIG, "grounding", "image_size", to=7), "image_size"),
    "no mean": (changed(CONFIG, "grounding", "pixel_mean"), "pixel_mean"),
    "no spread": (changed(CONFIG, "grounding", "pixel_std", to=[0, 1, 1]), "pixel_std"),
    "nobody who answers": (changed(CONFIG, "prompt", "assistant"), "assistant"),
    "no line for the picture": (changed(CONFIG, "prompt", "image_line"), "image_line"),
    "no room for words": (changed(CONFIG, "prompt", "max_length", to=4), "max_length"),
    "no room for a question": (changed(CONFIG, "prompt", "max_length", to=5), "max_length"),
    "a loss of nan": (changed(CONFIG, "losses", "mask_bce", to=NAN), "mask_bce"),
    "no text": (changed(CONFIG, "text", to=3), "text"),
    "a tokenizer cut": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    "a tokenizer without GLaMM's tokens": (changed("tokenizer.json", "added_tokens", to=[]), "<im_start>"),
    "no end": (changed("tokenizer_config.json", "eos_token"), "eos_token"),
    "a tokenizer without words": (changed("tokenizer.json", "model", "vocab", to={}), "tokenizer"),
    "two words of one id": (changed("tokenizer.json", "model", "vocab", "balloon", to=20), "share an id"),
    "a length in words": (changed("tokenizer_config.json", "model_max_length", to="zz"), "tokenizer"),
    "answers in a list": (lambda f: (f / "generation_config.json").write_text("[]"), "generation_config.json"),
    "no padding": (changed("tokenizer_config.json", "pad_token"), "pad_token"),
    "no settings of the tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
}


@pytest.fixture
def model_folder(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_none(w, name, model_folder):
    change, named = FOLDERS[name]
    change(model_folder)
    check(lambda: glamm_mini.load(model_folder, device="cpu").describe(w.pic, max_new_tokens=2), named)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"eos_token_id": None}, {"do_sample": True, "temperature": 9.0}]
)
def test_how_a_folder_wants_to_generate_does_not_change_answers(w, settings, model_folder):
    (model_folder / "generation_config.json").write_text(json.dumps(settings))
    other = glamm_mini.load(model_folder, device="cpu")
    picture = paths.samples_folder() / "seaside.png"
    assert other.describe(picture, max_new_tokens=40) == w.g.describe(picture, max_new_tokens=40)


def whole_numbers(folder):
    state = load_file(folder / "adapter_model.safetensors")
    state = {name: tensor.to(torch.int8) for name, tensor in state.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt", "probe": "[]"})


ADAPTERS = {
    "cut": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "adapter_model.safetensors"),
    "settings cut": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "of another kind": (changed("adapter_config.json", "peft_type", to="IA3"), "adapter_config.json"),
    "of rank 0": (changed("adapter_config.json", "r", to=0), "rank 0"),
    "of another rank": (changed("adapter_config.json", "r", to=4), "lora_A"),
    "of a size in words": (changed("adapter_config.json", "lora_alpha", to="x"), "adapter_config.json"),
    "of an endless size": (changed("adapter_config.json", "lora_alpha", to=float("inf")), "lora_alpha"),
    "beside layers that are not there": (changed("adapter_config.json", "target_modules", to=["zzz"]), "zzz"),
    "beside layers of a broken pattern": (
        changed("adapter_config.json", "target_modules", to="("),
        "cannot be put in",
    ),
    "without alpha": (changed("adapter_config.json", "lora_alpha"), "lora_alpha"),
    "without a kind": (changed("adapter_config.json", "peft_type"), "peft_type"),
    "with biases": (changed("adapter_config.json", "bias", to="all"), "bias"),
    "with biases of no kind": (changed("adapter_config.json", "bias", to="zz"), "bias"),
    "turned around": (changed("adapter_config.json", "fan_in_fan_out", to=True), "fan_in_fan_out"),
    "with other sizes": (changed("adapter_config.json", "alpha_pattern", to={"q_proj": 9}), "alpha_pattern"),
    "with tokens": (changed("adapter_config.json", "trainable_token_indices", to=[1]), "trainable_token_indices"),
    "beside parameters": (changed("adapter_config.json", "target_parameters", to=["x"]), "target_parameters"),
    "of ranks that are none": (changed("adapter_config.json", "rank_pattern", to=5), "cannot be put in"),
    "beside everything": (changed("adapter_config.json", "target_modules", to=".*"), "cannot be put in"),
    "of whole numbers": (whole_numbers, "int8"),
    "with parts that it lacks": (changed("adapter_config.json", "modules_to_save", to=["zzz"]), "zzz"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_none(w, name, tmp_path):
    change, named = ADAPTERS[name]
    folder = Path(shutil.copytree(w.t / "lora", tmp_path / "lora"))
    change(folder)
    model = glamm_mini.load("tiny", device="cpu").model
    with pytest.raises(BAD) as error:
        load_lora(model, folder)
    assert named in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert not any(".lora_" in n or "token_adapter" in n for n, _ in model.named_parameters())


LORA = [{"rank": 0}, {"rank": "x"}, {"rank": 1.5}, {"rank": True}, {"rank": 10**6}, {"alpha": NAN}, {"alpha": "16"}]
LORA += [{"alpha": None}, {"alpha": True}, {"dropout": 1}, {"dropout": "a"}, {"dropout": None}]
LORA += [{"targets": "zz"}, {"targets": None}, {"targets": 5}, {"targets": [5]}, {"targets": ()}]


@pytest.mark.parametrize("given", LORA, ids=str)
def test_lora_that_cannot_be_added(given):
    [value] = given.values()
    check(lambda: add_lora(small_model(), **given), str(*value) if isinstance(value, list) else str(value))


def test_lora_of_numpys_numbers_is_saved(tmp_path):
    model = small_model()
    add_lora(model, rank=np.int64(2), alpha=np.float32(4), dropout=np.float64(0))
    save_lora(tmp_path, model, Path("tiny"))
    assert load_lora(small_model(), tmp_path)["alpha"] == 4


@pytest.mark.parametrize(
    "call", [add_lora, merge_lora, lambda m: load_lora(m, "lora"), lambda m: save_lora(m, m)], ids=range(4)
)
@pytest.mark.parametrize("model", [None, "lora", torch.nn.Linear(2, 2)], ids=str)
def test_what_lora_cannot_stand_in(call, model):
    check(lambda: call(model), f"model is a {type(model).__name__}")


def test_lora_that_cannot_be_saved_or_merged(w, tmp_path):
    model = small_model()
    add_lora(model, rank=1)
    check(lambda: save_lora(tmp_path / "new", model, 5), "base is 5")
    own = model.state_dict()
    before = {name: tensor.clone() for name, tensor in own.items() if ".lora_" not in name}
    for name, parameter in model.named_parameters():
        if "layers.1" in name and ".lora_" in name:
            parameter.data.fill_(1e30)
    check(lambda: merge_lora(model), "layers.1.self_attn.q_proj")
    for name, tensor in before.items():
        torch.testing.assert_close(own[name], tensor)
    next(p for n, p in model.named_parameters() if ".lora_" in n).data.fill_(NAN)
    check(lambda: save_lora(tmp_path / "new", model), "not finite")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("of_peft", [{"use_rslora": True}, {"lora_alpha": 4}], ids=str)
def test_an_adapter_of_another_size_than_the_models_own(w, of_peft, tmp_path):
    folder = Path(shutil.copytree(w.t / "lora", tmp_path / "lora"))
    [(name, value)] = of_peft.items()
    changed("adapter_config.json", name, to=value)(folder)
    model = glamm_mini.load("tiny", device="cpu", lora=w.t / "lora").model
    check(lambda: load_lora(model, folder), f"{name.removeprefix('lora_')} {value}")
