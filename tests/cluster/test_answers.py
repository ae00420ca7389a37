"""What is said of a node with other versions than the driver's."""

from mtray.cluster.actors.hello import Hello
from mtray.cluster.answers import differences
from mtray.cluster.control.protocol import Part
from mtray.rundir.directory import versions

COLLECTOR = Part("collector", 2)


def test_versions_that_differ_are_named_in_one_line():
    here = versions()
    assert differences(COLLECTOR, Hello(1, None, "0a", "10.0.0.3", here)) is None
    there = {**here, "mujoco": "3.1.0"}
    del there["torch"]
    text = differences(COLLECTOR, Hello(1, None, "0a", "10.0.0.3", there))
    assert text == (
        f"collector 2 on 10.0.0.3 has mujoco 3.1.0 (here {here['mujoco']}), torch missing (here {here['torch']}): "
        "install the same on every node"
    )


def test_python_and_every_package_that_must_agree_are_compared():
    assert versions().keys() >= {"python", "mtray", "torch", "tensordict", "mujoco", "dm_control", "numpy"}
