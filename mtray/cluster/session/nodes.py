"""The nodes of a cluster: which there are, and which of them a process of the run should be on.

The learner and the replay are on one node, since every batch goes from one to the other: one with a GPU if the learner
computes on one, else the driver's, else the one with most free cores. Their cores stay theirs, so that the next process
of either finds room where the memory of the rings is. Collectors go where most cores are free.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

# How long a core that was promised to a collector counts as taken although Ray reports it as free.
_REPORT_SECONDS = 10.0
# How long what was seen of the nodes serves for collectors that are started one after the other, up to a thousand.
_SEEN_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        id: Ray's.
        address: by which other nodes reach it.
        cpus: logical CPUs in all.
        free_cpus: those that nobody has.
        gpus: in all.
        is_draining: whether it will go soon; nothing is started there.
    """

    id: str
    address: str = ""
    cpus: float = 0.0
    free_cpus: float = 0.0
    gpus: float = 0.0
    is_draining: bool = False


def look() -> list[Node]:
    """Return the nodes that are alive."""
    import ray
    from ray._private.state import state

    free = state.available_resources_per_node()
    draining = state.get_draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            free_cpus=free.get(node["NodeID"], {}).get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            is_draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def choose_home(nodes: Sequence[Node], cpus: float, driver: str, *, needs_gpu: bool) -> Node | None:
    """Return the node for learner and replay; None if none has room for both."""
    fit = [
        node
        for node in nodes
        if not node.is_draining and node.free_cpus >= 2 * cpus and (node.gpus >= 1 or not needs_gpu)
    ]
    # A GPU that is not needed is left to others.
    return max(fit, key=lambda node: (node.id == driver, -node.gpus, node.free_cpus, node.id), default=None)


def roomiest(nodes: Sequence[Node], taken: Counter[str], cpus: float) -> Node | None:
    """Return the node with most free cores, less those taken; None if no node has a collector's."""
    fit = [(node.free_cpus - cpus * taken[node.id], node.id, node) for node in nodes if not node.is_draining]
    free, _, node = max(fit, key=lambda entry: entry[:2], default=(0.0, "", None))
    return node if free >= cpus else None


def room(nodes: Sequence[Node], cpus: float, used: Counter[str]) -> int:
    """Return how many collectors there is room for.

    Args:
        nodes: of the cluster.
        cpus: that each takes.
        used: collectors of the run by node.
    """
    return sum(used[node.id] + int(node.free_cpus / cpus + 1e-6) for node in nodes if not node.is_draining)


class Placement:
    """Where the processes of a run on a joined cluster are started."""

    def __init__(self, cpus: float, *, needs_gpu: bool) -> None:
        """Reserve nothing yet.

        Args:
            cpus: logical CPUs that each process takes.
            needs_gpu: whether the learner takes a GPU.
        """
        self._cpus, self._needs_gpu = cpus, needs_gpu
        self._group: Any = None
        # Those before it, in which a process of the run may live: Ray ends all that a group holds when it is removed.
        self._left: list[Any] = []
        self._promised: list[tuple[float, str]] = []
        self._seen: tuple[float, list[Node]] = -_SEEN_SECONDS, []

    def options(self, kind: str) -> dict[str, Any]:
        """Return Ray's options for a process: a learner, a replay or a collector."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": self._cpus}
        if kind != "collector":
            if self._group is None or self._is_lost():
                self._reserve()
            if kind == "learner" and self._needs_gpu:
                options["num_gpus"] = 1
            return options | {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group)}
        now = time.monotonic()
        self._promised = [(when, node) for when, node in self._promised if when > now - _REPORT_SECONDS]
        if now >= self._seen[0] + _SEEN_SECONDS:
            self._seen = now, look()
        node = roomiest(self._seen[1], Counter(node for _, node in self._promised), self._cpus)
        if node is None:
            # It waits for room, which an autoscaler sees.
            return options | {"scheduling_strategy": "SPREAD"}
        self._promised.append((now, node.id))
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=True, _spill_on_unavailable=True)
        return options | {"scheduling_strategy": strategy}

    def beside(self) -> dict[str, Any]:
        """Return Ray's options for a process that takes no room: where most cores are free."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        fit = [node for node in look() if node.cpus >= 1 and not node.is_draining]
        node = max(fit, key=lambda node: (node.free_cpus, node.cpus, node.id), default=None)
        where = {} if node is None else {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=True)}
        return {"num_cpus": 0, **where}

    def _reserve(self) -> None:
        import ray
        from ray.util import placement_group

        found = look()
        if self._group is not None:
            self._leave_group(found)
        home = choose_home(found, self._cpus, ray.get_runtime_context().get_node_id(), needs_gpu=self._needs_gpu)
        gpu = {"GPU": 1.0} if self._needs_gpu else {}
        if home is not None:
            both = {"CPU": 2 * self._cpus, **gpu}
            self._group = placement_group([both], strategy="STRICT_PACK", _soft_target_node_id=home.id)
        else:
            # Wherever there is room, or comes.
            bundles = [{"CPU": self._cpus, **gpu}, {"CPU": self._cpus}]
            self._group = placement_group(bundles, strategy="PACK")

    def _is_lost(self) -> bool:
        """Return whether what was reserved lies on a node that is gone or will go."""
        alive = {node.id for node in look() if not node.is_draining}
        return any(node and node not in alive for node in self._group_nodes())

    def _group_nodes(self) -> Collection[str]:
        from ray.util import placement_group_table

        nodes: Collection[str] = placement_group_table(self._group)["bundles_to_node_id"].values()
        return nodes

    def _leave_group(self, found: Sequence[Node]) -> None:
        """Keep what is reserved for who is there still; give it back if all of its nodes are gone."""
        there = {node.id for node in found}
        if any(node in there for node in self._group_nodes()):
            self._left.append(self._group)
        else:
            _remove(self._group)
        self._group = None

    def release(self) -> None:
        """Give back what is reserved."""
        groups, self._left = [*self._left, self._group], []
        self._group = None
        for group in groups:
            if group is not None:
                _remove(group)


def _remove(group: Any) -> None:
    from ray.util import remove_placement_group

    with contextlib.suppress(Exception):
        remove_placement_group(group)
