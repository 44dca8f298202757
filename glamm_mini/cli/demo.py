"""`glamm-mini demo`: ask about pictures and draw the answers."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from glamm_mini.cli.loading import Loading, with_options, working
from glamm_mini.cli.outputs import Outputs

CARD = 1000
"""Width in pixels of each answer's picture."""

OVERVIEW = "overview.png"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Files of a folder that are taken for pictures."""


@with_options
def demo(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, or folders of them, to ask about; the bundled ones if left out."),
    ] = None,
    ask: Annotated[str | None, typer.Option(help="A question; without one, the picture is described.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0 Y0 X1 Y1", help="A box in pixels that the question is about; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the answers.")] = Path("outputs/demo"),
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one COCO JSON file, in place of pictures and pages.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="With --coco, how many pictures to ask about at once.")] = 8,
    loading: Loading = Loading(),  # noqa: B008  frozen, and never seen: its fields are the options
) -> None:
    """Ask about pictures; draw the answers, or write them as one COCO file.

    Writes NAME.png (picture and sentence), NAME.html and NAME.json (the prediction record with its masks) for each
    picture, and one overview.png of several; what lies in the folder and is not of an earlier demo is never replaced.
    The last line printed is the path of the file to look at. With --coco, a stopped run goes on where it was.
    """
    if ask is not None and not ask.strip():
        raise ValueError("the question of --ask is empty; leave --ask out to have the pictures described")
    paths = pictures_to_ask(images)
    boxes = check_boxes(box)
    if boxes and (not ask or coco):
        raise ValueError("--box needs a question, add --ask 'What is this?', and pictures that are drawn, not --coco")
    if coco is not None:
        print(_to_coco(paths, ask, coco, batch_size, loading))
        return
    _check_readable(paths)
    names, outputs = names_of(paths), Outputs(out)
    outputs.check([f"{name}.{ending}" for name in names for ending in ("png", "html", "json")])
    outputs.check([OVERVIEW] if len(names) > 1 else [])
    with working(f"loading the model {loading.model!r}"):
        assistant = loading.load()
    console, cards = Console(highlight=False), []
    for number, (name, path) in enumerate(zip(names, paths, strict=True), start=1):
        with working(f"picture {number} of {len(paths)}: {path.name}"):
            answer = assistant.ask(str(path), ask, boxes=boxes) if ask else assistant.describe(str(path))
            cards.append(write_answer(answer, outputs, name))
        console.print(Text(f"{path.name}  ", style="dim") + colored(answer), soft_wrap=True)
        for note in answer.notes:
            console.print(Text(f"  note: {note}", style="dim"), soft_wrap=True)
    picture = out / f"{names[0]}.png"
    if len(cards) > 1:
        from glamm_mini.visuals.answer_png import compose

        picture = outputs.write(OVERVIEW, _png(compose(cards)))
    print(picture, flush=True)


def _to_coco(paths: Sequence[Path], ask: str | None, file: Path, batch_size: int, loading: Loading) -> Path:
    from glamm_mini.cli.coco import answer_pictures, check_target
    from glamm_mini.evaluation.predict import fingerprint

    check_target(file)
    with working(f"loading the model {loading.model!r}"):
        assistant = loading.load()
    settings = {"description": "made by glamm-mini demo --coco", "ask": ask, **loading.settings()}
    settings["weights"] = fingerprint(assistant)
    made = answer_pictures(assistant, paths, ask, file, settings, batch_size)
    print(f"{len(made['images'])} pictures, {len(made['annotations'])} masks, {len(made['categories'])} categories")
    if len(made["images"]) < len(paths):
        print(f"{len(paths) - len(made['images'])} pictures could not be read and are left out")
    return file


def pictures_to_ask(images: Sequence[Path] | None) -> list[Path]:
    """The pictures that were named, those of named folders by name, or the bundled ones.

    FileNotFoundError names the first that does not exist, and a folder without pictures.
    """
    if not images:
        from glamm_mini.paths import samples_folder

        images = [samples_folder()]
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            own = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
            if not own:
                raise FileNotFoundError(f"the folder {path} holds no picture; expected files such as *.png or *.jpg")
            found += own
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no picture at {path}; name an image file, or none to use the bundled ones")
    return list(dict.fromkeys(found))


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


def write_answer(answer, outputs: Outputs, name: str):
    """Write an answer as picture, page and record; returns the picture."""
    from glamm_mini.visuals.answer_html import answer_page
    from glamm_mini.visuals.answer_png import answer_png

    card = answer_png(answer, width=CARD)
    outputs.write(f"{name}.png", _png(card))
    outputs.write(f"{name}.html", answer_page([answer], title=f"GLaMM: {name}").encode("utf-8", "replace"))
    record = json.dumps(answer.to_dict(image_id=name), ensure_ascii=False, indent=1)
    outputs.write(f"{name}.json", (record + "\n").encode("utf-8", "backslashreplace"))
    return card


def _png(picture) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


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
    from glamm_mini.processing.images import load_image

    for path in paths:
        load_image(path)
