"""The reward model: a decoder with LoRA and a scalar head, which gives every token a score.

It is saved as PEFT saves an adapter for sequence classification with one label, its head among the files. The other
kind, on an encoder, is in `encoder.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from nlu_ppo.errors import NotFiniteError
from nlu_ppo.inference.prefix import pad, pad_id
from nlu_ppo.models.checkpointing import checkpoint_layers
from nlu_ppo.models.room import Room, in_batches
from nlu_ppo.preference.losses import last_scores
from nlu_ppo.prompting import Prompter
from nlu_ppo.storage import written_whole
from nlu_ppo.tasks.record import Example

Query = (
    Example | tuple[str, str]
)  # an example of the task, or the instruction and the input of a file's record


class RewardModel:
    """A model for sequence classification with one label, a PeftModel around it, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, context_length: int) -> None:
        self.model, self.tokenizer, self.context_length = model, tokenizer, context_length
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.trunk: Any = getattr(base, str(base.base_model_prefix))
        self.head: Any = base.score
        self.device: torch.device = next(self.trunk.parameters()).device
        self.room = Room()

    def token_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of every token, (rows, tokens), in float32; rows are padded on the right."""
        out = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.head(out.last_hidden_state.float()).squeeze(-1)

    def batch_rewards(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reward of every row, (rows,): the score of its last token."""
        return last_scores(self.token_scores(input_ids, attention_mask), attention_mask.bool())

    def read(
        self, prompter: Prompter, queries: Sequence[Query], completions: Sequence[str], written: bool = False
    ) -> list[list[int]]:
        """Prompts and completions as rows of tokens.

        Args:
            prompter: of the examples' task.
            written: the completions are what a policy wrote, be it a legal answer or not.
        """
        prompts = iter(prompter.encode(query for query in queries if isinstance(query, Example)))
        rows = []
        for query, text in zip(queries, completions, strict=True):
            if isinstance(query, Example):
                prompt: Sequence[int] = next(prompts).ids
            else:
                (prompt,) = prompter.tokenize([prompter.render_query(*query)])
            rows.append([*prompt, *(prompter.written_ids if written else prompter.completion_ids)(text)])
        return rows

    @torch.no_grad()
    def rewards(self, rows: Sequence[Sequence[int]], batch_size: int | None = 64) -> list[float]:
        """The reward of each row."""
        found = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))

        def score(batch: list[int]) -> Iterator[tuple[int, float]]:
            ids, mask = pad([rows[i] for i in batch], pad_id(self.tokenizer), "right", self.device)
            told = self.batch_rewards(ids, mask).tolist()
            if not all(map(math.isfinite, told)):
                raise NotFiniteError(
                    "the reward model's rewards are NaN or infinite: its weights are damaged, or have run away in "
                    "training (lower its learning_rate)"
                )
            yield from zip(batch, told, strict=True)

        def keep(scored: tuple[int, float]) -> int:
            found[scored[0]] = scored[1]
            return scored[0]

        in_batches(self.room, "rewards", order, batch_size, score, keep)
        return found

    def judge(
        self, prompter: Prompter, examples: Sequence[Example], completions: Sequence[str]
    ) -> list[float]:
        """Rewards of completions as a policy wrote them behind the prompts of the examples."""
        rows = self.read(prompter, examples, completions, written=True)
        return self.rewards([row[: self.context_length] for row in rows])

    # -- training, as a policy is trained -----------------------------------------------------------------

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that training moves, the head's included."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all trainable tensors, on the CPU."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self.trainable()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets all trainable tensors."""
        with torch.no_grad():
            for name, parameter in self.trainable():
                parameter.copy_(state[name])

    def checkpoint_layers(self) -> None:
        """From now on layers keep their input only for the backward pass, and are run again in it."""
        checkpoint_layers(self.model)

    def save(self, folder: Path) -> None:
        """Writes adapter and head (or, with full fine-tuning, the whole model) and the tokenizer.

        Raises:
            DiskError: there is no room; an older folder of that name stays.
        """
        with written_whole(folder) as place:
            self.model.save_pretrained(place, safe_serialization=True)
            self.tokenizer.save_pretrained(place)
