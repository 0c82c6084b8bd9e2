"""The benchmark of regimes, on a tiny one and without pty-chi."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("threadpoolctl", reason="the benchmarks need the extra `dev`")

from look import levelled, side_by_side
from measuring import Cost, Curve
from ptycho_tasks.backend import Reconstruction
from regime_scans import REGIMES, Regime, make_scan
from regimes import (
    WORST,
    Outcome,
    Result,
    Run,
    Store,
    follow,
    measure,
    read_images,
    tell,
    tell_lost,
    truth_of,
)

TINY = Regime(
    name="tiny", probe="pinhole", object="blobs", photons=1e7, size=32, radius=5.0, frames=49
)


def outcome(*steps: tuple[float, float]) -> Outcome:
    """Of CPU seconds and an error after each step."""
    after = [(Cost(s, s), {"nrmse": error, "amplitude_ssim": 1 - error}) for s, error in steps]
    return Outcome(Cost(0, 0), Curve(after[-1][0], after))


def test_a_tiny_regime_runs_without_pty_chi(tmp_path, capsys):
    file = tmp_path / "tiny.images.npz"
    result = measure(TINY, 0, ["nothing"], threads=1, seconds=1.0, file=file)
    curve = result.outcomes["nothing"].curve
    assert curve.after[-1][1]["nrmse"] < 0.5 * curve.after[0][1]["nrmse"]
    assert curve.after[-1][1]["amplitude_ssim"] > 0.9
    assert 0 < curve.after[0][0].cpu_s < curve.cost.cpu_s
    tell([result])
    assert "ours, nothing learned" in capsys.readouterr().out

    images = read_images(file)
    truth, ours = images.values()
    assert np.linalg.norm(ours - truth) / np.linalg.norm(truth) == pytest.approx(
        curve.after[-1][1]["nrmse"], rel=1e-3
    )
    figure = side_by_side(levelled(images), {title: title for title in images})
    assert len(figure.axes) == 2 * 2 + 2


def test_an_engine_counts_by_its_best_epoch_and_ours_by_its_end(capsys):
    mine = outcome((0.5, 0.1), (1.0, 0.2))
    engine = outcome((4.0, 0.4), (9.0, 0.15), (14.0, 0.3))
    result = Result(TINY, 0, {"nothing": mine, "LSQML": engine})
    tell([result])
    rows = {line[:30].strip(): line[30:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["ours, nothing learned"][:4] == ["2", "1", "1", "0.2"]
    assert rows["LSQML"][:4] == ["2", "9", "9", "0.15"]
    assert rows["as good as any engine at"][:2] == ["1", "0.5"]
    assert rows["engines, at our CPU time"][-2:] == ["0.4", "0.6"]
    tell_lost([result])
    assert "NRMSE: as good in 0; lost: tiny (0.2, theirs 0.15)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, 1e20])
def test_what_diverges_counts_as_the_worst(value):
    """Ours as it ends, an engine by the epochs before."""
    scan = make_scan(TINY, 0)
    right = Reconstruction(scan.object, (0, 0), scan.probe, scan.positions)
    wrong = replace(right, object=np.full_like(scan.object, value))
    steps = [(Cost(1, 1), made) for made in (right, wrong, right)]
    found, images = follow(Run(Cost(0, 0), steps), scan, truth_of(scan), seconds=9)
    assert (found.ended, len(images)) == ("diverged", 2)
    assert found.best == 0
    assert found.curve.after[0][1]["amplitude_ssim"] == pytest.approx(1)
    assert found.curve.after[-1][1] == WORST


def test_what_is_in_the_file_is_known_again(tmp_path):
    regime = next(iter(REGIMES.values()))
    file = tmp_path / "results.json"
    Store(file).add(Result(regime, 3, {"nothing": outcome((1.0, 0.1))}))
    store = Store(file)
    store.add(Result(regime, 3, {"LSQML": outcome((2.0, 0.2))}))
    assert [*Store(file).find(regime, 3).outcomes] == ["nothing", "LSQML"]
    assert not Store(file).find(regime, 4).outcomes
