"""Gradients compiled for the CPU beside the run: fewer and larger kernels than a tape replays.

A function is traced, the tensors that it reads become inputs, and a process of its own compiles it with torch's
AOTInductor, which needs a C++ compiler and takes half a minute or more of a core; what an earlier run compiled is taken
at once. Until then, and where it fails, the caller goes on as before. The results differ from a tape's in rounding.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtray.learn.execution import kept
from mtray.tasks.processes import kill_group_at_end

# Error of each result relative to its norm, against the same function in float32, above which a compiled one is not
# used: this much, or so many times the recorded one's, which is large with bfloat16.
_MOST_ERROR, _MOST_RATIO = 1e-3, 2.0
# Calls before what an earlier run compiled is looked for: gradients have left zero then, and can be compared.
_LOOK_CALLS = 100
# Calls before anything is compiled: until then all processes start, and the untrained policy is evaluated. And calls
# between two looks at the compiler.
_FIRST_CALLS, _CALLS = 4000, 100
# Between the learner's and collectors': it slows the first minute less than without, and is done earlier than with 10.
_NICENESS = 5

_LOGGER = logging.getLogger("mtray")

# Alone in its group; nothing of mtray's is imported.
_PROGRAM = """
import sys
import torch
import torch._inductor.config

torch._inductor.config.cpp.threads = 1
program = torch.export.load(sys.argv[1])
torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2])
"""


class Compiled:
    """A function that writes tensors at fixed addresses: as given, until what a compiler makes of it is there."""

    def __init__(
        self,
        name: str,
        function: Callable[[], None],
        compute: Callable[[], Sequence[Tensor]],
        exact: Callable[[], Sequence[Tensor]],
        results: Callable[[], Sequence[Tensor]],
    ) -> None:
        """Compile nothing yet.

        Args:
            name: of the function, for the log.
            function: writes its results.
            compute: returns the same results in new tensors; traced and compiled.
            exact: the same in float32, for comparison.
            results: returns where the function writes them, once it was called.
        """
        self._name, self._function, self._compute = name, function, compute
        self._exact, self._results = exact, results
        self._calls = 0
        self._compiler: Compiler | None = None
        self._run: Callable[[], list[Tensor]] | None = None
        self._targets: list[Tensor] = []

    def __call__(self) -> None:
        """Write the results."""
        if self._run is not None:
            torch._foreach_copy_(self._targets, self._run())
            return
        self._function()
        self._calls += 1
        with self._none_on_error():
            if self._calls == _LOOK_CALLS and kept.has_any():
                self._take_kept(Program(self._compute))
            elif self._calls == _FIRST_CALLS:
                self._start()
            elif self._compiler is not None and self._calls % _CALLS == 0 and self._compiler.is_done:
                self._take(self._compiler)

    def start(self) -> None:
        """Start to compile now, if it is neither being compiled nor was; it must have been called before."""
        with self._none_on_error():
            self._start()

    def _start(self) -> None:
        if self._compiler is None and self._run is None:
            program = Program(self._compute)
            if not self._take_kept(program):
                self._compiler = Compiler(program)

    def finish(self) -> bool:
        """Wait for what was started; return whether it is used."""
        with self._none_on_error():
            if self._compiler is not None:
                self._compiler.wait()
                self._take(self._compiler)
        return self._run is not None

    @contextlib.contextmanager
    def _none_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Of torch's compiler anything may come; what is recorded works.
            _LOGGER.warning("%s is not compiled, and slower: %s", self._name, " ".join(str(error).split()))
            self.close()

    def _take_kept(self, program: Program) -> bool:
        """Use what an earlier run compiled, if there is such a thing and it is right; return whether it is used."""
        library = kept.find(program.key)
        if library is None:
            return False
        try:
            self._use(program.load(library))
        except Exception as error:
            # It is compiled anew.
            _LOGGER.warning("%s: removed, since it can't be used: %s", library, " ".join(str(error).split()))
            kept.remove(library)
        return self._run is not None

    def _take(self, compiler: Compiler) -> None:
        """Use what was compiled, and keep it for later runs."""
        library = compiler.library()
        self._use(compiler.program.load(library))
        if self._run is not None:
            kept.keep(library, compiler.program.key)
            self.close()

    def _use(self, run: Callable[[], list[Tensor]]) -> None:
        """Use it if its results are those that were just written; not yet if those can't be compared.

        Raises:
            RuntimeError: they are not.
        """
        targets, exact = list(self._results()), self._exact()
        usual = error_of(targets, exact)
        if not math.isfinite(usual):
            return
        error = error_of(run(), exact)
        if error > max(_MOST_ERROR, _MOST_RATIO * usual):
            raise RuntimeError(f"its results have a relative error of {error:.1g}")
        print(f"{self._name} is compiled", flush=True)
        self._targets, self._run = targets, run

    def close(self) -> None:
        """End the compiler."""
        compiler, self._compiler = self._compiler, None
        if compiler is not None:
            compiler.close()


class Program:
    """A function of tensors at fixed addresses, traced.

    Attributes:
        key: of what is compiled from it on this machine: equal keys, equal code.
    """

    def __init__(self, function: Callable[[], Sequence[Tensor]]) -> None:
        """Trace the function, which takes about a second.

        Raises:
            Exception: whatever torch raises of a function that it can't trace.
        """
        self._graph = _trace(function)
        self._inputs = _lift(self._graph)
        sizes = [f"{tuple(each.shape)} {each.stride()} {each.dtype}" for each in self._inputs]
        self.key = kept.key_of(_PROGRAM, self._graph.code, *sizes)

    def save(self, path: Path) -> None:
        """Write it for torch's compiler, which can't be given operations that write in place."""
        with torch.no_grad():
            functional = torch.func.functionalize(self._graph, remove="mutations")
            traced = _trace(functional, *self._inputs, tracing_mode="fake")
        traced.graph.eliminate_dead_code()
        traced.recompile()
        torch.export.save(torch.export.export(traced, tuple(self._inputs)), path)

    def load(self, library: Path) -> Callable[[], list[Tensor]]:
        """Return the function that was compiled to this library."""
        # torch's own loader of packages leaves a folder in the temporary folder if this process is killed.
        run, inputs = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run, self._inputs
        return lambda: run(inputs)


class Compiler:
    """A program while it is being compiled.

    Attributes:
        program: what is compiled.
    """

    def __init__(self, program: Program) -> None:
        """Start to compile."""
        self.program = program
        self._folder = tempfile.TemporaryDirectory(prefix="mtray-")
        folder = Path(self._folder.name)
        program.save(folder / "program.pt2")
        self._package = folder / "package.pt2"
        self._log = folder / "log"
        lifeline, self._lifeline = os.pipe()
        cache = str(folder / "cache")
        environment = {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, folder / "program.pt2", self._package],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                    process_group=0,
                    pass_fds=[lifeline],
                )
            kill_group_at_end(lifeline, self._process.pid)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        finally:
            os.close(lifeline)

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait()

    def library(self) -> Path:
        """Return the file that the compiler made.

        Raises:
            RuntimeError: it could not be compiled, with the last line of what the compiler printed.
        """
        if self._process.returncode:
            lines = [line for line in self._log.read_text().splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"exit code {self._process.returncode}")
        with zipfile.ZipFile(self._package) as package:
            (name,) = (name for name in package.namelist() if name.endswith(".so"))
            path = Path(self._folder.name) / name
            # It may be loaded already, and must not be written again then.
            return path if path.exists() else Path(package.extract(name, self._folder.name))

    def close(self) -> None:
        """End the compiler, and remove its files; a function that was loaded stays."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._lifeline)
        self._folder.cleanup()


def _trace(function: Callable[..., Any], *inputs: Tensor, **options: Any) -> torch.fx.GraphModule:
    """Return every operation that a function calls, with options of torch's `make_fx`."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: torch.fx.GraphModule = make_fx(function, decomposition_table=select_decomp_table(), **options)(*inputs)
    return graph


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds; return them."""
    placeholders: dict[int, Any] = {}
    inputs: list[Tensor] = []
    nodes = graph.graph
    first = next(node for node in nodes.nodes if node.op != "get_attr")
    for node in [node for node in nodes.nodes if node.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        if id(tensor) not in placeholders:
            with nodes.inserting_before(first):
                placeholders[id(tensor)] = nodes.placeholder(f"input_{len(inputs)}")
            inputs.append(tensor.detach())
        node.replace_all_uses_with(placeholders[id(tensor)])
        nodes.erase_node(node)
    graph.recompile()
    return inputs


def error_of(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest error of a result relative to its norm; infinite if a number is not finite."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        norm, error = float(theirs.norm()), float((ours - theirs).norm())
        error = error / norm if norm else error
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
