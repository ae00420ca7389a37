"""Programs: one line per error, for every terminal, pipe and text."""

import subprocess
import sys

import pytest

from mtray.__main__ import main as console
from mtray.errors import RunError, UsageError
from mtray.program import one_line, run_program


def shell(command, cwd, **environment):
    import os

    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=cwd,
        env={**os.environ, **environment, "PY": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("--flag 3: at\n  most 2"), 2),
        (RunError("the\trun\r\nended"), 1),
        (RunError("\x1b[2Jcleared \udc80"), 1),
        (ValueError("a\n\nb"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_every_error_is_one_line(capsys, error, code, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def program():
        raise error

    assert run_program(program) == code
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert found.count("\n") == 1
    assert found[:-1].isprintable()
    unexpected = not isinstance(error, UsageError | RunError | KeyboardInterrupt)
    files = list(tmp_path.iterdir())
    assert len(files) == unexpected
    for file in files:
        assert str(file) in found
        assert "Traceback" in file.read_text()
        assert type(error).__name__ in file.read_text()


def test_one_line_has_no_control_characters():
    assert one_line("a\n b\x1b[2J\udc80é") == "a b\\x1b[2J\\udc80é"


@pytest.mark.parametrize("program", ["mtray.launch", "mtray.evaluate", "mtray.report", "mtray"])
def test_help_into_a_closed_pipe_is_quiet(tmp_path, program):
    done = shell(f"$PY -m {program} --help | head -1", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_help_on_a_terminal_of_ascii(tmp_path):
    done = shell("$PY -m mtray.evaluate --help", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_a_folder_that_is_no_run_is_refused_before_torch_is_imported(tmp_path):
    program = "import sys; from mtray.evaluate import main; print(main(['nothing']), 'torch' in sys.modules)"
    done = shell(f'$PY -c "{program}"', tmp_path)
    assert (done.stdout, done.stderr[:34]) == ("2 False\n", "error: nothing is no run directory")


def test_output_to_a_full_disk_is_one_line(tmp_path):
    done = shell("$PY -m mtray --version > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


FAILING = """
import sys
from mtray.errors import UsageError
from mtray.program import run_program

def program():
    print("a line")
    raise {error}

sys.exit(run_program(program))
"""


@pytest.mark.parametrize(("error", "code"), [("UsageError('wrong')", 2), ("BrokenPipeError('a simulator')", 1)])
def test_an_error_is_one_whether_or_not_the_output_is_read(tmp_path, error, code):
    (tmp_path / "failing.py").write_text(FAILING.format(error=error))
    readers = ["cat", *(["true"] if code == 2 else [])]
    for reader in readers:
        command = f"(sleep 0.5; $PY failing.py) | {reader}; exit ${{PIPESTATUS[0]}}"
        # What it printed is written at its end.
        done = shell(command, tmp_path, PYTHONUNBUFFERED="")
        assert (done.returncode, done.stderr.count("error: ")) == (code, 1), done.stderr


def test_the_console_script_finds_modules_of_the_current_folder(tmp_path):
    (tmp_path / "broken_here.py").write_text("def maker(num_envs, seed):\n    raise OSError('found')\n")
    script = "import sys; sys.path = [p for p in sys.path if p]; from mtray.__main__ import main; sys.exit(main())"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "console").write_text(script)
    done = shell("$PY bin/console launch --tasks broken_here:maker", tmp_path)
    assert done.returncode == 2
    assert "OSError: found" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "message"), [("", "a command is missing"), ("laun", "there is no command laun")])
def test_a_command_that_is_not_there_is_one_line_with_those_that_are(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["mtray", *arguments.split()])
    assert console() == 2
    error = capsys.readouterr().err
    choice = "choose from launch, evaluate, report, watch, tasks (mtray --help says what they do)"
    assert error == f"error: {message}: {choice}\n"
