"""A reward model on an encoder (paper A's is bert-base-cased): it reads texts and completion, and gives one score.

It needs no prompt and has weights of its own, so that its base may be another model than the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from nlu_ppo.inert import defused
from nlu_ppo.models.classifier import texts_of
from nlu_ppo.models.room import Room
from nlu_ppo.preference.model import Query, RewardModel
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks.record import Example


class EncoderRewardModel(RewardModel):
    """A model for sequence classification with one label, every weight of which is trained, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, context_length: int) -> None:
        self.model, self.tokenizer, self.context_length = model, tokenizer, context_length
        self.device = next(model.parameters()).device
        self.room = Room()

    def token_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        raise NotImplementedError("an encoder scores a text as a whole")

    def batch_rewards(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reward of every row, (rows,), in float32."""
        told = {"input_ids": input_ids, "attention_mask": attention_mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            told["token_type_ids"] = self._segments(input_ids)
        return self.model(**told).logits.float().squeeze(-1)

    def _segments(self, input_ids: Tensor) -> Tensor:
        """1 for the completion, which stands between the last two separators, and 0 for all else."""
        separators = (input_ids == self.tokenizer.sep_token_id).long()
        passed = separators.cumsum(1) - separators  # before each token
        return (passed == separators.sum(1, keepdim=True) - 1).long()

    def read(
        self, prompter: Prompter, queries: Sequence[Query], completions: Sequence[str], written: bool = False
    ) -> list[list[int]]:
        """The examples' texts and the completions as rows of tokens; the longer part loses its end where they don't
        fit. An encoder reads no prompt."""
        separator, plain = f" {self.tokenizer.sep_token} ", partial(defused, self.tokenizer)
        texts = [
            separator.join(
                map(plain, texts_of(prompter.task, query) if isinstance(query, Example) else query)
            )
            for query in queries
        ]
        rows = self.tokenizer(
            texts, list(map(plain, completions)), truncation="longest_first", max_length=self.context_length
        )
        return [list(row) for row in rows["input_ids"]]
