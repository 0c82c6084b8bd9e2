"""Checks of `progress`: it tells how far the work is, and it can end it."""

from __future__ import annotations

import signal

import pytest

from ptycho_tasks.system.processes import Stopped
from ptycho_tasks.testing.checks import (
    Cancelled,
    ProgressRecorder,
    check_progress,
    list_left_running,
    list_running,
)
from ptycho_tasks.testing.suite import Suite


class ProgressChecks(Suite):
    """Progress leads from the start to the end, and what it raises comes out."""

    def test_progress_leads_from_the_start_to_the_end(self) -> None:
        """Progress is told of 0 before the first step, and then rises to the total. Only one of
        `train` and `infer` may be silent, and `refine` may not: what is never told can be neither
        watched nor ended."""
        by_method = {method: self._progress_calls(method) for method in ("train", "infer")}
        heard = any(by_method.values())
        assert heard or self.silent, "neither `train` nor `infer` ever calls `progress`"
        for method, calls in by_method.items():
            check_progress(method, calls)
        if self._has_refine():
            calls = self._progress_calls("refine")
            assert calls or self.silent, "`refine` never calls `progress`"
            check_progress("refine", calls)

    @pytest.mark.parametrize("ending", ["an error", "a signal", "Ctrl-C"])
    @pytest.mark.parametrize("method", ["train", "infer", "refine"])
    def test_an_exception_from_progress_comes_out(self, method: str, ending: str) -> None:
        """What `progress` raises ends the work at once and comes out as it is: neither swallowed
        nor turned into something else; no thread or process works on."""
        if method == "refine":
            self._skip_without_refine()
        count = len(self._progress_calls(method))
        if not count:
            pytest.skip(f"`{method}` is silent")
        for at in sorted({1, (count + 1) // 2, count}):
            error = {"an error": Cancelled(), "a signal": Stopped(143)}.get(
                ending, KeyboardInterrupt()
            )
            recorder = ProgressRecorder(at, error)
            before, handler = list_running(), signal.getsignal(signal.SIGINT)
            try:
                self._run(method, recorder)
            except type(error):
                pass
            except (Exception, SystemExit) as other:
                pytest.fail(f"`{method}` turned {error!r} from `progress` into {other!r}")
            else:
                pytest.fail(f"`{method}` swallowed {error!r} from `progress`")
            finally:
                after = signal.signal(signal.SIGINT, handler)
            assert after == handler, f"`{method}` left Ctrl-C handled otherwise"
            left = list_left_running(before)
            assert not left, f"`{method}` left running: {', '.join(left)}"
            assert len(recorder.calls) == at, f"`{method}` called `progress` after it had raised"
