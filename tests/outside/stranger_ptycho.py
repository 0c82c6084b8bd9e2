"""The backend `stranger`: error reduction, all frames at once. Training is the reconstruction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ptycho_tasks.backend import (
    InferRequest,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
)
from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import TrainingOptions, doc


class StrangerOptions(TrainingOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    epochs: Annotated[int, doc("iterations over all frames", ge=1)] = 20
    start_noise: Annotated[
        float, doc("spread of the random object to start from", ge=0.0, le=0.5)
    ] = 0.05


def iterate(request: Any, start: Reconstruction, kept: Path | None = None) -> Reconstruction:
    """Error reduction for as many epochs as asked for, going on from the object in a file."""
    import io

    import numpy as np

    from ptycho_tasks.scan import corners_and_fractions
    from ptycho_tasks.system.files import write_atomic

    scan, options = request.scan, request.options
    probe, N, image, losses = start.probe, scan.size, start.object, []
    corners = corners_and_fractions(start.positions, N)[0] - start.origin
    if kept is not None and kept.is_file():
        with np.load(kept) as state:
            if len(state["losses"]) <= options.epochs:
                image, losses = state["image"], state["losses"].tolist()
    request.progress(len(losses), options.epochs, {})
    while len(losses) < options.epochs:
        total, light = np.zeros_like(image), np.zeros(image.shape, np.float32)
        loss = 0.0
        for frame, (y, x) in zip(scan.diffraction, corners, strict=True):
            window = np.s_[y : y + N, x : x + N]
            wave = np.fft.fft2(probe * image[window], norm="ortho")
            amplitude = np.sqrt((np.abs(wave) ** 2).sum(axis=0)) + np.float32(1e-6)
            measured = np.fft.ifftshift(frame)
            # NaN is a pixel that was not measured: the model's own value stands in.
            ratio = np.nan_to_num(measured / amplitude, nan=1.0)
            loss += float(np.abs(amplitude * (ratio - 1)).sum())
            fitting = np.fft.ifft2(ratio * wave, norm="ortho")
            total[window] += (probe.conj() * fitting).sum(axis=0)
            light[window] += (np.abs(probe) ** 2).sum(axis=0)
        seen = light > 1e-3 * light.max()
        image = np.where(seen, total / np.where(seen, light, 1), image)
        losses.append(loss / max(float(np.nansum(scan.diffraction)), 1.0))
        if kept is not None:
            data = io.BytesIO()
            np.savez(data, image=image, losses=losses)
            write_atomic(kept, data.getvalue())
        request.progress(len(losses), options.epochs, {"loss": losses[-1]})
    return replace(start, object=image, losses=losses)


class Stranger:
    """The object of a scan; it can be shown again, but tells nothing of another scan."""

    name, version, options_type, api_version = "stranger", "1", StrangerOptions, 2

    def train(self, request: TrainRequest) -> TrainedModel:
        """Reconstruct the object, going on from the one in the work folder."""
        import numpy as np

        from ptycho_tasks.scan import canvas_of

        scan, options = request.scan, request.options
        canvas = canvas_of(scan.positions, scan.size)
        noise = np.random.default_rng(options.seed).standard_normal(canvas.shape)
        image = (1 + options.start_noise * noise).astype(np.complex64)
        kept = None if request.work_dir is None else request.work_dir / "object.npz"
        flat = Reconstruction(image, canvas.origin, scan.probe, scan.positions)
        made = iterate(request, flat, kept)
        return TrainedModel(
            models={"object": {"image": made.object, "positions": scan.positions}},
            metadata={"origin": canvas.origin},
            history=[{"loss": loss} for loss in made.losses],
        )

    def infer(self, request: InferRequest) -> Reconstruction:
        """Show the reconstructed object under the scan's frames."""
        import numpy as np

        scan, model = request.scan, request.model
        image, trained = (model.models["object"][key] for key in ("image", "positions"))
        far = np.abs(scan.positions[:, None] - trained[None]).sum(axis=-1).min(axis=1)
        if far.any():
            raise ScanError(f"{scan.name}: has other positions than those reconstructed; train it")
        row, column = model.metadata["origin"]
        losses = [epoch["loss"] for epoch in model.history]
        return Reconstruction(image, (row, column), scan.probe, scan.positions, losses)

    def refine(self, request: RefineRequest) -> Reconstruction:
        """Iterate from what another backend came to."""
        return iterate(request, request.start)


backend = Stranger()
