"""Who takes part: a module to run, the environment it needs, and what a step of it has to have done."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import Workload

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = PEERS / "environments"

OURS, PLAIN, ONE_PREFIX = "ours", "ours_plain", "ours_one_prefix"


@dataclass(frozen=True)
class Contender:
    """`flags` are environment variables that are set for it.

    Attributes:
        peer: name of its environment below `ENVIRONMENTS`; `None` runs in this project's own.
        accumulates: one optimizer step per epoch, whatever the minibatches.
        own_length: draws completions of its own length, so that their number of tokens isn't compared.
    """

    name: str
    title: str
    module: str
    kind: str = "ppo"
    peer: str | None = None
    flags: tuple[str, ...] = ()
    accumulates: bool = False
    own_length: bool = False

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.peer is None else python_of(self.peer)

    def fault(self, workload: Workload, watched: dict) -> str | None:
        """What a watched step lacks of the workload, or `None`: less work is no comparison."""
        if self.kind == "eval":
            wanted, found = len(workload.prompts), len(watched["scores"])
            return None if wanted == found else f"scored {found} prompts, not {wanted}"
        count = len(workload.prompts)
        steps = workload.epochs if self.accumulates else workload.optimizer_steps
        if watched["optimizer_steps"] != steps:
            return f"made {watched['optimizer_steps']} optimizer steps, not {steps}"
        if len(watched["response_tokens"]) != count:
            return f"drew {len(watched['response_tokens'])} completions, not {count}"
        if not self.own_length and set(watched["response_tokens"]) != {workload.response_tokens}:
            return f"completions have {sorted(set(watched['response_tokens']))} tokens"
        shares = self.name in (OURS, ONE_PREFIX)  # runs the prompts' common part apart
        if not shares and watched["whole_prompts"] != count:
            return f"ran {watched['whole_prompts']} of the {count} prompts"
        return None


def python_of(peer: str) -> Path:
    return ENVIRONMENTS / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


_ALL = [
    Contender(OURS, "nlu_ppo", "benchmarks.ours"),
    Contender(
        ONE_PREFIX, "nlu_ppo, one prefix, no tree", "benchmarks.ours", flags=("NLU_PPO_BENCH_ONE_PREFIX",)
    ),
    Contender(PLAIN, "nlu_ppo, share_prefix=False", "benchmarks.ours", flags=("NLU_PPO_BENCH_PLAIN",)),
    Contender("trl_1_12", "TRL 1.12, own critic", "benchmarks.peers.trl_1_12", peer="trl_1_12"),
    Contender(
        "trl_1_12_shared_critic",
        "TRL 1.12, value head on the policy",
        "benchmarks.peers.trl_1_12",
        peer="trl_1_12",
        flags=("NLU_PPO_BENCH_SHARED_CRITIC",),
    ),
    Contender("trl_0_11", "TRL 0.11.4", "benchmarks.peers.trl_0_11", peer="trl_0_11"),
    Contender(
        "rl4glue",
        "TRL 0.11.4 as RL4GLUE drives it",
        "benchmarks.peers.trl_0_11",
        peer="trl_0_11",
        flags=("NLU_PPO_BENCH_RL4GLUE",),
        accumulates=True,
        own_length=True,
    ),
    Contender(OURS, "nlu_ppo", "benchmarks.ours", kind="eval"),
    Contender(
        "lm_eval", "lm-evaluation-harness, hf", "benchmarks.peers.lm_eval_hf", kind="eval", peer="lm_eval"
    ),
]


def contenders(kind: str) -> dict[str, Contender]:
    """Those of PPO, or those of evaluation, by name."""
    return {c.name: c for c in _ALL if c.kind == kind}
