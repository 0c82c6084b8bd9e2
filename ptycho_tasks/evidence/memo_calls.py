"""What a command of a memo calls, and writes: by that, whether it is left to people.

What removes, installs, publishes or sets up, what never ends, and what could hide any of these, as
a script in one word, is no proof, and cannot be taken back.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

from ptycho_tasks.evidence.shell import split_assignments, split_words
from ptycho_tasks.layout import EVIDENCE
from ptycho_tasks.options import STAGES

_LOOKING = {"cat", "less", "more", "ls", "head", "tail", "sleep", "find", "grep", "rg", "sed",
            "awk", "diff", "which", "exit"}  # fmt: skip
"""Programs with which people look: behind another command they do no harm."""
_CHANGING = {
    "git", "hg", "svn", "gh", "rm", "rmdir", "unlink", "shred", "truncate", "cp", "mv", "install",
    "touch", "pip", "pipx", "conda", "mamba", "npm", "brew", "twine", "sudo", "doas", "su", "apt",
    "apt-get", "yum", "dnf", "ssh", "scp", "rsync", "vim", "nano", "code", "open", "kill",
    "killall", "pkill", "scancel", "reboot", "shutdown", "systemctl", "crontab", "docker",
    "podman", "chmod", "chown", "ln", "source", ".", "pushd", "popd", "curl", "wget", "tar",
    "unzip", "dd", "read", "eval", "exec", "uvx",
}  # fmt: skip
"""Programs with which people tidy up, set up and hand over."""
_ENDLESS = {"watch", "http.server", "jupyter", "ipython", "tensorboard", "flask", "uvicorn",
            "gunicorn", "streamlit", "pdb", "idlelib", "tmux", "screen"}  # fmt: skip
"""Programs, and modules of Python, that end when a person ends them."""
BY_PEOPLE = _LOOKING | _CHANGING | _ENDLESS
"""No log of theirs proves anything."""
_WRAPPERS = {"timeout", "nice", "ionice", "env", "time", "xargs", "parallel", "nohup", "setsid",
             "stdbuf", "command", "builtin", "busybox", "!", "{", "srun", "mpirun", "mpiexec",
             "catchsegv", "chronic", "unbuffer", "taskset", "strace", "flock"}  # fmt: skip
"""Programs that run what their words say."""
_RUNNERS = {"uv", "poetry", "pdm", "hatch", "pixi", "pipenv"}
"""Programs that run another by `run`, and set up the environment by all else."""
_SHELLS = {"bash", "sh", "zsh", "dash", "ksh", "fish"}
_WITH_SCRIPTS = {"perl", "ruby", "node", "Rscript", "julia", "lua", "php"}
_WITH_TARGETS = {"make", "gmake", "ninja", "just", "doit", "nox", "tox", "invoke", "inv", "task"}
_CHANGING_TARGET = {
    "clean", "distclean", "mrproper", "cleanall", "forget", "ignore", "purge", "prune", "wipe",
    "reset", "remove", "delete", "rm", "install", "uninstall", "deploy", "publish", "release",
    "upload", "push", "watch", "serve", "auto",
}  # fmt: skip
_OF_OURS = {"plan": {"adopt", "import", "watch"}, EVIDENCE: {"prune"}, "prune": (), "watch": (),
            "init": ()}  # fmt: skip
"""Our own commands that remove or never end, and those that say what is to be proved."""
_HARMLESS_CALL = re.compile(r"\$\((?:date|pwd|nproc|git rev-parse)\b[^()`;&|<>$]*\)")
_WITH_SHELL = re.compile(r"\b(?:ba|z|da|k|fi)?sh\s+(?:-\S+\s+)*-[a-z]*c\b")
_DURATION = re.compile(r"[0-9.]+[smhd]?")
_HARMLESS_FUNCTIONS = {"print", "len", "abs", "all", "any", "max", "min", "sum", "round", "sorted",
                       "str", "int", "float", "isinstance", "hasattr", "repr", "set"}  # fmt: skip


def list_calls(text: str) -> Iterator[list[str]]:
    """The words of every simple command in a command, without what only runs it (`timeout 5`,
    `xargs`, `bash -c`); none where it cannot be read."""
    try:
        words = split_words(text)
    except ValueError:
        return
    simple: list[list[str]] = [[]]
    for before, word in pairwise(["", *words]):
        if re.fullmatch(r"[();|&\n]+", word):
            simple.append([])
        elif not (re.fullmatch(r"[<>&|]*[<>][<>&|]*", word) or re.search(r"^[<>&|]*[<>]", before)):
            simple[-1].append(word)
    for part in simple:
        yield from _unwrap(split_assignments(part)[1])


def _unwrap(words: list[str]) -> Iterator[list[str]]:
    if not words:
        return
    program, arguments = (
        words[0].rpartition("/")[2].replace("ptycho_tasks", "ptycho-tasks"),
        words[1:],
    )
    if program in _SHELLS:
        at = next((n for n, word in enumerate(arguments) if re.fullmatch("-[a-z]*c", word)), None)
        if at is not None:
            yield from list_calls(" ".join(arguments[at + 1 : at + 2]))
            return
    elif program in _WRAPPERS:
        yield from _unwrap(_drop_options(arguments))
        return
    elif program in _RUNNERS and "run" in arguments:
        yield from _unwrap(_drop_options(arguments[arguments.index("run") + 1 :]))
        return
    elif re.fullmatch("python[0-9.]*", program):
        for index, word in enumerate(arguments):
            if not word.startswith("-"):
                break
            if re.fullmatch("-[A-Za-z]*m", word):
                yield from _unwrap(arguments[index + 1 :])
                return
    yield [program, *arguments]


def _drop_options(words: list[str]) -> list[str]:
    """The command among the words of a program that runs it."""
    is_value = False
    for index, word in enumerate(words):
        is_option = word.startswith("-")
        if is_option or _DURATION.fullmatch(word) or split_assignments([word])[0]:
            is_value = is_option
            continue
        # A word behind an option may be its value, unless it is a program that is known.
        if is_value and not _is_known(word):
            is_value = False
            if any(not other.startswith("-") for other in words[index + 1 :]):
                continue
        return words[index:]
    return []


def _is_known(word: str) -> bool:
    name = word.rpartition("/")[2]
    known = BY_PEOPLE | _WRAPPERS | _RUNNERS | _SHELLS | _WITH_SCRIPTS | _WITH_TARGETS
    return name in known or bool(re.match("python|pytest|ptycho-tasks", name))


def is_left_to_people(text: str) -> bool:
    """Whether a command does, anywhere in it, what no command of a memo is run for."""
    outside = _HARMLESS_CALL.sub("", text)
    if not _WITH_SHELL.search(text):  # which reads what single quotes hold
        outside = re.sub(r"'[^']*'", "", outside)
    if "$(" in outside or "`" in outside:
        return True
    return any(_is_changing(call, is_first=not n) for n, call in enumerate(list_calls(text)))


def _is_changing(call: list[str], *, is_first: bool) -> bool:
    program, *arguments = call
    bare = [word for word in arguments if not word.startswith("-")]
    if program in _LOOKING:
        # As the first they prove nothing; behind others they may still be told to change files.
        changes = {"find": "-delete|-exec.*|-ok.*", "sed": "-[a-zA-Z]*i.*|--in-place.*",
                   "awk": ".*system.*", "tail": "-[0-9a-z]*[fF]|--follow.*"}  # fmt: skip
        return is_first or any(re.fullmatch(changes.get(program, "$."), w) for w in arguments)
    if program in _CHANGING | _ENDLESS or re.fullmatch("pip[0-9.]+", program):
        return True
    if re.fullmatch("python[0-9.]*", program):
        return _runs_text(arguments) or not (arguments or is_first)
    if program in _SHELLS:
        return not (bare or is_first)  # it runs what is piped into it
    if program in _WITH_SCRIPTS:
        return any(re.fullmatch("-[a-z]*[eEr]|--eval", word) for word in arguments)
    if program in _RUNNERS:
        return "run" not in bare
    if program == "doit" and any(word.partition(":")[0] == EVIDENCE for word in bare):
        return True
    if program in _WITH_TARGETS:
        return any(_CHANGING_TARGET & {*re.split("[-_:.]", word)} for word in bare)
    if program == "ptycho-tasks" and bare[:1] and bare[0] in _OF_OURS:
        more = _OF_OURS[bare[0]]
        return not more or "--reopen" in arguments or bool({*bare[1:2]} & {*more})
    return False


def _runs_text(arguments: list[str]) -> bool:
    """Whether Python is given a text that does more than print and assert."""
    for index, word in enumerate(arguments):
        if not word.startswith("-"):
            return False
        if re.fullmatch("-[A-Za-z]*c.*", word):
            return not _only_tells(" ".join(arguments[index + 1 : index + 2]))
    return False


def _only_tells(text: str) -> bool:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    kinds = (ast.Import, ast.ImportFrom, ast.Assert, ast.Expr)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [node.id if isinstance(node, ast.Name) else "" for node in calls]
    return all(isinstance(node, kinds) for node in tree.body) and {*names} <= _HARMLESS_FUNCTIONS


def list_stages(text: str) -> list[str]:
    """The stages, and tasks of one, that a command has doit bring up to date."""
    words = [word for call in list_calls(text) if call[0] == "doit" for word in call[1:]]
    return [*dict.fromkeys(word for word in words if word.partition(":")[0] in STAGES)]


def list_written(text: str) -> Iterator[str]:
    """The files into which a command has the shell, or `tee`, write."""
    try:
        words = split_words(text)
    except ValueError:
        return
    is_tee = False
    for before, word in pairwise(["", *words]):
        if re.fullmatch(r"[<>&|]*>[<>&|]*", before) and not word.isdigit():
            yield word
        elif word == "tee" or word.endswith("/tee"):
            is_tee = True
        elif re.fullmatch(r"[();|&<>\n]+", word):
            is_tee = False
        elif is_tee and not word.startswith("-"):
            yield word
