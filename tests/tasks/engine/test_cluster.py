"""Workers in a Ray on this machine, in clusters of one node and of two. They compute what one process computes.

Needs Ray: `make test-ray`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from tasks.engine.engines import engine_of  # noqa: E402
from tasks.engine.nodes import Node, placed  # noqa: E402
from tasks.engine.settings import RuntimeSettings  # noqa: E402
from tests.tasks.engine.tiny_work import deadly, slow, squares, wrong  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
PROJECT = Path(__file__).parents[3]


def runtime(cluster: Any, **more: Any) -> RuntimeSettings:
    return RuntimeSettings(engine="ray", address=cluster.address, device="cpu", threads=1, **more)


def test_parts_are_shared_out_and_told_of(cluster: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with engine_of(runtime(cluster, workers=2), tmp_path, print) as engine:
        made = dict(engine.map(slow, range(6), lambda number, done: told.append((number, done))))
        assert [made[number][0] for number in range(6)] == [0, 1, 4, 9, 16, 25]
        assert {each[2].threads for each in made.values()} == {1}
        assert {each[2].workers for each in made.values()} == {2}
        assert len({each[1] for each in made.values()} - {os.getpid()}) == 2
        assert sorted(told) == [(number, done) for number in range(6) for done in (0, 1)]
        again = dict(engine.map(slow, [7], lambda number, done: None))
        assert again[0][1] in {each[1] for each in made.values()}, "workers stay for the next build"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_costs_its_part(cluster: Any, tmp_path: Path) -> None:
    warned: list[str] = []
    (tmp_path / "marks").mkdir()
    with engine_of(runtime(cluster, workers=2), tmp_path, warned.append) as engine:
        work = partial(deadly, tmp_path / "marks", 1)
        made = dict(engine.map(work, range(8), lambda number, done: None))
    assert [made[number][0] for number in range(8)] == [number**2 for number in range(8)]
    begun = sorted(path.name.partition("-")[0] for path in (tmp_path / "marks").iterdir())
    assert begun == sorted([*map(str, range(8)), "3"])
    assert [text.startswith("a worker has died: ") for text in warned] == [True]


def test_a_part_that_ends_every_worker_is_given_up(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    with (
        engine_of(runtime(cluster, workers=2), tmp_path, lambda text: None) as engine,
        pytest.raises(ChildProcessError, match=r"3 workers have died, .* of one part: .*\nwhat is finished is kept"),
    ):
        list(engine.map(partial(deadly, tmp_path / "marks", 99), range(8), lambda number, done: None))


def test_what_work_raises_is_raised_here_and_the_workers_go_on(cluster: Any, tmp_path: Path) -> None:
    with engine_of(runtime(cluster, workers=2), tmp_path, print) as engine:
        with pytest.raises(ValueError, match="part 2 is wrong") as raised:
            list(engine.map(wrong, range(5), lambda number, done: None))
        assert str(raised.value) == "part 2 is wrong\nuse another"
        assert "in a worker:" in raised.value.__notes__[0]
        assert dict(engine.map(squares, [5], lambda number, done: None))[0][0] == 25


def test_a_node_that_dies_costs_its_workers_part(cluster: Any, tmp_path: Path) -> None:
    extra, warned = cluster.add_node(num_cpus=1), list[str]()
    with engine_of(runtime(cluster, workers=3), tmp_path, warned.append) as engine:
        killed = threading.Event()

        def tell(number: int, done: int) -> None:
            if number == 4 and not killed.is_set():
                killed.set()
                cluster.remove_node(extra, allow_graceful=False)

        made = dict(engine.map(slow, range(12), tell))
    assert [made[number][0] for number in range(12)] == [number**2 for number in range(12)]
    assert len(warned) >= 1


# --- refused before anything starts


def refusal(given: RuntimeSettings, root: Path) -> str:
    with pytest.raises(ValueError) as refused, engine_of(given, root, print):  # noqa: PT011 (the caller looks)
        pass
    assert not ray.is_initialized()
    assert len(str(refused.value).splitlines()) == 2
    return str(refused.value)


def test_more_workers_than_there_is_room_for(cluster: Any, tmp_path: Path) -> None:
    said = refusal(runtime(cluster, workers=3), tmp_path)
    assert said == (
        "3 workers of 1 CPU and 0 GPUs each do not fit: 2 nodes with 2 CPUs and 0 GPUs\n"
        "set runtime.workers to 2 at most"
    )
    assert "of 1 CPU and 1 GPU each do not fit" in refusal(runtime(cluster, workers=1, gpus_per_worker=1.0), tmp_path)


@pytest.mark.parametrize(
    ("given", "workers", "threads", "gpus"),
    [
        ({}, 10, 12, 1.0),  # one for each GPU
        ({"device": "cpu"}, 2, 96, 0.0),  # one for each node
        ({"workers": 4}, 4, 48, 1.0),  # two on each node
        ({"workers": 5}, 5, 32, 1.0),  # three on the first, two on the second
        ({"workers": 2, "threads": 8}, 2, 8, 1.0),
        ({"gpus_per_worker": 0.5}, 20, 6, 0.5),
        ({"teacher_devices": 2}, 5, 24, 2.0),  # four on the first, one on the second
        ({"teacher_devices": 4}, 2, 48, 4.0),  # both on the first
    ],
)
def test_workers_and_threads_that_are_not_named_are_shared_out(
    given: dict[str, Any], workers: int, threads: int, gpus: float
) -> None:
    nodes = [Node("a", "a", 96, 8.0), Node("b", "b", 96, 2.0)]
    place = placed(RuntimeSettings(engine="ray", **given), nodes)
    assert (place.workers, place.threads, place.gpus) == (workers, threads, gpus)


def test_one_device_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cuda:1 is one device, and engine ray gives each worker its own\nsay cuda"):
        placed(RuntimeSettings(engine="ray", device="cuda:1"), [Node("a", "a", 8, 2.0)])


@pytest.mark.parametrize("gpus", [0.0, 3.0])
def test_a_teacher_over_more_gpus_than_a_node_has_is_refused(gpus: float) -> None:
    nodes = [Node("a", "a", 8, gpus), Node("b", "b", 8, gpus)]
    with pytest.raises(ValueError, match=r"1 worker of 1 CPU and 4 GPUs each do not fit: .*\nlower .*teacher_devices"):
        placed(RuntimeSettings(engine="ray", teacher_devices=4), nodes)


def test_only_nodes_with_room_for_a_worker_count() -> None:
    nodes = [Node("head", "head", 2, 0.0), Node("b", "b", 16, 4.0)]
    assert placed(RuntimeSettings(engine="ray"), nodes).nodes == nodes[1:]


def test_an_address_that_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = refusal(RuntimeSettings(engine="ray", address=f"127.0.0.1:{port}"), tmp_path)
    assert said.startswith(f"no Ray answers at 127.0.0.1:{port}: ")
    monkeypatch.setattr("tasks.engine.cluster.ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # listens, and says nothing
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert "what listens there is none" in refusal(RuntimeSettings(engine="ray", address=address), tmp_path)
    assert "nowhere.invalid:1" in refusal(RuntimeSettings(engine="ray", address="nowhere.invalid:1"), tmp_path)


def test_a_ray_that_wants_a_token_says_so_and_is_joined_with_it(tmp_path: Path) -> None:
    """The mode and the token are the environment's: each time in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    bare |= {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    join = f"import tests.tasks.engine.test_cluster as it; it.joins({address!r}, {str(tmp_path)!r})"

    def says(**more: str) -> str:
        done = subprocess.run([sys.executable, "-c", join], env=bare | more, capture_output=True, text=True, check=True)
        return done.stdout

    start = f"start --head --port={address.rpartition(':')[2]} --num-cpus=1 --include-dashboard=false --block"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # for the names of its sockets
        command = [sys.executable, "-m", "ray.scripts.scripts", *start.split(), f"--temp-dir={short}"]
        head = subprocess.Popen(command, env=bare | token, start_new_session=True)
        try:
            wait_for(lambda: "wants a token" in says())
            refused = says()
            assert says(**token) == "1 worker\n"
            assert "wants a token" in says(RAY_AUTH_MODE="token")
            assert "wants a token" in says(**token | {"RAY_AUTH_TOKEN": "6" * 64})
        finally:
            with_its_children(head.pid, signal.SIGTERM)
            head.wait()
    assert refused.splitlines() == [
        f"the Ray at {address} wants a token, and not what this process has, if it has one",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as where it was started; "
        "or start it with RAY_AUTH_MODE=disabled",
    ]


def joins(address: str, root: str) -> None:
    """Print how many workers a Ray gives, or why it cannot be joined."""
    try:
        with engine_of(RuntimeSettings(engine="ray", address=address, device="cpu"), Path(root), print) as engine:
            assert engine is not None
            print(f"{engine.about['workers']} worker")
    except ValueError as error:
        print(error)


@pytest.mark.parametrize(
    ("mounted", "said"),
    [
        ("mount -t tmpfs none {store}", "does not see it"),
        (
            "mount -t tmpfs none {other} && mkdir {other}/upper {other}/work && mount -t overlay overlay "
            "-o lowerdir={store},upperdir={other}/upper,workdir={other}/work {store}",
            "can take a lock that another process holds: flock does not hold",
        ),
        (
            "cp -r {project}/tasks {other}/tasks && echo 'VERSION = 2' >> {other}/tasks/ranges.py && "
            "mount --bind {other}/tasks {project}/tasks",
            "has another version of our code",
        ),
    ],
)
def test_a_node_that_sees_another_store_or_other_code(cluster: Any, tmp_path: Path, mounted: str, said: str) -> None:
    places = {"store": tmp_path / "store", "other": tmp_path / "other", "project": PROJECT}
    for name in ("store", "other"):
        places[name].mkdir()
    command = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=4 --block"
    script = f"{mounted.format(**places)} && exec {command}"
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], start_new_session=True)
    try:
        wait_for(lambda: node.poll() is not None or len(cluster_nodes(cluster)) == 3)
        if node.poll() is not None:
            pytest.skip("nothing can be mounted here for one process alone")
        refused = refusal(runtime(cluster, workers=2), places["store"])
    finally:
        with_its_children(node.pid, signal.SIGTERM)
        node.wait()
    assert said in refused
    wait_for(lambda: len(cluster_nodes(cluster)) == 2)


def cluster_nodes(cluster: Any) -> list[Any]:
    return [each for each in cluster.global_state.node_table() if each["Alive"]]


def with_its_children(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
