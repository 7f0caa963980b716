"""`python -m nlu_ppo.launching.child`: one run, in a process that a sweep has started.

The run comes composed, on standard input, so that what the sweep has checked is what runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from nlu_ppo.cli import FAILED, INTERRUPTED, USER_ERROR, leaving_fails, report
from nlu_ppo.launching.order import Order
from nlu_ppo.mistakes import explain, told
from nlu_ppo.run import build_run, execute
from nlu_ppo.tables.summary import before_and_after

ORPHAN_GRACE = 30.0  # seconds that a run has to end in, once its sweep is gone


def main() -> int:
    """Returns the exit code: 0 only if the run has finished."""
    order = Order.from_line(sys.stdin.buffer.readline())
    end_with_the_sweep()
    signal.signal(signal.SIGTERM, interrupt)
    code = work(order)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to interrupt
    return code


def work(order: Order) -> int:
    """Runs what was ordered; a failure is left in `order.last_words`. Returns the exit code."""
    try:
        configure_log(OmegaConf.create(order.job_logging), order.verbose)
        with leaving_fails():
            run = build_run(order.config, order.folder, order.typed)
            result = execute(run)
            print(before_and_after(run.folder, result))
    except Exception as error:
        report(error, order.name)
        order.last_words.write_text(told(error), encoding="utf-8")
        return FAILED if explain(error) is None else USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same sweep goes on where this run stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def interrupt(number: int, frame: Any) -> None:
    """SIGTERM does what Ctrl-C does."""
    raise KeyboardInterrupt


def end_with_the_sweep() -> None:
    """Ends this process once the sweep is gone, however that went: kill -9 leaves nobody to tell it.

    The sweep holds the other end of standard input open for as long as it lives.
    """
    lifeline = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # what the run reads, or starts, finds nothing there

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        print("the sweep is gone: this run ends", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
