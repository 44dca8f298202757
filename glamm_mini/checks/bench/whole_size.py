"""The 7B size as a whole: an answer with masks and LoRA training steps, with random weights, on one GPU.

Weights decide what is said, not how long it takes; so nothing has to be downloaded. The same code runs at any size
and on a CPU, where it tells whether it works and nothing about a GPU.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from glamm_mini.checks.bench.cached_generation import SegAt, spread
from glamm_mini.checks.bench.lora_steps import TrainingStep
from glamm_mini.checks.bench.measure import Measured, Report, Setting, memory_of, peak_bytes, repeated
from glamm_mini.model.config import GlammConfig, TokenIds
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX

SIZE = "7b"
TEXT_TOKENS, NEW_TOKENS, MASKS = 24, 100, 5
PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
ROOM = 1.2
"""Bytes that an answer takes, by those of the weights."""


def run(setting: Setting) -> Report:
    """Seconds, tokens a second, peak memory, and the share of the device's measured peak, for answers and for training.

    Raises ValueError for a GPU with too little free memory; ModuleNotFoundError where peft is missing.
    """
    config = GlammConfig.of_size(setting.size or SIZE)
    # The added tokens are the last of the vocabulary; a size without a tokenizer does not know where that ends.
    config.tokens = TokenIds(*range(config.text.vocab_size - len(fields(TokenIds)), config.text.vocab_size))
    _check_room(config, setting)
    report = Report("7b", setting.as_dict() | {"size": config.size_name})
    peak = matmul_peak(setting)
    report.rows["matrix product, measured peak"] = Measured("TFLOP/s", [peak / 1e12])
    model = random_model(config, setting)
    answers(report, model, setting, peak)
    step = TrainingStep(model, config.size_name, setting.device, TEXT_TOKENS, NEW_TOKENS, MASKS)
    training(report, step, setting, peak)
    report.notes.append(f"{TEXT_TOKENS} text and {config.image_tokens} image tokens, {NEW_TOKENS} new, {MASKS} masks")
    report.notes.append(f"a training step: {step.batch_size} rows x {step.accumulation} with autocast {step.precision}")
    report.notes.append("FLOPs as torch counts them, what checkpointing computes again included")
    return report


def random_model(config: GlammConfig, setting: Setting) -> GlammForConditionalGeneration:
    """A model with random weights, made on the device in its own type: it is never in the CPU's memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.device(setting.device):
            torch.manual_seed(0)
            return GlammForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def matmul_peak(setting: Setting) -> float:
    """FLOPs a second of one big product of matrices: what this device really reaches in this type."""
    side = PEAK_SIDE["cuda" if setting.device.type == "cuda" else "cpu"]
    a, b = torch.randn(2, side, side, device=setting.device).to(setting.dtype)

    def products():
        for _ in range(10):
            a @ b

    products()
    times, _ = repeated("7b peak", products, setting)
    return 10 * 2 * side**3 / min(times)


def question(config: GlammConfig, setting: Setting) -> dict:
    """What one random question about one random picture takes, for `generate`."""
    torch.manual_seed(1)
    own = {"device": setting.device, "dtype": setting.dtype}
    ids = torch.randint(3, config.tokens.im_start, (1, TEXT_TOKENS + 1))
    ids[0, 1] = IMAGE_TOKEN_INDEX
    square = config.grounding.image_size
    return dict(
        input_ids=ids.to(setting.device),
        global_images=torch.randn(1, 3, config.vision.image_size, config.vision.image_size).to(**own),
        grounding_images=torch.randn(1, 3, square, square).to(**own),
        resized=[(square, square)],
        original=[(square, square)],
    )


def answers(report: Report, model: GlammForConditionalGeneration, setting: Setting, peak: float):
    """Adds rows for a whole answer, for its parts, and for one whose picture is encoded already."""
    batch = question(model.config, setting)
    images = batch["global_images"], batch["grounding_images"]
    more = {"eos_token_id": None, "logits_processor": [SegAt(model.config.tokens.seg, spread(MASKS, NEW_TOKENS))]}
    generate = partial(model.generate, **batch, **more)
    with torch.inference_mode():
        features = model.encode_images(*images)
        kept = partial(generate, image_features=features)
        memory = memory_of(partial(generate, max_new_tokens=NEW_TOKENS), setting.device)
        measure(report, "answer", partial(generate, max_new_tokens=NEW_TOKENS), setting, peak)
        measure(report, "answer, features kept", partial(kept, max_new_tokens=NEW_TOKENS), setting, peak)
        measure(report, "encoding the picture", partial(model.encode_images, *images), setting, peak)
        measure(report, "first token, features kept", partial(kept, max_new_tokens=1), setting, peak)
        out = kept(max_new_tokens=NEW_TOKENS)
    later = min(report.rows["answer, features kept"].ours) - min(report.rows["first token, features kept"].ours)
    report.rows["new tokens after the first"] = Measured("tokens/s", [(NEW_TOKENS - 1) / later])
    if memory is not None:
        report.rows["answer, peak memory"] = Measured("GB", [peak_bytes(setting.device) / 1e9])
    masks = out.mask_logits[0]
    if len(masks) != MASKS or not masks.isfinite().all():
        raise RuntimeError(f"the answer has {len(masks)} masks, or some are not finite; expected {MASKS}: a defect")


def training(report: Report, step: TrainingStep, setting: Setting, peak: float):
    """Adds rows for one whole optimizer step."""
    memory = memory_of(step, setting.device)
    measure(report, "training step", step, setting, peak)
    report.rows["training"] = Measured("tokens/s", [step.tokens / min(report.rows["training step"].ours)])
    if memory is not None:
        report.rows["training step, peak memory"] = Measured("GB", [peak_bytes(setting.device) / 1e9])


def measure(report: Report, name: str, function: Callable, setting: Setting, peak: float):
    """Adds the seconds of a call and its share of the peak."""
    with FlopCounterMode(display=False) as counter:
        function()
    times, _ = repeated(f"7b {name}", function, setting)
    report.rows[name] = Measured("s", times)
    report.rows[f"{name}, of the peak"] = Measured("%", [100 * counter.get_total_flops() / min(times) / peak])


def _check_room(config: GlammConfig, setting: Setting):
    if setting.device.type != "cuda":
        return
    with torch.device("meta"):
        weights = sum(p.numel() for p in GlammForConditionalGeneration(config).parameters())
    wanted = ROOM * weights * setting.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(setting.device)
    if free < wanted:
        raise ValueError(
            f"size {config.size_name} takes about {wanted / 1e9:.0f} GB for an answer and more for training, but "
            f"{setting.device} has {free / 1e9:.0f} GB free; free it, or measure a smaller one with --size colab"
        )
