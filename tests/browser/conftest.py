"""One JupyterLab for all browser tests of a process; each test opens a notebook of its own, runs and clicks it.

They share one kernel, which is emptied before each: to import torch and transformers again takes longer than a test.
"""

import json
import os
import re
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from forked import run_program
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
SETTINGS = ["--ServerApp.token=", "--ServerApp.password=", "--ServerApp.port=0", "--no-browser", "--allow-root"]
SETTINGS += ["--ServerApp.disable_check_xsrf=True"]  # the tests start the kernel, and no page
EMPTIED = """%reset -f
from ipywidgets import Widget
Widget.close_all()
"""


def pytest_collection_modifyitems(items):
    """Whatever lies in this folder needs a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Address and folder of a JupyterLab whose kernels find this package."""
    pytest.importorskip("jupyterlab", reason="JupyterLab comes with the dev extra")
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    found = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": found, "JUPYTER_CONFIG_DIR": str(home / "config")}
    words, log = [*SETTINGS, f"--ServerApp.root_dir={home / 'notebooks'}"], home / "server.log"
    log.touch()
    process = run_program(ROOT / "tests" / "forked_lab.py", words, environment, log)
    try:
        yield _address(process, log), home / "notebooks"
    finally:
        process.terminate()
        process.wait(20)


def _address(process, log: Path) -> str:
    """Wait until the server says where it listens, and answers."""
    ended = time.monotonic() + SECONDS
    while time.monotonic() < ended and process.poll() is None:
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", log.read_text(errors="replace"))
        if found:
            address = f"http://127.0.0.1:{found[1]}"
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).read()
                return address
            except OSError:
                pass
        time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _ask(address: str, where: str, **what) -> dict:
    """What the server's interface answers to a POST."""
    words = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/{where}", json.dumps(what).encode(), words)
    return json.load(urllib.request.urlopen(request, timeout=SECONDS))


@pytest.fixture(scope="session")
def kernel(server) -> dict:
    """The kernel of all notebooks."""
    return _ask(server[0], "kernels", name="python3")


@pytest.fixture
def lab(server, kernel, chromium, request, tmp_path):
    """`lab(*cells)`: open a notebook with these code cells in JupyterLab, run all, and return Playwright's page.

    A screenshot of how it ended is left in the test's temporary folder, and in GLAMM_SHOTS where that is set.
    """
    address, folder = server
    pages = []

    def open_and_run(*cells: str):
        name = f"{re.sub(r'[^a-z0-9]+', '_', request.node.name.lower())}.ipynb"
        notebook = new_notebook(cells=[new_code_cell(source) for source in (EMPTIED + cells[0], *cells[1:])])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / name)
        _ask(address, "sessions", path=name, name=name, type="notebook", kernel={"id": kernel["id"]})
        page = chromium.new_page(viewport={"width": 1300, "height": 1100})
        pages.append(page)
        page.set_default_timeout(SECONDS * 1000)
        page.goto(f"{address}/lab/tree/{name}?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector("text=| Idle")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        # A number beside the last cell: it has run.
        last = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").nth(len(cells) - 1)
        deadline = time.monotonic() + SECONDS
        while not re.search(r"\[\d+\]", last.text_content() or ""):
            assert time.monotonic() < deadline, "the cells did not finish"
            page.wait_for_timeout(200)
        failed = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg")
        assert failed.count() == 0, failed.first.text_content()
        return page

    yield open_and_run
    for page in pages:
        shots = Path(os.environ.get("GLAMM_SHOTS") or tmp_path)
        page.screenshot(path=shots / f"{request.node.name}.png")
        page.close()
