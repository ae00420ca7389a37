"""A simulated cluster: whole runs of control on a virtual clock, with faults of every kind, all from one seed.

    python -m tests.cluster.control.simulation 17          # play seed 17 and print what happened, event by event
    python -m tests.cluster.control.simulation 0:100000    # play many; prints what fails

The world holds the truth: what the replay has, what the learner made, what was written. After every event it is held
against what control believes (`World.check`), and at the end of a run against what the run promised. Processes work on
their calls in order, as actors do; the network delays, reorders and repeats answers, or loses them.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from mtray.cluster.control.free import Control
from mtray.cluster.control.lockstep import Lockstep
from mtray.cluster.control.parts.actor import Limits, Phase
from mtray.cluster.control.plan import CALLS, Plan, Spread
from mtray.cluster.control.protocol import (
    Answered,
    Call,
    Collected,
    Counts,
    Draining,
    End,
    Failed,
    Failure,
    Kill,
    Method,
    Part,
    Place,
    Restored,
    Room,
    SetAside,
    Start,
    Stop,
    Tell,
)
from mtray.replay.pacing import Pacing

# No run may stand still for longer: a hung call's deadline, a start's, and the pauses between.
STANDSTILL_SECONDS = 2500.0
# No task may be left for longer where tasks are spread over the collectors that are there.
STARVING_SECONDS = 150.0
# Nor may one that is set aside be stepped for longer.
ASIDE_SECONDS = 200.0
LIMITS = Limits(start_seconds=60.0, call_seconds=120.0, give_up_seconds=600.0, stop_seconds=10.0)


# Fault to the most that it happens: per call, per start, or per virtual second.
FAULTS = {
    # Per call.
    "unavailable": 0.1, "never": 0.01, "twice": 0.2, "late": 0.2, "lost_push": 0.2, "task_error": 0.02, "raised": 0.01,
    "rebuilt": 0.1,
    "disk_full": 0.5, "input": 0.002,
    # Per start.
    "build_raises": 0.3, "build_dies": 0.5, "build_hangs": 0.2, "task_in_build": 0.05,
    # Per second and process.
    "dies": 0.02, "hangs": 0.01, "slow": 0.02, "core_dies": 0.02, "core_hangs": 0.005, "link_down": 0.02,
    # Per second.
    "node_goes": 0.01,
    # Per second, where collectors come and go.
    "node_drains": 0.02,
    # Per death of the replay; per write under way then.
    "memory_lost": 2.0, "write_broken": 4.0,
}  # fmt: skip


class Broken(AssertionError):
    """A law of control does not hold."""


@dataclass(frozen=True)
class Scenario:
    """What happens in one run, all drawn from a seed.

    Attributes:
        rates: fault to how often it happens: per call, or per virtual second and part.
        faults_end: virtual second after which nothing fails any more, so that the run must end.
        sets_aside: whether a task that fails is set aside.
        broken_task: a task whose code raises from ``broken_at`` on, always; None if there is none.
    """

    shares: tuple[tuple[str, ...], ...]
    frames_of_a_task: int
    total_frames: int
    checkpoint_frames: int
    updates_per_step: float
    warmup: int
    capacity: int
    slack_rounds: float
    lockstep: bool
    shares_cluster: bool
    nodes: int
    room: int
    rates: dict[str, float]
    faults_end: float
    stop_at: float | None
    kill_driver_at: float | None
    saves_rows: bool
    sets_aside: bool
    broken_task: str | None
    broken_at: float
    elastic: str
    least_share: float
    # A place whose processes can't be built, from when until when.
    unfit: tuple[int, float, float]
    # Whether the stop is that of a run whose time is over, and after how many seconds another one follows.
    stop_is_due: bool
    stop_again: float | None
    checkpoint_seconds: float
    # Seconds that a write takes, at most.
    write_seconds: float


def draw(generator: random.Random, extra: random.Random) -> Scenario:
    """A run that could be; what was added later is drawn from ``extra``, so that a seed's run stays what it was."""
    tasks = [f"t{i}" for i in range(generator.randint(1, 4))]
    workers = generator.choice([1, 1, 2, 2, 3, 4, 8])
    if len(tasks) > 1 and workers > 1 and generator.random() < 0.4:
        shares = [tuple(tasks[i::workers]) for i in range(workers)] if workers <= len(tasks) else None
        shares = shares or [(tasks[i % len(tasks)],) for i in range(workers)]
    else:
        shares = [tuple(tasks)] * workers
    lockstep = generator.random() < 0.1
    calm = generator.random() < 0.2

    rates = {
        fault: 0.0 if calm or generator.random() < 0.5 else largest * generator.random() ** 2
        for fault, largest in FAULTS.items()
        if fault != "node_drains"
    }
    drains = 0.0 if calm or extra.random() < 0.5 else FAULTS["node_drains"] * extra.random() ** 2
    rates["node_drains"] = drains
    size = generator.choice([1, 2, 16, 32])
    total = size * generator.choice([1, 7, 40, 120]) * len(tasks)
    nodes = generator.randint(1, 3)
    room = workers + 2 if generator.random() < 0.7 else generator.randint(3, max(3, workers + 1))
    warmup = generator.choice([0, 1, size, size * 5, size * 30])
    shares_cluster = generator.random() < 0.5
    is_elastic = shares_cluster and not lockstep and extra.random() < 0.6
    elastic = extra.choice(["fixed", "auto"]) if is_elastic else ""
    room = extra.randint(2 if nodes > 1 else 3, max(3, workers)) if is_elastic else room
    # Rounds keep one ratio.
    least_share = 1.0 if lockstep else extra.choice([1.0, 1.0, 0.5, 0.01])
    unfit = (-1, 0.0, 0.0)
    if is_elastic and not calm and extra.random() < 0.2:
        begin = extra.choice([0.0, extra.uniform(0, 100)])
        unfit = extra.randrange(workers), begin, begin + extra.uniform(100, 2000)
        # Long enough to see what becomes of what it stepped.
        total *= 3
        shares = [tuple(tasks[i::workers]) or (tasks[i % len(tasks)],) for i in range(workers)]
    return Scenario(
        shares=tuple(shares),
        frames_of_a_task=size,
        total_frames=total,
        checkpoint_frames=generator.choice([10**9, total // 2 + 1, total // 7 + 1]),
        updates_per_step=generator.choice([0.0, 0.05, 0.5, 1.0, 4.0]),
        warmup=warmup,
        capacity=generator.choice([10**6, max(2 * size, 4)]),
        slack_rounds=generator.choice([1.0, 1.25, 4.0]),
        lockstep=lockstep,
        shares_cluster=shares_cluster,
        elastic=elastic,
        nodes=nodes,
        room=room,
        rates=rates,
        faults_end=generator.choice([0.0, 30.0, 300.0, 1500.0]),
        stop_at=generator.uniform(0, 60) if generator.random() < 0.25 else None,
        kill_driver_at=generator.uniform(0, 60) if generator.random() < 0.1 else None,
        saves_rows=generator.random() < 0.6,
        sets_aside=generator.random() < 0.7,
        broken_task=generator.choice(tasks) if generator.random() < 0.15 else None,
        broken_at=generator.uniform(0, 100),
        least_share=least_share,
        unfit=unfit,
        stop_is_due=extra.random() < 0.4,
        stop_again=extra.uniform(0, 20) if extra.random() < 0.2 else None,
        checkpoint_seconds=math.inf if lockstep else extra.choice([math.inf, math.inf, 5.0, 60.0]),
        # Less than a call may take.
        write_seconds=extra.choice([20.0, 20.0, 20.0, 110.0]),
    )


@dataclass
class Saved:
    """A checkpoint, as far as control has to do with it."""

    frames: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] | None = None
    updates: int = 0
    pacing: Pacing | None = None
    # Of this run only: what its collectors pushed.
    sources: Counter[Part] = field(default_factory=Counter)
    seen: set[tuple[Part, int]] = field(default_factory=set)
    # Whether frames or rows that were learned from are lost, so that there may be more updates than pacing allows.
    may_be_ahead: bool = False


@dataclass
class Process:
    """One process of the run."""

    part: Part
    node: int
    speed: float = 1.0
    is_alive: bool = True
    is_hung: bool = False
    is_built: bool = False
    queue: list[Call] = field(default_factory=list)
    is_busy: bool = False
    # The replay's process that it talks to.
    target: Part | None = None
    # Of a collector: pushes without a receipt, the next one's number; who waits for receipts.
    unreceipted: set[int] = field(default_factory=set)
    number: int = 0
    flushing: Call | None = None
    # Of a collector: what it steps, and how often it was built.
    share: tuple[str, ...] = ()
    builds: int = -1
    missing: dict[int, dict[str, int]] = field(default_factory=dict)
    # Of a replay: whether its rows outlive it, and what its build gave.
    keeps_memory: bool = True
    restored: Restored | None = None


class World:
    """One run of control in a world of faults."""

    def __init__(self, seed: int, scenario: Scenario, saved: Saved, control=None, *, log: bool = False) -> None:
        self.generator = random.Random(seed)
        self.scenario = scenario
        self.now = 0.0
        self.lines: list[str] | None = [] if log else None
        self.heap: list = []
        self.sequence = 0
        self.events = 0
        self.ended: End | None = None
        self.told: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        # The truth.
        self.tasks = tuple(dict.fromkeys(task for share in scenario.shares for task in share))
        self.frames = Counter({task: saved.frames[task] for task in self.tasks})
        self.frames_lost, self.rows_lost = 0, False
        self.held = Counter(saved.rows or {})
        self.updates = saved.updates
        self.sources: Counter[Part] = Counter()
        self.requested: Counter[Part] = Counter()
        self.seen: set[tuple[Part, int]] = set()
        self.fenced: set[Part] = set()
        self.fence_answered: set[Part] = set()
        self.begin = sum(saved.frames.values())
        self.processes: dict[Part, Process] = {}
        self.pending: list[Part] = []
        self.targets: dict[Part, Part | None] = {}
        # What each rollout that was pushed had steps of.
        self.pushed: dict[tuple[Part, int], tuple[str, ...]] = {}
        self.draining: set[int] = set()
        self.asked_before, self.known_pacing = 0, None
        self.nodes = [True] * scenario.nodes
        self.link_until: dict[Part, float] = {}
        self.progressed = 0.0
        # When every task was stepped by somebody.
        self.fed = 0.0
        # The learner's state that the driver keeps, the newest it was given.
        self.state_updates = saved.updates
        self.snapshot = saved
        self.saved = replace(saved, sources=Counter(), seen=set())
        self.saves = 0
        # The handle that parts are given, and that of each call; a replay whose rows can be taken over; a checkpoint
        # that is being written.
        self.newest_replay: Part | None = None
        self.handles: dict[int, Part | None] = {}
        self.memory: Process | None = None
        self.writing: Call | None = None
        self.pacing = make_pacing(scenario)
        if saved.pacing is not None:
            lost_rows = saved.rows is None
            self.pacing = self.pacing.resumed(saved.pacing, self.begin, saved.updates, lost_rows=lost_rows)
        self.was_ahead = saved.updates > self.pacing.updates_allowed(self.begin)
        if self.was_ahead and not saved.may_be_ahead:
            raise Broken(f"resumed with {saved.updates} updates at {self.begin} frames by {self.pacing}")
        # What the warm-up's frames may be counted from at most.
        self.warmup_frames = make_pacing(scenario).start_frames
        self.most_frames = max(self.begin, self.pacing.start_frames - self.warmup_frames)
        size = scenario.frames_of_a_task
        plan = Plan(
            places=[Place(task_frames=dict.fromkeys(share, size)) for share in scenario.shares],
            sets_aside=scenario.sets_aside,
            step_frames=dict.fromkeys(self.tasks, 1),
            total_frames=scenario.total_frames,
            checkpoint_frames=scenario.checkpoint_frames,
            checkpoint_seconds=scenario.checkpoint_seconds,
            warmup_frames=self.warmup_frames,
            frames=self.begin,
            updates=saved.updates,
            limits=replace(LIMITS, shares_cluster=scenario.shares_cluster),
            spread=self.spread if scenario.elastic else None,
        )
        self.largest = max(sum(place.task_frames.values()) for place in plan.places)
        if scenario.elastic:
            self.largest = size * len(self.tasks)
        # Tasks that are set aside, and since when.
        self.aside: dict[str, float] = {}
        # In lockstep, whether what the learner drew ahead must be dropped before it learns.
        self.is_cut_due = False
        self.control = (control or (Lockstep if scenario.lockstep else Control))(plan, self.pacing, 0.0)

    def spread(self, collectors: int, aside) -> Spread:
        """Who steps what, as the run began: each everything, or each a part."""
        scenario, tasks = self.scenario, [task for task in self.tasks if task not in aside]
        if all(share == self.tasks for share in scenario.shares):
            shares = [tuple(tasks)] * collectors
        elif collectors <= len(tasks):
            shares = [tuple(tasks[i::collectors]) for i in range(collectors)]
        else:
            shares = [(tasks[i % len(tasks)],) if tasks else () for i in range(collectors)]
        size = scenario.frames_of_a_task
        pacing = make_pacing(replace(scenario, shares=tuple(shares)), len(self.tasks))
        places = [Place(task_frames=dict.fromkeys(share, size)) for share in shares]
        return Spread(places=places, round_frames=pacing.round_frames, slack_frames=pacing.slack_frames)

    # Chance.

    def happens(self, fault: str) -> bool:
        rate = self.scenario.rates[fault]
        happens = rate > 0 and self.now < self.scenario.faults_end and self.generator.random() < rate
        self.faults[fault] += happens
        return happens

    def after(self, seconds: float, action, *arguments) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (self.now + seconds, self.sequence, action, arguments))

    def delay(self) -> float:
        return self.generator.expovariate(500.0) + (self.generator.uniform(0, 30) if self.happens("late") else 0.0)

    def log(self, text: str, *values) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now:10.3f}  {text % values if values else text}")

    # The run.

    def run(self) -> End | None:
        """Play to the end; None if the driver was killed."""
        scenario = self.scenario
        if scenario.stop_at is not None:
            stop = Stop("time is over", is_due=True) if scenario.stop_is_due else Stop("interrupted")
            self.after(scenario.stop_at, self.event, stop)
            if scenario.stop_again is not None:
                self.after(scenario.stop_at + scenario.stop_again, self.event, Stop("interrupted"))
        if any(scenario.rates.values()):
            self.after(1.0, self.second)
        if scenario.elastic == "auto":
            self.after(1.0, self.tell_room)
        self.perform(self.control.start())
        while self.ended is None:
            tick = self.control.next_tick()
            if not self.heap and tick is None:
                raise Broken("nothing is under way and nothing is planned")
            if self.heap and (tick is None or self.heap[0][0] <= tick):
                self.now, _, action, arguments = heapq.heappop(self.heap)
                action(*arguments)
            else:
                self.now = max(tick, self.now)
                self.perform(self.control.tick(self.now))
                self.check()
            if self.now - self.progressed > STANDSTILL_SECONDS:
                raise Broken(f"no progress since {self.progressed:.0f} s")
            if scenario.kill_driver_at is not None and self.now >= scenario.kill_driver_at:
                self.log("the driver is killed")
                return None
        self.check_end()
        return self.ended

    def progress(self) -> None:
        self.progressed = self.now

    def event(self, event) -> None:
        self.events += 1
        self.log("-> %s", event)
        if isinstance(event, Answered):
            call = self.control._calls.get(event.call, (None,))[0]
            if call is not None and call.method is Method.STATE and call.part.kind == "learner":
                self.state_updates = max(self.state_updates, event.value)
        self.perform(self.control.handle(event, self.now))
        self.check()

    def perform(self, commands) -> None:
        for command in commands:
            self.log("<- %s", command)
            match command:
                case Call():
                    self.ask(command)
                case Start():
                    if command.part.kind == "replay":
                        self.newest_replay = command.part
                    self.targets[command.part] = self.newest_replay
                    self.pending.append(command.part)
                    self.place()
                case Kill():
                    self.kill(command.part)
                case SetAside():
                    self.aside[command.task] = self.now
                case Tell():
                    self.told[command.event] += 1
                case End():
                    if self.ended is not None:
                        raise Broken("ended twice")
                    self.ended = command

    # Processes.

    def place(self) -> None:
        """Give processes that wait a node, if one has room."""
        waiting, self.pending = self.pending, []
        for part in waiting:
            used = Counter(process.node for process in self.processes.values() if process.is_alive)
            room = self.scenario.room if self.scenario.shares_cluster else 10**6
            nodes = [i for i, is_up in enumerate(self.nodes) if is_up and i not in self.draining and used[i] < room]
            if not nodes:
                self.pending.append(part)
                continue
            process = Process(part, self.generator.choice(nodes), target=self.targets[part])
            self.processes[part] = process
            self.after(self.generator.uniform(0.5, 3), self.work, process)

    def kill(self, part: Part) -> None:
        if part in self.pending:
            self.pending.remove(part)
        process = self.processes.get(part)
        if process is not None:
            self.die(process, tell=False)

    def die(self, process: Process, *, tell: bool = True, within: float = 1.0) -> None:
        if not process.is_alive:
            return
        self.log("%s dies", process.part)
        process.is_alive = False
        if process.part.kind == "replay" and process.is_built:
            process.keeps_memory &= not self.happens("memory_lost")
            self.memory = process if process.keeps_memory else None
            if self.writing is not None and self.happens("write_broken"):
                call, self.writing = self.writing, None
                self.after(self.delay(), self.fail, call, Failure.PEER)
        if tell:
            for call in self.calls_of(process.part):
                self.after(self.generator.uniform(0, within), self.fail, call, Failure.DIED)
        process.queue.clear()
        self.after(0.01, self.place)

    def calls_of(self, part: Part) -> list[Call]:
        return [call for call, *_ in self.control._calls.values() if call.part == part]

    def second(self) -> None:
        """What may happen in any second."""
        if self.now >= self.scenario.faults_end:
            self.nodes, self.draining = [True] * len(self.nodes), set()
            self.after(0.0, self.place)
            return
        for process in list(self.processes.values()):
            if not process.is_alive:
                continue
            kind = "" if process.part.kind == "collector" else "core_"
            if self.happens(f"{kind}dies"):
                self.die(process)
            elif self.happens(f"{kind}hangs"):
                self.log("%s hangs", process.part)
                process.is_hung = True
            elif self.happens("slow"):
                process.speed = self.generator.choice([0.02, 0.1, 1.0])
            elif self.happens("link_down"):
                self.link_until[process.part] = self.now + self.generator.uniform(0, 40)
        if len(self.nodes) > 1 and self.happens("node_goes"):
            self.node_goes(self.generator.randrange(len(self.nodes)))
        if len(self.nodes) > 1 and self.scenario.elastic and self.happens("node_drains"):
            self.node_drains(self.generator.randrange(len(self.nodes)))
        self.after(1.0, self.second)

    def node_drains(self, node: int) -> None:
        if not self.nodes[node] or node in self.draining:
            return
        self.log("node %d drains", node)
        self.draining.add(node)
        parts = [process.part for process in self.processes.values() if process.node == node and process.is_alive]
        self.after(self.delay(), self.event, Draining(parts))
        self.after(self.generator.uniform(20, 120), self.drained, node)

    def drained(self, node: int) -> None:
        if node in self.draining:
            self.draining.discard(node)
            self.node_goes(node)

    def tell_room(self) -> None:
        """How many collectors there is room for, as far as can be known."""
        up = sum(is_up and i not in self.draining for i, is_up in enumerate(self.nodes))
        count = up * self.scenario.room - 2 + self.generator.choice([0, 0, 0, 1, -1])
        self.event(Room(max(0, min(count, 2 * len(self.scenario.shares)))))
        self.after(5.0, self.tell_room)

    def node_goes(self, node: int) -> None:
        self.log("node %d goes", node)
        self.nodes[node] = False
        for process in list(self.processes.values()):
            if process.node == node:
                process.keeps_memory = False
                self.die(process, within=60.0)
        if self.memory is not None and self.memory.node == node:
            self.memory = None
        self.after(self.generator.uniform(1, 400), self.node_comes, node)

    def node_comes(self, node: int) -> None:
        self.log("node %d comes", node)
        self.nodes[node] = True
        self.place()

    # Calls.

    def ask(self, call: Call) -> None:
        self.handles[call.id] = self.newest_replay
        if call.method is Method.WRITE:
            self.writing = call
            longest = self.generator.choice([0.1, 2.0, self.scenario.write_seconds])
            self.after(longest * self.generator.random(), self.write, call)
            return
        if call.method in (Method.COLLECT, Method.ACT):
            place = self.control.collectors[call.part.place].place
            self.requested[call.part] += sum(place.task_frames.values())
            self.check_pacing()
        process = self.processes.get(call.part)
        if process is not None and not process.is_alive:
            self.after(self.delay(), self.fail, call, Failure.DIED)
            return
        is_down = self.link_until.get(call.part, 0.0) > self.now
        if call.method is not Method.HELLO and (is_down or self.happens("unavailable")):
            self.after(self.delay(), self.fail, call, Failure.UNAVAILABLE)
            # It may run all the same, and its answer may come all the same.
            if self.generator.random() < 0.5:
                return
        if process is None:
            # Until it is placed.
            self.after(0.2, self.ask_again, call)
        else:
            process.queue.append(call)
            self.work(process)

    def ask_again(self, call: Call) -> None:
        process = self.processes.get(call.part)
        if process is None:
            if call.part in self.pending:
                self.after(0.2, self.ask_again, call)
        elif process.is_alive:
            process.queue.append(call)
            self.work(process)
        else:
            self.fail(call, Failure.DIED)

    def work(self, process: Process) -> None:
        if process.is_busy or process.is_hung or not process.is_alive or not process.queue or process.flushing:
            return
        process.is_busy = True
        call = process.queue.pop(0)
        seconds = {Method.COLLECT: 0.3, Method.ACT: 0.3, Method.TRAIN: 0.3, Method.BUILD: 5.0}.get(call.method, 0.001)
        self.after(seconds * self.generator.uniform(0.5, 1.5) / process.speed, self.done, process, call)

    def done(self, process: Process, call: Call) -> None:
        process.is_busy = False
        if not process.is_alive or process.is_hung:
            return
        getattr(self, f"do_{call.method.value}")(process, call)
        self.work(process)

    def answer(self, process: Process, call: Call, value=None) -> None:
        if self.happens("never"):
            self.log("the answer of %s is lost", call)
            return
        for _ in range(2 if self.happens("twice") else 1):
            self.after(self.delay(), self.event, Answered(call.id, value))

    def fail(self, call: Call, kind: Failure, task: str | None = None) -> None:
        self.event(Failed(call.id, kind, f"simulated: {kind.value}", task))

    def raises(self, call: Call, kind: Failure, task: str | None = None) -> None:
        self.after(self.delay(), self.fail, call, kind, task)

    def do_hello(self, process: Process, call: Call) -> None:
        self.progress()
        self.answer(process, call)

    def do_build(self, process: Process, call: Call) -> None:
        if call.place is not None and call.amount != process.builds:
            process.is_built = False
        if not process.is_built:
            if self.happens("build_dies"):
                self.die(process)
                return
            if self.happens("build_hangs"):
                process.is_hung = True
                return
            place, begin, end = self.scenario.unfit
            is_unfit = process.part[:2] == ("collector", place) and begin <= self.now < end
            self.faults["unfit"] += is_unfit
            if is_unfit or self.happens("build_raises"):
                self.raises(call, Failure.RAISED)
                return
            if process.part.kind == "collector" and self.happens("task_in_build"):
                self.raises(call, Failure.TASK, next(iter(call.place.tasks)))
                return
            if process.part.kind == "replay" and self.writing is not None:
                # The driver does one after the other.
                self.after(0.1, self.do_build, process, call)
                return
            process.is_built = True
            if call.place is not None:
                process.share, process.builds = tuple(call.place.tasks), call.amount
            self.progress()
            if process.part.kind == "replay":
                process.restored = self.restore(process)
            elif process.part.kind == "learner":
                self.updates = self.state_updates
        self.answer(process, call, self.updates if process.part.kind == "learner" else process.restored)

    def restore(self, process: Process) -> Restored:
        """Fill a new replay, from memory or from the newest checkpoint."""
        memory, self.memory = self.memory, None
        if process.part.life and (memory is None or memory.node != process.node):
            self.log("the replay begins at %s", self.saved)
            self.frames_lost += sum(self.frames.values()) - sum(self.saved.frames.values())
            self.frames = Counter({task: self.saved.frames[task] for task in self.tasks})
            self.held = Counter(self.saved.rows or {})
            self.sources, self.seen = Counter(self.saved.sources), set(self.saved.seen)
            source, has_rows = "checkpoint", self.saved.rows is not None
            self.rows_lost |= not has_rows
        else:
            source, has_rows = "memory", True
        return Restored(self.counts(), source, dict(self.sources), has_rows)

    def core(self, kind: str) -> Process | None:
        """The process of the replay or the learner that works, if any does."""
        found = [p for p in self.processes.values() if p.part.kind == kind and p.is_alive and p.is_built]
        return found[-1] if found else None

    @property
    def replay(self) -> Process | None:
        return self.core("replay")

    def reached(self, process: Process) -> Process | None:
        """The replay, if a part talks to the one that is there."""
        replay = self.replay
        return replay if replay is not None and process.target == replay.part else None

    def do_connect(self, process: Process, call: Call) -> None:
        process.target = self.handles[call.id]
        if process.part.kind == "learner":
            self.answer(process, call, self.updates)
            return
        for number in sorted(process.unreceipted):
            self.push(process, number)
        self.do_flush(process, call)

    def do_collect(self, process: Process, call: Call) -> None:
        if self.happens("input"):
            self.raises(call, Failure.INPUT)
            return
        if self.happens("task_error"):
            self.raises(call, Failure.TASK, self.generator.choice(process.share))
            return
        if self.scenario.broken_task in process.share and self.now > self.scenario.broken_at:
            self.raises(call, Failure.TASK, self.scenario.broken_task)
            return
        if self.happens("raised"):
            self.raises(call, Failure.RAISED)
            return
        if not process.is_built:
            raise Broken(f"{process.part} is asked to collect before it is built")
        believed = self.control.collectors[process.part.place]
        if believed.part == process.part and believed.tasks != set(process.share):
            raise Broken(f"{process.part} steps {process.share}, control believes {set(believed.tasks)}")
        if any(self.now - self.aside.get(task, self.now) > ASIDE_SECONDS for task in process.share):
            raise Broken(f"{process.part} still steps {process.share}, where {self.aside} are set aside")
        if process.unreceipted and self.reached(process) is None:
            self.raises(call, Failure.PEER)
            return
        collected = self.step(process)
        number, process.number = process.number, process.number + 1
        process.unreceipted.add(number)
        self.push(process, number)
        self.answer(process, call, collected)

    def step(self, process: Process) -> Collected | None:
        """What failed in the rollout that is pushed next."""
        if not self.happens("rebuilt"):
            return None
        task = self.generator.choice(process.share)
        missing = self.generator.randint(0, self.scenario.frames_of_a_task)
        process.missing[process.number] = {task: missing}
        # A simulator that is built anew, or, under both, a copy that diverged.
        is_anew = not self.scenario.lockstep and self.generator.random() < 0.5
        return Collected(missing, ((task, "its simulator failed"),) if is_anew else ())

    def push(self, process: Process, number: int) -> None:
        """Send a push, again after a while if it was lost; it may arrive twice."""
        self.pushed.setdefault((process.part, number), process.share)
        is_lost = self.happens("lost_push")
        if is_lost or self.generator.random() < 0.1:
            self.after(5.0, self.push_again, process, number)
        if not is_lost:
            self.after(self.delay(), self.arrive, process, number, process.target)

    def push_again(self, process: Process, number: int) -> None:
        if process.is_alive and number in process.unreceipted:
            self.push(process, number)

    def arrive(self, process: Process, number: int, target: Part | None) -> None:
        part = process.part
        if target != process.target:
            # Sent to a process that is gone.
            return
        replay = self.reached(process)
        if replay is None or replay.is_hung:
            self.after(5.0, self.push_again, process, number)
            if replay is None and process.flushing is not None:
                call, process.flushing = process.flushing, None
                self.raises(call, Failure.PEER)
                self.work(process)
            return
        if part in self.fenced:
            return
        if (part, number) not in self.seen:
            self.seen.add((part, number))
            for task in self.pushed[part, number]:
                frames = self.scenario.frames_of_a_task - process.missing.get(number, {}).get(task, 0)
                self.frames[task] += frames
                self.held[task] = min(self.held[task] + frames, self.scenario.capacity)
                self.sources[part] += frames
            self.progress()
        self.after(self.delay(), self.receipt, process, number, target)

    def receipt(self, process: Process, number: int, target: Part | None) -> None:
        if not process.is_alive or number not in process.unreceipted or target != process.target:
            return
        process.unreceipted.discard(number)
        self.receipts(process)

    def receipts(self, process: Process) -> None:
        if process.flushing is not None and not process.unreceipted:
            call, process.flushing = process.flushing, None
            if self.reached(process) is None:
                self.raises(call, Failure.PEER)
            else:
                self.answer(process, call, self.sources[process.part])
            self.work(process)

    def do_flush(self, process: Process, call: Call) -> None:
        if self.reached(process) is None:
            self.raises(call, Failure.PEER)
            return
        process.flushing = call
        self.receipts(process)

    def do_act(self, process: Process, call: Call) -> None:
        self.answer(process, call, self.step(process))

    def do_push(self, process: Process, call: Call) -> None:
        number, process.number = process.number, process.number + 1
        process.unreceipted.add(number)
        self.pushed[process.part, number] = process.share
        if self.reached(process) is None:
            self.raises(call, Failure.PEER)
            return
        self.arrive(process, number, process.target)
        self.answer(process, call)

    def do_train(self, process: Process, call: Call) -> None:
        if self.reached(process) is None:
            self.raises(call, Failure.PEER)
            return
        if self.is_cut_due:
            raise Broken("the learner learns from what a resumed run draws anew")
        if any(not self.held[task] for task in self.tasks if task not in self.aside):
            raise Broken(f"training without a transition of every task: {dict(self.held)}")
        if not self.is_warm():
            raise Broken("training before the warm-up's rows are held")
        most = call.amount if self.scenario.lockstep else self.generator.randint(1, 40)
        self.updates += min(call.amount, most)
        allowed = self.control.pacing.updates_allowed(sum(self.frames.values()))
        if self.updates > allowed:
            raise Broken(f"{self.updates} updates where pacing allows {allowed}")
        self.progress()
        self.answer(process, call, self.updates)

    def do_status(self, process: Process, call: Call) -> None:
        self.answer(process, call, self.updates)

    def do_state(self, process: Process, call: Call) -> None:
        self.answer(process, call, self.updates if process.part.kind == "learner" else self.has_states)

    def is_warm(self) -> bool:
        least = min(self.scenario.warmup, self.scenario.capacity)
        return all(self.held[task] >= max(1, least) for task in self.tasks if task not in self.aside)

    def counts(self) -> Counts:
        return Counts(sum(self.frames.values()), self.is_warm())

    def do_count(self, process: Process, call: Call) -> None:
        self.answer(process, call, self.counts())

    @property
    def has_states(self) -> bool:
        """Whether the collectors have states: not drawn, so that a seed's run stays what it was."""
        return self.scenario.frames_of_a_task > 1

    def do_cut(self, process: Process, call: Call) -> None:
        if process.part.kind == "collector" and self.has_states:
            raise Broken(f"{process.part} is cut, though every collector gave its state")
        if process.part.kind == "learner":
            self.is_cut_due = False
        self.answer(process, call, self.updates)

    def do_fence(self, process: Process, call: Call) -> None:
        self.fenced.add(call.of)
        self.answer(process, call, self.sources[call.of])

    def do_snapshot(self, process: Process, call: Call) -> None:
        rows = Counter(self.held) if self.scenario.saves_rows else None
        self.snapshot = Saved(Counter(self.frames), rows, sources=Counter(self.sources), seen=set(self.seen))
        self.answer(process, call, self.counts())

    def write(self, call: Call) -> None:
        if self.writing is not call:
            return
        self.writing = None
        self.is_cut_due = self.scenario.lockstep and self.control._ending is None
        if self.happens("disk_full"):
            self.event(Failed(call.id, Failure.RAISED, "no space left on device"))
            return
        if self.state_updates < self.saved.updates or sum(self.snapshot.frames.values()) < sum(
            self.saved.frames.values()
        ):
            raise Broken("a checkpoint is older than the one before")
        may_be_ahead = bool(self.was_ahead or self.frames_lost or self.rows_lost)
        self.saved = replace(
            self.snapshot, updates=self.state_updates, pacing=self.control.pacing, may_be_ahead=may_be_ahead
        )
        self.saves += 1
        self.progress()
        self.event(Answered(call.id))

    # What must hold.

    def check_pacing(self) -> None:
        control = self.control
        self.most_frames = max(self.most_frames, sum(self.frames.values()))
        if control.pacing.start_frames > self.most_frames + self.warmup_frames:
            raise Broken(f"no update before {control.pacing.start_frames} frames, of which {self.most_frames} came")
        asked = control.asked - control.lost
        allowed = control.pacing.frames_allowed(control.updates)
        if not self.is_warm() or not control.counts.is_warm:
            allowed = max(allowed, sum(self.frames.values()) + control.pacing.slack_frames)
        if control.pacing is not self.known_pacing:
            # Fewer collectors may be ahead less far than more were.
            self.known_pacing, self.asked_before = control.pacing, asked
        if not self.scenario.lockstep and asked > max(allowed, self.asked_before):
            raise Broken(f"{asked} frames asked for where pacing allows {allowed}")
        if not self.scenario.lockstep and asked >= self.scenario.total_frames + self.largest:
            raise Broken(f"{asked} frames asked for, {self.scenario.total_frames} are wanted")

    def check(self) -> None:
        """Law 10: what was asked for is acknowledged, in flight, or lost; control's figures against the truth."""
        control = self.control
        if control.asked != self.begin + sum(self.requested.values()):
            raise Broken(f"asked {control.asked}, but {self.begin} + {sum(self.requested.values())} was")
        lost = 0
        believed = {actor.part: (actor.requested, actor.lost) for actor in control.collectors} | control._fencing
        for part, requested in self.requested.items():
            acknowledged = self.sources[part]
            if part in believed:
                if believed[part][0] != requested:
                    raise Broken(f"{part}: {requested} frames asked for, control counts {believed[part][0]}")
                if requested - believed[part][1] < acknowledged:
                    raise Broken(f"{part}: {requested} frames asked for, {believed[part][1]} lost, {acknowledged} here")
                lost += believed[part][1]
            elif control.replay.is_up:
                lost += requested - acknowledged
            else:
                lost += requested - control._gone.get(part, acknowledged)
        for actor in control.collectors if not self.scenario.lockstep else ():
            # Of one whose flush was answered, with nothing asked for since, all is known. Lockstep does without.
            if actor.is_up and control.replay.is_up and actor.index not in control._unflushed:
                acknowledged, known = self.sources[actor.part], actor.requested - actor.lost
                if known != acknowledged:
                    raise Broken(f"{actor.part}: {acknowledged} frames are acknowledged, control counts {known}")
        if control.lost != lost:
            raise Broken(f"control counts {control.lost} lost frames, the truth is {lost}")
        starving = self.starving() if self.scenario.elastic else set()
        if not starving:
            self.fed = self.now
        elif self.now - self.fed > STARVING_SECONDS:
            raise Broken(f"nobody has stepped {starving} since {self.fed:.0f} s")
        for actor in control.actors:
            work = [call for call in actor.calls.values() if call.method in (Method.COLLECT, Method.TRAIN)]
            if len(work) > CALLS:
                raise Broken(f"{actor.part} has {len(work)} calls under way")

    def starving(self) -> set[str]:
        """Tasks that no collector steps, or will in a moment, though there are some that work."""
        control = self.control
        if control._ending is not None or not any(actor.is_up for actor in control.collectors):
            return set()
        there = [a for a in control.collectors if a.is_up or (a.phase is Phase.BUILDING and a.failing_since is None)]
        stepped = {task for actor in there for task in (actor.next_place or actor.place).tasks}
        return set(self.tasks) - self.aside.keys() - stepped

    def check_end(self) -> None:
        """Laws 12 and 13, as far as control has to do with them."""
        end, frames = self.ended, sum(self.frames.values())
        if not end.reason:
            raise Broken("a run ended without a reason")
        if end.reason.startswith("finished"):
            if (end.outcome == "failed") != bool(self.aside):
                raise Broken(f"{end} where {self.aside} is set aside")
            if frames < self.scenario.total_frames:
                raise Broken(f"finished with {frames} of {self.scenario.total_frames} frames")
            pacing = self.control.pacing
            owed, allowed = pacing.updates_owed(frames), pacing.updates_allowed(frames)
            # Frames or rows that the replay lost may have been learned from before.
            is_ahead = self.updates > allowed and (self.was_ahead or self.frames_lost or self.rows_lost)
            if not owed <= self.updates <= allowed and not is_ahead and self.is_warm():
                raise Broken(f"finished with {self.updates} updates, where {owed} to {allowed} were to be made")
        core = [self.core(kind) for kind in ("replay", "learner")]
        fine = all(process and not process.is_hung for process in core)
        made = frames > self.begin or self.updates > self.control.plan.updates
        calm = self.now >= self.scenario.faults_end or not any(self.scenario.rates.values())
        calm = calm and all(until < self.now - 10 for until in self.link_until.values())
        if (
            end.outcome == "done"
            and made
            and (self.saved.updates, sum(self.saved.frames.values())) != (self.updates, frames)
        ):
            late = sum(self.saved.frames.values()) < frames or self.saved.updates < self.updates
            if end.reason == "finished" or (calm and fine and not late):
                raise Broken(f"saved {self.saved} where {frames} frames and {self.updates} updates were made")
        # An answer that was lost or came late, before the faults ended, may have been that of the last checkpoint.
        answered = not (self.told["unsaved"] and (self.faults["never"] or self.faults["late"]))
        saves = fine and made and calm and answered and not self.scenario.lockstep and end.outcome != "failed"
        if saves and not self.saves:
            raise Broken("a run that could be saved was not")
        is_quick = all(process.speed >= 1 for process in core if process)
        if self.told["unsaved"] and fine and made and calm and answered and is_quick and not self.scenario.lockstep:
            raise Broken(f"unsaved, though all that it takes works: {end}")


def make_pacing(scenario: Scenario, step: int = 0) -> Pacing:
    """A pacing that both sides can live with, as tight as the scenario wants it."""
    step = step or len(dict.fromkeys(task for share in scenario.shares for task in share))
    once = sum(scenario.frames_of_a_task * len(share) for share in scenario.shares)
    round_frames = once * (CALLS + 1)
    ratio = scenario.updates_per_step * scenario.least_share
    least = round_frames + (int(step / ratio) + 1 if ratio else 0)
    return Pacing(
        updates_per_step=scenario.updates_per_step,
        step_frames=step,
        start_frames=scenario.warmup * step,
        slack_frames=int(scenario.slack_rounds * least) + 1,
        round_frames=round_frames,
        least_updates_per_step=ratio,
    )


def play(
    seed: int, *, control=None, world: type[World] = World, log: bool = False, worlds: list | None = None
) -> tuple[int, int]:
    """Play a run and up to three resumes of it; return how many events and runs that were.

    Raises:
        Broken: a law does not hold.
    """
    generator = random.Random(seed)
    scenario, saved, events = draw(generator, random.Random(f"{seed} more")), Saved(), 0
    for attempt in range(4):
        played = world(generator.randrange(2**32), scenario, saved, control, log=log)
        if worlds is not None:
            worlds.append(played)
        played.run()
        events += played.events
        saved = played.saved
        if attempt == 3 or generator.random() < 0.3:
            break
        # The next one goes on from what was written, perhaps with other settings.
        scenario = replace(
            scenario,
            total_frames=max(scenario.total_frames, sum(saved.frames.values()) + 1) * generator.choice([1, 2]),
            stop_at=generator.uniform(0, 60) if generator.random() < 0.25 else None,
            kill_driver_at=None,
            saves_rows=generator.random() < 0.6,
            updates_per_step=scenario.updates_per_step
            if generator.random() < 0.6
            else generator.choice([0.05, 1.0, 4.0]),
        )
    return events, attempt + 1


def tell(seed: int, **kwargs) -> str:
    """What happened in a run, event by event, and the law that broke."""
    worlds: list[World] = []
    try:
        play(seed, log=True, worlds=worlds, **kwargs)
        end = "every law holds"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    parts = []
    for number, world in enumerate(worlds):
        parts += [f"--- run {number}: {world.scenario}", *(world.lines or [])]
    return "\n".join([*parts, end])


def main() -> None:
    """Play one seed aloud, or many quietly."""
    text = sys.argv[1]
    if ":" not in text:
        print(tell(int(text)))
        return
    first, last = map(int, text.split(":"))
    begin, events, runs, broken = time.perf_counter(), 0, 0, 0
    for seed in range(first, last):
        try:
            more, times = play(seed)
            events, runs = events + more, runs + times
        except Exception as error:
            broken += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    seconds = time.perf_counter() - begin
    print(f"{last - first} seeds, {runs} runs, {events} events, {seconds:.0f} s; {broken} broken")


if __name__ == "__main__":
    main()
