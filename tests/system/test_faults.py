import pytest
from doit.exceptions import TaskError, TaskFailed

from ptycho_tasks.builds import actions
from ptycho_tasks.commands import cli
from ptycho_tasks.errors import DEBUG, ConfigError, ScanError
from ptycho_tasks.system import faults
from ptycho_tasks.system.faults import DoitTraceback, find_owner, show_fault


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faults.tempfile, "tempdir", str(tmp_path / "temporary"))


def raised_in(module, error):
    """An exception that code of a module raised."""
    space = {"__name__": module, "error": error}
    try:
        exec("raise error", space)
    except type(error) as found:
        return found


def test_a_fault_is_one_line_and_a_file_with_the_traceback(tmp_path, capsys):
    (tmp_path / "ptycho.yaml").touch()
    for _ in range(2):
        show_fault(raised_in("ptycho_tasks.scan", TypeError("a\n\x1bb")))
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("error: a fault of ptycho-tasks: TypeError: a\\n\\x1bb; the traceback")
    assert line.endswith(": please report it")
    saved = sorted((tmp_path / ".ptycho" / "faults").iterdir())
    assert len(saved) == 2
    assert any(file.name in line for file in saved)
    assert all("Traceback (most recent call last)" in file.read_text() for file in saved)


def test_where_there_is_no_project_the_traceback_is_in_a_temporary_folder(tmp_path, capsys):
    show_fault(KeyError("x"))
    assert not (tmp_path / ".ptycho").exists()
    [saved] = (tmp_path / "temporary").iterdir()
    assert str(saved) in capsys.readouterr().err


def test_a_fault_where_nothing_can_be_written_is_still_one_line(tmp_path, capsys):
    (tmp_path / "ptycho.yaml").touch()
    (tmp_path / ".ptycho").touch()
    (tmp_path / "temporary").touch()
    show_fault(KeyError("x"))
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback_too(capsys, monkeypatch):
    monkeypatch.setenv(DEBUG, "1")
    show_fault(raised_in("ptycho_tasks.scan", KeyError("x")))
    assert "Traceback" in capsys.readouterr().err


def test_memory_that_ran_out_is_no_fault(capsys):
    show_fault(MemoryError("Unable to allocate 20. GiB"))
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out: Unable to allocate 20. GiB; ")
    assert "fault" not in said


@pytest.mark.parametrize(
    ("module", "ours"),
    [
        ("ptycho_tasks.scan", True),
        ("ptycho_tasks_torch.load", True),
        ("ptycho_tasks_local_1", False),
        ("dodo", False),
    ],
)
def test_whose_fault_it_is(module, ours):
    assert (find_owner(raised_in(module, KeyError("x"))) == "us") is ours


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (raised_in("ptycho_tasks.scan", KeyError("x")), 1, "a fault of ptycho-tasks"),
        (raised_in("ptycho_tasks.scan", RecursionError("deep")), 1, "a fault of ptycho-tasks"),
        (raised_in("dodo", MemoryError()), 1, "memory ran out"),
        (raised_in("dodo", ScanError("no scan")), 1, "error: no scan"),
        (raised_in("dodo", ConfigError("no config")), 2, "error: no config"),
    ],
)
def test_what_ends_a_command_of_doit_is_one_line(error, status, said, capsys):
    try:
        raise error
    except Exception:
        with pytest.raises(SystemExit) as ended:
            DoitTraceback().format_exc()
    assert ended.value.code == status
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_users_own_exception_keeps_doits_traceback():
    try:
        raise raised_in("dodo", KeyError("mine"))
    except KeyError:
        assert "Traceback" in DoitTraceback().format_exc()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TypeError("oh"), 1, "error: a fault of ptycho-tasks: TypeError: oh; "),
        (MemoryError(), 1, "error: memory ran out; "),
        (RecursionError("deep"), 1, "error: a fault of ptycho-tasks: RecursionError: deep; "),
        (PermissionError(13, "denied", "file"), 1, "error: file: denied\n"),
        (ConfigError("wrong\x1b"), 2, "error: wrong\\x1b\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_the_command_line_ends_in_one_line(error, code, said, monkeypatch, capsys):
    def fail(**anything):
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    monkeypatch.setattr(cli, "silence_stdout", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == (1 if said else 0)


def test_an_action_that_fails_says_whose_fault_it_is(capsys):
    backend = type("Mine", (), {"name": "mine", "__module__": "mine.deep"})()
    failed = actions.report_failure(raised_in("mine", ValueError("no")), [backend])
    assert isinstance(failed, TaskFailed)
    assert capsys.readouterr().err.startswith("error: backend `mine` failed: ValueError: no; ")
    actions.report_failure(raised_in("ptycho_tasks.scan", ValueError("no")), [backend])
    assert "a fault of ptycho-tasks: ValueError: no" in capsys.readouterr().err
    assert isinstance(actions.report_failure(ConfigError("wrong")), TaskError)
    assert capsys.readouterr().err == "error: wrong\n"
