"""`distill up`: the local Prefect stack (server, work pool, deployments, worker), supervised until Ctrl-C."""

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from flows.stack import server
from flows.stack.children import Child, Nursery
from flows.stack.dead_runs import WORKER, settle

START_SECONDS = 90.0
SWEEP_SECONDS = 5.0


def up(root: Path, project: Path, prefect_file: Path, port: int, say: Callable[[str], None]) -> None:
    """Start the stack, say when it is ready, restart what dies, stop it all on Ctrl-C or SIGTERM.

    `root` is where results and logs go (DISTILL_HOME), `project` the folder that holds the code, `prefect_file` the
    catalogue of deployments. Raises ValueError if another `distill up` has `root`, or the port is taken.
    """
    root, url = root.resolve(), server.api_url(port)
    environment = server.environment(root, url) | {"PWD": str(project)}
    _replace_environment(environment)
    prefect = [sys.executable, "-m", "prefect"]

    def child(name: str, *arguments: str) -> Child:
        return Child(name, [*prefect, *arguments], env=environment, cwd=project, log=root / "logs" / f"{name}.log")

    api = child("server", "server", "start", "--host", server.HOST, "--port", str(port))
    worker = child("worker", "worker", "start", "--pool", server.POOL, "--name", WORKER)
    deploy = child("deploy", "deploy", "--all", "--prefect-file", str(prefect_file))
    started = time.monotonic()
    with _only_one(root, url), Nursery(root / "prefect" / "children.lock") as nursery, _stop_on_sigterm():
        _check_port(port)
        say(f"Starting the local stack; its logs are in {_short(root / 'logs')}/")
        try:
            nursery.start(api)
            _wait(api, lambda: server.is_healthy(url))
            for name in settle(url, worker_runs=False, late_seconds=0.0):
                say(f"Run {name} had died; it is marked as Crashed.")
            server.arrange(url, project)
            nursery.start(worker)
            nursery.start(deploy)
            _wait(deploy, lambda: deploy.exit_code() == 0)
            say(_welcome(port, time.monotonic() - started))
            _supervise([api, worker], nursery, url, say)
        except KeyboardInterrupt:
            say("Stopping …")
        finally:
            for each in (deploy, worker):
                each.stop()
            if server.is_healthy(url):
                settle(url, worker_runs=False, late_seconds=0.0)
            api.stop()


def _supervise(children: list[Child], nursery: Nursery, url: str, say: Callable[[str], None]) -> NoReturn:
    """Restart children that end, after a back-off, and mark dead runs as Crashed.

    Only an exception (Ctrl-C) ends this loop.
    """
    due: dict[str, float] = {}
    next_sweep = 0.0
    while True:
        for child in children:
            code, now = child.exit_code(), time.monotonic()
            if code is None:
                continue
            if child.name not in due:
                due[child.name] = now + child.back_off()
                say(f"The {child.name} ended (exit code {code}); it starts again in {due[child.name] - now:.0f} s.")
            elif now >= due[child.name] and (child.name == "server" or server.is_healthy(url)):
                del due[child.name]
                child.stop(grace_seconds=1.0)  # what is left of its group
                if child.name == "worker":
                    settle(url, worker_runs=False)
                nursery.start(child)
        if time.monotonic() >= next_sweep and server.is_healthy(url):
            settle(url, worker_runs=True)
            next_sweep = time.monotonic() + SWEEP_SECONDS
        time.sleep(0.2)


def _wait(child: Child, ready: Callable[[], bool]) -> None:
    """Wait until `ready`; RuntimeError with the log's end if the child ends first or the time is up."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        code = child.exit_code()
        if code not in (None, 0) or time.monotonic() > deadline:
            state = f"took longer than {START_SECONDS:.0f} s" if code is None else f"ended with exit code {code}"
            raise ValueError(f"`prefect {child.name}` {state}; its log ends: {child.last_words()}\nread {child.log}")
        time.sleep(0.05)


@contextmanager
def _only_one(root: Path, url: str) -> Iterator[None]:
    """Hold the stack's lock for `root`, with our pid and address in it; ValueError if another process has it."""
    path = root / "prefect" / "up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = json.loads(file.read() or "{}")
            raise ValueError(
                f"`distill up` is running already for {root} (process {owner.get('pid')}, {owner.get('url')})\n"
                "use that one, stop it with Ctrl-C, or give this one another DISTILL_HOME and --port"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "url": url}))
        file.flush()
        yield


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} on {server.HOST} cannot be used: {str(error.strerror).lower()}\n"
                f"stop the program that has it, or choose another: distill up --port {port + 1}"
            ) from None


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _replace_environment(environment: dict[str, str]) -> None:
    """Make `environment` ours before prefect is imported, which reads it once."""
    os.environ.clear()
    os.environ.update(environment)


def _welcome(port: int, seconds: float) -> str:
    prefix = "" if port == server.DEFAULT_PORT else f"PREFECT_API_URL={server.api_url(port)} "
    command = Path(sys.prefix, "bin", "prefect")
    return "\n".join(
        [
            f"Ready in {seconds:.1f} s. Ctrl-C stops it.",
            f"  dashboard  http://{server.HOST}:{port}",
            f"  try        {prefix}{_short(command)} deployment run distill/llmr-chitchat --watch",
        ]
    )


def _short(path: Path) -> Path:
    """`path` as one would type it from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
