from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from matchflow_cli import main
from matchflow_cli.application import run

COMMANDS = ("export", "serve", "ingest", "search", "explain", "gallery", "generation", "eval", "tune", "doctor")
HEAVY = ("faiss", "lmdb", "matchflow_exporter", "numba", "numpy", "onnx", "onnxruntime", "PIL", "torch")
LOOK = f"""
import sys
from matchflow_cli.application import run
assert run(sys.argv[1:]) == 0
print("loaded:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "command",
    [(), ("export",), ("serve",), ("ingest",), ("search",), ("generation",), ("eval",), ("tune",), ("doctor",)],
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOOK, *command, "--help"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "loaded:"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"matchflow {metadata.version('matchflow')}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["nonsense"], ["search"], ["search", "-g", "demo", "--mode", "telepathy", "x"]])
def test_a_command_that_makes_no_sense_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gallery", "list", "--server", "127.0.0.1:1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("matchflow: no server can be reached at 127.0.0.1:1")
    assert "`matchflow serve`" in captured.err
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "gallery", "list", "--server", "127.0.0.1:1"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.splitlines()[-1].startswith("matchflow: no server can be reached")


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (SystemExit("words"), 1)]
)
def test_interruptions_end_quietly(
    raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise raised

    # Only a signal or a closed pipe at the right moment would do the same.
    monkeypatch.setattr("matchflow_cli.gallery_commands.matchflow.Client", stop)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run(["gallery", "list"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_the_reader_of_a_pipe_may_leave_early() -> None:
    script = f"{sys.executable} -c 'from matchflow_cli.main import main; main()' --help | head -c 10"
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr


def test_the_entry_point_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["matchflow", "gallery", "list", "--server", "127.0.0.1:1"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 1


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('No module named typer', name='typer')")
    process = subprocess.run(
        [sys.executable, "-c", "from matchflow_cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert process.returncode == 1
    assert process.stderr == "matchflow: the command line needs typer; run: pip install 'matchflow[service]'\n"


def test_another_missing_module_is_not_taken_for_the_extra(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import something_of_ours_that_is_gone")
    process = subprocess.run(
        [sys.executable, "-c", "from matchflow_cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert "something_of_ours_that_is_gone" in process.stderr


def test_every_module_of_the_command_line_is_small() -> None:
    folder = Path(main.__file__).parent
    assert all(len(path.read_text().splitlines()) <= 300 for path in folder.glob("*.py"))
