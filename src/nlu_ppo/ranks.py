"""The processes of one run, where `accelerate launch` or `torchrun` started several of them, and what they exchange.

They do the same things in the same order, each with its share of the rows. The first one (rank 0, the main process)
alone reads and writes the run's folder, talks to MLflow and to the terminal. What is marked *together* has to be
called by all of them; with one process it costs nothing. torch is imported where there is something to exchange.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nlu_ppo.errors import ConfigError, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# The main process may tokenise or ask a server for hours while the others wait. A process that dies is no matter of
# this limit: the launcher sees it at once, and ends the others.
PATIENCE = timedelta(hours=12)
FAREWELL = timedelta(seconds=15)


class MainProcessError(UserError):
    """The main process has failed at what it does for all."""


def world() -> int:
    """How many processes work on this run."""
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def local_rank() -> int:
    """Which of this machine's processes it is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def silence_others() -> None:
    """Leaves the terminal to the main process, but for what goes to stderr: a failure is told by whom it befell."""
    import logging
    import sys

    if not is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        logging.disable(logging.WARNING)


def connect(device: str) -> None:
    """Joins the processes, once; together.

    Args:
        device: as the key `device` has it.
    """
    if world() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    _group()


def told_by_main(error: BaseException) -> bool:
    """Whether the main process tells of an error, so that this one needn't: all find what is wrong with the command
    line before they join."""
    return not is_main() and (getattr(error, "elsewhere", False) or _objects is None)


_objects: Any = None  # the group for Python objects: gloo's, so that they need not pass through GPUs


def _group() -> Any:
    global _objects
    import torch.distributed as dist

    if _objects is None:
        _objects = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return _objects


# -- shares --------------------------------------------------------------------------------------------------


def share(items: Sequence[T]) -> Sequence[T]:
    """This process' part of what all of them have: one stretch, so that neighbours stay together."""
    size, extra = divmod(len(items), world())
    start = rank() * size + min(rank(), extra)
    return items[start : start + size + (rank() < extra)]


def check_divisible(key: str, rows: int) -> None:
    """Raises ConfigError where rows can't be dealt out evenly."""
    if rows % world():
        raise ConfigError(
            f"{key}: {rows} rows can't be shared evenly by {world()} processes: choose a multiple of {world()}, or "
            f"start as many processes as divide it"
        )


# -- exchange ------------------------------------------------------------------------------------------------


_meeting: Callable[[], None] | None = None  # what all do before they exchange anything


def before_exchanges(meet: Callable[[], None] | None) -> None:
    """Has `meet` called before each exchange, in place of what was; `None`: nothing."""
    global _meeting
    _meeting = meet


def highest(number: int) -> int:
    """The largest of all processes' numbers; together, and no exchange in the sense of `before_exchanges`."""
    import torch
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_group())
    return int(found)


def gather(mine: T) -> list[T]:
    """What every process has, in the order of their ranks; together. Any Python object."""
    if world() == 1:
        return [mine]
    import torch.distributed as dist

    if _meeting is not None:
        _meeting()

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine, group=_group())
    return found


def gather_rows(mine: Sequence[T]) -> list[T]:
    """The parts of all processes as one list, in the order that `share` dealt them out in; together."""
    return [row for part in gather(list(mine)) for row in part]


def anywhere(flag: bool) -> bool:
    """Whether it is true in any process; together."""
    return any(gather(flag))


def add(tensors: Sequence[torch.Tensor]) -> None:
    """Replaces tensors by their sums over all processes, in one exchange for each type; together."""
    if world() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    if _meeting is not None:
        _meeting()
    by_type: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for same in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat)
        for tensor, summed in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def add_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sums gradients over all processes; together. Where only some have one of a parameter, the others add 0."""
    if world() == 1:
        return
    import torch

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add([parameter.grad for parameter in parameters if parameter.grad is not None])


def on_main(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """What `function` returns in the main process, which alone calls it; together.

    Raises:
        what it raises there; in the other processes a `UserError` of the same type, or MainProcessError, `elsewhere`.
    """
    if world() == 1:
        return function(*arguments, **named)
    failure: BaseException | None = None
    outcome: tuple[str, Any] = ("", None)
    if is_main():
        try:
            outcome = ("returned", function(*arguments, **named))
        except BaseException as error:
            failure = error
            known = isinstance(error, UserError)
            outcome = ("raised", (type(error), str(error)) if known else (MainProcessError, str(error)))
    kind, value = gather(outcome)[0]
    if failure is not None:
        raise failure
    if kind == "raised":
        told: UserError = value[0](value[1])
        told.elsewhere = True
        raise told
    return value


def barrier() -> None:
    """Waits for all; together."""
    gather(None)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others: what it puts into a cache they find there; together.

    Raises:
        MainProcessError: in the others, `elsewhere`, where the block fails in the main process.
    """
    if not is_main():
        if not gather(True)[0]:
            failure = MainProcessError("the main process has failed")
            failure.elsewhere = True
            raise failure
        yield
        return
    try:
        yield
    except BaseException:
        gather(False)
        raise
    gather(True)


def part() -> None:
    """Waits for the others a while before this process leaves, since the launcher ends those that are not done yet
    with whatever they write; together, as far as the others still are there."""
    if world() == 1 or _objects is None:
        return
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError):
        dist.monitored_barrier(_group(), timeout=FAREWELL)
