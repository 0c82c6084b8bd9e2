"""Results of tasks: found in the store or where they belong, made, and put in their places."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from ptycho_tasks.builds.frames import count_pixels
from ptycho_tasks.builds.identity import (
    Identity,
    are_metrics_whole,
    list_differences,
    read_identity,
)
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import Built, State, read_built
from ptycho_tasks.builds.store import Entry, Record, Store, describe_folder
from ptycho_tasks.errors import ScanError
from ptycho_tasks.layout import (
    BUNDLE_NAME,
    CHECKPOINTS,
    FILES_BESIDE,
    FIXTURE_NAME,
    METRICS,
    RESULTS,
)
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.clock import SYSTEM_CLOCK
from ptycho_tasks.system.files import link_files, remove_leftovers, report_write_errors
from ptycho_tasks.system.git import Revision, read_revision
from ptycho_tasks.system.libraries import list_loaded_libraries
from ptycho_tasks.system.memory import measure_peak
from ptycho_tasks.system.terminal import echo

if TYPE_CHECKING:
    from ptycho_tasks.config.payload import Payload

_NAMES = {
    "source": ("scan.npz",),
    "fixture": (FIXTURE_NAME, "fixture.json"),
    "train": (BUNDLE_NAME,),
    "infer": RESULTS,
    "refine": RESULTS,
}
"""The files of a result, as the store calls them, in the order of a row's outputs."""


def name_outputs(row: Row) -> dict[str, str]:
    """What the store calls the outputs of a task, by their path."""
    return dict(zip(row.outputs, itertools.cycle(_NAMES[row.stage]), strict=False))


def identify(row: Row, state: State, read: Iterable[str] = ()) -> Identity:
    """What decides a task's outputs, of its files as they are now.

    Args:
        row: the task.
        state: knows the digests of files.
        read: further files that are read, as those behind links.
    """
    return Identity(
        row.settings,
        row.versions,
        state.source_digests(row.sources),
        {role: digest_of_input(row, state, path) for role, path in row.inputs.items()},
        {path: state.sha256(path) for path in read},
    )


def digest_of_input(row: Row, state: State, path: str) -> str | None:
    """sha256 of an input of a task: of the file that is there, or that will be; of a scan that is
    not there, as it was when it was read. None where none of these is known."""
    digest = state.expected.get(path) or state.sha256(path)
    if digest is None and may_be_absent(row, path):
        digest = state.get(row.name, path)
        if digest is None and row.stage in ("source", "fixture"):
            digest = _find_in_sidecars(row, path)
    return digest


def may_be_absent(row: Row, path: str) -> bool:
    """Whether an input is a scan of the user's, which may go when all is made of it. Of one scan
    alone, that is a mistake wherever it is to be reconstructed."""
    if row.stage in ("source", "fixture"):
        return True
    return bool(row.scan) and path in {row.inputs.get(role) for role in ("scan", *FILES_BESIDE)}


def _find_in_sidecars(row: Row, path: str) -> str | None:
    """What the fixtures of a scan say was its sha256 when they were cut from it; None where they
    say nothing, or not the same."""
    sidecars = [Path(row.outputs[1])] if row.stage == "fixture" else Path("fixtures").glob("*.json")
    digests = set()
    for sidecar in sidecars:
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            source = json.loads(sidecar.read_text())["source"]
            if source["name"] == Path(path).name:
                digests.add(str(source["sha256"]))
    return digests.pop() if len(digests) == 1 else None


def find_result(
    row: Row,
    state: State,
    store: Store,
    now: Identity,
    old: Entry | None,
    *,
    is_accepted: bool,
    add: bool,
) -> Entry | None:
    """The result that a task would make, where it was made before.

    Args:
        row: the task.
        state: knows the digests of files.
        store: of the project.
        now: the identity of what the task would make.
        old: what the task's outputs are by the database, if it is in the store.
        is_accepted: whether the user took `old` as made by the code as it is.
        add: whether the store may be given what is found elsewhere.
    """
    entry = store.find(row.stage, now, state.sha256)
    if entry is not None:
        return entry
    if old is None:
        return _find_outputs(row, state, store, now, add=add)
    if is_accepted:
        return old
    if _is_same(row, old.record.identity, now):
        # But for a setting that is new and at its default, or the way in which code is installed.
        files = {name: old.folder / name for name in old.record.files}
        record = old.record._replace(identity=now._replace(read=old.record.identity.read))
        return store.add(row.stage, record, files) if add else old
    return None


def _is_same(row: Row, old: Identity, now: Identity) -> bool:
    differences = list_differences(old, now, paths=row.inputs, at_default=row.at_default)
    return next(differences, None) is None


def _find_outputs(
    row: Row, state: State, store: Store, now: Identity, *, add: bool
) -> Entry | None:
    """The outputs that are in their places, where they say, credibly, that they are what the task
    would make: the store was lost, or they came from elsewhere."""
    names = name_outputs(row)
    first = dict(itertools.islice(names.items(), len(_NAMES[row.stage])))
    if not all(Path(path).is_file() for path in first):
        return None
    found = _read_outputs(row) if row.outputs else _stand_in(row, now)
    if found is None:
        return None
    identity, digests = found
    now = now._replace(read={path: state.sha256(path) for path in identity.read})
    if not _is_same(row, identity, now) or any(
        state.sha256(path) != digest for path, digest in digests.items()
    ):
        return None
    record = make_record(now, row.name)
    files = {name: Path(path) for path, name in first.items()}
    if add:
        return store.add(row.stage, record, files)
    known = {name: state.sha256(str(path)) or "" for name, path in files.items()}
    return Entry(row.stage, now.key(), Path(), record._replace(files=known))


def _stand_in(row: Row, now: Identity) -> tuple[Identity, Mapping[str, str]] | None:
    """A scan that is not there was checked when its fixture was cut."""
    path = row.inputs["scan"]
    return None if Path(path).exists() or now.inputs["scan"] is None else (now, {})


def _read_outputs(row: Row) -> tuple[Identity, Mapping[str, str]] | None:
    """What present outputs say of themselves: the identity that they have, and the sha256 of some
    of them by path; None where they say nothing or are damaged."""
    folder = Path(row.outputs[0]).parent
    if row.stage == "source":
        return None
    if row.stage == "train":
        from ptycho_tasks.results.bundle import read_made_from

        identity, files = read_identity(read_made_from(folder)), {}
    else:
        try:
            if row.stage == "fixture":
                sidecar = json.loads(Path(row.outputs[1]).read_text())
                record, files = sidecar["made_from"], {row.outputs[0]: sidecar["npz"]["sha256"]}
            else:
                metrics = json.loads((folder / METRICS).read_text())
                if not are_metrics_whole(metrics):
                    return None
                record = metrics["made_from"]
                files = {str(folder / name): sha256 for name, sha256 in record["files"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        identity = read_identity(record)
    return None if identity is None else (identity, files)


def make_result(
    row: Row, state: State, store: Store, payload: Payload, run: Callable[[Payload], object]
) -> Built:
    """Run a stage, keep what it made in the store, and put it in its places.

    Args:
        row: the task.
        state: knows the digests of files.
        store: of the project.
        payload: of the stage.
        run: the stage.

    Returns:
        What the database is to know of it.

    Raises:
        PtychoTasksError: of the stage, or the files cannot be written; nothing has changed.
    """
    now = identify(row, state)
    prepare_training(row, payload, now)
    with store.hold(row.stage, now.key()) as has_waited:
        made = store.find(row.stage, now, state.sha256) if has_waited else None
        with nullcontext(made) if made else make_entry(row, state, store, payload, run) as entry:
            place_files(row, entry)
    return describe_built(row, entry)


@contextmanager
def make_entry(
    row: Row,
    state: State,
    store: Store,
    payload: Payload,
    run: Callable[[Payload], object],
    *,
    replaces: bool | None = None,
) -> Iterator[Entry]:
    """Run a stage and keep what it made in the store; see `make_result`.

    Args:
        row: the task.
        state: knows the digests of files.
        store: of the project.
        payload: of the stage.
        run: the stage.
        replaces: whether the result takes the place of one that is there; None: if there is one.

    Yields:
        The result. Where an input changed meanwhile, the store does not have it, and its files are
        gone after the block.
    """
    now = identify(row, state)
    with store.begin(row.stage) as folder:
        if replaces is None:
            replaces = store.find(row.stage, now, state.sha256) is not None
        revision = read_revision(Path.cwd()) or Revision("", is_dirty=False)
        began = monotonic()
        payload = replace(payload, staging=folder)
        with measure_peak() as peak:
            run(payload)
            record = make_record(now, row.name, monotonic() - began, peak())
        record = record._replace(
            commit=revision.commit,
            is_dirty=bool(revision.is_dirty),
            pixels=count_pixels(payload, row.stage),
            libraries=list_loaded_libraries(),
        )
        if row.stage == "fixture":
            _refuse_other_size(row, state, folder)
        read: dict[str, str | None] = dict(payload.files_read)
        record = record._replace(identity=now._replace(read=read))
        if identify(row, state) == now:
            # Where the user asked for it to be made again, it takes the place of what was there.
            yield store.publish(folder, row.stage, record, replace=replaces)
        else:
            # An input changed meanwhile: what the result was made from is not known for certain.
            # It lies in its places until the next run, which makes it again.
            yield describe_folder(folder, row.stage, record)


def _refuse_other_size(row: Row, state: State, folder: Path) -> None:
    """Refuse a fixture in a folder whose frames are of another size than those of a fixture that
    the same training takes, and that is as it would be made now.

    Raises:
        ScanError: names both scans.
    """
    from ptycho_tasks.builds.project import read_project_table
    from ptycho_tasks.scans.fixture import read_frame_size

    rows, own = read_project_table().rows, {*row.outputs}
    trainings = [{*one.inputs.values()} for one in rows if one.stage == "train"]
    together = {path for read in trainings if read & own for path in read} - own
    others = (one for one in rows if together & {*one.outputs} and _is_fresh(one, state))
    other = next(others, None)
    if other is None:
        return
    size = read_frame_size(folder / FIXTURE_NAME)
    first = read_frame_size(Path(other.outputs[0]))
    if size != first:
        raise ScanError(
            f"fixture.scans: the frames of {row.scan} have {size} x {size} pixels, those of "
            f"{other.scan} {first} x {first}; one training takes scans of one size: leave one out, "
            "or crop or bin it"
        )


def _is_fresh(row: Row, state: State) -> bool:
    """Whether the outputs of a task are what it would make now."""
    built = read_built(state.get(row.name, "_values_:"))
    if built is None or built.key != identify(row, state, built.read).key():
        return False
    return all(state.sha256(path) == built.outputs.get(path) for path in row.outputs)


def prepare_training(row: Row, payload: Payload, now: Identity) -> None:
    """Go on with a training that a variant began which is called otherwise now."""
    if row.stage != "train":
        return
    from ptycho_tasks.builds.project import read_project_table

    work_dir = payload.work_dir(now.without("training.epochs").key())  # type: ignore[attr-defined]
    if work_dir.exists():
        return
    for other in _list_begun(work_dir.parents[1]).get(work_dir.name, ()):
        rows = read_project_table().rows
        names = {name.partition(":")[2] for row in rows for name in (row.name, *row.aliases)}
        if other.parent.name not in names and other.exists() and not work_dir.exists():
            with report_write_errors(work_dir):
                work_dir.parent.mkdir(parents=True, exist_ok=True)
                other.rename(work_dir)
            with suppress(OSError):
                other.parent.rmdir()


@cached
def _list_begun(place: Path) -> Mapping[str, Sequence[Path]]:
    """The folders of trainings that were begun, by what these make: of many, listed once a run."""
    found: dict[str, list[Path]] = {}
    for folder in place.glob("*/*"):
        found.setdefault(folder.name, []).append(folder)
    return found


def take_result(row: Row, state: State, store: Store, entry: Entry, why: str) -> bool:
    """Put a result that was made before in its places, and say so; False where it is damaged.

    Args:
        row: the task.
        state: knows the digests of files.
        store: of the project.
        entry: the result.
        why: what the user is told besides; may be empty.

    Raises:
        FileWriteError: a file cannot be written; all is as it was.
    """
    if not store.check(entry, lambda path: state.sha256(str(path)) or ""):
        return False
    refuse_foreign(row, state)
    remove_leftovers(map(Path, row.outputs))
    place_files(row, entry)
    echo(f"{row.name} from the store, made {entry.age}{why and f' ({why})'}")
    return True


def refuse_foreign(row: Row, state: State) -> None:
    """Refuse to replace a file that no run of this project, nor another of ours, put there.

    Raises:
        ConfigError: one line that names the file.
    """
    built = state.outputs(row.name) or {}
    unknown = [Path(path) for path in row.outputs if built.get(path) is None]
    if row.stage == "train":
        unknown += [*Path(row.outputs[0]).parent.glob(f"{CHECKPOINTS}/*/*.zip")]
    if not any(path.is_file() for path in unknown):
        return
    from ptycho_tasks.builds.inputs import is_simulated_scan
    from ptycho_tasks.builds.project import read_project_table
    from ptycho_tasks.results.ownership import check_ours

    if row.stage != "source" or not is_simulated_scan(read_project_table().payload(row)):
        check_ours(unknown, "")


def is_in_place(row: Row, state: State, entry: Entry) -> bool:
    """Whether a task's outputs are the files of an entry."""
    return all(state.sha256(path) == sha256 for path, sha256 in list_digests(row, entry).items())


def list_digests(row: Row, entry: Entry) -> dict[str, str | None]:
    """What the outputs of a task, and kept checkpoints beside them, are as the files of an entry:
    path to sha256."""
    names = name_outputs(row) | name_checkpoints(row, entry)
    return {path: entry.record.files.get(name) for path, name in names.items()}


def name_checkpoints(row: Row, entry: Entry) -> dict[str, str]:
    """What the store calls the checkpoints that an entry keeps, by their paths beside the outputs
    of a task."""
    kept = [name for name in entry.record.files if name.startswith(f"{CHECKPOINTS}/")]
    folders = dict.fromkeys(Path(path).parent for path in row.outputs) if kept else {}
    return {str(folder / name): name for folder in folders for name in kept}


def list_built(row: Row, built: Built) -> Iterator[str]:
    """The paths that have to be as they were built: of a task's outputs, and of kept checkpoints
    beside them."""
    yield from row.outputs
    if row.stage == "train" and len(built.outputs) > len(row.outputs):
        folders = {Path(path).parent for path in row.outputs}
        yield from (path for path in built.outputs if {*Path(path).parents[2:3]} & folders)


def place_files(row: Row, entry: Entry) -> None:
    """Put the files of an entry in the places of a task's outputs, and kept checkpoints beside.

    Raises:
        FileWriteError: one cannot be written; what was there is unchanged.
    """
    link_files({Path(path): entry.folder / name for path, name in name_outputs(row).items()})
    if row.stage != "train":
        return
    from ptycho_tasks.results.folder_record import remove_recorded, write_record

    checkpoints = {Path(p): entry.folder / name for p, name in name_checkpoints(row, entry).items()}
    for folder in {Path(path).parent / CHECKPOINTS for path in row.outputs}:
        remove_recorded(folder)
        own = {path: kept for path, kept in checkpoints.items() if folder in path.parents}
        link_files(own)
        if own:
            write_record(folder, own)


def describe_built(row: Row, entry: Entry) -> Built:
    """What the database is to know of outputs that are an entry's files."""
    read = entry.record.identity.read
    return Built(entry.key, entry.key, read, list_digests(row, entry))


def make_record(
    identity: Identity, label: str, seconds: float = 0.0, memory_bytes: int = 0
) -> Record:
    """What is to be known of a result; of its files nothing yet. Zeros where it was found."""
    import socket

    return Record(
        identity=identity,
        files={},
        made=SYSTEM_CLOCK.stamp(),
        seconds=round(seconds, 3),
        memory_bytes=memory_bytes,
        machine=socket.gethostname(),
        version=version("ptycho-tasks"),
        label=label,
    )
