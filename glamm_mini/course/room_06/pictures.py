"""Pictures of notebook 06: what a prompt code resembles, where tokens look, how channels add up to a mask; and clicks
that become masks."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.course.drawing.diagram import BLUE, GRAY, GREEN, INK, ORANGE, PAPER, PURPLE, QUIET, Diagram
from glamm_mini.course.room_06.lesson import deepest
from glamm_mini.model.sam import upscale_logits
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.visuals.overlay import overlay_masks
from glamm_mini.visuals.palette import RGB, color, hex_color


class PromptedScene:
    """A scene whose picture is encoded once; then any number of prompts can be tried on it.

    page: the drawn scene. scale: pixels of the square that the encoder sees, per pixel of the picture.
    embedding: (1, C, h, w).
    """

    def __init__(self, glamm, processor, index: int, split: str = "test", seed: int = 0, long_side: int = 320):
        self.glamm = glamm
        self.page = render(sample_scene(split, seed, index), long_side)
        self.things = sample_scene(split, seed, index).things
        images = processor.images([self.page.image])
        self.resized, self.original = images["resized"][0], images["original"][0]
        self.side = glamm.config.grounding.image_size
        self.scale = self.side / max(self.original)
        with torch.no_grad():
            self.embedding = glamm.grounding_encoder(images["grounding_images"])

    @torch.no_grad()
    def logits(self, prompts: torch.Tensor, decoder=None) -> torch.Tensor:
        """Prompts (N, K, C) to mask logits (N, H, W) at the picture's size; `decoder` draws in place of the model's."""
        decoder = decoder or self.glamm.pixel_decoder
        low_res, _ = decoder(self.embedding, prompts, torch.zeros(len(prompts), dtype=torch.long))
        return upscale_logits(low_res, self.side, self.resized, self.original)

    def on_picture(self, field: torch.Tensor) -> np.ndarray:
        """A field (h, w) over the encoder's square, enlarged and cut to the picture: (H, W)."""
        return upscale_logits(field[None].float(), self.side, self.resized, self.original)[0].detach().numpy()

    def with_masks(self) -> Image.Image:
        """The picture with the true masks of all things."""
        return Image.fromarray(overlay_masks(self.page.image, self.page.thing_masks))

    def inside(self, number: int) -> tuple[float, float]:
        """A point x, y in pixels of the picture, well inside of thing `number`."""
        return deepest(self.page.thing_masks[number])


def heat(image: np.ndarray, field: np.ndarray, point: Sequence[float] | None = None) -> Image.Image:
    """The picture (H, W, 3) in gray, orange where the field (H, W) is high; its lowest value leaves it as it is."""
    gray = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None].repeat(3, axis=2) * 0.6 + 90
    share = ((field - field.min()) / max(float(np.ptp(field)), 1e-9))[..., None] * 0.9
    picture = Image.fromarray((gray * (1 - share) + np.array(ORANGE) * share).clip(0, 255).astype(np.uint8))
    if point is not None:
        mark(picture, point)
    return picture


def signed(field: np.ndarray, most: float, side: int = 256) -> Image.Image:
    """A field (h, w) as a square picture: orange above 0, blue below, white at 0, full color at `most`."""
    share = np.clip(np.abs(field) / most, 0, 1)[..., None]
    ink = np.where(field[..., None] > 0, np.array(ORANGE), np.array(BLUE))
    picture = Image.fromarray((np.array(PAPER) * (1 - share) + ink * share).astype(np.uint8))
    return picture.resize((side, side), Image.Resampling.NEAREST)


def mark(picture: Image.Image, point: Sequence[float]) -> None:
    """A ring at x, y in pixels, drawn into the picture."""
    draw, r = ImageDraw.Draw(picture), max(picture.size) / 45
    x, y = point
    draw.ellipse((x - r, y - r, x + r, y + r), fill="white", outline="black", width=max(2, round(r / 3)))


def row(pictures: Sequence[Image.Image], words: Sequence[str], columns: int = 3, few: int = 64) -> Image.Image:
    """Labeled panels in `few` colors without dithering: fields and grays lose nothing, and the file stays small."""
    sheet = labeled(pictures, words, columns=columns)
    return sheet.quantize(few, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def prompted(
    image: np.ndarray, mask: np.ndarray, point=None, box=None, ink: RGB = PURPLE, truth: np.ndarray | None = None
) -> Image.Image:
    """A mask (H, W) bool over its picture, with the point or the box that asked for it.

    truth: the true mask; its outline is drawn in white.
    """
    painted = overlay_masks(image, [mask], [ink], alpha=0.35)
    if truth is not None:
        painted = overlay_masks(painted, [truth], [(255, 255, 255)], alpha=0.0, outline=1.5)
    picture = Image.fromarray(painted)
    if box is not None:
        draw = ImageDraw.Draw(picture)
        draw.rectangle(tuple(box), outline="black", width=4)
        draw.rectangle(tuple(box), outline="white", width=2)
    if point is not None:
        mark(picture, point)
    return picture


def sum_of_channels(channels: torch.Tensor, kernel: torch.Tensor, columns: int = 5) -> Image.Image:
    """Each channel (C, h, w) times its weight in the kernel (C,), and their sum, which is the mask's logits."""
    parts = (channels * kernel[:, None, None]).detach().numpy()
    total = parts.sum(0)
    most = float(np.abs(parts).max())
    pictures = [signed(part, most) for part in parts] + [signed(total, float(np.abs(total).max()))]
    words = [f"{weight:+.1f} · channel {k}" for k, weight in enumerate(kernel.tolist())] + ["the sum: logits"]
    return row(pictures, words, columns=columns)


STEPS = (
    ("1  tokens ask tokens", "self-attention", "tokens"),
    ("2  tokens read pixels", "cross-attention", "down"),
    ("3  tokens think", "MLP, ReLU", "tokens"),
    ("4  pixels read tokens", "cross-attention", "up"),
)


def block_diagram() -> Image.Image:
    """A two-way block: the lane of the tokens above, the lane of the pixels below, four steps from left to right."""
    diagram = Diagram(1600, 470)
    lanes = {"tokens": (70, 170, ORANGE, "T tokens"), "pixels": (340, 440, GREEN, "h · w pixels")}
    for top, bottom, ink, name in lanes.values():
        diagram.card((20, top, 230, bottom), ink, 0.25)
        diagram.words((125, (top + bottom) / 2), name, 26, bold=True, anchor="mm")
        diagram.arrow([(230, (top + bottom) / 2), (1586, (top + bottom) / 2)], width=4)
    for number, (title, kind, way) in enumerate(STEPS):
        left = 268 + number * 328
        top, bottom, ink, _ = lanes["pixels" if way == "up" else "tokens"]
        diagram.card((left, top, left + 308, bottom), ink, 0.25)
        diagram.words((left + 154, top + 34), title, 24, bold=True, anchor="mm")
        diagram.words((left + 154, top + 70), kind, 24, ink=QUIET, anchor="mm")
        if way == "down":
            diagram.arrow([(left + 154, 384), (left + 154, 178)], INK)
        if way == "up":
            diagram.arrow([(left + 154, 126), (left + 154, 332)], INK)
    diagram.words((20, 34), "asked: what is wanted?", 24, ink=QUIET)
    diagram.words((20, 305), "seen: what is where?", 24, ink=QUIET)
    return diagram.finish()


class ClickToMask:
    """For a `PictureExplorer`: a click becomes a prompt, and the prompt a mask.

    scenes: indices of the test split, one for each value of the axis "scene".
    """

    def __init__(self, glamm, processor, scenes: Sequence[int], long_side: int = 384):
        self.scenes = [PromptedScene(glamm, processor, index, long_side=long_side) for index in scenes]

    def good_clicks(self, count: int) -> list[tuple[float, float]]:
        """Points inside of the largest things of the first scene, fractions of its width and height."""
        first = self.scenes[0]
        height, width = first.page.image.shape[:2]
        order = first.page.thing_masks.sum((1, 2)).argsort()[::-1][:count]
        return [(x / width, y / height) for x, y in map(first.inside, order)]

    def __call__(self, choice: dict) -> tuple[Image.Image, str]:
        """The picture with its mask, and how large and how sure the mask is."""
        scene = self.scenes[choice["scene"]]
        if choice["point"] is None:
            return Image.fromarray(scene.page.image), "Click on something."
        height, width = scene.page.image.shape[:2]
        x, y = choice["point"][0] * width, choice["point"][1] * height
        encoder = scene.glamm.pixel_decoder.prompt_encoder
        where = torch.tensor([[[x * scene.scale, y * scene.scale]]], dtype=torch.float32)
        with torch.no_grad():
            prompt, _ = encoder((where, torch.ones(1, 1)), None, None)
        probability = scene.logits(prompt)[0].sigmoid().numpy()
        mask = probability > 0.5
        here = probability[min(int(y), height - 1), min(int(x), width - 1)]
        picture = prompted(scene.page.image, mask, point=(x, y))
        sure = f", {probability[mask].mean():.0%} sure on average" if mask.any() else ""
        return picture, f"Mask: {mask.mean():.1%} of the picture{sure}; at your click {here:.0%}."


def word_rows(scenes: Sequence[PromptedScene], texts: Sequence[Sequence[str]], logits: Sequence) -> Image.Image:
    """A row for each scene: below every panel the text that asked for its mask.

    texts: for each scene equally many. logits: for each scene (len(texts[k]), H, W).
    """
    pictures, words = [], []
    for scene, asked, many in zip(scenes, texts, logits, strict=True):
        for k, (text, one) in enumerate(zip(asked, many, strict=True)):
            pictures.append(prompted(scene.page.image, one.numpy() > 0, ink=color(k)))
            words.append(f"“{text}”")
    return labeled(pictures, words, columns=len(texts[0]))


def low_res_pair(mask: torch.Tensor, side: int = 256) -> Image.Image:
    """A soft mask (h, w), 0..1, as gray squares of `side` pixels."""
    picture = Image.fromarray((255 * mask.clamp(0, 1)).to(torch.uint8).numpy())
    return picture.resize((side, side), Image.Resampling.NEAREST)


def upscaled_steps(maps: Sequence[torch.Tensor]) -> Image.Image:
    """Feature maps (C, h, w) of growing size, each as the strength of its vectors, on squares of one size."""
    pictures, words = [], []
    for field in maps:
        strength = field.detach().square().mean(0).sqrt()
        strength = (strength - strength.min()) / (strength.max() - strength.min()).clamp(min=1e-9)
        pictures.append(low_res_pair(strength, 384))
        words.append(f"{field.shape[0]} channels, {field.shape[1]} × {field.shape[2]}")
    return row(pictures, words)


def three_ways(scene: PromptedScene, masks: torch.Tensor, point, box, text: str) -> Image.Image:
    """Masks (3, H, W) bool of one thing, by a click at `point`, by a `box` (both in pixels) and by its name."""
    image, (clicked, boxed, named) = scene.page.image, masks.numpy()
    panels = [prompted(image, clicked, point=point), prompted(image, boxed, box=box), prompted(image, named)]
    return labeled(panels, ["a click", "a box", f"“{text}”"])


def bars(values: dict[str, float], blue: int, label: str):
    """A figure with a bar for each value, all between 0 and 1; the first `blue` of them blue, the others gray."""
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.4 * len(values)), layout="constrained")
    inks = [hex_color(BLUE if k < blue else GRAY) for k in range(len(values))]
    axes.barh(list(values), list(values.values()), color=inks)
    axes.invert_yaxis()
    for at, value in enumerate(values.values()):
        axes.text(value + 0.01, at, f"{value:.2f}", va="center")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=label, xlim=(0, 1))
    return figure


def curves(lines: dict[str, torch.Tensor], across: str, up: str):
    """A figure with a line for each row of numbers."""
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for k, (name, values) in enumerate(lines.items()):
        axes.plot(values.numpy(), color=hex_color(color(k)), label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None))
    axes.legend(frameon=False)
    return figure
