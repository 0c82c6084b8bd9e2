"""Frames of one canvas in several processes, each of which adds up a tile of it.

A tile gets the frames that touch it, so that those at its rim are in two processes: then every
pixel is the sum of the same numbers in the same order as in one process, and has the same bytes.
In a step each process gets the window of the object that its frames lie in, and gives its tile.
All decisions are those of the first process, which has a tile itself; the others hold frames only.

Where a process is lost, the first one takes its frames, and goes on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import count
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.device import find_device, require_devices, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.helpers import (
    Channel,
    Helper,
    LostHelperError,
    SentScan,
    start_helpers,
)
from ptycho_tasks_torch.launched import read_own_seat
from ptycho_tasks_torch.physics.exposure import Apply, Chunk, Exposure
from ptycho_tasks_torch.physics.mapped import (
    MappedExposure,
    expose_scan,
    load_frames,
    map_scan,
)
from ptycho_tasks_torch.threads import chunks_on_threads, work_ahead

LEAST_PIXELS = 2**25
"""Measured pixels of a scan from which on it is spread: with fewer, one process is done not long
after others have started."""


@dataclass(frozen=True)
class Rectangle:
    """Pixels of a canvas."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, canvas: Tensor) -> Tensor:
        """(B, ., .) part of (B, S, T) canvases; changes to it are changes to these."""
        return canvas[:, self.top : self.bottom, self.left : self.right]

    def within(self, other: Rectangle) -> Rectangle:
        """The same pixels, counted from the corner of another rectangle."""
        y, x = other.top, other.left
        return Rectangle(self.top - y, self.left - x, self.bottom - y, self.right - x)


def divide(corners: NDArray[np.int64], whole: Rectangle, size: int, parts: int) -> list[Rectangle]:
    """Divide a canvas into tiles that about as many frames touch.

    Args:
        corners: (F, 2) int64 of the frames that touch it.
        whole: the canvas.
        size: N.
        parts: number of tiles.
    """
    if parts == 1:
        return [whole]
    first = parts // 2
    sides = (whole.bottom - whole.top, whole.right - whole.left)
    axis = int(sides[1] > sides[0])
    centres = corners[:, axis] + size // 2
    start, end = ((whole.top, whole.bottom), (whole.left, whole.right))[axis]
    cut = int(np.quantile(centres, first / parts)) if len(centres) else (start + end) // 2
    cut = min(max(cut, start + 1), end - 1)
    one, two = (
        (replace(whole, bottom=cut), replace(whole, top=cut))
        if axis == 0
        else (replace(whole, right=cut), replace(whole, left=cut))
    )
    return [
        tile
        for part, number in ((one, first), (two, parts - first))
        for tile in divide(corners[find_touching(corners, part, size)], part, size, number)
    ]


def find_touching(corners: NDArray[np.int64], tile: Rectangle, size: int) -> NDArray[np.int64]:
    """(K,) indices of the frames with (F, 2) int64 corners that touch a tile."""
    low, high = np.array([tile.top, tile.left]), np.array([tile.bottom, tile.right])
    return np.flatnonzero(((corners + size > low) & (corners < high)).all(axis=1))


class Tile:
    """The frames that touch a rectangle of the canvas, and what they add up to there."""

    def __init__(
        self, exposure: Exposure, numbers: Tensor, inner: Rectangle, window: Rectangle
    ) -> None:
        """Take frames.

        Args:
            exposure: the frames, on a canvas that is the window.
            numbers: (K,) int64 of theirs among all.
            inner: the tile, counted from the window's corner.
            window: where the frames lie.
        """
        self.exposure, self.numbers, self.inner, self.window = exposure, numbers, inner, window

    @classmethod
    def cut(
        cls,
        mapped: MappedExposure,
        tile: Rectangle,
        diffraction: NDArray[np.float32] | None = None,
    ) -> Tile:
        """Load the frames of a scan that touch a tile.

        Args:
            mapped: the scan.
            tile: a part of its canvas.
            diffraction: (K, N, N) the frames, where `mapped` has none.
        """
        corners = mapped.places[:, 1:].cpu().numpy()
        touching = find_touching(corners, tile, mapped.size)
        window = find_window(corners[touching], tile, mapped.size)
        frames = mapped.take(touching.tolist())
        device = frames.places.device
        moved = frames.places - torch.tensor([0, window.top, window.left], device=device)
        shape = (window.bottom - window.top, window.right - window.left)
        if diffraction is not None:
            order = torch.arange(len(touching), device=device)
            frames = replace(frames, diffraction=diffraction, frames=order)
        own = load_frames(replace(frames, places=moved, shape=shape))
        numbers = torch.from_numpy(touching).to(device)
        return cls(own, numbers, tile.within(window), window)

    def take(self, frames: Sequence[int], total: int) -> Tile:
        """What it has of some of all the `total` frames."""
        chosen = torch.as_tensor(frames, dtype=torch.int64, device=self.numbers.device)
        own = torch.full((total,), -1, device=chosen.device)
        own[self.numbers] = torch.arange(len(self.numbers), device=chosen.device)
        own = own[chosen]
        has = own >= 0
        exposure = self.exposure.take(own[has].tolist())
        return Tile(exposure, has.nonzero()[:, 0], self.inner, self.window)

    def brighten(self, flux: Tensor) -> Tile:
        """The same frames with another light, of (F,) of all frames; see `Exposure`."""
        own = flux.to(self.numbers.device)[self.numbers]
        return Tile(self.exposure.brighten(own), self.numbers, self.inner, self.window)

    def cover(self, background: Tensor | None) -> Tile:
        """See `Exposure`."""
        return Tile(self.exposure.cover(background), self.numbers, self.inner, self.window)

    def light(self) -> Tensor:
        """(1, ., .) float32 of the tile; see `Exposure`."""
        return self.inner.of(self.exposure.light)

    def correction(self, part: Tensor) -> Tensor:
        """(1, ., .) complex64 of the tile, from the window of the object; see `Exposure`."""
        return self.inner.of(self.exposure.correction(part))


def find_window(corners: NDArray[np.int64], tile: Rectangle, size: int) -> Rectangle:
    """The rectangle of frames with (K, 2) int64 corners, and of the tile that they touch."""
    ends = np.array([[tile.top, tile.left], [tile.bottom, tile.right]])
    low, high = np.vstack([corners, ends[:1]]), np.vstack([corners + size, ends[1:]])
    return Rectangle(*low.min(axis=0).tolist(), *high.max(axis=0).tolist())


@dataclass(frozen=True, kw_only=True)
class TiledExposure(MappedExposure):
    """All frames of a canvas, in several processes; this one can read every frame too."""

    crew: Crew
    number: int
    """What the others know these frames by."""
    tiles: Sequence[Rectangle]
    """Of this process, then of the others."""
    windows: Sequence[Rectangle]
    own: Tile

    @cached_property
    def light(self) -> Tensor:
        """See `Exposure`."""
        total = self.own.exposure.amplitude.new_zeros((1, *self.shape))
        return self._join(total, "light", lambda tile, _: tile.light(), None)

    def correction(self, canvas: Tensor) -> Tensor:
        """See `Exposure`."""
        total = torch.zeros_like(canvas)
        return self._join(total, "correction", lambda tile, part: tile.correction(part), canvas)

    def _join(
        self,
        total: Tensor,
        name: str,
        compute: Callable[[Tile, Any], Tensor],
        canvas: Tensor | None,
    ) -> Tensor:
        """Have each process compute its tile of a (1, S, T) canvas."""
        members = range(1, len(self.tiles))
        for member in members:
            part = None if canvas is None else _to_array(self.windows[member].of(canvas))
            self.crew.send(member, name, self.number, part)
        self._compute(total, compute, canvas, 0, self.own)
        for member in members:
            found = self.crew.receive(member)
            if found is None:
                self._compute(total, compute, canvas, member, self._stand_in(member))
            else:
                self.tiles[member].of(total).copy_(torch.from_numpy(found))
        return total

    def _compute(
        self,
        total: Tensor,
        compute: Callable[[Tile, Any], Tensor],
        canvas: Tensor | None,
        member: int,
        tile: Tile,
    ) -> None:
        part = None if canvas is None else tile.window.of(canvas).contiguous()
        self.tiles[member].of(total).copy_(compute(tile, part))

    def _stand_in(self, member: int) -> Tile:
        """The frames of a process that is lost."""
        if member not in self._stand_ins:
            self._stand_ins[member] = Tile.cut(self._mapped, self.tiles[member])
        return self._stand_ins[member]

    @cached_property
    def _stand_ins(self) -> dict[int, Tile]:
        return {}

    @cached_property
    def _mapped(self) -> MappedExposure:
        values = {each.name: getattr(self, each.name) for each in fields(MappedExposure)}
        return MappedExposure(**values)

    @cached_property
    def _alone(self) -> Exposure:
        return load_frames(self._mapped)

    def _average(self, canvas: Tensor, compare: Callable[[Tensor, Chunk], Tensor]) -> float:
        """See `Exposure`; in this process, as it is asked of few frames."""
        return self._alone._average(canvas, compare)

    def take(self, frames: Sequence[int]) -> TiledExposure:
        """See `Exposure`."""
        taken = super().take(frames)
        assert isinstance(taken, TiledExposure)
        total = len(self.places)
        number = self.crew.new_number()
        self.crew.send_all("take", number, self.number, np.asarray(frames), total)
        return self.crew.keep(replace(taken, number=number, own=self.own.take(frames, total)))

    def brighten(self, flux: Tensor) -> TiledExposure:
        """See `Exposure`."""
        brightened = super().brighten(flux)
        assert isinstance(brightened, TiledExposure)
        number = self.crew.new_number()
        self.crew.send_all("brighten", number, self.number, _to_array(flux))
        return self.crew.keep(replace(brightened, number=number, own=self.own.brighten(flux)))

    def cover(self, background: Tensor | None) -> TiledExposure:
        """See `Exposure`."""
        number = self.crew.new_number()
        sent = None if background is None else _to_array(background)
        self.crew.send_all("cover", number, self.number, sent)
        own = self.own.cover(background)
        return self.crew.keep(replace(self, background=background, number=number, own=own))

    @property
    def apply(self) -> Apply:
        """See `Exposure`."""
        return self.crew.apply


class Crew:
    """The processes that hold frames for this one."""

    def __init__(self, helpers: Sequence[Helper], say: Callable[[str], None]) -> None:
        """Take helpers that have their `TileTask`."""
        self._helpers = dict(enumerate(helpers, start=1))
        self._size, self._say = len(helpers) + 1, say
        self._numbers = count()
        self._unused: list[int] = []

    def new_number(self) -> int:
        """A name for a set of frames."""
        return next(self._numbers)

    def keep(self, exposure: TiledExposure) -> TiledExposure:
        """The same; the others may forget it when nothing here needs it any more."""
        # What is sent from within a finalizer could fall between parts of another message.
        weakref.finalize(exposure, self._unused.append, exposure.number).atexit = False
        return exposure

    def send(self, member: int, name: str, *arguments: object) -> None:
        """Call a method of a process' `_Holder`, if the process is there."""
        if member in self._helpers:
            self._helpers[member].send((name, arguments))

    def send_all(self, name: str, *arguments: object) -> None:
        """Call a method that gives nothing, of every process."""
        unused = [self._unused.pop() for _ in range(len(self._unused))]
        for member in self._helpers:
            for number in unused:
                self.send(member, "drop", number)
            self.send(member, name, *arguments)

    def receive(self, member: int) -> NDArray[Any] | None:
        """What a method gave; None where the process is gone."""
        if member not in self._helpers:
            return None
        try:
            found: NDArray[Any] = self._helpers[member].receive()
        except LostHelperError as error:
            del self._helpers[member]
            self._say(f"{error}; its part of the frames goes on in this one")
            return None
        return found

    def expose(self, scan: ScanData, modes: Tensor, scale: float, photon: float) -> Exposure:
        """Give every process its frames; arguments as for `expose_scan`."""
        mapped = map_scan(scan, modes, scale, photon)
        corners, N = mapped.places[:, 1:].cpu().numpy(), mapped.size
        tiles = divide(corners, Rectangle(0, 0, *mapped.shape), N, self._size)
        touching = [find_touching(corners, tile, N) for tile in tiles]
        given = (scan.positions, _to_array(modes), scale, photon)
        self.send_all("forget")
        number = self.new_number()
        for member in self._helpers:
            # Of frames that are mapped, each process maps the file.
            frames = None if is_mapped(scan) else scan.diffraction[touching[member]]
            self.send(member, "expose", number, *given, tiles[member], frames)
        values = {each.name: getattr(mapped, each.name) for each in fields(MappedExposure)}
        return TiledExposure(
            **values,
            crew=self,
            number=number,
            tiles=tiles,
            windows=[
                find_window(corners[own], tile, N)
                for own, tile in zip(touching, tiles, strict=True)
            ],
            own=Tile.cut(mapped, tiles[0]),
        )

    def apply(self, network: nn.Module, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Apply a network to (B, C, S, T) parts, in the processes that are free; in order."""
        self.send_all("learn", network)
        free: SimpleQueue[int] = SimpleQueue()
        for member in (0, *self._helpers):
            free.put(member)

        def work(part: Tensor) -> Tensor:
            member = free.get()
            try:
                found = None
                if member:
                    # Channels last: in that order in memory too, which decides about rounding.
                    self.send(member, "apply", _to_array(part.movedim(1, -1)))
                    found = self.receive(member)
                if found is not None:
                    return torch.from_numpy(found).to(part.device)
                with torch.inference_mode():
                    result: Tensor = network(part)
                return result
            finally:
                free.put(member)

        return work_ahead(work, parts, self._size)


def is_mapped(scan: ScanData) -> bool:
    """Whether frames lie in a file that another process can map."""
    return SentScan.pack(scan).frames is None


def _to_array(values: Tensor) -> NDArray[Any]:
    return values.contiguous().cpu().numpy()


@dataclass(frozen=True)
class TileTask:
    """Hold frames, and add up a tile of the canvas whenever that is asked for."""

    scan: SentScan
    """Without its frames where they are not mapped."""
    shape: tuple[int, ...]
    """(M, N, N) of the frames."""
    execution: TorchExecution
    local_rank: int
    local_count: int

    def run(self, channel: Channel) -> None:
        """See `Task`."""
        device = find_device(self.execution.accelerator)
        if device.type == "cuda":
            torch.cuda.set_device(self.local_rank)
        quiet = settings(self.execution, processes=self.local_count)
        with quiet, chunks_on_threads(), torch.inference_mode():
            scan = self.scan.open()
            if scan.diffraction.shape != self.shape:
                nothing = np.broadcast_to(np.float32(0), self.shape)
                scan = replace(scan, diffraction=nothing)
            holder = _Holder(scan, device)
            while True:
                name, arguments = channel.receive()
                found = getattr(holder, name)(*arguments)
                if found is not None:
                    channel.send(_to_array(found))


@dataclass
class _Holder:
    """What a helper has; only methods that give something are answered."""

    scan: ScanData
    device: torch.device
    network: nn.Module | None = None
    tiles: dict[int, Tile] = field(default_factory=dict)

    def forget(self) -> None:
        self.tiles.clear()

    def drop(self, number: int) -> None:
        self.tiles.pop(number, None)

    def expose(
        self,
        number: int,
        positions: NDArray[np.float64],
        modes: NDArray[np.complex64],
        scale: float,
        photon: float,
        tile: Rectangle,
        frames: NDArray[np.float32] | None,
    ) -> None:
        scan = replace(self.scan, positions=positions)
        mapped = map_scan(scan, torch.from_numpy(modes).to(self.device), scale, photon)
        self.tiles[number] = Tile.cut(mapped, tile, frames)

    def take(self, number: int, of: int, frames: NDArray[np.int64], total: int) -> None:
        self.tiles[number] = self.tiles[of].take(frames.tolist(), total)

    def brighten(self, number: int, of: int, flux: NDArray[np.float32]) -> None:
        self.tiles[number] = self.tiles[of].brighten(torch.from_numpy(flux))

    def cover(self, number: int, of: int, background: NDArray[np.float32] | None) -> None:
        told = None if background is None else torch.from_numpy(background).to(self.device)
        self.tiles[number] = self.tiles[of].cover(told)

    def light(self, number: int, _: None) -> Tensor:
        return self.tiles[number].light()

    def correction(self, number: int, part: NDArray[np.complex64]) -> Tensor:
        return self.tiles[number].correction(torch.from_numpy(part).to(self.device))

    def learn(self, network: nn.Module) -> None:
        self.network = network.to(self.device)

    def apply(self, part: NDArray[np.float32]) -> Tensor:
        assert self.network is not None
        found: Tensor = self.network(torch.from_numpy(part).to(self.device).movedim(-1, 1))
        return found


Expose = Callable[[ScanData, Tensor, float, float], Exposure]


def is_spread(scan: ScanData, execution: TorchExecution) -> bool:
    """Whether the frames of a scan are to be on several devices."""
    return execution.devices > 1 and scan.diffraction.size >= LEAST_PIXELS


@contextmanager
def settle(scan: ScanData, execution: TorchExecution) -> Iterator[None]:
    """Set threads and kernels for a reconstruction, without gradients, until the block ends.

    Raises:
        ConfigError: devices that are asked for are not there.
    """
    processes = 1
    if is_spread(scan, execution):
        require_devices(execution, find_device(execution.accelerator))
        processes = read_own_seat(execution.devices).local_count
    quiet = settings(execution, processes=processes)
    with quiet, chunks_on_threads(), torch.inference_mode():
        yield


@contextmanager
def spread_frames(
    scan: ScanData, execution: TorchExecution, say: Callable[[str], None]
) -> Iterator[Expose]:
    """Yield `expose_scan`, or what does the same on several devices, if these are asked for and the
    scan is large; they end with the block."""
    if not is_spread(scan, execution):
        yield expose_scan
        return
    sent = scan if is_mapped(scan) else replace(scan, diffraction=scan.diffraction[:0])
    with start_helpers(execution.devices - 1) as helpers:
        for helper in helpers:
            seat = (helper.seat.local_rank, helper.seat.local_count)
            shape = scan.diffraction.shape
            helper.send(TileTask(SentScan.pack(sent), shape, execution, *seat))
        yield Crew(helpers, say).expose
