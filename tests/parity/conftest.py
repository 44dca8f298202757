"""The reference case under test: `pytest tests/parity --case FOLDER`, or GLAMM_MINI_CASE; default: the small case."""

import os
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules of this folder, under any import mode

import model_outputs  # noqa: E402
from reference_case import PARTS, ReferenceCase  # noqa: E402

from glamm_mini import paths  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--case", default=None, metavar="FOLDER", help="folder of a reference case (default: small)")


def _folder(config) -> Path:
    given = config.getoption("--case", default=None) or os.environ.get("GLAMM_MINI_CASE")
    return Path(given) if given else paths.parity_folder() / "case_small"


@lru_cache(maxsize=2)
def _case(folder: Path) -> ReferenceCase:
    return ReferenceCase(folder)


def pytest_generate_tests(metafunc):
    """`<part>_name`: every array of a file. `<part>_error`: every tag that is an official failure.
    `gradient_tag`: the training tags with stored gradient norms."""
    case = _case(_folder(metafunc.config))
    for part in PARTS:
        if f"{part}_name" in metafunc.fixturenames:
            metafunc.parametrize(f"{part}_name", case.names(part))
        if f"{part}_error" in metafunc.fixturenames:
            metafunc.parametrize(f"{part}_error", list(case.errors(part)))
    if "gradient_tag" in metafunc.fixturenames:
        tags = [tag for tag in case.tags("train") if "grad_norms" in case.meta["train"].get(tag, {})]
        metafunc.parametrize("gradient_tag", tags)


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
    """Our numbers, each part computed once, when first asked for."""
    return model_outputs.Outputs(case, model)
