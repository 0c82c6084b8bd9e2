"""Building blocks of every options type: strict, frozen sections with documented fields.

A field is declared as

    epochs: Annotated[int, doc("passes over the training frames", ge=1)] = 60

so that its meaning, limits and default stand in one place; the commented example, the JSON
Schema and the error messages are made from it. Which stages a change of it makes stale stands
there too: with its section, or with the field where it differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec

Stages = tuple[str, ...]
STAGES: Stages = ("source", "fixture", "train", "infer", "refine")
"""The stages of the pipeline, in their order."""
# The lookahead keeps a newline out, before which `$` matches too; editors, which get the pattern
# in the JSON Schema, do not know `\Z`.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$(?!\n)"
"""What names files and folders."""
NAME_RULE = "at most 100 letters, digits, `.`, `_` and `-`, of which the first is a letter or digit"
ID_PATTERN = "[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
"""What names a row of a plan."""
ROW_PATTERN = rf"^{ID_PATTERN}$(?!\n)"
TEXT_PATTERN = r"\S"
RULES = {
    NAME_PATTERN: NAME_RULE,
    ROW_PATTERN: "the id of a row: letters, digits, `.`, `_` and `-`, as C4.D1",
    TEXT_PATTERN: "a text that is not blank",
}
"""What each pattern means, for people."""


def doc(
    text: str, *, affects: Stages | None = None, words: tuple[str, ...] = (), **bounds: Any
) -> msgspec.Meta:
    """Describe a field.

    Args:
        text: one sentence.
        affects: the stages whose results it decides; None takes those of its section.
        words: of a field that names a file, those that stand for something else.
        **bounds: ge, gt, le, lt, min_length, pattern and the like.
    """
    said = {"affects": affects, "words": words or None}
    extra = {name: value for name, value in said.items() if value is not None}
    return msgspec.Meta(description=text, extra=extra or None, **bounds)


def limits(**bounds: Any) -> msgspec.Meta:
    """Bounds of one member of a union, where `doc` cannot hold them."""
    return msgspec.Meta(**bounds)


def description_of(annotation: Any) -> str:
    """What `doc` says of a field, and which values it takes, where that is neither said there nor
    obvious; empty where the annotation has no `doc`."""
    leaves, text = list(_leaves(annotation)), text_of(annotation)
    metas = [leaf for leaf in leaves if isinstance(leaf, msgspec.Meta)]
    choices = [str(leaf) for leaf in leaves if isinstance(leaf, (str, int))]
    named = all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices)
    ranges = [range_ for range_ in map(_range, metas) if range_ not in text]
    values = [*([] if named else [", ".join(choices)]), *ranges]
    return f"{text} ({'; '.join(values)})" if text and values else text


def text_of(annotation: Any) -> str:
    """What `doc` says of a field, as it stands; empty where the annotation has none."""
    metas = (leaf for leaf in _leaves(annotation) if isinstance(leaf, msgspec.Meta))
    return next((meta.description for meta in metas if meta.description), "")


def _leaves(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of: types, values of `Literal`, metas."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _range(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f"{meta.ge:g} to {meta.le:g}"
    bounds = {"at least": meta.ge, "above": meta.gt, "at most": meta.le, "below": meta.lt}
    limits_set = {word: bound for word, bound in bounds.items() if bound is not None}
    if limits_set in ({"at least": 0}, {"at least": 1}, {"above": 0}):
        return ""
    return ", ".join(f"{word} {bound:g}" for word, bound in limits_set.items())


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One section of ptycho.yaml. An unknown key or a wrong type is an error, never ignored."""

    affects: ClassVar[Stages] = STAGES
    """The stages whose results the section's fields decide, where a field does not say."""


class TrainingOptions(Section, frozen=True, kw_only=True):
    """What every backend understands under `training:`; a backend adds its own by subclassing."""

    affects: ClassVar[Stages] = ("train",)

    epochs: Annotated[int, doc("passes over the training frames (or iterations)", ge=1)] = 30
    seed: Annotated[int, doc("seed of every random choice in training", ge=0)] = 0


class ExecutionOptions(Section, frozen=True, kw_only=True):
    """What every backend understands under `execution:`, how and where to run; a backend adds its
    own by subclassing. Nothing here changes which result is asked for, so a change rebuilds
    nothing."""

    affects: ClassVar[Stages] = ()

    accelerator: Annotated[
        Literal["auto", "cpu", "gpu", "cuda", "mps"], doc("device: auto, cpu, gpu, cuda or mps")
    ] = "auto"
    threads: Annotated[
        int,
        doc(
            "CPU threads, 0: the library's choice; another number rounds sums otherwise",
            ge=0,
            le=4096,
        ),
    ] = 0
    inference_batch_size: Annotated[int, doc("frames (or groups) per inference step", ge=1)] = 64
    memory_gb: Annotated[
        Annotated[float, limits(gt=0.0)] | None,
        doc("memory to use at most, GB; null: what the machine has left"),
    ] = None
    at_once: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("trainings that run together, whatever `doit -n` says; null: one where they use a GPU"),
    ] = None
    store_gb: Annotated[
        Annotated[float, limits(gt=0.0)] | None,
        doc("size of the project's own store from which on runs mention it, GB; null: never do"),
    ] = None
    quiet: Annotated[bool, doc("no progress on the terminal")] = False
    live: Annotated[bool, doc("show the run and the object as it is now on a page, live.html")] = (
        False
    )
    executor: Annotated[
        str,
        doc(
            "where train, infer and refine run: local, or by dask, slurm, queue or a plugin",
            pattern=NAME_PATTERN,
        ),
    ] = "local"
    resources: Annotated[
        dict[str, Any],
        doc(
            "what a job asks for: `all`, train, infer, refine or, of a backend, train.BACKEND, to "
            "partition, gpus and others"
        ),
    ] = msgspec.field(default_factory=dict)
    executor_options: Annotated[
        dict[str, Any], doc("settings of the executor itself, as the commands of `queue`")
    ] = msgspec.field(default_factory=dict)


_Text = Annotated[str, limits(pattern=TEXT_PATTERN)]


class Resources(Section, frozen=True, kw_only=True):
    """What a job asks its scheduler for. What is null is left to the scheduler."""

    affects: ClassVar[Stages] = ()

    partition: Annotated[_Text | None, doc("partition or queue")] = None
    account: Annotated[_Text | None, doc("who is charged")] = None
    gpus: Annotated[int, doc("GPUs", ge=0)] = 0
    cpus: Annotated[Annotated[int, limits(ge=1)] | None, doc("CPU cores")] = None
    memory_gb: Annotated[Annotated[float, limits(gt=0.0)] | None, doc("memory, GB")] = None
    minutes: Annotated[int, doc("time limit", ge=1)] = 60
    requeues: Annotated[
        int, doc("how often a job that reaches its time limit goes on in a new one", ge=0)
    ] = 3
    options: Annotated[
        dict[str, str | int | float | bool],
        doc("further options of the scheduler, passed on as they are, as `{qos: long}`"),
    ] = msgspec.field(default_factory=dict)


class SimulationOptions(Section, frozen=True, kw_only=True):
    """What to simulate. Every field changes the result."""

    affects: ClassVar[Stages] = ("source",)

    object: Annotated[
        Literal["lines", "siemens", "blobs"],
        doc("ground truth: random lines, a Siemens star, or smooth random blobs"),
    ] = "lines"
    probe: Annotated[
        Literal["disc", "defocused"],
        doc("illumination: a soft disc, or the defocused, ring-like beam of a zone plate"),
    ] = "defocused"
    size: Annotated[
        int, doc("detector pixels along one side (N), even", ge=8, le=1024, multiple_of=2)
    ] = 64
    grid: Annotated[int, doc("scan points along one side; frames = grid squared", ge=1, le=512)] = (
        32
    )
    step: Annotated[float, doc("distance of neighbouring scan points, pixels", gt=0.0)] = 6.0
    jitter: Annotated[
        float, doc("largest random offset of a scan point along y and x, pixels", ge=0.0)
    ] = 2.0
    photons: Annotated[float, doc("mean counts of a frame", gt=0.0, le=1e12)] = 1e6
    probe_radius: Annotated[
        float, doc("radius of the illuminated spot, pixels; 0 takes 0.19 of size", ge=0.0)
    ] = 0.0
    probe_aperture: Annotated[
        float,
        doc(
            "radius of the beam's cone on the detector, as a fraction of size; 0 is a flat wave",
            ge=0.0,
            le=0.4,
        ),
    ] = 0.2
    amplitude_min: Annotated[
        float, doc("lowest amplitude of the object; the highest is 1", gt=0.0, le=1.0)
    ] = 0.4
    phase_range: Annotated[
        float, doc("difference of the object's highest and lowest phase, rad", ge=0.0, le=6.0)
    ] = 1.4
    bad_pixels: Annotated[
        float,
        doc(
            "share of the detector's pixels that measure nothing: half of them in a gap of "
            "columns, half single ones",
            ge=0.0,
            le=0.5,
        ),
    ] = 0.0
    seed: Annotated[int, doc("seed of object, positions and noise", ge=0)] = 0

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        if self.jitter > self.step:
            raise ValueError(f"jitter {self.jitter:g} exceeds step {self.step:g}: lower jitter")
        if 2 * self.radius > self.size - 2:
            raise ValueError(
                f"probe_radius {self.radius:g} does not fit size {self.size}: "
                f"take at most {self.size / 2 - 1:g}"
            )
        if self.probe == "defocused" and self.probe_aperture < 0.05:
            raise ValueError(
                f"probe `defocused` needs a probe_aperture of at least 0.05, "
                f"not {self.probe_aperture:g}"
            )
        if self.grid * self.step > 8192:
            raise ValueError(
                f"grid {self.grid} times step {self.step:g} is an object of more than 8192 pixels "
                "along a side: lower one of them"
            )
        frames_gib = self.grid**2 * self.size**2 * 4 / 2**30
        if frames_gib > 16:
            raise ValueError(
                f"grid {self.grid} and size {self.size} are {frames_gib:.0f} GiB of frames, more "
                "than 16: lower one of them"
            )

    @property
    def radius(self) -> float:
        """Radius of the illuminated spot in pixels, with the default resolved."""
        return self.probe_radius or 0.19 * self.size


class OrientationOptions(Section, frozen=True, kw_only=True):
    """How the positions of a scan lie to the columns and rows of its frames: what is done to those
    of the file, in this order."""

    affects: ClassVar[Stages] = ("source", "fixture", "infer", "refine")

    swap: Annotated[bool, doc("x and y of the positions are exchanged")] = False
    flip_x: Annotated[bool, doc("x runs the other way")] = False
    flip_y: Annotated[bool, doc("y runs the other way")] = False
    rotate_deg: Annotated[
        float, doc("degrees by which positions are turned, from x (right) towards y (down)")
    ] = 0.0
    scale_x: Annotated[float, doc("what x is then multiplied by, about the middle", gt=0)] = 1.0
    scale_y: Annotated[float, doc("what y is then multiplied by, about the middle", gt=0)] = 1.0


class FixtureOptions(Section, frozen=True, kw_only=True):
    """Which frames of the source are taken."""

    affects: ClassVar[Stages] = ("fixture",)

    strategy: Annotated[
        Literal["stratified", "first", "random", "grid"],
        doc("stratified: evenly spaced indices; first; random; grid: spatially even"),
    ] = "stratified"
    subset_size: Annotated[
        Annotated[int, limits(ge=16)] | None, doc("frames to take, at least 16; null takes all")
    ] = None
    seed: Annotated[int, doc("seed of the strategy `random`", ge=0)] = 0


def default_of(field: Any) -> Any:
    """The default value of a field of a section; msgspec.NODEFAULT where it must be given."""
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()
