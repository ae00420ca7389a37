"""Ray's own autoscaler, with nodes that it starts on this machine: a run brings them, and they go when it has ended.

In a namespace of its own: Ray's helper ends every Ray that it sees.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SCRIPT = """
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

# Not the whole of /tmp, where this environment may lie.
os.makedirs("/tmp/ray", exist_ok=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp/ray"], check=True)
os.environ["TMPDIR"] = "/tmp/ray"
os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
import ray
from ray.autoscaler._private import fake_multi_node
from ray.cluster_utils import AutoscalingCluster

# A file that this provider reads, and that Ray's wheel lacks: in this namespace a copy hides the folder.
folder = Path(fake_multi_node.__file__).parent
shutil.copytree(folder, "/tmp/ray/fake")
defaults = {
    "cluster_name": "here", "max_workers": 4, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1, "docker": {},
    # Its nodes share an address, and have no ssh.
    "provider": {
        "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {"ssh_user": "nobody"}, "available_node_types": {},
    "head_node_type": "ray.head.default", "file_mounts": {}, "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [], "setup_commands": [],
    "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
Path("/tmp/ray/fake/example.yaml").write_text(json.dumps(defaults))
subprocess.run(["mount", "--bind", "/tmp/ray/fake", str(folder)], check=True)

nodes = {"resources": {"CPU": 2, "object_store_memory": 2**28}, "node_config": {}, "min_workers": 0, "max_workers": 4}
cluster = AutoscalingCluster({"CPU": 0}, {"cpu": nodes}, idle_timeout_minutes=0.1, max_workers=4)
cluster.start()
ray.init("auto", log_to_driver=False)
began, samples = time.monotonic(), []

def sample():
    alive = sum(node["Alive"] for node in ray.nodes()) - 1
    if not samples or samples[-1][1] != alive:
        samples.append((round(time.monotonic() - began, 1), alive))
    return alive

run_dir = Path(tempfile.mkdtemp()) / "run"
events = run_dir / "events.jsonl"
sample()
with open("/tmp/ray/log", "w") as log:
    launch = subprocess.Popen(
        [sys.executable, "-m", "mtray.launch", "--address", ray.get_runtime_context().gcs_address, "--workers", "3",
         "--tasks", "cartpole-swingup", "reacher-easy", "--envs-per-task", "2", "--learner.updates-per-step", "0.02",
         "--learner.batch-rows", "32", "--learner.warmup-steps", "200", "--run.log-seconds", "1",
         "--run.evaluate-every", "0", "--total-frames", sys.argv[1], "--run-dir", str(run_dir)], stdout=log, stderr=log)
    while launch.poll() is None and time.monotonic() < began + 200:
        sample()
        time.sleep(0.5)
ended = time.monotonic()
while sample() and time.monotonic() < ended + 120:
    time.sleep(0.5)
print(json.dumps({
    "code": launch.poll(), "samples": samples, "log": open("/tmp/ray/log").read()[-3000:],
    "events": [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else [],
}))
"""


def test_a_run_brings_nodes_and_they_go_when_it_has_ended():
    command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", SCRIPT]
    ended = subprocess.run([*command, "300000"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["code"] == 0, found["log"]
    counts = [count for _, count in found["samples"]]
    # Three collectors, replay and learner: the autoscaler starts a node of two cores at a time, or two.
    assert counts[0] == 0
    assert max(counts) >= 2, found["samples"]
    assert counts[-1] == 0, f"idle nodes have not gone: {found['samples']}"
    up = {event["part"] for event in found["events"] if event["event"] == "up"}
    assert up == {"the replay", "the learner", "collector 0", "collector 1", "collector 2"}
    waited = [event["part"] for event in found["events"] if event["event"] in ("death", "failure")]
    assert waited == [], "waiting for room is no death"
