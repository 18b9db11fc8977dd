"""A head and two more nodes, each of its own processes: whatever of them ends in the middle, the result is the same.

Most are Ray's nodes for tests, which share an address. Once they are machines as far as the network can tell.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import CODECS, POISON, fake_codec, files_of, pixels
from gated_run import ARCHIVE, PATIENCE_S, RESTORE
from PIL import Image
from ray_start import tried_again

from zippy_batch.codecs.model_file import Model
from zippy_batch.config import RunOptions
from zippy_batch.run.pipeline import archive, restore, verify
from zippy_batch.run.staging_local import staging_path

TESTS = Path(__file__).parent
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
SHARDS = 6


@contextmanager
def nodes(count: int) -> Iterator[Any]:
    """A head that does no work, and nodes with room for a worker each."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([before] if before else [])])
    made = Cluster()
    try:
        tried_again(lambda: made.add_node(**NODE | {"num_cpus": 0, "include_dashboard": False}), made.shutdown)
        for _ in range(count):
            tried_again(lambda: made.add_node(**NODE), lambda: None)
        yield made
    finally:
        made.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with nodes(2) as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with faces, and what one process makes of them: an archive and its restored files. Read only."""
    root = tmp_path_factory.mktemp("expected")
    (root / "faces").mkdir()
    for i in range(4 * SHARDS):
        Image.fromarray(pixels(i)).save(root / f"faces/{i:02}.jpg", quality=90)
    archive(root / "faces", root / "archived", ARCHIVE, RunOptions(workers=1), codecs=CODECS)
    restore(root / "archived", root / "restored", RESTORE, RunOptions(workers=1), codecs=CODECS)
    return root


@dataclass
class Driver:
    process: subprocess.Popen[str]
    gates: Path

    def workers(self, wanted: int) -> dict[str, int]:
        """Once so many workers wait at the gate: process of each by its node."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := [path.name.split("-") for path in self.gates.glob("*-*")]) < wanted:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return {node: int(process) for node, process in found}

    def open_gate(self) -> None:
        (self.gates / "open").touch()

    def printed(self) -> int:
        """Once it has ended well. Lines above the last are Ray's, which reports deaths on standard output."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, err
        return int(out.splitlines()[-1])


@contextmanager
def driving(
    command: str, root: Path, output: Path, address: str, where: Sequence[str] = (), **variables: str
) -> Iterator[Driver]:
    gates = output.with_name(f"gates-{len(list(output.parent.iterdir()))}")
    gates.mkdir()
    source = root / ("faces" if command == "archive" else "archived")
    arguments = [command, str(source), str(output), address, str(gates)]
    process = subprocess.Popen(
        [*where, sys.executable, str(TESTS / "gated_run.py"), *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Driver(process, gates)
    finally:
        (gates / "open").touch()
        process.kill()
        process.communicate()


def lose_worker(driver: Driver, cluster: Any) -> None:
    os.kill(driver.workers(2).popitem()[1], signal.SIGKILL)


def lose_node(driver: Driver, cluster: Any) -> None:
    name = next(iter(driver.workers(2)))
    node = next(node for node in cluster.worker_nodes if node.node_id == name)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize(
    ("command", "lose"),
    [
        ("archive", lose_worker),
        ("archive", lose_node),
        ("restore", lose_node),
    ],
)
def test_a_run_over_nodes_outlives_them(
    command: str, lose: Callable[[Driver, Any], None], cluster: Any, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"{command}d"
    with driving(command, expected, output, cluster.address) as driver:
        lose(driver, cluster)
        driver.open_gate()
        assert driver.printed() == {"archive": 0, "restore": 4 * SHARDS}[command]
    assert files_of(output) == files_of(expected / output.name)
    if lose is lose_node:
        cluster.add_node(**NODE)


@pytest.mark.parametrize("command", ["archive", "restore"])
def test_a_run_whose_driver_is_killed_is_finished_by_the_next(
    command: str, cluster: Any, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"{command}d"
    with driving(command, expected, output, cluster.address) as driver:
        driver.workers(2)
        driver.process.kill()
        driver.process.wait()
        if command == "archive":
            committed = len(list(staging_path(output).glob("*/part-?????.parquet")))
            assert 0 < committed < SHARDS
    with driving(command, expected, output, cluster.address) as driver:
        driver.open_gate()
        printed = driver.printed()
    assert printed >= committed if command == "archive" else printed == 4 * SHARDS
    assert files_of(output) == files_of(expected / output.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([output.name, "gates-0", "gates-2"])


def test_a_run_whose_head_is_lost_ends_and_is_finished_without_a_cluster(
    expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")  # by default Ray looks for a lost head for 60 s
    output = tmp_path / "archived"
    with nodes(1) as made, driving("archive", expected, output, made.address) as driver:
        driver.workers(1)
        made.remove_node(made.head_node, allow_graceful=False)
        driver.open_gate()
        assert driver.process.wait(PATIENCE_S) == 1
    assert not output.exists()
    assert list(staging_path(output).glob("*/part-?????.parquet"))
    report = archive(expected / "faces", output, ARCHIVE, RunOptions(workers=1), codecs=CODECS)
    assert report.run is not None
    assert report.run.shards_resumed >= 1
    assert files_of(output) == files_of(expected / "archived")


class Network:
    """Machines with an address each, on one switch; all in this one, each in a network namespace."""

    def __init__(self, machines: int) -> None:
        self._name = f"zippy{os.getpid()}"
        self.addresses = [f"10.201.77.{i + 1}" for i in range(machines)]

    def build(self) -> None:
        self._make(self.switch)
        self._ip("-n", self.switch, "link", "add", "bus", "type", "bridge")
        self._ip("-n", self.switch, "link", "set", "bus", "up")
        for i, address in enumerate(self.addresses):
            name = self.machine(i)
            self._make(name)
            self._ip("link", "add", "net", "netns", name, "type", "veth", "peer", f"port{i}", "netns", self.switch)
            self._ip("-n", name, "address", "add", f"{address}/24", "dev", "net")
            self._ip("-n", name, "link", "set", "net", "up")
            self._ip("-n", self.switch, "link", "set", f"port{i}", "master", "bus", "up")

    @property
    def switch(self) -> str:
        return f"{self._name}s"

    def machine(self, i: int) -> str:
        return f"{self._name}m{i}"

    def on(self, i: int) -> list[str]:
        """What goes before a command that is to run on a machine."""
        return ["ip", "netns", "exec", self.machine(i)]

    def pull_cable(self, i: int) -> None:
        self._ip("-n", self.switch, "link", "set", f"port{i}", "down")

    def remove(self) -> None:
        for name in (*map(self.machine, range(len(self.addresses))), self.switch):
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for process in listed.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _make(self, name: str) -> None:
        self._ip("netns", "add", name)
        self._ip("-n", name, "link", "set", "lo", "up")

    def _ip(self, *arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"there can be no network namespaces here: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and iproute2")
    made = Network(3)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@pytest.fixture
def machines(network: Network) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a head that does no work, with two machines of one CPU; and the environment that all of it has."""
    # a machine that is not heard of for two seconds is given up, not after half a minute
    patience = {"initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3"}
    environment = {
        **{f"RAY_health_check_{name}": value for name, value in patience.items()},
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    # the paths of its sockets must be short
    with tempfile.TemporaryDirectory(prefix="zippy", ignore_cleanup_errors=True) as session:
        head = f"{network.addresses[0]}:6379"
        for i, address in enumerate(network.addresses):
            joining = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={session}"]
            command = [
                *[*network.on(i), sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={address}"],
                *(joining if i == 0 else [f"--address={head}"]),
                *[f"--num-cpus={int(i > 0)}", "--num-gpus=0", f"--object-store-memory={NODE['object_store_memory']}"],
            ]
            started = subprocess.run(
                command,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE_S,
            )
            assert started.returncode == 0, started.stdout + started.stderr
        yield head, environment
        network.remove()


def test_a_machine_that_is_cut_off_from_the_others_is_done_without(
    network: Network, machines: tuple[str, dict[str, str]], expected: Path, tmp_path: Path
) -> None:
    """It goes on with its shard all the same, and commits it a second time."""
    head, environment = machines
    output = tmp_path / "archived"
    with driving("archive", expected, output, head, network.on(0), **environment) as driver:
        assert len(driver.workers(2)) == 2
        network.pull_cable(2)
        driver.open_gate()
        assert driver.printed() == 0
    assert files_of(output) == files_of(expected / "archived")
    with driving("restore", expected, tmp_path / "restored", head, network.on(0), **environment) as driver:
        assert len(driver.workers(1)) == 1
        driver.open_gate()
        assert driver.printed() == 4 * SHARDS
    assert files_of(tmp_path / "restored") == files_of(expected / "restored")


# ---- a worker that Ray kills for its memory: what Ray reads of the memory is a file that the test writes ----

TOTAL_BYTES, USUAL_BYTES, LITTLE_BYTES = 2 << 30, 1 << 30, 16 << 20


@dataclass(frozen=True)
class Greedy:
    """A codec that one picture makes take all memory: each such process leaves a file of its name, and waits."""

    inner: Any
    greedy: Path

    def encode(self, images: Any, qualities: Any) -> Any:
        if any(image.flat[0] == POISON for image in images):
            (self.greedy / str(os.getpid())).touch()
            time.sleep(PATIENCE_S)
        return self.inner.encode(images, qualities)

    def decode_checked(self, items: Any) -> Any:
        return self.inner.decode_checked(items)


@dataclass(frozen=True)
class MakeGreedy:
    greedy: Path

    def __call__(self, model: Model, device: str) -> Any:
        return Greedy(fake_codec(model, device), self.greedy)


@dataclass
class Memory:
    """A /proc/meminfo in which memory is short as long as a process is greedy."""

    file: Path
    greedy: Path

    def __post_init__(self) -> None:
        self.greedy.mkdir()
        self.write(USUAL_BYTES)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stopped.wait(0.01):
            is_short = any(Path("/proc", process.name).exists() for process in self.greedy.iterdir())
            self.write(LITTLE_BYTES if is_short else USUAL_BYTES)

    def write(self, available_bytes: int) -> None:
        """In place and in one piece, of the same length each time, since others have it open."""
        values = {"MemTotal": TOTAL_BYTES, "MemFree": available_bytes, "MemAvailable": available_bytes}
        values.update(dict.fromkeys(("Buffers", "Cached", "SReclaimable", "Shmem", "SwapTotal", "SwapFree"), 0))
        lines = "".join(f"{name + ':':16}{value >> 10:12} kB\n" for name, value in values.items())
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, lines.encode(), 0)
        finally:
            os.close(descriptor)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = Memory(tmp_path / "meminfo", tmp_path / "greedy")
    yield made
    made.stop()


def with_memory(memory: Memory, command: Sequence[str]) -> list[str]:
    """The command in a mount namespace whose /proc/meminfo is this one, and whose control groups say nothing else."""
    if shutil.which("unshare") is None:
        pytest.skip("mount namespaces need unshare (util-linux)")
    mounts = 'mount --bind "$0" /proc/meminfo && mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    enter = ["unshare", "--mount", *as_root, "sh", "-c", mounts, str(memory.file)]
    tried = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"there can be no mount namespaces here: {tried.stderr.strip()}")
    return [*enter, *command]


GREEDY_RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from fakes import CODECS
from gated_run import ARCHIVE
from test_nodes import MakeGreedy, nodes
from zippy_batch.config import RunOptions
from zippy_batch.run.pipeline import archive
source, output, greedy = map(Path, sys.argv[1:])
codecs = replace(CODECS, make=MakeGreedy(greedy))
with nodes(1) as made:
    report = archive(source, output, ARCHIVE, RunOptions(address=made.address), codecs=codecs)
print(dict(report.total.kept_raw))
"""


def test_a_file_that_takes_a_workers_memory_is_found_when_ray_kills_for_it(tmp_path: Path, memory: Memory) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for i in range(4):
        image = pixels(i)
        image.flat[0] = POISON if i == 2 else 0
        Image.fromarray(image).save(faces / f"{i}.png")
    command = [sys.executable, "-c", GREEDY_RUN, str(faces), str(tmp_path / "out"), str(memory.greedy)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        with_memory(memory, command),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str({"the worker crashed while encoding it": 1})
    assert "running low on memory" in done.stderr
    assert "2.png: the worker crashed while encoding it, twice" in done.stderr
    assert verify(tmp_path / "out", faces, run=RunOptions(workers=1), codecs=CODECS).exit_code == 0
