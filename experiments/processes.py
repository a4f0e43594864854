"""Jobs in processes of their own, each with a GPU, or with its share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType

import torch

from mmm4rec.run_folder import Echo

GRACE_S = 60  # that a process has to come to an end when it is interrupted


class JobProcesses:
    """So many processes of `python -m <module>` at once, each with an environment of its own.

    Used as a context: whatever ends the block, Ctrl-C included, ends the processes first. They are
    in sessions of their own, so that Ctrl-C reaches each of them once.
    """

    def __init__(self, module: str, environments: list[dict[str, str]]) -> None:
        """Offer as many places as there are environments.

        Args:
            module: reads its job on the standard input.
            environments: per place, what is added to this process's environment.
        """
        self._module = module
        self._places: SimpleQueue[dict[str, str]] = SimpleQueue()
        for environment in environments:
            self._places.put(environment)
        self._running: set[subprocess.Popen[str]] = set()
        self._ending = False

    def __enter__(self) -> JobProcesses:
        """Begin without a process."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Interrupt what still runs and wait for it."""
        self._ending = True
        for process in list(self._running):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()  # a run carries on from its last checkpoint

    def run(self, job: str, echo: Echo) -> tuple[int, str]:
        """Wait for a place and run a job there.

        Args:
            job: text for the standard input.
            echo: told each line of the standard output.

        Returns:
            The exit code and the standard error.
        """
        environment = self._places.get()
        try:
            if self._ending:
                return -signal.SIGINT, ""
            return self._run(job, environment, echo)
        finally:
            self._places.put(environment)

    def _run(self, job: str, environment: dict[str, str], echo: Echo) -> tuple[int, str]:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )
        self._running.add(process)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process, ThreadPoolExecutor(1) as reader:
            # Read beside the output: a full pipe would hold the process up.
            errors = reader.submit(process.stderr.read)
            process.stdin.write(job)
            process.stdin.close()
            for line in process.stdout:
                echo(line.rstrip("\n"))
            code = process.wait()
        self._running.discard(process)
        return code, errors.result().strip()


def place_environments(places: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return what each process is to see: one of the GPUs in turn, or a share of the cores.

    >>> place_environments(3, ["0", "5"])[2]
    {'CUDA_VISIBLE_DEVICES': '0'}
    """
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[at % len(gpus)]} for at in range(places)]
    cores = max(1, (os.cpu_count() or 1) // places)
    return [{"OMP_NUM_THREADS": str(cores)}] * places


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(count)]
    return names[:count]
