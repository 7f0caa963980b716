"""How much fits into memory at a time, learned from errors: what doesn't fit is done again in halves.

A batch is cut into parts whose gradients add up, or whose rows don't meet at all. So a smaller part changes memory and
time, and the result by rounding at most. What was found stays for the rest of the run.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from nlu_ppo.errors import ModelError, first_words

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_ROWS = 512  # decoded at a time, where a batch may be as large as fits: more rows bring no more speed

ADVICE = (
    "shorten the prompts (model.context_length, fewer demonstrations), set method.gradient_checkpointing=true where "
    "the method trains, load the base model in 4 bit (model.quantization=nf4), or take a smaller model; docs/memory.md "
    "says what each of them does"
)


class NoRoomError(ModelError):
    """What is left doesn't fit into memory, however small the batch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: the GPU's, or the process's own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


@contextmanager
def advised() -> Iterator[None]:
    """Gives advice where memory ends at what no smaller batch would help: the weights, the optimizer's state.

    Raises:
        NoRoomError: in place of an error that says that memory is short.
    """
    try:
        yield
    except NoRoomError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(f"out of memory ({first_line(error)}): {ADVICE}") from error


class Room:
    """What fits, by kind of work: rows, or tokens, of one forward pass.

    Args:
        cuts: whether what doesn't fit can be done again in halves: not where other processes are in the same forward.
    """

    def __init__(self, cuts: bool = True) -> None:
        self._cuts = cuts
        self.found: dict[str, int] = {}
        self._told: set[str] = set()

    def size(self, work: str, wanted: int | None, most: int) -> int:
        """How many to try: those wanted, all there are, or fewer, where it is known that those don't fit.

        Args:
            wanted: `None` for as many as fit.
            most: all there are.
        """
        return max(1, min(n for n in (most, wanted, self.found.get(work)) if n is not None))

    def halve(self, work: str, size: int, said: str, unit: str = "rows", least: int = 1) -> None:
        """Remembers that `size` didn't fit.

        Args:
            said: the error's words.
            least: a size that can't be cut any more.

        Raises:
            NoRoomError: it was as small as can be.
        """
        gc.collect()  # a policy's modules refer to each other: what the failed attempt held may still be there
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._cuts:
            raise NoRoomError(
                f"out of memory in {work} with {size} {unit} at a time ({said}), and layers that are spread over "
                f"processes (model.shard) can't run again: set method.micro_batch_size and eval.batch_size lower"
            )
        if size <= least:
            raise NoRoomError(f"out of memory in {work}, with one row at a time ({said}): {ADVICE}")
        self.found[work] = max(least, size // 2)
        self._told.add(work)
        log.warning(
            "out of memory in %s with %d %s at a time; going on with %d (%s)",
            work, size, unit, self.found[work], said,
        )  # fmt: skip

    def tell(self, work: str, wanted: int | None, size: int, unit: str = "rows") -> None:
        """Says once what was found, where the size was left open."""
        if wanted is None and work not in self._told:
            log.info("%s: %d %s at a time fit into memory", work, size, unit)
        self._told.add(work)


def fitting(
    room: Room,
    work: str,
    wanted: int | None,
    most: int,
    run: Callable[[int], T],
    unit: str = "rows",
    least: int = 1,
) -> T:
    """What `run(size)` gives with the first size that fits; it is called from its beginning for each.

    Raises:
        NoRoomError: not even one row fits.
    """
    while True:
        size = room.size(work, wanted, most)
        try:
            result = run(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        else:
            room.tell(work, wanted, size, unit)
            return result
        # Only here are the frames of the failed attempt gone, and with them their tensors.
        room.halve(work, size, said, unit, least)


def in_batches(
    room: Room,
    work: str,
    order: Sequence[int],
    wanted: int | None,
    run: Callable[[list[int]], Iterable[Any]],
    done: Callable[[Any], int],
    shown: Callable[[int], Any] = lambda count: None,
) -> None:
    """Runs rows in batches, each of which yields something for every row. Rows that are done stay done.

    Args:
        wanted: rows of a batch; `None` for as many as fit, up to MOST_ROWS.
        run: yields the results of a batch's rows.
        done: takes one of them, and says whose it is.
        shown: is told how many more are done.

    Raises:
        NoRoomError: not even one row fits.
    """
    waiting = list(order)
    while waiting:
        size = room.size(work, wanted, min(len(waiting), wanted or MOST_ROWS))
        rows, over, said = waiting[:size], set(), None
        try:
            for result in run(rows):
                over.add(done(result))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        if said is None:
            room.tell(work, wanted, size)
        else:
            room.halve(work, size, said)
        waiting = [row for row in rows if row not in over] + waiting[size:]
        shown(len(over))


def first_line(error: BaseException) -> str:
    """What an error says, without what libraries add to it."""
    return first_words(error)[:200]
