"""The files of cluster/ for AWS, Kubernetes and Slurm, as far as this machine can try them."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.nodes import Machine, network

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"


def read(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Yield Ray's module for AWS, with a stand-in for AWS."""
    moto = pytest.importorskip("moto")
    # Ray keeps the key that it makes there.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        from ray.autoscaler._private.aws import config, utils

        # For AWS to know a new role.
        monkeypatch.setattr(config.time, "sleep", lambda _: None)
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        yield config
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_aws_passes_ray_s_schema_and_preparation(aws):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = read("aws.yaml")[0]
    prepared = prepare_config(copy.deepcopy(written))
    validate_config(prepared)
    ready = aws.bootstrap_aws(prepared)
    learner, collectors = (ready["available_node_types"][name] for name in ("learner", "collectors"))
    assert ready["head_node_type"] == "learner"
    assert "InstanceMarketOptions" not in learner["node_config"]
    assert collectors["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for kind in (learner, collectors):
        assert kind["node_config"]["SubnetIds"]
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["KeyName"]
    assert ready["head_node"]["IamInstanceProfile"]
    sized = AWSNodeProvider.fillout_available_node_types_resources(ready)["available_node_types"]
    assert sized["learner"]["resources"]["GPU"] == 1
    assert sized["collectors"]["resources"]["CPU"] == 16
    assert "GPU" not in sized["collectors"]["resources"]


def test_aws_and_config_start_ray_alike():
    """What was tried on machines of this one holds on AWS: the token, the path and the health checks."""
    here, there = read("config.yaml")[0], read("aws.yaml")[0]
    assert there["file_mounts"] == here["file_mounts"]
    assert there["setup_commands"][1:] == here["setup_commands"]

    def settings(config):
        return set(re.findall(r"RAY_health\S+|--dashboard-host\S+|--port\S+", config["head_start_ray_commands"][1]))

    assert settings(there) == settings(here)


def test_kuberay_has_the_fields_that_its_definition_requires():
    """Required fields as of KubeRay's ray.io/v1, and the token and restarts that the run relies on."""
    claim, job = read("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["backoffLimit"] > 0
    assert "--resume auto" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == _ray_version()
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert {"groupName", "minReplicas", "maxReplicas", "template"} <= set(workers)
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["name"]
        assert container["image"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    (volume,) = head["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    run_dir = Path(re.search(r"--run-dir (\S+)", spec["entrypoint"])[1])
    mounts = [Path(mount["mountPath"]) for mount in head["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert run_dir.parent in mounts


def _ray_version():
    import ray

    return ray.__version__


def test_the_image_holds_what_the_package_is_built_from():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"mtray", "pyproject.toml", "README.md", "LICENSE"} == set(copied)
    mounted = read("config.yaml")[0]["file_mounts"].values()
    assert set(copied) == {path for path in mounted if not path.startswith("~")}


# Starts its command on each machine at once, as Slurm's does; ends with the highest exit code.
SRUN = """#!/bin/bash
for pid in $MACHINES; do
    nsenter --target=$pid --all --root -- env --chdir=/srv "$@" &
    jobs="$jobs $!"
done
code=0
for job in $jobs; do wait $job || code=$?; done
exit $code
"""


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_slurm_runs_on_all_machines_resumes_and_saves_when_it_is_preempted(tmp_path):
    addresses = ("10.77.0.11", "10.77.0.12", "10.77.0.13")
    with network() as made:
        machines = [Machine(made, f"node{address[-1]}", address, (str(ROOT),)) for address in addresses]
        (tmp_path / "srun").write_text(SRUN)
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(addresses)}\n")
        for program in ("srun", "scontrol"):
            (tmp_path / program).chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PYTHONPATH": str(ROOT),
            "MACHINES": " ".join(str(machine.pid) for machine in machines),
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_ON_NODE": "2",
            "SLURM_JOB_ID": "7",
        }
        light = ["--tasks", "cartpole-balance", "--workers", "4", "--learner.updates-per-step", "0.05"]
        light += ["--run.evaluate-every", "0"]
        first = subprocess.run(
            [CLUSTER / "slurm.sh", *light, "--total-frames", "2000"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=250,
        )
        assert first.returncode == 0, first.stdout
        assert "finished: " in first.stdout, first.stdout
        run_dir = machines[0].path("/srv/runs/7")
        frames = [json.loads(line)["frames"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        # A job goes on from there and is preempted: every process on every machine gets SIGTERM, and the run saves.
        with subprocess.Popen(
            [CLUSTER / "slurm.sh", *light, "--total-frames", "100000000"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as job:
            for line in job.stdout:
                if int((re.search(r"([\d,]+)/100,000,000", line) or ("", "0"))[1].replace(",", "")) > frames[-1]:
                    break
            for machine in machines:
                end = ["bash", "-c", "kill -TERM -1"]
                subprocess.run(["nsenter", f"--target={machine.pid}", "--all", "--root", "--", *end], check=False)
            rest = job.stdout.read()
            assert job.wait(120) == 0, rest
        assert "interrupted: " in rest, rest
        events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
        assert events[-1]["event"] == "end"
        assert [event["event"] for event in events].count("end") == 2
        frames_of_both = [json.loads(line)["frames"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert frames_of_both[: len(frames)] == frames
        assert frames_of_both == sorted(frames_of_both)
        assert [event["frames"] for event in events if event["event"] == "save"][-1] > frames[-1]
        assert [event for event in events if event["event"] == "death"] == []
        for machine in machines:
            assert [line for line in machine.commands() if "ray" in line] == []
