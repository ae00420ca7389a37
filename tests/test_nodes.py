"""cluster/config.yaml on three machines: each test goes on where the one before has left the cluster."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.nodes import USER, Machine, libraries, network

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[1]
HEAD, *WORKERS = ADDRESSES = ("10.77.0.11", "10.77.0.12", "10.77.0.13")
CONFIG = f"/home/{USER}/cluster.yaml"
# Light tasks, few updates.
LIGHT = "--address auto --learner.updates-per-step 0.05"
LAUNCH = f"{LIGHT} --workers 2 --tasks cartpole-balance pendulum-swingup"
LONG = (
    f"{LIGHT} --workers auto --tasks cartpole-balance only_here:counting --total-frames 1000000000 "
    "--run.checkpoint-seconds 20 --run.checkpoint-frames 1000000000"
)
# Prints a line at each change: which nodes are alive.
WATCH = """
import time, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
last = None
while True:
    now = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if now != last:
        print("alive", time.time(), *now, flush=True)
    last = now
    time.sleep(0.2)
"""


def config():
    """Return the shipped file with addresses, and the environment of this process instead of an installation."""
    shipped = yaml.safe_load((ROOT / "cluster/config.yaml").read_text())
    shipped["provider"].update(head_ip=HEAD, worker_ips=WORKERS)
    # Where all nodes have few cores the head is to have none of the run's.
    shipped["head_start_ray_commands"][-1] += " --num-cpus=0"
    venv = "~/mtray-venv"
    packages = f"{venv}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    program = "from ray.scripts.scripts import main; main()"
    installed = [
        f"{sys.executable} -m venv --without-pip {venv}",
        f"(cd ~/mtray; pwd; printf '%s\\n' {' '.join(libraries())}) > {packages}/beside.pth",
        f"printf '#!%s\\n%s\\n' {venv}/bin/python '{program}' > {venv}/bin/ray; chmod +x {venv}/bin/ray",
    ]
    is_install = [
        command.startswith((f"python3 -m venv {venv}", f"{venv}/bin/pip install"))
        for command in shipped["setup_commands"]
    ]
    assert is_install == [True, True, False, False]
    shipped["setup_commands"][:2] = installed
    return shipped


class Cluster:
    """The machines, and the user who types commands on another one."""

    def __init__(self, process):
        self._network, self.machines = process, {}
        self.user = Machine(process, "user", "10.77.0.10", (str(ROOT),))
        self.user.run("mkdir -p .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
        for address in ADDRESSES:
            self.start(address)
        self.user.path(CONFIG).write_text(yaml.safe_dump(config()))

    @property
    def head(self):
        return self.machines[HEAD]

    def start(self, address):
        machine = self.machines[address] = Machine(self._network, f"node{address[-1]}", address, (str(ROOT),))
        key = self.user.path(f"/home/{USER}/.ssh/id_ed25519.pub").read_text().strip()
        machine.run(f"mkdir -p .ssh; echo '{key}' > .ssh/authorized_keys")

    def command(self, command):
        return f"cd {ROOT}; export PATH={sys.prefix}/bin:$PATH; {command}"

    def type(self, command, timeout=240):
        """Run a command of the user and return what it prints."""
        began = time.monotonic()
        output = self.user.run(self.command(command), timeout=timeout)
        say(f"$ {command}", f"{time.monotonic() - began:.0f} s")
        return output

    def wait_alive(self, *addresses, since=0.0, timeout=150):
        """Wait until just these nodes are alive; return when that was, in seconds of the clock."""

        def last():
            lines = [line for line in self.watched() if float(line[1]) > since]
            return float(lines[-1][1]) if lines and lines[-1][2:] == sorted(addresses) else None

        return wait_for(last, timeout)

    def watched(self):
        lines = self.head.path(f"/home/{USER}/watched").read_text().splitlines()
        return [line.split() for line in lines if line.startswith("alive")]

    def frames(self, run):
        """Return the frames of a run's last line of figures."""
        path = self.head.path(f"/home/{USER}/runs/{run}/metrics.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["frames"] if lines else 0

    def events(self, run):
        text = self.head.path(f"/home/{USER}/runs/{run}/events.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def wait_for(condition, timeout):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.5)
    return found


def test_machines_end_with_the_process_that_made_them(tmp_path):
    """Even if it is killed: the pipe that the first process of their namespaces reads from ends."""
    script = (
        "import time; from tests.nodes import *\n"
        "with network() as made: print(Machine(made, 'node', '10.77.0.11').pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        first = int(process.stdout.readline())
        assert psutil.pid_exists(first)
        process.kill()
    wait_for(lambda: not psutil.pid_exists(first), 5)


@pytest.fixture(scope="module")
def cluster():
    with network() as process:
        cluster = Cluster(process)
        cluster.type("(umask 077; ray get-auth-token --generate) >/dev/null")
        cluster.type(f"ray up {CONFIG} --yes")
        began = time.time()
        cluster.head.path(f"/home/{USER}/watch.py").write_text(WATCH)
        with cluster.head.path(f"/home/{USER}/watched").open("w") as watched:
            cluster.head.popen("bash -lic 'exec python watch.py'", stdout=watched)
        say("all nodes alive", f"{cluster.wait_alive(*ADDRESSES) - began:.0f} s after ray up")
        yield cluster


def test_the_token_lies_on_every_machine_and_only_its_owner_reads_it(cluster):
    paths = [machine.path(f"/home/{USER}/.ray/auth_token") for machine in (cluster.user, *cluster.machines.values())]
    assert len({path.read_text() for path in paths}) == 1
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}


def test_the_open_ports_are_those_that_the_file_names(cluster):
    named = [
        range(int(first), int(last or first) + 1)
        for first, last in re.findall(r"^# +(\d+)(?:-(\d+))?  ", (ROOT / "cluster/config.yaml").read_text(), re.M)
    ]
    for machine in cluster.machines.values():
        # Without sshd's.
        lines = machine.run("ss -Hltn").split("\n")
        listening = {tuple(line.split()[3].rsplit(":", 1)) for line in lines if line}
        others = {int(port) for host, port in listening if host not in ("127.0.0.1", "[::1]")} - {22}
        assert others, listening
        assert {port for port in others if not any(port in ports for ports in named)} == set()


def test_a_stranger_is_kept_out(cluster):
    """Another account has no token: neither its node nor its driver nor its client gets in."""
    commands = (
        f"ray start --address={HEAD}:6379",
        f"python -c 'import ray; ray.init(\"{HEAD}:6379\")'",
        f"python -c 'import ray; ray.init(\"ray://{HEAD}:10001\")'",
    )
    tried = [cluster.user.popen(cluster.command(f"cd; timeout 90 {command}"), user="root") for command in commands]
    for process in tried:
        output, _ = process.communicate()
        assert process.returncode not in (0, 124), output
        assert "Authentication token is missing or incorrect" in output or "connection timeout" in output, output
    assert cluster.watched()[-1][2:] == list(ADDRESSES)


def test_submit_exec_attach_and_rsync_down(cluster):
    output = cluster.type(f"ray submit {CONFIG} mtray/launch.py {LAUNCH} --total-frames 2000 --run-dir runs/first")
    assert "finished: " in output
    cluster.type(f"ray rsync-down {CONFIG} '~/runs/first/' ~/first/")
    assert json.loads(cluster.user.path(f"/home/{USER}/first/summary.json").read_text())["frames"] >= 2000
    assert "mtray/mtray/__init__.py" in cluster.type(
        f"ray exec {CONFIG} 'python -c \"import mtray; print(mtray.__file__)\"'"
    )
    # `attach` is a shell on a terminal: `script` gives it one.
    shell = f"(sleep 3; echo 'hostname; exit') | script -qec 'ray attach {CONFIG}' /dev/null"
    assert "node1" in cluster.type(shell)


def test_a_job_is_submitted_through_the_forwarded_dashboard(cluster):
    forward = cluster.user.popen(cluster.command(f"ray dashboard {CONFIG}"), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: "8265" in cluster.user.run("ss -Hltn"), 30)
        job = "python -c \"import ray; ray.init(); print(len(ray.nodes()), 'nodes')\""
        output = cluster.type(f"RAY_AUTH_MODE=token ray job submit --address http://localhost:8265 -- {job}")
    finally:
        cluster.user.run("pkill --full 8265:[l]ocalhost")
        forward.wait()
    assert "3 nodes" in output
    assert "succeeded" in output


@pytest.fixture(scope="module")
def run(cluster):
    """Return the name of a job that goes on until the cluster is taken down; only the head has its task's module."""
    folder = cluster.head.path(f"/home/{USER}/tasks")
    folder.mkdir()
    (folder / "only_here.py").write_text(
        "from mtray.testing import CountingMaker\ncounting = CountingMaker(truncate_after=50)\n"
    )
    launch = f"cd ~/tasks && python -m mtray.launch {LONG} --run-dir ~/runs/long"
    cluster.type(f"ray exec {CONFIG} 'ray job submit --submission-id long --no-wait -- sh -c \"{launch}\"'")
    wait_for(lambda: cluster.frames("long"), 120)
    wait_for(lambda: all(there(cluster).values()), 60)
    return "long"


def there(cluster):
    """Return the nodes of learner, replay and collectors."""
    found = {"Learner": [], "Replay": [], "Collector": []}
    for address, machine in cluster.machines.items():
        for part in parts(machine):
            found[part].append(address)
    return found


def goes_on(cluster, run, timeout=90):
    before = cluster.frames(run)
    wait_for(lambda: cluster.frames(run) > before, timeout)


def told(cluster, run, event, part=None, after=0):
    """Return the events of a kind after the first so many."""
    events = cluster.events(run)[after:]
    return [each for each in events if each["event"] == event and part in (None, each.get("part"))]


def test_learner_and_replay_share_a_node_and_collectors_take_the_cores_of_the_others(cluster, run):
    where = there(cluster)
    say("on the nodes", where)
    assert where["Learner"] == where["Replay"]
    assert where["Learner"] != [HEAD], "a head without CPUs runs none of them"
    wait_for(lambda: len(there(cluster)["Collector"]) == 2, 60)
    assert set(there(cluster)["Collector"]) == set(WORKERS) - set(where["Learner"])
    output = cluster.type(f"ray exec {CONFIG} 'ray job logs {run}'")
    assert f"learner and replay on {where['Learner'][0]}; collectors: " in output


def test_a_short_cut_restarts_nothing(cluster, run):
    """Ten seconds for either node, twenty for the learner's."""
    seen, events = cluster.watched(), cluster.events(run)
    learner, others = there(cluster)["Learner"][0], there(cluster)["Collector"][0]
    for address, seconds in ((others, 10), (learner, 20)):
        cluster.machines[address].cut()
        time.sleep(seconds)
        cluster.machines[address].heal()
    time.sleep(30)
    goes_on(cluster, run)
    assert cluster.watched() == seen
    usual = {"save", "unreached", "spread", "evaluated", "evaluation_failed"}
    others = [e for e in cluster.events(run)[len(events) :] if e["event"] not in usual]
    assert others == []


def test_a_drained_node_is_left_before_it_goes(cluster, run):
    count = len(cluster.events(run))
    victim = there(cluster)["Collector"][0]
    drain = (
        "import time, ray; from ray._raylet import GcsClient; from ray.core.generated import autoscaler_pb2\n"
        "ray.init(address='auto', logging_level='ERROR')\n"
        "[node] = [n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == '%s']\n"
        "reason = autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION')\n"
        "address = ray.get_runtime_context().gcs_address\n"
        "print(GcsClient(address=address).drain_node(node, reason, 'preempted', int((time.time() + 40) * 1000)))\n"
    )
    cluster.head.path(f"/home/{USER}/drain.py").write_text(drain % victim)
    assert "True" in cluster.head.run("bash -lic 'python drain.py'")
    wait_for(lambda: len(told(cluster, run, "left", after=count)) == 2, 30)
    assert not told(cluster, run, "death", after=count)
    cluster.machines[victim].kill()
    cluster.start(victim)
    began = time.time()
    say(f"node is back {cluster.wait_alive(*ADDRESSES, since=began) - began:.1f} s after its machine")
    goes_on(cluster, run)
    assert victim in there(cluster)["Collector"]


def test_a_node_that_is_killed_is_noticed_and_costs_no_more_than_its_share(cluster, run):
    """Here that is all collectors: the run waits for room, and goes on once there is some."""
    victim, learner = there(cluster)["Collector"][0], there(cluster)["Learner"][0]
    began = time.time()
    cluster.machines[victim].kill()
    noticed = cluster.wait_alive(HEAD, learner, since=began) - began
    say(f"killed node noticed after {noticed:.1f} s")
    assert noticed < 30
    began = time.time()
    cluster.start(victim)
    say(f"node is back {cluster.wait_alive(*ADDRESSES, since=began) - began:.1f} s after its machine")
    goes_on(cluster, run)
    assert there(cluster)["Learner"] == [learner], "whom nothing happened to"


def test_the_learners_node_is_lost_and_another_takes_its_place(cluster, run):
    count, victim = len(cluster.events(run)), there(cluster)["Learner"][0]
    [other] = set(WORKERS) - {victim}
    began = time.time()
    cluster.machines[victim].cut()
    noticed = cluster.wait_alive(HEAD, other, since=began) - began
    say(f"cut-off node noticed after {noticed:.1f} s")
    assert noticed < 30
    # No core is free elsewhere: collectors give theirs.
    wait_for(lambda: len(told(cluster, run, "restored", after=count)) == 2, 150)
    say(f"learner and replay are back {time.time() - began:.1f} s after the cut")
    replay = told(cluster, run, "restored", "the replay", after=count)[-1]
    say("the replay is back from", replay["source"], "with", replay["cause"])
    assert replay["source"] == "checkpoint"
    # The processes on the machine without a link go on, for all that its cluster knows.
    assert other in there(cluster)["Learner"]
    cluster.machines[victim].heal()
    began = time.time()
    say(f"node is back {cluster.wait_alive(*ADDRESSES, since=began) - began:.1f} s after its link")
    goes_on(cluster, run, timeout=120)


def test_nothing_is_left_after_ray_down(cluster, run):
    cluster.type(f"ray down {CONFIG} --yes")
    began = time.monotonic()

    def left():
        return {address: found for address, machine in cluster.machines.items() if (found := machine.commands())}

    while time.monotonic() - began < 90 and left():
        time.sleep(1)
    assert left() == {}
    say(f"nothing left {time.monotonic() - began:.0f} s after ray down")


def parts(machine):
    return sorted(part for line in machine.commands() for part in re.findall(r"^ray::(Collector|Learner|Replay)", line))
