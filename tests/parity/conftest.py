"""The reference case under test: `pytest tests/parity --case FOLDER`, or GLAMM_MINI_CASE; default: the small case."""

import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from rich.console import Console

from glamm_mini import paths
from glamm_mini.checks.parity.case import PARTS, ReferenceCase
from glamm_mini.checks.parity.case_outputs import Outputs
from glamm_mini.checks.parity.compare import Comparison
from glamm_mini.checks.parity.inputs import PICTURES, WORDS
from glamm_mini.checks.parity.table import full_table, summary_table, verdict

ROWS = "parity rows"


def pytest_addoption(parser):
    parser.addoption("--case", default=None, metavar="FOLDER", help="folder of a reference case (default: small)")
    parser.addoption("--full", action="store_true", help="list every quantity of the comparison, as -v does")


def _folder(config) -> Path:
    given = config.getoption("--case", default=None) or os.environ.get("GLAMM_MINI_CASE")
    return Path(given) if given else paths.parity_folder() / "case_small"


@lru_cache(maxsize=2)
def _case(folder: Path) -> ReferenceCase:
    return ReferenceCase(folder)


def pytest_generate_tests(metafunc):
    """`stage`: every stage that the case has numbers for. `<part>_error`: every tag that is an official failure."""
    case = _case(_folder(metafunc.config))
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize("stage", Outputs(case, None).stages())
    for part in PARTS:
        if f"{part}_error" in metafunc.fixturenames:
            metafunc.parametrize(f"{part}_error", list(case.errors(part)))


def pytest_terminal_summary(terminalreporter, config):
    """The table of all compared quantities; a test process hands its rows over as properties of its reports."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    found = [row for report in reports for name, rows in report.user_properties if name == ROWS for row in rows]
    rows = [Comparison(**{k: float("inf") if v is None else v for k, v in row.items() if k != "ok"}) for row in found]
    if rows:
        rows.sort(key=lambda row: (PICTURES, WORDS, *PARTS).index(row.part))  # two processes mix the stages
        full = config.getoption("--full", default=False) or config.getoption("verbose") > 0
        terminalreporter.section(f"parity with {_folder(config).name}")
        console = Console(width=100, color_system=None)
        with console.capture() as table:
            console.print((full_table if full else summary_table)(rows))
            console.print(verdict(rows))
        terminalreporter.write(table.get())


@pytest.fixture
def keep(record_property):
    """A function that takes rows, puts them into the summary and hands back those that differ, as text."""

    def differing(rows):
        rows = list(rows)
        record_property(ROWS, [row.to_dict() for row in rows])
        return "\n".join(
            f"{row.part} {row.name}: largest difference {row.difference:.3g}, tolerance {row.tolerance:g} {row.note}"
            for row in rows
            if not row.ok
        )

    return differing


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def case(pytestconfig):
    return _case(_folder(pytestconfig))


@pytest.fixture(scope="session")
def model(case):
    return case.model()


@pytest.fixture(scope="session")
def computed(case, model):
    """Our numbers, made when asked for."""
    return Outputs(case, model)
