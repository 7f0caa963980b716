"""The errors a user can mend: each names the file and line, or the key, and says what to do."""

# What taking apart a file ends in that was damaged, is in another format, or has values of other types in it: not
# UTF-8 and not JSON are kinds of ValueError; a file may also be nested so deep that Python gives up.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def first_words(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """Wrong input, not a fault of the program. `train.py` prints it without a traceback and exits with 2.

    Attributes:
        elsewhere: it befell another process of the same run, which tells it.
    """

    elsewhere = False


class ConfigError(UserError):
    """A key, a choice or a value of the configuration is wrong."""


class DataError(UserError):
    """A data file is missing, or a row of it can't be read as its task's format demands."""


class MissingSplitError(DataError):
    """A split isn't where it was looked for; what is there may still be malformed."""


class ModelError(UserError):
    """A model, tokenizer or adapter doesn't fit what the run asks of it."""


class NotFiniteError(ModelError):
    """A model's answers are NaN or infinite: its weights are damaged, or have run away in training."""


class TrainingDivergedError(UserError):
    """Loss, gradient or weights are no longer finite; the last checkpoint is the last good state."""


class RewardError(UserError):
    """A user's reward function fails, or gives what is no number."""


class RunFolderError(UserError):
    """The run folder already holds another run."""


class CellError(UserError):
    """A run in a process of its own failed, was killed, or left; the message names its log."""


class TrackingError(UserError):
    """MLflow can't be reached, or refuses what it is asked."""


class EndpointError(UserError):
    """A server that is asked for a model's answers refuses, is gone, or has cost what it may."""


class FolderBusyError(RunFolderError):
    """Another process is at work on the run."""


class DiskError(UserError):
    """There is no room to write a file, or it may not be written, or its disk fails."""
