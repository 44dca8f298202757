"""Every test runs on one thread and without a network."""

import os
import shutil

# Before any library reads them. Two test processes share two cores; more threads make small models slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# The same examples every time: a test that fails does so for everybody. No clock: machines are shared.
settings.register_profile(
    "glamm", max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("glamm")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Torch computes on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor():
    """A processor of the smallest model, with storybook's words."""
    from small_models import small_config

    from glamm_mini.processing.processor import GlammProcessor
    from glamm_mini.storybook.language import tasks
    from glamm_mini.storybook.language.tokenizer import build_wordpiece

    tokenizer = build_wordpiece(tasks.corpus_words())
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    return GlammProcessor(small_config(text=text), tokenizer)


@pytest.fixture
def glamm(processor):
    """The smallest model, for that processor."""
    from small_models import small_model

    return small_model(text=processor.config.text, tokens=processor.config.tokens)


@pytest.fixture(scope="module")
def samples():
    """Three scenes with conversations of several kinds."""
    from glamm_mini.storybook.dataset import StorybookDataset

    data = StorybookDataset("train", size=9, long_side=32, mixture={"gcg": 1, "regcap": 2, "refseg": 1})
    return [data[i] for i in range(3)]


@pytest.fixture(scope="session")
def chromium():
    """A running browser, one for all tests of a process; they are skipped where there is none."""
    if not shutil.which("chromium"):
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the dev extra")
    with playwright.sync_playwright() as start:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = start.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()
