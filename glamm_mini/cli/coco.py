"""A folder of pictures to one COCO file: images with captions, and a mask, a box and a category for each phrase."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from glamm_mini.cli.loading import progress
from glamm_mini.processing.images import encode_mask, load_image

ARTICLES = ("a", "an", "the")
NAMELESS = "unnamed"
"""The category of a mask that has no phrase."""


def answer_pictures(assistant, pictures: Sequence[Path], ask: str | None, file: Path, settings: dict, batch: int):
    """Ask about pictures and write `file`; what a stopped run has answered lies in FILE.part and is not asked again.

    Raises ValueError if FILE.part was made with other settings. A picture that cannot be read is named and left out.
    """
    part = part_of(file)
    done = _read_part(part, settings)
    names = _file_names(pictures)
    todo = [path for path in pictures if done.get(names[path], {}).get("stamp") != _stamp(path)]
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a", encoding="utf-8") as log, progress("asking", len(pictures)) as advance:
        if not done and part.stat().st_size == 0:
            log.write(json.dumps({"settings": settings}) + "\n")
        advance(len(pictures) - len(todo))
        for start in range(0, len(todo), batch):
            for record in _answered(assistant, todo[start : start + batch], names, ask):
                log.write(json.dumps(record) + "\n")
                log.flush()
                done[record["file_name"]] = record
            advance(len(todo[start : start + batch]))
    content = coco([done[names[path]] for path in pictures if names[path] in done], settings)
    fresh = file.with_name(f".{file.name}.writing")
    fresh.write_text(json.dumps(content) + "\n", "utf-8")
    os.replace(fresh, file)
    part.unlink()
    return content


def part_of(file: Path) -> Path:
    """Where the answers lie until all are there."""
    return file.with_name(f"{file.name}.part")


def check_target(file: Path) -> None:
    """Raises ValueError for a file that is there already."""
    if os.path.lexists(file):
        raise ValueError(f"{file} is there already; name another file with --coco, or move it away")


def coco(records: Sequence[dict], info: dict) -> dict:
    """Records of pictures as one COCO dictionary, as pycocotools.coco.COCO reads it.

    Numbers begin with 1. Categories are the phrases in small letters without their article. Each annotation also
    holds its `score` and its `phrase`, each image its `caption` and what there is to note.
    """
    categories = sorted({_category(phrase) for record in records for phrase in record["phrases"]})
    numbers = {name: k for k, name in enumerate(categories, start=1)}
    images, annotations = [], []
    for record in records:
        own = {name: record[name] for name in ("file_name", "width", "height", "caption", "notes")}
        images.append({"id": len(images) + 1, **own})
        columns = (record[name] for name in ("phrases", "masks", "boxes", "areas", "scores"))
        for phrase, mask, box, area, score in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": numbers[_category(phrase)],
                    "segmentation": mask,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "score": score,
                    "phrase": phrase,
                }
            )
    named = [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()]
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": named}


def _category(phrase: str) -> str:
    words = phrase.casefold().split()
    words = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    return " ".join(words).strip(" .,;:!?") or NAMELESS


def _answered(assistant, paths: Sequence[Path], names: dict[Path, str], ask: str | None) -> Iterator[dict]:
    readable, pictures = [], []
    for path in paths:
        try:
            pictures.append(load_image(path))
            readable.append(path)
        except (ValueError, OSError) as error:
            Console(stderr=True).print(Text(f"left out: {error}"), soft_wrap=True)
    if not pictures:
        return
    answers = assistant.ask(pictures, ask) if ask else assistant.describe(pictures)
    for path, answer in zip(readable, answers, strict=True):
        h, w = answer.image.shape[:2]
        phrases = [phrase for phrase in answer.phrases if phrase.box is not None]  # COCO has no empty masks
        yield {
            "file_name": names[path],
            "stamp": _stamp(path),
            "width": w,
            "height": h,
            "caption": answer.caption,
            "notes": answer.notes,
            "phrases": [phrase.text for phrase in phrases],
            "masks": [encode_mask(phrase.mask) for phrase in phrases],
            "boxes": [[p.box[0], p.box[1], p.box[2] - p.box[0], p.box[3] - p.box[1]] for p in phrases],
            "areas": [int(phrase.mask.sum()) for phrase in phrases],
            "scores": [round(phrase.score, 4) for phrase in phrases],
        }


def _file_names(pictures: Sequence[Path]) -> dict[Path, str]:
    """The name of each picture alone; its path where two have the same name."""
    alone = [path.name for path in pictures]
    return {path: path.name if alone.count(path.name) == 1 else path.as_posix() for path in pictures}


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read_part(part: Path, settings: dict) -> dict[str, dict]:
    """What a stopped run has written, by file name; a last line that a kill has cut is taken away."""
    if not part.is_file():
        return {}
    lines, whole = part.read_bytes().splitlines(keepends=True), []
    for line in lines:
        try:
            whole.append(json.loads(line if line.endswith(b"\n") else b"cut"))
        except ValueError:
            break
    if not lines:
        return {}
    if not whole or whole[0] != {"settings": json.loads(json.dumps(settings))}:
        raise ValueError(
            f"{part} holds answers that were made with other settings; give the same, delete it to start anew, or name "
            "another file with --coco"
        )
    part.write_bytes(b"".join(lines[: len(whole)]))
    return {record["file_name"]: record for record in whole[1:]}
