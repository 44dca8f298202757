"""`glamm-mini demo`: ask about pictures and draw the answers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from glamm_mini.cli.loading import Device, Drop, Dtype, Loading, Model, OffloadFolder, Quantize, VisionTower

CARD = 1000
"""Width in pixels of each answer's picture."""


def demo(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Pictures to ask about; the bundled ones if left out.")
    ] = None,
    ask: Annotated[str | None, typer.Option(help="A question; without one, the picture is described.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0 Y0 X1 Y1", help="A box in pixels that the question is about; may be repeated."),
    ] = None,
    model: Model = "tiny",
    out: Annotated[Path, typer.Option(help="Folder for the answers.")] = Path("outputs/demo"),
    device: Device = None,
    dtype: Dtype = "float32",
    quantize: Quantize = None,
    vision_tower: VisionTower = None,
    offload_folder: OffloadFolder = None,
    drop: Drop = None,
) -> None:
    """Ask about pictures; draw the answers.

    Writes NAME.png (picture and sentence), NAME.html and NAME.json (the prediction record with its masks) for each
    picture, and one overview.png of several. The last line printed is the path of the picture to look at.
    """
    paths = pictures_to_ask(images)
    boxes = check_boxes(box)
    if boxes and not ask:
        raise ValueError("--box needs a question: add --ask 'What is this?'")
    _check_readable(paths)
    console = Console(highlight=False)
    with Console(stderr=True).status(f"loading the model {model!r}"):
        assistant = Loading(model, device, dtype, quantize, vision_tower, offload_folder, drop).load()
    out.mkdir(parents=True, exist_ok=True)
    cards = []
    for number, (name, path) in enumerate(zip(names_of(paths), paths, strict=True), start=1):
        with Console(stderr=True).status(f"picture {number} of {len(paths)}: {path.name}"):
            answer = assistant.ask(str(path), ask, boxes=boxes) if ask else assistant.describe(str(path))
            cards.append(write_answer(answer, out, name))
        console.print(Text(f"{path.name}  ", style="dim") + colored(answer), soft_wrap=True)
        for note in answer.notes:
            console.print(Text(f"  note: {note}", style="dim"), soft_wrap=True)
    picture = out / f"{names_of(paths)[0]}.png"
    if len(cards) > 1:
        from glamm_mini.visuals.answer_png import compose

        picture = out / "overview.png"
        compose(cards).save(picture)
    sys.stdout.flush()
    print(picture)


def pictures_to_ask(images: Sequence[Path] | None) -> list[Path]:
    """The pictures that were named, or the bundled ones. FileNotFoundError names the first that does not exist."""
    if images:
        for path in images:
            if not path.is_file():
                raise FileNotFoundError(f"no picture at {path}; name an image file, or none to use the bundled ones")
        return list(images)
    from glamm_mini.paths import samples_folder

    bundled = sorted(samples_folder().glob("*.png"))
    if not bundled:
        raise FileNotFoundError(f"{samples_folder()} holds no picture; name one: glamm-mini demo IMAGE")
    return bundled


def check_boxes(boxes: Sequence[str] | None) -> list[tuple[float, ...]] | None:
    """Each "X0 Y0 X1 Y1" as four numbers; None for no box. ValueError for anything else and for swapped corners."""
    numbers = []
    for text in boxes or []:
        try:
            x0, y0, x1, y1 = (float(word) for word in text.replace(",", " ").split())
        except ValueError:
            x0 = y0 = x1 = y1 = 0.0
        if not (x0 < x1 and y0 < y1):
            raise ValueError(
                f"--box {text} is no box; expected four numbers X0 Y0 X1 Y1 in pixels with X0 < X1 and Y0 < Y1"
            )
        numbers.append((x0, y0, x1, y1))
    return numbers or None


def names_of(paths: Sequence[Path]) -> list[str]:
    """One file name without ending for each picture; pictures of the same name get a number."""
    names: list[str] = []
    taken = {"overview"}  # the name of the sheet with all answers
    for path in paths:
        name, number = path.stem, 2
        while name.casefold() in taken:  # Windows and macOS take "A" and "a" for one file
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
        taken.add(name.casefold())
    return names


def write_answer(answer, out: Path, name: str):
    """Write an answer as picture, page and record into the folder `out`; returns the picture."""
    from glamm_mini.visuals.answer_html import answer_page
    from glamm_mini.visuals.answer_png import answer_png

    card = answer_png(answer, width=CARD)
    card.save(out / f"{name}.png")
    (out / f"{name}.html").write_text(answer_page([answer], title=f"GLaMM: {name}"), encoding="utf-8")
    record = json.dumps(answer.to_dict(image_id=name), ensure_ascii=False, indent=1)
    (out / f"{name}.json").write_text(record + "\n", encoding="utf-8")
    return card


def colored(answer) -> Text:
    """The answer's sentence for a terminal, its phrases in the colors of their masks."""
    from glamm_mini.visuals.palette import color, hex_color, ink_on
    from glamm_mini.visuals.sentence import loose_phrases, sentence_runs

    line = Text()
    loose = [run for one in loose_phrases(answer) for run in (" ", one)]
    for run in [*sentence_runs(answer), *loose]:
        if run == " ":
            line.append(" ")
        elif run.phrase is None:
            line.append(run.text)
        else:
            rgb = color(run.phrase)
            line.append(run.text, style=f"{hex_color(ink_on(rgb))} on {hex_color(rgb)}")
    return line if line.plain.strip() else Text("(no words)", style="dim")


def _check_readable(paths: Sequence[Path]) -> None:
    """Fail before the model is loaded when a picture cannot be read."""
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}); the file may be damaged") from error
