"""The assistant: ask a trained GLaMM about an image, get words and the masks that belong to them."""

import os
from collections.abc import Callable, Collection
from inspect import signature
from itertools import cycle
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from transformers import LogitsProcessorList

from glamm_mini import paths
from glamm_mini.assistant.answer import GroundedAnswer, GroundedPhrase, box_around, source_of
from glamm_mini.assistant.chat import Chat
from glamm_mini.assistant.familiar import Familiar
from glamm_mini.assistant.generation import BROKEN, MAX_NEW_TOKENS, AnswerStream, Generation, Options, TokenChooser
from glamm_mini.assistant.memory import FeatureMemory, evaluating, weights_state
from glamm_mini.assistant.requests import WORDINGS, Request, Wording, checked_turns, prepare, requests_for, words_of
from glamm_mini.checkpoints.load import HUB, load_model
from glamm_mini.dtypes import TYPES
from glamm_mini.model.glamm import GlammForConditionalGeneration, ImageFeatures
from glamm_mini.processing.boxes import box_array
from glamm_mini.processing.images import load_image
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.tags import parse_grounded

__all__ = ["Assistant", "Chat", "GroundedAnswer", "GroundedPhrase", "Request", "load"]

Answers = GroundedAnswer | list[GroundedAnswer]

HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
"""Other names that people have for number types."""

OTHER_NAMES = {
    "torch_dtype": "dtype",
    "device_map": "device",
    "load_in_4bit": "quantize='4bit'",
    "load_in_8bit": "quantize='8bit'",
    "quantization_config": "quantize",
}
"""Keywords of transformers for which `load` has its own."""


class Assistant:
    """A model with its processor, ready to be asked. Made by `glamm_mini.load`.

    Every image is a path, a PIL image, or an array (H, W, 3) uint8 RGB; a list of them, or an array (N, H, W, 3), is
    answered as one batch and gives a list of answers. Every box is (x0, y0, x1, y1) in pixels of the upright picture,
    or in fractions 0..1 of its sides with normalised=True. Every call takes the options of `generation.Options` by
    keyword and returns a GroundedAnswer; FileNotFoundError and ValueError name what is wrong with an image, a text, a
    box or an option.

    Threads may share an assistant, and assistants a model. Answers are given in evaluation mode; a model that was in
    training mode is so again afterwards. To train a model while another thread asks it, give the assistant a copy.

    max_new_tokens: the length at which answers are cut where a call names none; 256, or 512 in official mode.
    familiar: what pictures of the model's training look like; others get a note.
    """

    def __init__(
        self, model: GlammForConditionalGeneration, processor: GlammProcessor, familiar: Familiar | None = None
    ):
        self.model = model
        self.processor = processor
        self.max_new_tokens: int | None = None
        self._memory = FeatureMemory()
        # A model that has learned since then may know other pictures: the note is for these weights alone.
        self._familiar = None if familiar is None else (familiar, weights_state(model))

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    @property
    def wording(self) -> Wording:
        """The questions of `describe`, `segment` and the others, as this model's weights have met them."""
        return WORDINGS[self.config.mode]

    # --- questions --------------------------------------------------------------------------------------------------

    def ask(
        self, image, text: str, boxes=None, normalised: bool = False, history=None, **options: Unpack[Options]
    ) -> Answers:
        """Ask anything.

        text: refers to box k by its k-th `<bbox>`; without any, one per box is appended; other tags are plain words.
        boxes: (N, 4), or one box; None for none. Boxes that reach over the picture's edges are cut there.
        history: earlier turns, oldest first: (question, answer text), or (question, answer text, boxes in pixels).
        With a list of pictures: one text for all or a list of them; boxes and history as lists, one for each picture.
        """
        requests, several = requests_for(image, text, boxes, normalised, history)
        answers = self.answer_batch(requests, **options)
        return answers if several else answers[0]

    def describe(self, image, **options: Unpack[Options]) -> Answers:
        """A grounded description of the whole picture: a mask for each phrase."""
        return _want_masks(self.ask(image, self.wording.describe, **options))

    def segment(self, image, expression: str, **options: Unpack[Options]) -> Answers:
        """The mask of what an expression means, such as "the red balloon" or "both boats"."""
        words = _for_each(expression, lambda one: words_of(one, "the expression", ends=".?!"))
        questions = _for_each(words, lambda one: self.wording.segment.format(x=one))
        return _want_masks(self.ask(image, questions, **options))

    def describe_region(self, image, box, normalised: bool = False, **options: Unpack[Options]) -> Answers:
        """What one box holds, in words. With a list of pictures: a list of boxes, one for each."""
        requests, several = requests_for(image, self.wording.describe_region, box, normalised)
        for request in requests:
            boxes = box_array(request.boxes)
            if boxes is None or len(boxes) != 1:
                raise ValueError(
                    f"describe_region takes one box (x0, y0, x1, y1), but {0 if boxes is None else len(boxes)} were "
                    "given; ask about several with ask(image, 'Is <bbox> left of <bbox>?', boxes)"
                )
        answers = self.answer_batch(requests, **options)
        return answers if several else answers[0]

    def caption(self, image, **options: Unpack[Options]) -> Answers:
        """A short caption in words alone."""
        return self.ask(image, self.wording.caption, **options)

    def ground(self, image, sentence: str, **options: Unpack[Options]) -> Answers:
        """A given sentence with a mask for each of its phrases. A note tells where the model changed the sentence."""
        words = _for_each(sentence, lambda one: words_of(one, "the sentence"))
        words = _for_each(words, lambda one: one + "." if one[-1].isalnum() else one)
        questions = _for_each(words, lambda one: self.wording.ground.format(x=one))
        answers = _want_masks(self.ask(image, questions, **options))
        for answer, given in zip(_listed(answers), cycle(_listed(words)), strict=False):
            if answer.caption.casefold().rstrip(".") != given.casefold().rstrip("."):
                answer.notes.append("the answer is not the sentence that was given, word by word")
        return answers

    def chat(self, image) -> Chat:
        """A conversation about one picture: `chat.say("What do you see?")`, then `chat.say("Where is it?")`."""
        return Chat(self, image)

    # --- answers ----------------------------------------------------------------------------------------------------

    def answer_batch(self, requests: list[Request], **options: Unpack[Options]) -> list[GroundedAnswer]:
        """Answer several requests at once; an image that several share (one path or one object) is read once."""
        if not isinstance(requests, list | tuple):
            raise ValueError(f"requests is a {type(requests).__name__}; expected a list of Request(image, question)")
        for k, request in enumerate(requests):
            if not isinstance(request, Request):
                raise ValueError(f"requests[{k}] is a {type(request).__name__}; expected Request(image, question)")
        length = MAX_NEW_TOKENS[self.config.mode] if self.max_new_tokens is None else self.max_new_tokens
        how = Generation.checked(options, length, len(requests))
        tokens, stream = self.processor.tokenizer, None
        if how.streamer is not None:
            stream = AnswerStream(how.streamer, {tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id} - {None})
        try:
            return self._answers(requests, how, stream) if requests else []
        finally:
            if stream is not None:
                stream.end()

    def _answers(self, requests: list[Request], how: Generation, stream: AnswerStream | None) -> list[GroundedAnswer]:
        keys = [_key(request.image) for request in requests]
        given = {key: request.image for key, request in zip(keys, requests, strict=True)}
        pictures = dict(zip(given, _one_by_one("picture", load_image, given.values()), strict=True))
        sizes = [pictures[key].shape[:2] for key in keys]
        prepared = _one_by_one("question", lambda k: prepare(requests[k], sizes[k], self.processor), range(len(keys)))
        batch = self.processor.prompts([p.ids for p in prepared])
        device, chooser = self.model.device, TokenChooser(how, len(requests))
        boxes = [
            None if p.all_boxes is None else self.processor.normalize_boxes(p.all_boxes, size).to(device)
            for p, size in zip(prepared, sizes, strict=True)
        ]
        which = [list(given).index(key) for key in keys]
        with torch.inference_mode(), evaluating(self.model):
            state = weights_state(self.model)
            features = self._features(list(pictures.values()), state)
            out = self.model.generate(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                image_index=torch.tensor(which),
                image_features=features,
                boxes=boxes,
                max_new_tokens=how.max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=self.processor.tokenizer.eos_token_id,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([chooser]),
                streamer=stream,
            )
        scores = chooser.token_scores(out.sequences).numpy() if how.details else None
        knows = self._familiar is not None and self._familiar[1] == state
        notes = self._familiar[0].notes(features.grounding) if knows else [[]] * len(given)
        answers = []
        for r, request in enumerate(requests):
            answer = self._answer(out.sequences[r].tolist(), out.low_res[r], pictures[keys[r]], how)
            answer.notes = notes[which[r]] + prepared[r].notes + answer.notes
            answer.question, answer.boxes, answer.source = request.question, prepared[r].boxes, source_of(request.image)
            if how.details:
                answer.token_scores = scores[r, : len(answer.token_ids)]
            answers.append(answer)
        return answers

    def _answer(self, ids: list[int], low_res: torch.Tensor, image: np.ndarray, how: Generation) -> GroundedAnswer:
        """From the ids of one answer and its mask logits (M, m, m) about a picture (H, W, 3)."""
        text, end = self.processor.decode(ids), self.processor.tokenizer.eos_token_id
        parsed, phrases = parse_grounded(text), []
        # A row that ended is as long as the longest of its batch: it holds the end, and padding behind it.
        if end in ids:
            ids = ids[: ids.index(end) + 1]
        elif len(ids) >= how.max_new_tokens:
            cut = f"the answer was cut after {how.max_new_tokens} tokens; a larger max_new_tokens lets it go on"
            parsed.notes.append(cut)
        # One mask at a time: at twenty megapixels, the logits of each take 80 MB.
        for span, own in zip(parsed.phrases, _finite(low_res).cpu(), strict=False):
            [mask], [logits] = self.processor.post_process_masks(own[None], image.shape[:2])
            score = float(logits[mask].sigmoid().mean()) if mask.any() else 0.0
            kept, mask = logits.float().numpy() if how.details else None, mask.numpy()
            phrases.append(GroundedPhrase(span.text, span.span, mask, box_around(mask), score, kept))
        token_ids = np.array(ids, np.int64) if how.details else None
        return GroundedAnswer(text, parsed.caption, phrases, parsed.notes, image, token_ids=token_ids)

    def encode(self, image) -> ImageFeatures:
        """What both image encoders make of one picture."""
        with torch.inference_mode(), evaluating(self.model):
            return self._features([load_image(image)], weights_state(self.model))

    def _features(self, pictures: list[np.ndarray], state: tuple) -> ImageFeatures:
        """Features of the pictures; those of the last ones are kept, so that further turns do not encode again."""
        return self._memory.features(pictures, (self.processor.config.mode, state), self._encode)

    def _encode(self, pictures: list[np.ndarray]) -> ImageFeatures:
        images = self.processor.images(pictures)
        own = {"device": self.model.device, "dtype": self.model.dtype}
        return self.model.encode_images(images["global_images"].to(**own), images["grounding_images"].to(**own))

    def teacher_force(self, image, conversation: list[tuple[str, str]]) -> list[np.ndarray]:
        """Masks (H, W) for every [SEG] of given answers, as the official referring segmentation is scored."""
        picture, turns = load_image(image), checked_turns("conversation", conversation)
        ids = torch.tensor([self.processor.encode(turns)[0]], device=self.model.device)
        with torch.inference_mode(), evaluating(self.model):
            out = self.model(ids, image_features=self.encode(picture), return_logits=False)
        masks, _ = self.processor.post_process_masks(_finite(out.low_res).cpu(), picture.shape[:2])
        return [mask.numpy() for mask in masks]


def _finite(low_res: torch.Tensor) -> torch.Tensor:
    """Mask logits (M, m, m) as they are; ValueError if one is NaN or infinite."""
    if not bool(low_res.isfinite().all()):
        raise ValueError(BROKEN.format(where="in a mask"))
    return low_res


def _key(image):
    """What tells pictures apart before they are read: a path's text, or the object itself."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def _one_by_one(what: str, do: Callable, items: Collection) -> list:
    """`do` of each item. Where there are several, an error says which one it is about."""
    done = []
    for k, item in enumerate(items):
        try:
            done.append(do(item))
        except (ValueError, FileNotFoundError) as error:
            if len(items) == 1:
                raise
            kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
            raise kind(f"{what} {k} of {len(items)}: {error}") from error
    return done


def _for_each(words, change: Callable[[str], str]):
    """`change` of each text of a list, or of the one that was given."""
    return [change(one) for one in words] if isinstance(words, (list, tuple)) else change(words)


def _listed(one) -> list:
    return one if isinstance(one, list) else [one]


def _want_masks(answers: Answers) -> Answers:
    for answer in _listed(answers):
        if not any(phrase.mask.any() for phrase in answer.phrases):
            answer.notes.append("the answer points at nothing in the picture")
    return answers


def load(
    name: str | Path = "tiny",
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    **placement,
) -> Assistant:
    """A model ready to be asked: a bundled one ("tiny"), a folder that training wrote, an official checkpoint's folder,
    or a hub id ("owner/name", such as "MBZUAI/GLaMM-GCG").

    device: "cpu", "cuda" ...; default: a GPU if there is one. "auto" uses all GPUs, then the CPU's memory, then the
    disk; with it, `max_memory` (such as {0: "10GB", "cpu": "30GB"}) and `offload_folder` say how much and where.
    dtype: "float32", "bfloat16" ...; default float32; "stored" keeps each weight's own, as official code saves them.
    quantize: "4bit" or "8bit" for the language model's weights (needs the extra `quantize`); default as they are.
    vision_tower: the folder of CLIP, which official checkpoints leave out; default: their own choice, from the hub.
    drop: beginnings of official names to leave out, such as ("model.old_head.",), where a checkpoint has too many.
    lora: folder of an adapter that is put beside the weights. revision, token, cache_dir, subfolder: of the hub.
    Raises FileNotFoundError or ValueError that names what is missing, damaged or foreign, and TypeError for a keyword
    that does not exist.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"no model was named, but {name!r}; give a bundled name such as 'tiny', a folder or a hub id")
    _check_names(placement)
    device = _checked_device(device)
    dtype = HALF.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in (None, "stored", *TYPES, *TYPES.values()):
        raise ValueError(f"dtype is {dtype!r}; expected {', '.join(TYPES)} or stored")
    model, processor = load_model(name, dtype, device=device, quantize=quantize, **placement)
    # An adapter may have learned other pictures, and a subfolder is another model.
    is_plain = placement.get("lora") is None and placement.get("subfolder") is None
    return Assistant(model.eval(), processor, _familiar(name) if is_plain else None)


def _check_names(given: dict) -> None:
    known = dict.fromkeys([*signature(load).parameters, *signature(load_model).parameters, *HUB])
    known = [name for name in known if name not in ("name", "placement", "hub")]
    for name in given:
        if name not in known:
            hint = f"; it is called {OTHER_NAMES[name]} here" if name in OTHER_NAMES else ""
            raise TypeError(f"load() has no keyword {name!r}{hint}; it takes {', '.join(known)}")


def _checked_device(device) -> str:
    """The device that was named, or the best; ValueError that names what there is for one that there is not."""
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    there = ["cpu", *(f"{kind.type}:{k}" for k in range(count))]
    if device is None:
        return "cuda" if "cuda:0" in there else "cpu"
    name = str(device)
    if name == "auto" or name in there or f"{name}:0" in there:
        return name
    missing = "; PyTorch finds no GPU" if "cuda:0" not in there else ""
    raise ValueError(f"device is {name!r}{missing}; expected one of {', '.join(there)} or auto, or leave device out")


def _familiar(name: str | Path) -> Familiar | None:
    """What a folder or a bundled model knows of the pictures of its training; a model of the hub knows nothing."""
    folder = Path(name)
    if not folder.is_dir() and str(name) == folder.name:
        folder = paths.checkpoint_folder(folder.name)
    return Familiar.read(folder)
