"""Processes that are forked from one which has imported the libraries already: importing them takes longer than most of
what is done there. Imports alone are shared; a system that cannot fork starts them as ever."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

IMPORTED = ("torch", "torch.distributed.tensor", "torchvision", "transformers.generation", "accelerate.utils", "peft",
            "ipykernel.kernelapp", "ipywidgets", "matplotlib.figure", "glamm_mini.assistant.assistant",
            "glamm_mini.course", "glamm_mini.storybook.pretrain.run")  # fmt: skip
POSSIBLE = "forkserver" in multiprocessing.get_all_start_methods()


class Forked:
    """A process that calls `function(*values)`, with as much of `subprocess.Popen` as is used of it."""

    stdin = stdout = stderr = None

    def __init__(self, function, *values):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self.process = context.Process(target=function, args=values)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(repr(self.process), timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _begin(environment: dict[str, str], words: list[str]) -> None:
    os.environ.clear()
    os.environ |= environment
    sys.path[:0] = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = words


# --- kernels ---------------------------------------------------------------------------------------------------------


@contextmanager
def forked_kernels():
    """Inside, Jupyter's kernels are forked."""
    if not POSSIBLE:
        yield
        return
    with mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", _launch):
        yield


def _launch(command: list[str], env: dict[str, str], cwd: str = ".", **_) -> Forked:
    """In place of `jupyter_client.launcher.launch_kernel`."""
    kernel = Forked(_serve, command[command.index("ipykernel_launcher") + 1 :], env, str(cwd))
    while kernel.process.is_alive() and os.getpgid(kernel.pid) != kernel.pid:
        time.sleep(0.01)  # the group that gets its signals must not be ours
    return kernel


def _serve(words: list[str], environment: dict[str, str], folder: str) -> None:
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    os.chdir(folder)
    _begin(environment, ["ipykernel_launcher", *words])
    launch_new_instance(argv=[*words, f"--IPKernelApp.parent_handle={os.getppid()}"])


# --- programs --------------------------------------------------------------------------------------------------------


def run_program(file: str, words: list[str], environment: dict[str, str], errors: Path):
    """`python FILE WORDS ...`, its standard error in the file `errors`."""
    if POSSIBLE:
        return Forked(_run, str(file), words, environment, str(errors))
    with open(errors, "w") as out:
        return subprocess.Popen([sys.executable, file, *words], env=environment, stderr=out)


def _run(file: str, words: list[str], environment: dict[str, str], errors: str) -> None:
    with open(errors, "w") as out:
        os.dup2(out.fileno(), 2)
    _begin(environment, [file, *words])
    sys.path.insert(0, str(Path(file).parent))
    runpy.run_path(file, run_name="__main__")
