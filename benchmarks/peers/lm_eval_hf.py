"""lm-evaluation-harness's `hf` backend, scoring label words as its multiple-choice tasks do.

Requests enter as token ids, behind the tokenizer: both sides get the same ids, and neither is timed reading
text. Within a call the harness already runs a context once where its labels differ in their last token only.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from benchmarks.worker import Outcome, Step, serve
from benchmarks.workload import Workload


def make_step(workload: Workload, model: Any, tokenizer: Any) -> Step:
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=workload.batch_size,
        max_length=workload.shape.positions,
    )
    # the texts are keys of its cache, which is off here: they only have to differ
    requests = [
        ((str(i), str(j)), list(prompt), list(label))
        for i, prompt in enumerate(workload.prompts)
        for j, label in enumerate(workload.labels)
    ]
    width = len(workload.labels)

    def step() -> Outcome:
        found = harness._loglikelihood_tokens(requests, disable_tqdm=True)
        totals = [total for total, _ in found]
        return Outcome(scores=[totals[i : i + width] for i in range(0, len(totals), width)])

    return step


if __name__ == "__main__":
    serve(make_step)
