"""Writes the setup cell of all notebooks, and their badges, by what pyproject.toml says: python notebooks/badges.py

While [project.urls] names no Repository, nobody could follow a badge: there is none, and the setup line says how to
install from a folder. Once it does, every notebook has badges for Colab and GitHub, and installs itself in Colab.
"""

import re
import tomllib
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
BADGES = re.compile(r"\n\n\[!\[Open in Colab\].*?(?=\n\n)", re.S)
FIND = 'import sys; sys.path.append("{up}")'
FROM_FOLDER = "  # works in a clone; elsewhere, first: pip install FOLDER_OF_THE_CLONE"
# The platform's own torch is a constraint: pip keeps it, or says that it is too old, but never replaces it.
FROM_ADDRESS = (
    "!test -d {up}/glamm_mini || (pip list --format=freeze | grep ^torch > torch.txt; "
    'pip install -q -c torch.txt "glamm-mini[train,eval] @ git+{url}")\n'
)


def repository() -> str:
    """The public address that pyproject.toml states; "" if there is none yet."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").removesuffix("/").removesuffix(".git")


def setup_source(url: str, up: str = "..") -> str:
    """The code of a setup cell; `up` leads from the notebook to the clone's root."""
    find = FIND.format(up=up)
    return FROM_ADDRESS.format(url=url, up=up) + find if url else find + FROM_FOLDER


def badges(url: str, name: str) -> str:
    """Markdown of the badges of a notebook, `name` counted from the folder of notebooks."""
    where = f"{url.removeprefix('https://github.com/')}/blob/main/notebooks/{name}"
    colab = "https://colab.research.google.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{where}) "
        f"[![View on GitHub](https://img.shields.io/badge/view_on-GitHub-0072b2?logo=github)]({url}/blob/main/notebooks/{name})"
    )


def dressed(notebook: nbformat.NotebookNode, url: str, name: str) -> nbformat.NotebookNode:
    """The notebook with setup cell and badges as `url` wants them; everything else as it was.

    Raises ValueError for a notebook without a cell that has the tag "setup".
    """
    setup = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])]
    if len(setup) != 1:
        raise ValueError(f"{name} has {len(setup)} cells with the tag 'setup'; it needs one")
    setup[0].source = setup_source(url, "/".join([".."] * (name.count("/") + 1)))
    first = notebook.cells[0]
    first.source = BADGES.sub("", first.source)
    if url:
        title, rest = first.source.split("\n\n", 1)
        first.source = f"{title}\n\n{badges(url, name)}\n\n{rest}"
    return notebook


def main() -> None:
    """Dress all notebooks."""
    url = repository()
    for path in [*sorted(FOLDER.glob("*.ipynb")), *sorted((FOLDER / "solutions").glob("*.ipynb"))]:
        notebook = nbformat.read(path, as_version=4)
        nbformat.write(dressed(notebook, url, path.relative_to(FOLDER).as_posix()), path)
    print(f"badges for {url}" if url else "no [project.urls] Repository in pyproject.toml: no badges")


if __name__ == "__main__":
    main()
