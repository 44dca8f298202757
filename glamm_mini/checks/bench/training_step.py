"""One joint step of the tiny model's training, part by part: what takes the time, and how near it is to the machine's.

The step is that of `train storybook`: scenes drawn and talked about, collated, forward, backward, clipped, Muon and
AdamW. Fused attention and all products of matrices are counted as floating-point operations, and compared with what one
large product of matrices reaches here.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.flop_counter import FlopCounterMode

from glamm_mini import paths
from glamm_mini.checks.bench.measure import Measured, Report, Setting, seconds
from glamm_mini.storybook.dataset import MIXTURE, StorybookDataset
from glamm_mini.storybook.pretrain.joint_stage import JointCollate
from glamm_mini.storybook.pretrain.run import StorybookOptions, load_backbones, untrained
from glamm_mini.training.data_order import COUNTS
from glamm_mini.training.optimizer import build_optimizer, clip_gradients
from glamm_mini.training.recipes import read_recipe

RECIPE = read_recipe("storybook", "tiny").settings
SCENES, CONVERSATIONS = RECIPE.batch_size // 2, StorybookOptions().conversations
"""Of one step: half the recipe's batch, which is what one of two processes does."""
SIDE = 2048
"""Of the matrices whose product is the machine's peak."""
PARTS = ("drawing and talk", "collation", "forward", "backward", "clipping", "optimizer")


def run(setting: Setting) -> Report:
    """Seconds of each part, of the processor on a CPU and of the clock elsewhere; operations a second, of the peak."""
    device, half = setting.device, setting.dtype
    glamm, processor = untrained("tiny")
    stage = load_backbones(paths.checkpoint_folder("backbones"), glamm).to(device).train()
    optimizer = build_optimizer(stage, RECIPE)
    scenes = StorybookDataset("train", 0, 10**9, processor.config.grounding.image_size, MIXTURE, CONVERSATIONS)
    collate = JointCollate(processor)
    took: dict[str, list[float]] = {part: [] for part in PARTS}
    counted = FlopCounterMode(display=False)

    def part(name: str, do: Callable[[], Any]) -> Any:
        spent, out = spent_by(do, device)
        took[name].append(spent)
        return out

    def forward(batch: dict):
        with torch.autocast(device.type, half, enabled=half != torch.float32):
            return stage(**batch)

    def step(number: int) -> tuple[int, int]:
        first = number * SCENES
        samples = part("drawing and talk", lambda: [scenes[k] for k in range(first, first + SCENES)])
        batch = send_to_device(part("collation", lambda: collate(samples)), device)
        batch["normalizers"] = {name: float(batch.pop(key)) for name, key in COUNTS.items() if key in batch}
        out = part("forward", lambda: forward(batch))
        part("backward", out.loss.backward)
        part("clipping", lambda: clip_gradients(stage, RECIPE.clip))
        part("optimizer", optimizer.step)
        optimizer.zero_grad()
        return out.spliced_ids.numel(), len(batch["seg_boxes"])

    with counted:
        step(0)  # the first is slow
    operations, positions, masks = counted.get_total_flops() / 1e9, 0, 0
    for times in took.values():
        times.clear()
    for number in range(1, 1 + setting.repeats):
        here = step(number)
        positions, masks = positions + here[0], masks + here[1]
    report = Report("training", setting.as_dict() | {"scenes": SCENES, "conversations": CONVERSATIONS})
    report.rows = {name: Measured("s", times) for name, times in took.items()}
    whole = [sum(times) for times in zip(*took.values(), strict=True)]
    report.rows["whole step"] = Measured("s", whole)
    passes = [a + b for a, b in zip(took["forward"], took["backward"], strict=True)]
    reached = [operations / spent for spent in passes]
    report.rows["forward and backward"] = Measured("Gflop/s", reached)
    peaks = {kind: peak_of(kind, setting) for kind in (torch.float32, torch.bfloat16)}
    for kind, peak in peaks.items():
        report.rows[f"one product of matrices, {str(kind).removeprefix('torch.')}"] = Measured("Gflop/s", peak)
    # Of the faster one: where bfloat16 is emulated, autocast leaves some products to float32.
    share = statistics.median(reached) / max(statistics.median(peak) for peak in peaks.values())
    report.notes.append(f"forward and backward reach {share:.0%} of the faster product")
    report.rows["positions"] = Measured("1/s", [positions / sum(whole)])
    clock = "of the processor" if device.type == "cpu" else "on the clock"
    report.notes.append(f"seconds {clock}; {operations:.1f} Gflop of products and attention in the first step")
    report.notes.append(f"{positions / setting.repeats:.0f} positions and {masks / setting.repeats:.0f} masks a step")
    return report


def spent_by(do: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that a call takes, of the processor on a CPU, so that other work does not count; and what it returns."""
    if device.type != "cpu":
        return seconds(do, device)
    start = time.process_time()
    out = do()
    return time.process_time() - start, out


def peak_of(kind: torch.dtype, setting: Setting) -> list[float]:
    """Gflop/s of a product of two large matrices, for each repeat."""
    side = SIDE if kind == torch.float32 or setting.device.type != "cpu" else SIDE // 4  # may be emulated
    a, b = (torch.randn(side, side, device=setting.device).to(kind) for _ in range(2))
    a @ b
    return [2 * side**3 / 1e9 / max(spent_by(lambda: a @ b, setting.device)[0], 1e-9) for _ in range(setting.repeats)]
