"""The shipped launch files: every line of their page is parsed by the program it starts, every value is a setting."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from glamm_mini import training
from glamm_mini.cli.evaluate import check_arguments
from glamm_mini.cli.main import build_app
from glamm_mini.training import recipes
from glamm_mini.training.optimizer import build_optimizer
from glamm_mini.training.parallel import deepspeed_config
from glamm_mini.training.recipes import read_recipe, recipe_names
from glamm_mini.training.settings import TrainSettings

CONFIGS = Path(training.__path__[0]) / "configs"
PAGE = (CONFIGS / "README.md").read_text(encoding="utf-8")
KNOWN = {"$CONFIGS": str(CONFIGS), "$HEAD": "node1", "$RANK_OF_NODE": "1"}
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
SLURM = CONFIGS / "slurm.sh"


def words_of(line: str) -> list[str]:
    for name, value in KNOWN.items():
        line = line.replace(name, value)
    assert "$" not in line, line
    return shlex.split(line)


def check_glamm(words: list[str]) -> None:
    """Parses the arguments of `glamm-mini` without running it, the settings included."""
    group = typer.main.get_command(build_app(words[0]))
    context = group.make_context("glamm-mini", list(words))
    name, command, rest = group.resolve_command(context, list(words))
    options = command.make_context(name, list(rest), parent=context).params
    if name == "train":
        assert options["recipe"] in recipe_names()
        recipes.describe(options["recipe"], options["size"], options["overrides"])
        recipes.check_data(read_recipe(options["recipe"], options["size"]), options["data"])
    else:
        assert name == "evaluate"
        check_arguments(options["task"], options["data"], options["split"], options["protocol"], options["similarity"])


def check_torchrun(words: list[str]) -> list[str]:
    """Parses the launcher's own arguments; returns those of what it starts."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    assert options.module and options.training_script == "glamm_mini.cli.main"
    return options.training_script_args


@pytest.mark.parametrize("line", LINES)
def test_every_launch_line_is_understood(line):
    program, *words = words_of(line)
    if program == "accelerate":
        assert words[0] == "launch"
        options = launch_command_parser().parse_args(words[1:])
        load_config_from_file(options.config_file)
        assert options.module and options.training_script == "glamm_mini.cli.main"
        assert options.deepspeed_config_file is None or Path(options.deepspeed_config_file).is_file()
        check_glamm(options.training_script_args)
    elif program == "torchrun":
        check_glamm(check_torchrun(words))
    elif program == "sbatch":
        assert words[:2] == ["--nodes", "2"] and Path(words[2]) == SLURM
        check_glamm(["train", *words[3:]])
    else:
        assert program == "glamm-mini"
        check_glamm(words)


def test_lines_of_eight_and_sixteen_processes_have_the_samples_of_the_recipe():
    """160 a step, however many processes: else a run could not go on elsewhere."""
    checked = 0
    for line in LINES:
        if " train gcg --size 7b" not in line and "slurm.sh gcg" not in line:
            continue
        accumulation = int((re.findall(r"accumulation=(\d+)", line) or ["10"])[0])
        several = "--nnodes 2" in line or "--num_machines 2" in line or "--nodes 2" in line
        processes = 16 if several else 1 if line.startswith("glamm-mini") else 8
        assert 2 * accumulation * processes == 160, line
        checked += 1
    assert checked == 8


@pytest.mark.parametrize(
    "words", [["train", "gcg", "--size", "7b"], ["evaluate", "gcg", "--model", "tiny", "--split", "test"]]
)
def test_data_that_no_reader_takes_would_be_found(words):
    check_glamm([*words, "--data", "storybook"])
    with pytest.raises(ValueError, match="data '?DATA"):
        check_glamm([*words, "--data", "DATA"])


def test_the_slurm_script_is_bash_and_starts_a_torchrun_that_parses():
    done = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    line = re.search(r"srun torchrun (.*) &$", text, re.M).group(1)
    for name, value in {"$SLURM_NNODES": "2", "$SLURM_JOB_ID": "7", "$head": "node1", '"$@"': "gcg --size 7b"}.items():
        line = line.replace(name, value)
    check_glamm(check_torchrun(shlex.split(line)))
    # Saved before Slurm kills.
    assert "--signal=B:USR1@300" in text and "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240\nsrun " in text


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2"])
def test_accelerate_reads_its_files(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.use_cpu) == (8, 1, False)
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    assert kind == ("DEEPSPEED" if name.startswith("zero") else "MULTI_GPU")
    assert not config.fsdp_config  # the trainer shards by itself
    assert not config.mixed_precision  # the settings say it
    if name.startswith("zero"):
        file = Path(config.deepspeed_config["deepspeed_config_file"])
        assert (CONFIGS.parents[2] / file).resolve() == CONFIGS / f"{name}.json"


def test_an_unknown_key_in_an_accelerate_file_would_be_found(tmp_path):
    config = yaml.safe_load((CONFIGS / "ddp.yaml").read_text()) | {"num_procesess": 8}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(tmp_path / "config.yaml"))


# ---- DeepSpeed: validated, not run ----

KEYS = {
    "zero_optimization",
    "bf16",
    "fp16",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_allow_untested_optimizer",
    "steps_per_print",
}


ZERO = json.loads((CONFIGS / "zero2.json").read_text(encoding="utf-8"))


def test_deepspeed_takes_its_values_from_the_settings():
    settings = TrainSettings(batch_size=2, accumulation=10, clip=0.7, precision="bf16")
    assert set(ZERO) == KEYS and ZERO["zero_optimization"]["stage"] == 2
    filled = deepspeed_config(ZERO, settings, "bf16")
    assert filled["train_micro_batch_size_per_gpu"] == settings.batch_size
    assert filled["gradient_clipping"] == settings.clip
    assert filled["gradient_accumulation_steps"] == 1  # the trainer counts micro-batches itself
    assert filled["bf16"] == {"enabled": True} and filled["fp16"] == {"enabled": False}
    assert "auto" not in json.dumps(filled)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), settings)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == settings.betas


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"gradient_clipping": 5.0}, [], "gradient_clipping 5.0, the settings 1.0"),
        ({"train_micro_batch_size_per_gpu": 3}, [], "train_micro_batch_size_per_gpu 3, the settings 8"),
        ({"bf16": {"enabled": True}}, [], "bf16 True, the settings False"),
        ({"optimizer": {"type": "Adam"}}, [], "its own optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, [], "its own scheduler"),
        ({"zero_optimization": {"stage": 3}}, [], "ZeRO-3 .* shard=full"),
        ({}, ["shard=full"], "set shard=none"),
        ({}, ["muon_lr=0.1"], "muon_lr=0"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_settings_is_refused(change, overrides, message):
    with pytest.raises(ValueError, match=message):
        deepspeed_config(ZERO | change, TrainSettings().with_overrides(overrides), "no")


def test_deepspeeds_own_classes_accept_the_file():
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: its own classes cannot be asked")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    filled = deepspeed_config(ZERO, TrainSettings(batch_size=2), "bf16")
    assert DeepSpeedZeroConfig(**filled["zero_optimization"]).stage == 2  # refuses unknown keys
    config = DeepSpeedConfig(filled)
    assert config.train_micro_batch_size_per_gpu == 2 and config.gradient_clipping == 1.0
    assert config.zero_enabled and config.zero_optimization_stage == 2


def test_the_files_travel_in_the_wheel():
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    builder = build.WheelBuilder(str(CONFIGS.parents[2]))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    names = {path.name for path in CONFIGS.iterdir()}
    assert names == {"README.md", "slurm.sh", "zero2.json", *(f"{n}.yaml" for n in ("ddp", "fsdp", "zero2"))}
    assert {f"glamm_mini/training/configs/{name}" for name in names} <= packed
