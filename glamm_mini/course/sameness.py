"""What a page claims of itself, checked whenever it is run: its code is the package's, its figures lie in their bands.

Code is compared as syntax trees, not letter by letter.
"""

import ast
import importlib
import inspect
import json
import linecache
import os
import re
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent

RECORD = "GLAMM_BANDS"
"""Environment variable: a file to which every checked figure is added, one JSON line each (`make bands` sets it)."""


def bare(node: ast.stmt) -> str:
    """The syntax tree of a definition as text: without docstrings, annotations and comments."""
    node = ast.parse(ast.unparse(node)).body[0]
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            _drop_docstring(part)
            part.body = [_plain(statement) for statement in part.body if not _is_declaration(statement)] or [ast.Pass()]
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            part.returns = None
        if isinstance(part, ast.arg):
            part.annotation = None
    return ast.dump(node)


def _drop_docstring(node) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:]


def _is_declaration(statement: ast.stmt) -> bool:
    """ "x: int" without a value says nothing but the annotation; in a dataclass it does say that there is a field."""
    return (
        isinstance(statement, ast.AnnAssign) and statement.value is None and not isinstance(statement.target, ast.Name)
    )


def _plain(statement: ast.stmt) -> ast.stmt:
    """An annotated assignment as one without its annotation; a field keeps its name."""
    if not isinstance(statement, ast.AnnAssign):
        return statement
    if statement.value is None:
        return ast.Expr(statement.target)
    return ast.Assign([statement.target], statement.value, lineno=0)


def definitions(source: str) -> dict[str, ast.stmt]:
    """Functions and classes at the top level of a source text, by name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: node for node in ast.parse(source).body if isinstance(node, kinds)}


def same_code(thing, module: str) -> str:
    """Assert that a function or class of a notebook is that of the package; returns where it stands there.

    Args:
        thing: what a cell has defined. module: for instance "glamm_mini.model.vision".

    Raises:
        AssertionError: the two differ, or the module holds no such definition; the message says what to compare.
    """
    name = thing.__name__
    there = importlib.import_module(module)
    path = Path(there.__file__)
    theirs = definitions(path.read_text(encoding="utf-8")).get(name)
    assert theirs is not None, f"{module} defines no {name}"
    mine = _written(thing)
    where = f"glamm_mini/{path.relative_to(PACKAGE).as_posix()}, line {theirs.lineno}"
    assert bare(mine) == bare(theirs), f"{name} differs from {where}: compare the two, one of them has changed"
    return f"same code as in {where}"


def _written(thing) -> ast.stmt:
    """The definition of a function or class, of a file or of a notebook's cell.

    `inspect` finds no class of a notebook, as those belong to no file; the text of a cell that has run is in linecache.
    """
    try:
        [node] = definitions(textwrap.dedent(inspect.getsource(thing))).values()
        return node
    except (OSError, TypeError):
        for name in reversed(list(linecache.cache)):
            text = "".join(linecache.getlines(name))
            if f"class {thing.__name__}" in text and "ipykernel" in name:
                return definitions(re.sub(r"(?m)^[%!].*", "", text))[thing.__name__]
        raise


def band(name: str, value: float, low: float, high: float) -> str:
    """Assert that a figure lies in its band, ends included; returns a line that says so.

    Raises AssertionError outside the band (also for not-a-number), naming the figure and the band.
    """
    value = float(value)
    if os.environ.get(RECORD):
        with open(os.environ[RECORD], "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value, "low": low, "high": high}) + "\n")
    assert low <= value <= high, f"{name} is {value:.3g}, outside of {low:g} to {high:g}: something is wrong here"
    return f"✓ {name}: {value:.3g}, between {low:g} and {high:g}"
