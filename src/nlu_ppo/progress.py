"""Progress bars, and quiet from libraries that would talk over them."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from tqdm import tqdm

from nlu_ppo import ranks


def bar(**options: Any) -> Any:
    """A tqdm bar; in a log file it writes a line now and then in place of ten a second."""
    live = sys.stderr.isatty()
    if not ranks.is_main():
        options["disable"] = True
    return tqdm(
        mininterval=0.1 if live else 15.0, dynamic_ncols=live, ascii=None if live else " .:#", **options
    )


def close_bars() -> None:
    """Ends bars that an error has left in the middle of their line, so that what is said of it begins one."""
    for shown in list(getattr(tqdm, "_instances", ())):
        shown.close()


def quiet_libraries() -> None:
    """Keeps loading bars and advice for library authors off the user's terminal; errors and warnings stay."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|trl")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)  # "special tokens were aligned"
