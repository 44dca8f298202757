"""GlammProcessor: images, conversations, boxes and masks to one batch, and mask logits back to masks."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from glamm_mini import paths, registry
from glamm_mini.arguments import check_size, mask_row
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.sam import upscale_logits
from glamm_mini.model.tokens import ADDED_TOKENS, IGNORE_INDEX, IMAGE, IMAGE_TOKEN_INDEX, TokenIds
from glamm_mini.processing.boxes import checked_boxes
from glamm_mini.processing.images import load_image
from glamm_mini.processing.llama_tokenizer import official_decode, strips_blanks
from glamm_mini.processing.prompts import Prompt, chat_template, is_conversation, render

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Turns = list[tuple[str, str | None]]
"""A conversation: (question, answer), the last answer None where it is to be generated."""


class GlammProcessor(ProcessorMixin):
    """Everything between people's data and the model's tensors; a transformers processor.

    In `fixed` mode both encoders see the whole picture, padded to a square, and boxes are fractions of that square.
    In `official` mode the global encoder sees the center crop while boxes are fractions of the full picture.
    """

    model_input_names = ["input_ids", "attention_mask", "global_images", "grounding_images", "resized", "original"]

    def __init__(self, config: GlammConfig, tokenizer: PreTrainedTokenizerFast):
        for name, given, kind in (("config", config, GlammConfig), ("tokenizer", tokenizer, PreTrainedTokenizerFast)):
            if not isinstance(given, kind):
                raise ValueError(f"{name} is a {type(given).__name__}; expected a {kind.__name__}")
        self.config, self.tokenizer = config, tokenizer
        ids = [tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS]
        if len(set(ids)) < len(ids) or any(i is None or i == tokenizer.unk_token_id for i in ids):
            given, hint = dict(zip(ADDED_TOKENS, ids, strict=True)), "add them with tokenizer.add_tokens first"
            raise ValueError(f"the tokenizer gives {given} for GLaMM's tokens; each needs an id of its own: {hint}")
        lacking = [name for name in ("eos_token", "pad_token") if getattr(tokenizer, f"{name}_id", None) is None]
        if lacking:
            ends = "answers do not end and rows are not padded: copy tokenizer_config.json again, or set them"
            raise ValueError(f"the tokenizer has no {' and no '.join(lacking)}; without, {ends}")
        config.tokens = TokenIds(*ids)
        self.chat_template = chat_template(config.prompt)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "GlammProcessor":
        """The processor of a bundled name, a folder or a hub id, in our format or official; no weights are needed.

        Takes `subfolder`, `revision` ... as transformers does, and the `vision_tower` of official checkpoints. Raises
        FileNotFoundError or ValueError that names what is missing or damaged.
        """
        return registry.find("checkpoint", "processor")(folder, **kwargs)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the tokenizer and the configuration; `push_to_hub` and its arguments as in transformers.

        Beside a model that lies in the folder already, its own configuration keeps what describes the weights.
        """
        folder, config = paths.place_to_save(save_directory, "a processor"), self.config
        if paths.holds_our_model(folder):
            stored, config = GlammConfig.from_pretrained(folder), deepcopy(config)
            config.text, config.dtype, config.architectures = stored.text, stored.dtype, stored.architectures
        self.tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def __repr__(self) -> str:
        c = self.config
        return f"GlammProcessor({c.mode} mode, {len(self.tokenizer)} tokens, pictures of {c.grounding.image_size} px)"

    def apply_chat_template(self, conversation: list, *args: Any, **kwargs: Any) -> Any:
        """As transformers', for messages that `prompts.chat_template` knows; ValueError for anything else."""
        try:
            return super().apply_chat_template(conversation, *args, **kwargs)
        except (ValueError, OSError):
            raise
        except Exception as error:  # of Jinja, or of whatever it meets
            expected = "messages of user and assistant in turn, each a table of role and content"
            raise ValueError(f"the chat is {repr(conversation)[:60]} ({error}); expected {expected}") from error

    def images(self, pictures: Sequence) -> BatchFeature:
        """Pictures (paths, PIL images or uint8 arrays) to `global_images`, `grounding_images`, `resized`, `original`.

        resized and original are lists of (height, width).
        """
        if isinstance(pictures, str | bytes) or not hasattr(pictures, "__len__") or getattr(pictures, "ndim", 4) != 4:
            raise ValueError(f"a {type(pictures).__name__} was given; expected a list of pictures: put one in [ ]")
        if len(pictures) == 0:
            raise ValueError("no picture was given; expected at least one path, PIL image or uint8 array")
        arrays = [load_image(p) for p in pictures]
        grounding, resized = zip(*(self._grounding_image(a) for a in arrays), strict=True)
        sizes = {"resized": list(resized), "original": [a.shape[:2] for a in arrays]}
        whole = torch.stack([self._global_image(a) for a in arrays])
        return BatchFeature({"global_images": whole, "grounding_images": torch.stack(grounding), **sizes})

    def _global_image(self, array: np.ndarray) -> torch.Tensor:
        side, official = self.config.vision.image_size, self.config.mode == "official"
        fitted = _center_crop(array, side) if official else _fit(array, side, Image.Resampling.BICUBIC)
        return _square(fitted, side, CLIP_MEAN, CLIP_STD)

    def _grounding_image(self, array: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        c = self.config.grounding
        fitted = _fit(array, c.image_size, Image.Resampling.BILINEAR)
        scale = 1 if self.config.mode == "official" else 255  # the same numbers, but for the official last bit
        mean, std = np.array(c.pixel_mean) / scale, np.array(c.pixel_std) / scale
        return _square(fitted, c.image_size, mean, std, scale), fitted.shape[:2]

    def normalize_boxes(self, boxes: Sequence | np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Boxes (N, 4) in pixels of a picture of `size` (height, width) to fractions, as the region encoder wants."""
        check_size(size)
        y, x = size if self.config.mode == "official" else (max(size), max(size))
        boxes = torch.as_tensor(np.asarray(boxes, np.float32).reshape(-1, 4))
        return boxes / torch.tensor([x, y, x, y], dtype=torch.float32)

    @property
    def room(self) -> int:
        """Most ids that a row with one image may have, the image counting as one id (official 1536 - 575 = 961)."""
        return self.config.prompt.max_length - self.config.image_tokens + 1

    def encode(self, turns: Turns, has_image: bool = True, truncate: bool = False) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation; see `prompts.render`. `<image>` becomes one id of -200.

        truncate: cut the row to `room` ids, as the released code does in training, but not when it answers.
        """
        ids, labels, _ = self._encode(render(self.config.prompt, turns, has_image))
        return (ids[: self.room], labels[: self.room]) if truncate else (ids, labels)

    def encode_latest(self, turns: Turns) -> tuple[list[int], int]:
        """Ids of the latest turns of a conversation about an image that fit into the longest row, for `prompts`.

        Returns the ids, those of `encode(turns[n:])`, and n, how many turns at the beginning were left out; ValueError
        where not even the last fits. Turns are tokenized once, the first that fits twice, however many there are.
        """
        ids, tails, length, first = [], [], 0, len(turns)
        while first and length <= self.room:
            first -= 1
            # A turn begins behind the end token of the one before, where every tokenizer begins anew.
            tails.insert(0, self._encode(render(self.config.prompt, turns[first : first + 1], False, False))[0])
            length += len(tails[0])
        for left_out in range(first, len(turns)):
            head = self.encode(turns[left_out : left_out + 1])[0]
            ids = head + [i for tail in tails[left_out - first + 1 :] for i in tail]
            if len(ids) <= self.room:
                return ids, left_out
        most = f"the model reads at most {self.room} (prompt.max_length, less the picture's tokens)"
        raise ValueError(f"the question takes {len(ids)} tokens, {most}; ask a shorter one")

    def encode_packed(self, conversations: list[list[tuple[str, str]]]) -> tuple[list[int], list[int], list[int]]:
        """Ids, labels and segments of several conversations about one image, their common beginning stored once.

        Those that do not fit into the longest row any more are left out: the highest segment tells how many fit.
        """
        ids, labels, segments = [], [], []
        for k, turns in enumerate(conversations, 1):
            if is_conversation(turns) and turns and turns[-1][1] is None:
                raise ValueError(f"conversation {k - 1} has no last answer; packed rows are for learning alone")
            own, own_labels, shared = self._encode(render(self.config.prompt, turns, True))
            if k == 1:
                ids, labels, segments = own[:shared], own_labels[:shared], [0] * shared
            if len(ids) + len(own) - shared > self.room and k > 1:
                break
            ids, labels = ids + own[shared:], labels + own_labels[shared:]
            segments += [k] * (len(own) - shared)
        return ids, labels, segments

    def _encode(self, prompt: Prompt) -> tuple[list[int], list[int], int]:
        """Ids, labels, and how many ids the shared beginning has.

        Labels follow character offsets. The blank before an answer is learned too, by a tokenizer that has a piece for
        it or lets the next piece swallow it, as Llama's does.
        """
        try:
            prompt.text.encode()  # tokenizers cannot take half of a letter, as it comes from broken file names or JSON
        except UnicodeEncodeError as error:
            half = prompt.text[error.start]
            raise ValueError(f"the text holds {half!r}, half of a letter written in two; take it out") from error
        ids, labels, shared, at = [], [], 0, 0
        for k, chunk in enumerate(prompt.text.split(IMAGE)):
            if k:
                ids.append(IMAGE_TOKEN_INDEX)
                labels.append(IGNORE_INDEX)
                at += len(IMAGE)
            encoded = self.tokenizer(chunk, add_special_tokens=k == 0 and prompt.begins, return_offsets_mapping=True)
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
                learned = end > start and any(a - 1 <= at + start and at + end <= b for a, b in prompt.supervised)
                ids.append(token)
                labels.append(token if learned else IGNORE_INDEX)
                shared = len(ids) if at + end <= prompt.shared else shared
            at += len(chunk)
        return ids, labels, shared

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """Ids of an answer to text, tags kept, begin, end and padding dropped."""
        t = self.tokenizer
        drop = {t.bos_token_id, t.eos_token_id, t.pad_token_id}
        try:
            kept = [i for i in map(index, ids) if i not in drop and i >= 0]
        except TypeError as error:
            raise ValueError(f"{repr(ids)[:60]} cannot be read as ids ({error}); expected whole numbers") from error
        if max(kept, default=0) >= (words := max(len(t), self.config.text.vocab_size)):
            raise ValueError(f"ids hold {max(kept)}; expected ids of {words} words")
        if strips_blanks(t):
            return official_decode(t, kept)
        return t.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def batch_decode(self, rows: Iterable[Iterable[int]] | torch.Tensor) -> list[str]:
        """`decode` of every row."""
        return [self.decode(ids) for ids in (rows if isinstance(rows, Iterable) else [rows])]

    def prompts(self, rows: Sequence[Turns | list[int]], has_image: bool = True) -> BatchFeature:
        """Open conversations to `input_ids` and `attention_mask`, padded on the left, for `generate`.

        A row is a conversation, or the ids that `encode` or `encode_latest` made of it.
        """
        listed = rows if isinstance(rows, list | tuple) else []
        if not listed or any(is_conversation(row) and row and row[-1][1] is not None for row in listed):
            raise ValueError(f"rows is {repr(rows)[:60]}; expected a list of open conversations, or of their ids")
        ids = [isinstance(row, list | tuple) and row and all(isinstance(i, Integral) for i in row) for row in rows]
        rows = [row if own else self.encode(row, has_image)[0] for row, own in zip(rows, ids, strict=True)]
        return BatchFeature(pad_rows(rows, None, None, self.tokenizer.pad_token_id, "left"))

    def __call__(
        self,
        images: Any = None,
        conversations: Sequence[Turns] | None = None,
        boxes: Sequence | None = None,
        masks: Sequence | None = None,
        truncate: bool = False,
        *,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
    ) -> BatchFeature:
        """A batch of rows for the model's forward (conversations) or its generate (text), as tensors.

        Args:
            images: R pictures, each about its own row, or None; with text, one for each `<image>` in it, in order.
            conversations: R lists of (question, answer), to learn from; padded on the right, with labels.
            text: R whole prompts, as `apply_chat_template` writes them; padded on the left. Tokens in it are tokens:
                clean what users typed with `prompts.plain_words` before.
            boxes: per row (N, 4) pixels of the picture or None. masks: (M, H, W) bool or None; not with text.
            truncate: see `encode`. videos, audio: not taken. padding: rows are always padded to the longest.

        Raises ValueError where numbers of rows, images, boxes or masks differ.
        """
        if videos is not None or audio is not None:
            raise ValueError("videos or audio were given, but GLaMM sees images alone")
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' can be made")
        if not isinstance(truncate, bool | np.bool_) or padding not in (True, "longest"):
            raise ValueError(f"truncate is {truncate!r}, padding {padding!r}; expected True or False, and True")
        if not (boxes is None or hasattr(boxes, "__len__")):
            raise ValueError(f"boxes is {boxes!r}; expected one entry a row")
        if text is not None:
            if conversations is not None or masks is not None:
                raise ValueError("text is for generation; to learn from conversations or masks, leave it out")
            return self._prompts_of_text(text, images, boxes)
        many = isinstance(conversations, list | tuple) and len(conversations)
        if not many or not all(map(is_conversation, conversations)):
            given = repr(conversations)[:80]
            raise ValueError(f"conversations is {given}; expected a list of lists of (question, answer)")
        for name, given in (("images", images), ("boxes", boxes), ("masks", masks)):
            if given is not None and images is None:
                raise ValueError(f"{name} were given without images; give the images that they lie in")
            if given is not None and (count := len(given) if hasattr(given, "__len__") else 1) != len(conversations):
                entries = f"{count} entries for {len(conversations)} conversations"
                raise ValueError(f"{name} has {entries}; give one a row, or None")
        rows = [self.encode(turns, images is not None, truncate) for turns in conversations]
        batch = BatchFeature(pad_rows([r[0] for r in rows], [r[1] for r in rows], None, self.tokenizer.pad_token_id))
        if images is not None:
            batch.update(self.images(images))
        if boxes is not None:
            batch["boxes"] = self._box_rows(boxes, batch["original"])
        if masks is not None:
            batch["masks"] = [mask_row(r, *row) for r, row in enumerate(zip(masks, batch["original"], strict=True))]
        return batch

    def _prompts_of_text(self, text: str | Sequence[str], images: Any, boxes: Sequence | None) -> BatchFeature:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text is {repr(text)[:80]}; expected whole prompts: a text, or a list of them")
        nested = images if isinstance(images, list | tuple) else [] if images is None else [images]
        pictures = [p for row in nested for p in (row if isinstance(row, list | tuple) else [row])]
        counts = [t.count(IMAGE) for t in texts]
        if sum(counts) != len(pictures) or any(n > 1 for n in counts):
            found = f"{len(pictures)} images for rows of text with {counts} {IMAGE}"
            raise ValueError(f"{found}; give one image for each, and at most one a row")
        batch = self.prompts([self._encode(Prompt(t, []))[0] for t in texts])
        which = [sum(counts[:r]) if n else -1 for r, n in enumerate(counts)]
        if pictures:
            batch.update(self.images(pictures))
            batch["image_index"] = torch.tensor(which)
        if boxes is not None:
            if len(boxes) != len(texts) or any(b is not None and i < 0 for b, i in zip(boxes, which, strict=True)):
                raise ValueError(f"there are boxes for {len(boxes)} of {len(texts)} rows, or for rows without image")
            batch["boxes"] = self._box_rows(boxes, [batch["original"][i] if i >= 0 else None for i in which])
        return batch

    def _box_rows(self, boxes: Sequence, sizes: Sequence) -> list[torch.Tensor | None]:
        rows = []
        for r, (given, size) in enumerate(zip(boxes, sizes, strict=True)):
            try:
                checked = checked_boxes(given, size)
            except ValueError as error:
                raise ValueError(f"row {r}: {error}") from error
            rows.append(None if given is None else self.normalize_boxes([] if checked is None else checked, size))
        return rows

    def post_process_masks(self, low_res: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits (M, m, m) of one picture of `size` (height, width) to masks and logits (M, H, W)."""
        check_size(size)
        if not (isinstance(low_res, torch.Tensor) and low_res.ndim == 3 and bool(low_res.isfinite().all())):
            raise ValueError("low_res are no finite logits; expected a tensor (M, m, m), as the model makes them")
        side = self.config.grounding.image_size
        logits = upscale_logits(low_res, side, fitted_size(size, side), size)
        return logits > 0, logits


# transformers' AutoProcessor knows GLaMM as soon as this class is imported.
AutoProcessor.register(GlammConfig, GlammProcessor)


def pad_rows(ids: list, labels: list | None, segments: list | None, pad_id: int, side: str = "right") -> dict:
    """Rows of different lengths to tensors (R, L), filled up at one side, and a mask of what was not filled."""
    seen = [torch.ones(len(row), dtype=torch.bool) for row in ids]
    out = {"attention_mask": pad_sequence(seen, True, False, side)}
    columns = dict(input_ids=(ids, pad_id), labels=(labels, IGNORE_INDEX), segment_ids=(segments, 0))
    for name, (rows, fill) in columns.items():
        if rows is not None:
            out[name] = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, fill, side)
    return out


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer is `side`, rounded half up, at least 1 (official rounding)."""
    scale = side / max(size)
    return tuple(max(1, int(n * scale + 0.5)) for n in size)


def _fit(array: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    h, w = fitted_size(array.shape[:2], side)
    return array if (h, w) == array.shape[:2] else np.asarray(Image.fromarray(array).resize((w, h), resample))


def _center_crop(array: np.ndarray, side: int) -> np.ndarray:
    """CLIP's own: shorter side to `side`, then the middle."""
    short = min(array.shape[:2])
    # Resized whole, a strip of 1 x 4000 pixels would take gigabytes; the ends are cut off below in any case.
    top, left = (max(0, side - 64 * short) // 2 for side in array.shape[:2])
    array = array[top : top + 64 * short, left : left + 64 * short]
    h, w = array.shape[:2]
    new_h, new_w = (side, int(side * w / short)) if h <= w else (int(side * h / short), side)
    resized = np.asarray(Image.fromarray(array).resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = (new_h - side) // 2, (new_w - side) // 2
    return resized[top : top + side, left : left + side]


def _square(array: np.ndarray, side: int, mean: Sequence, std: Sequence, scale: int = 255) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, side, side) float32: normalized, zeros (the mean color) below and to the right.

    mean and std are those of pixels over `scale`.
    """
    x = (array.astype(np.float32) / scale - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    x = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))
    return F.pad(x, (0, side - x.shape[2], 0, side - x.shape[1]))
