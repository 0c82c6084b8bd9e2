"""What a backend is: pure compute. It gets arrays and options and gives back arrays; the core
owns every file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ptycho_tasks.errors import ConfigError, ScanError, TrainingError
from ptycho_tasks.options import NAME_PATTERN, NAME_RULE, ExecutionOptions
from ptycho_tasks.options import TrainingOptions as TrainingOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ptycho_tasks.physics.metrics import Misfit
    from ptycho_tasks.scan import ScanData


API_VERSION = 2
"""The version of what backends and the core ask of each other, as this module says it. Raised when
a backend written for the one before would fail or mislead. Version 2 learns from several scans; a
backend of version 1 goes on working with one."""
SEEN_LEVEL = 0.01
"""A pixel counts as seen where the illumination is at least this share of its maximum."""


class Progress(Protocol):
    """Called by a backend after each epoch or batch of work."""

    def __call__(self, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Say that `done` of `total` steps are done, and the metrics at this point. The total
        stays; only the last call may have a smaller one, where fewer steps were needed. It is None
        while nobody can tell how many there will be; the last call can.

        The first call, before the first step, tells where the work begins: at 0, or further on.
        """


def no_progress(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
    """A `Progress` that shows nothing."""


ROUGH_PROBE = (
    "warning: the probe is a rough estimate from the frames (source.probe: estimate), taken as "
    "it is; the backend `unrolled` fits one"
)
"""What a backend says that fits no probe to a scan whose probe is an estimate."""


def say_nothing(text: str) -> None:
    """A `say` that shows nothing."""


class Show(Protocol):
    """Called by a backend when its object has changed, as often as it likes."""

    def __call__(self, make: Callable[[], NDArray[np.complex64]]) -> None:
        """Show the object to whoever watches.

        Args:
            make: gives the (H, W) complex64 object as it is now, or the part of it that is cheap
                to have, zero where nothing was seen. It is called at once or not at all: so
                seldom that pictures take a hundredth of the time, however long one takes.
        """


def show_nothing(make: Callable[[], NDArray[np.complex64]]) -> None:
    """A `Show` that nobody watches: who would have to keep something to show may leave it out."""


@dataclass(frozen=True)
class TrainRequest:
    """All that a backend needs in order to train."""

    scans: Sequence[ScanData]
    """One or more, of frames of one size; probes, doses and positions are each scan's own."""
    options: Any
    """An instance of the backend's `options_type`, fully resolved."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    progress: Progress = no_progress
    work_dir: Path | None = None
    """An existing folder for checkpoints; None where nothing may be written. A later training on
    the same data with the same code and options, `epochs` aside, is given the same folder with
    all that is in it: after a kill, or to go on for more epochs."""
    say: Callable[[str], None] = say_nothing
    """Shows the user one line, such as where a training resumes."""
    log_dir: Path | None = None
    """A folder, made if it is needed, for what lets people watch a training; nothing reads it
    later. None where nothing may be written."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Where the files lie that the backend's `files` names for the options, under the same names.
    Empty where the caller leaves it to the backend."""
    show: Show = show_nothing
    """Shows the object as it is now to whoever watches."""

    def __post_init__(self) -> None:
        """Refuse what is no list of scans."""
        if not isinstance(self.scans, Sequence) or not self.scans:
            raise TypeError("TrainRequest: `scans` is a list of one scan or more")

    @property
    def scan(self) -> ScanData:
        """The only scan, for a backend that learns from one.

        Raises:
            ConfigError: there are several.
        """
        if len(self.scans) > 1:
            raise ConfigError(
                f"fixture.scans: names {len(self.scans)} scans to learn from, but the backend "
                "learns from one; name one"
            )
        return self.scans[0]


@dataclass(frozen=True)
class TrainedModel:
    """What training gives, ready to be written as a bundle.

    `models` maps a model's name to its named arrays (float or complex). One array object under
    several names is stored once. `metadata` holds JSON-able values that inference needs again
    (`intensity_scale`, say). `history` has one mapping of metric to value an epoch.
    """

    models: Mapping[str, Mapping[str, NDArray[Any]]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    checkpoints: Mapping[str, TrainedModel] = field(default_factory=dict)
    """Other states of the same training that the user asked to keep, such as its best epochs, by
    name; each becomes a bundle of its own."""


@dataclass(frozen=True)
class InferRequest:
    """All that a backend needs in order to reconstruct a scan with a trained model."""

    scan: ScanData
    model: TrainedModel
    options: Any
    """The training options that the model was trained with."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    progress: Progress = no_progress
    say: Callable[[str], None] = say_nothing
    """Shows the user one line, such as how many steps were taken, and why."""
    show: Show = show_nothing
    """Shows the object as it is now to whoever watches."""


@dataclass(frozen=True)
class RefineRequest:
    """All that a backend needs in order to go on from a reconstruction."""

    scan: ScanData
    start: Reconstruction
    """What another backend made of this scan, in its frame: the object, which is no result where
    it is not `seen`, the probe in counts, and the positions as used. Not to be changed."""
    options: Any
    """An instance of the backend's `options_type`, fully resolved."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    progress: Progress = no_progress
    say: Callable[[str], None] = say_nothing
    """Shows the user one line, such as how many steps were taken, and why."""
    show: Show = show_nothing
    """Shows the object as it is now to whoever watches."""


@dataclass(frozen=True)
class Reconstruction:
    """What inference gives."""

    object: NDArray[np.complex64]
    """(H, W) complex64 object."""
    origin: tuple[int, int]
    """(row, column) on the scan's object grid of the pixel object[0, 0]."""
    probe: NDArray[np.complex64]
    """(P, N, N) complex64, scaled such that |FFT(probe * patch)|^2 is in counts."""
    positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) on the scan's object grid, as used."""
    losses: Sequence[float] = ()
    """Loss an epoch, of training or of the iterations."""
    steps: int | None = None
    """How many steps were taken, where `losses` begin before the first one, and the last ones may
    have none; None where each step or epoch has a loss."""
    flux: NDArray[np.float32] | None = None
    """(M,) float32 light of each frame over the probe's, where they are known to differ."""
    background: NDArray[np.float32] | None = None
    """(N, N) float32 counts of every frame that are not the probe's light, zero frequency at N//2,
    where they are known."""

    @cached_property
    def illumination(self) -> NDArray[np.float32]:
        """(H, W) float32 sum of |probe|^2 over modes and frames; zero where nothing was seen.

        Raises:
            ScanError: a patch reaches outside the object.
        """
        from ptycho_tasks.physics.forward import illumination_of

        return illumination_of(self.probe, self.positions, self.origin, self.object.shape)

    def measure_misfit(self, diffraction: NDArray[np.float32]) -> Misfit:
        """How well it predicts (M, N, N) float32 measured amplitudes; see `metrics.data_misfit`."""
        from ptycho_tasks.physics.metrics import data_misfit

        return data_misfit(*self._fields, diffraction, self.flux, self.background)

    def measure_displacement(self, diffraction: NDArray[np.float32]) -> float:
        """How far from their positions (M, N, N) float32 measured amplitudes fit the object better;
        see `displacement.measure_displacement`."""
        from ptycho_tasks.physics.displacement import measure_displacement

        return measure_displacement(*self._fields, diffraction, self.flux, self.background)

    @property
    def _fields(
        self,
    ) -> tuple[NDArray[np.complex64], tuple[int, int], NDArray[np.complex64], NDArray[np.float64]]:
        return self.object, self.origin, self.probe, self.positions

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(H, W) bool: where the illumination reaches 1 % of its maximum; elsewhere the object
        is no result."""
        import numpy as np

        light = self.illumination
        return np.asarray((light > 0) & (light >= SEEN_LEVEL * light.max()))


@dataclass(frozen=True)
class Trial:
    """How well a scan explains itself, by a quick reconstruction; see `Backend`, `try_scan`."""

    r_factor: float
    """Sum of what predicted amplitudes differ by from the measured ones, over the sum of these."""
    residuals: NDArray[np.float64]
    """(M,) sum of the squared differences of each frame that counts, in a unit that depends on the
    frames alone: trials of the same frames compare frame by frame."""
    shares: tuple[float, ...] = (1.0,)
    """Of the light, of each mode of the probe that was tried."""
    moved: NDArray[np.float64] | None = None
    """(M, 2) pixels (y, x) by which positions were moved, where they were fitted."""
    displacement: float = 0.0
    """Root mean square pixels from the positions to where frames fit the object better; see
    `displacement.measure_displacement`. 0 where nobody has measured it."""
    background: float = 0.0
    """Share of the light that was found not to be the probe's; 0 where nobody has looked for it."""


@runtime_checkable
class Backend(Protocol):
    """A training and inference engine.

    Importing the module that holds a backend must be cheap: import torch and the like inside
    `train` and `infer`.

    What else a backend may have:

    - `api_version` (int): the `API_VERSION` that it was written for; without, it counts as 1, and
      is given one scan to learn from. One of a later version than the core's is refused.
    - `execution_type` (a subclass of `ExecutionOptions`): what it understands under `execution:`.
      A key that it does not know is refused, so that none is ignored. Without, it is taken to
      compute on the CPU in its own way, and anything else is refused.
    - `check(options, execution) -> None`: raise a ConfigError, which begins with the dotted key,
      where training options and execution options do not fit each other. Called before anything
      heavy is imported, so it must import nothing heavy.
    - `files(options) -> Mapping[str, Path]`: the files that `train` reads with such options, each
      under the name of the option that decides it; relative to the project's folder where they are
      relative. Their content is an input: another content trains again, and where they lie does
      not matter. Called when tasks are listed, so it must import nothing heavy, and open nothing.
    - `memory(request) -> float`: bytes that `train`, `infer` or `refine` will take for a request,
      from shapes alone; more than there is, or than `execution.memory_gb`, is refused before
      anything is computed. Without, 20 complex64 canvases and 0.6 GB.
    - `uses_gpu(execution) -> bool`: whether a training with such options works on a GPU: then one
      runs at a time, unless `execution.at_once` says otherwise.
    - `refine(request: RefineRequest) -> Reconstruction`: go on from another backend's
      reconstruction, for `refine:`.
    - `try_scan(scan: ScanData, steps: int, modes: int, held_back: int, *, moves: bool) -> Trial`:
      reconstruct a few frames in a fraction of a second, with nothing learned, for `ptycho-tasks
      check`, which compares positions, centres and the like by it. With `modes` above 0, a probe of
      so many incoherent modes is fitted first. With `held_back` above 0, one frame in so many takes
      no part, and these alone are counted. With `moves`, which may be left out, the position of
      each frame is fitted first. The same scan gives the same numbers.
    """

    name: str
    version: str
    """Changes when results change; part of the identity of what was trained."""
    options_type: type[TrainingOptions]

    def train(self, request: TrainRequest) -> TrainedModel:
        """Learn from one scan or several.

        Raises:
            TrainingError: the training cannot give a meaningful model.
            ConfigError: an option that this machine or scan cannot honour, or several scans where
                it can learn from one only, as `request.scan` raises it.
        """

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan with a trained model.

        Raises:
            BundleError: the model does not hold what this backend's models hold.
            ConfigError: an option that this machine cannot honour.
        """


def checked_model(result: object, backend: str) -> TrainedModel:
    """What `train` gave, if it is a `TrainedModel`, with numpy's numbers as plain ones.

    NaN and Inf in weights and history are left to the bundle to refuse.

    Raises:
        TrainingError: names the backend, what is wrong and what was expected.
    """
    prefix = f"backend `{backend}` gave"
    if not isinstance(result, TrainedModel):
        raise TrainingError(f"{prefix} {_kind(result)} from `train`; expected a TrainedModel")
    models = {
        name: {
            key: _array(value, f"{prefix} `models`, {name}/{key},", "biufc")
            for key, value in _named(arrays, f"{prefix} `models`, {name},", "arrays").items()
        }
        for name, arrays in _named(result.models, f"{prefix} `models`", "mappings").items()
    }
    metadata = _mapping(result.metadata, f"{prefix} `metadata`")
    epochs = result.history
    if not isinstance(epochs, Sequence) or isinstance(epochs, str):
        raise TrainingError(f"{prefix} `history` as {_kind(epochs)}; expected a list of mappings")
    history = [
        {
            name: float(_array(value, f"{prefix} `history`, epoch {epoch}, {name},", "biuf", ()))
            for name, value in _mapping(metrics, f"{prefix} `history`, epoch {epoch},").items()
        }
        for epoch, metrics in enumerate(epochs, start=1)
    ]
    checkpoints = {}
    for name, state in _mapping(result.checkpoints, f"{prefix} `checkpoints`").items():
        if not re.fullmatch(NAME_PATTERN, name):
            raise TrainingError(
                f"{prefix} `checkpoints` with the name {name!r}; expected {NAME_RULE}"
            )
        checkpoints[name] = checked_model(state, backend)
    return TrainedModel(
        models,
        {key: _plain(value, f"{prefix} `metadata`, {key}") for key, value in metadata.items()},
        history,
        checkpoints,
    )


def checked_reconstruction(
    result: object, scan: ScanData, backend: str, method: str = "infer"
) -> Reconstruction:
    """What `infer` (or another method) gave, if it is a `Reconstruction` of the scan, in the types
    that it promises.

    Raises:
        TrainingError: names the backend, what is wrong and what was expected.
    """
    import numpy as np

    prefix = f"backend `{backend}` gave"
    if not isinstance(result, Reconstruction):
        raise TrainingError(f"{prefix} {_kind(result)} from `{method}`; expected a Reconstruction")
    M, N = scan.frame_count, scan.size

    def take(name: str, kinds: str, shape: tuple[int | None, ...], dtype: Any) -> NDArray[Any]:
        given = _array(getattr(result, name), f"{prefix} `{name}`", kinds, shape)
        return given.astype(dtype, copy=False)

    row, column = _array(result.origin, f"{prefix} `origin`", "iu", (2,)).tolist()
    # Too large for single precision is as little use as infinite, and refused as that.
    with np.errstate(over="ignore", invalid="ignore"):
        checked = Reconstruction(
            take("object", "c", (None, None), np.complex64),
            (row, column),
            take("probe", "c", (None, N, N), np.complex64),
            take("positions", "f", (M, 2), np.float64),
            take("losses", "biuf", (None,), np.float64).tolist(),
            None if result.steps is None else int(result.steps),
            None if result.flux is None else take("flux", "f", (M,), np.float32),
            None if result.background is None else take("background", "f", (N, N), np.float32),
        )
        for name in ("object", "probe", "positions", "losses", "flux", "background"):
            value = getattr(checked, name)
            if value is not None and not np.isfinite(value).all():
                raise TrainingError(
                    f"{prefix} `{name}` with NaN or Inf: the model is of no use on this scan; "
                    "train "
                    "it longer, or with other data or settings"
                )
        try:
            light = checked.illumination
        except ScanError as error:
            raise TrainingError(
                f"{prefix} `positions` that do not fit `object`: {error}"
            ) from error
    if not np.isfinite(light).all():
        raise TrainingError(
            f"{prefix} `probe` too bright for single precision; its |probe|^2 must be in counts"
        )
    for name, lit in (("probe", light), ("object", checked.object[checked.seen])):
        if not lit.any():
            raise TrainingError(
                f"{prefix} `{name}` that is zero wherever there is light: it explains no frame"
            )
    return checked


_KINDS = {
    "c": "complex",
    "f": "float",
    "iu": "integers",
    "biuf": "real numbers",
    "biufc": "numbers",
}
"""Kinds of numpy's dtypes, and what they are called."""


def _array(
    value: Any, prefix: str, kinds: str, shape: tuple[int | None, ...] | None = None
) -> NDArray[Any]:
    """An array of some kinds and of a shape, in which None stands for any length."""
    import numpy as np

    expected = _KINDS[kinds]
    if shape is not None:
        sides = ["any" if side is None else str(side) for side in shape]
        expected += f" of shape ({', '.join(sides)})" if shape else ", a single one"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged; a tensor on a GPU
        reason = " ".join(str(error).split())
        raise TrainingError(f"{prefix} as no array ({reason}); expected {expected}") from error
    fits = shape is None or (
        array.ndim == len(shape)
        and all(side in (None, length) for side, length in zip(shape, array.shape, strict=True))
    )
    if array.dtype.kind not in kinds or not fits:
        actual = "None" if value is None else f"{array.dtype} of shape {array.shape}"
        raise TrainingError(f"{prefix} as {actual}; expected {expected}")
    return array


def _mapping(value: Any, prefix: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TrainingError(f"{prefix} as {_kind(value)}; expected a mapping with text as keys")
    return value


def _named(value: Any, prefix: str, what: str) -> Mapping[str, Any]:
    """A mapping whose keys can name a group or dataset of HDF5."""
    for name in _mapping(value, prefix):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise TrainingError(f"{prefix} with the name {name!r}; name {what} without `/`")
    return value  # type: ignore[no-any-return]


def _plain(value: Any, prefix: str) -> Any:
    """What JSON gives back of a value; numpy's scalars become plain numbers."""
    import numpy as np

    def plain(scalar: Any) -> Any:
        if isinstance(scalar, np.generic) and scalar.dtype.kind in "biuf":
            return scalar.item()
        raise TypeError(f"{_kind(scalar)} in it")

    try:
        return json.loads(json.dumps(value, default=plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{prefix}: {error}; expected what JSON can hold; arrays belong in `models`"
        ) from error


def _kind(value: object) -> str:
    return "None" if value is None else f"a `{type(value).__name__}`"
