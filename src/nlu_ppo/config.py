"""The configuration's schema: what keys exist, their types, ranges and meaning. No torch, no network.

YAML under `conf/` is for people; these dataclasses are for code. Hydra checks names and types while it
composes, `to_config` checks ranges and choices right after, and nothing below `train.py` sees a DictConfig.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nlu_ppo.errors import ConfigError

MISSING: Any = "???"  # OmegaConf's own mark of a value that must be given; the engine has no other use for it


def option(
    default: Any,
    help: str,  # noqa: A002 - the word that argparse and click made standard
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    key: bool = True,
    resolved: bool = False,
    since: bool = False,
) -> Any:
    """A schema field with its documentation and its legal range (both ends included).

    Args:
        key: whether the value can change a run's result and so belongs into the run's key.
        resolved: what the value comes to is in the key, not the value itself.
        since: the field came when runs were there already; at its default it stays out of the key, so that they
            keep theirs.
    """
    metadata = {
        "help": help, "low": low, "high": high, "choices": choices,
        "key": key and not resolved, "resolved": resolved, "since": since,
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# -- the groups ----------------------------------------------------------------------------------------------


@dataclass
class LimitConfig:
    """Shortens a run: fixed random subsets, the same for every seed and method."""

    train: int | None = option(None, "use at most this many training examples", low=1)
    eval: int | None = option(
        None, "use at most this many evaluation (and, for a submission, test) examples per split", low=1
    )


@dataclass
class RecordHubConfig:
    """Where on the hub a task of one's own is."""

    # not in the key: the data's fingerprint names repository, configuration and revision
    path: str | None = option(None, "repository on the hub (its contents count)", key=False)
    config: str | None = option(None, "its configuration; null where it has one only", key=False)
    revision: str | None = option(
        None, "commit to pin it to; null takes the newest, and what that is may change", key=False
    )
    splits: dict[str, str] = option({}, "split -> the repository's name of it; several joined by +")


@dataclass
class RecordConfig:
    """A task of one's own, described in the YAML file of its choice. docs/own_data.md tells how."""

    kind: str = option(
        "classify",
        "answers are labels, numbers, or one of the candidates that an example lists",
        choices=("classify", "regress", "choose"),
    )
    instruction: str = option(MISSING, "what all prompts of the task begin with")
    template: str = option(MISSING, "the rest of a prompt, with a {slot} for every column that it shows")
    labels: dict[Any, Any] = option(
        {}, "kind=classify: label as the data write it -> answer word; null leaves such rows out"
    )
    label_column: str = option("label", "column that holds the right answer")
    columns: dict[str, str] = option({}, "slot -> column, where these differ in name")
    candidates: str | None = option(None, "kind=choose: the slot that lists the candidates")
    low: float = option(0.0, "kind=regress: the smallest answer")
    high: float = option(5.0, "kind=regress: the largest answer")
    metrics: list[str] = option(
        [], "what the score is the mean of; empty: accuracy, pearson and spearman, or em, by kind"
    )
    files: dict[str, str] = option(
        {},
        "with source=raw: split -> .csv, .tsv, .jsonl or .parquet file (its contents count)",
        key=False,
    )
    hub: RecordHubConfig = field(default_factory=RecordHubConfig)
    eval_splits: list[str] = option([], "splits to evaluate on; empty: validation, or else test")


@dataclass
class ServerConfig:
    """A model behind an OpenAI-compatible server. Its key comes from the environment variable OPENAI_API_KEY."""

    # `resolved`: what asks an endpoint puts these into its key itself, and a run that asks none has none of them
    model: str | None = option(None, "the model's name, as the server knows it", resolved=True)
    base_url: str | None = option(
        None,
        "the server, such as http://localhost:8000/v1; null is OPENAI_BASE_URL of the environment, or else OpenAI's",
        key=False,
    )
    at_once: int = option(8, "requests under way at a time", low=1, key=False)
    timeout: float = option(60.0, "seconds to wait for an answer", low=0.1, key=False)
    retries: int = option(
        5,
        "times that a request is sent again after an error or silence, with growing pauses",
        low=0,
        key=False,
    )
    price_in: float | None = option(
        None, "US dollars per million tokens sent; null is 0 for a server on this machine", low=0, key=False
    )
    price_out: float | None = option(None, "the same of tokens received", low=0, key=False)
    max_cost: float = option(
        1.0, "dollars that may be spent at most; what costs more is refused", low=0, key=False
    )


@dataclass
class EndpointConfig(ServerConfig):
    """The same, and how its replies are drawn."""

    temperature: float = option(1.0, "sampling temperature; 0 is greedy", low=0, resolved=True)
    max_tokens: int | None = option(
        None,
        "longest reply in tokens; null fits what is asked for (an analysis: task.rationale_tokens, and 16)",
        low=1,
        resolved=True,
    )
    seed: int = option(
        0, "of sampling; apart from the run's, so that all seeds share what is paid for", low=0, resolved=True
    )


@dataclass
class WriterConfig(EndpointConfig):
    """With rationale=endpoint or rationale=model: who writes analyses, and how."""

    attempts: int = option(
        3,
        "times that an analysis is asked for, if what comes back is none; once if greedy",
        low=1,
        resolved=True,
    )


@dataclass
class TaskConfig:
    """Which task, and where its examples come from."""

    name: str = option(MISSING, "name of a task record in nlu_ppo.tasks, or with task.record a new one")
    source: str = option(
        "hub",
        "where examples come from: the hub, files as the benchmark has them, or (toy tasks) a generator",
        choices=("hub", "raw", "generated"),
    )
    data_dir: str | None = option(
        None,
        "with source=raw: the folder that holds glue/, superglue/, squad/, ood/ (its contents count, not its name)",
        key=False,
    )
    hub_path: str | None = option(
        None,
        "with source=hub: another repository, or a local folder with <config>/<split>-*.parquet (its contents count)",
        key=False,
    )
    selection: int = option(
        200, "examples held out of train (at most a tenth of it) for model selection", low=0
    )
    on_bad_row: str = option(
        "error", "a malformed row stops the run, or is counted and skipped", choices=("error", "skip")
    )
    members: list[str] | None = option(None, "of a group such as glue: only these tasks; null takes all")
    mixing: str = option(
        "proportional",
        "of a group: how often each task's examples come in training: as its size is, equally often, or between "
        "(size to the power 1/mixing_temperature)",
        choices=("proportional", "equal", "temperature"),
    )
    mixing_temperature: float = option(2.0, "of a group, with mixing=temperature: 1 is proportional", low=1)
    rationale: str | None = option(
        None,
        "answers are followed by an analysis, and those to learn from come from a JSON file in paper B's format (its "
        "contents count), from a toy task's generator (`generated`), or are written by the run's own base model "
        "(`model`) or by an OpenAI-compatible server (`endpoint`), as task.writer says",
        key=False,
    )
    rationale_tokens: int = option(
        64, "with a rationale: tokens that an analysis may take", low=8, since=True
    )
    writer: WriterConfig = field(default_factory=WriterConfig)
    limit: LimitConfig = field(default_factory=LimitConfig)
    record: RecordConfig | None = option(
        None, "a task of your own, described by the keys below", resolved=True
    )


@dataclass
class LearningRateConfig:
    """Learning rates that fit this model; the methods take theirs from here."""

    # not in the key: what counts is the rate that the method took, its own `learning_rate`
    sft: float = option(9e-6, "learning rate of supervised fine-tuning", low=0, key=False)
    ppo: float = option(9e-6, "learning rate of PPO", low=0, key=False)
    reward_model: float = option(1e-4, "learning rate of a reward model", low=0, key=False)


@dataclass
class EpochsConfig:
    """Passes over the training examples that fit this model; the methods take theirs from here."""

    # not in the key, for the same reason
    sft: float = option(1.0, "epochs of supervised fine-tuning", low=0, key=False)
    ppo: float = option(3.0, "epochs of PPO", low=0, key=False)
    reward_model: float = option(1.0, "epochs of a reward model", low=0, key=False)


@dataclass
class ModelConfig:
    """Which base model, and how it is loaded and prompted."""

    name: str = option(MISSING, "short name, used in folders and tables", key=False)
    path: str = option(MISSING, "hub id or local directory (contents count, not its name); `tiny` is shipped")
    revision: str | None = option(None, "commit or tag on the hub")
    kind: str = option(
        "decoder",
        "a language model that is asked, or an encoder: it reads the task's texts without a prompt and classifies "
        "with a new head, all of it trained by method=sft; or a language model behind a server, which is asked only",
        choices=("decoder", "encoder", "endpoint"),
    )
    adapter: str | None = option(
        None,
        "an adapter folder to start from, merged into the weights (contents count, not its name)",
        key=False,
    )
    layout: str = option("plain", "prompt layout", choices=("plain", "chat"))
    dtype: str = option(
        "auto",
        "weights' type; auto is bfloat16 on CUDA and float32 on CPU",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    attention: str | None = option(
        None,
        "attention implementation, as transformers calls it; null lets it choose, which is sdpa for most. Only with "
        "sdpa do rows share more than their common beginning",
        choices=("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
        key=False,
    )
    quantization: str | None = option(
        None,
        "load the base weights in 4 bit (nf4) or 8 bit (int8), frozen, with an adapter on top (QLoRA): less memory, "
        "other results; needs `pip install -e '.[qlora]'`",
        choices=("nf4", "int8"),
        since=True,
    )
    compile: bool = option(
        False,
        "compile the layers with torch.compile: the first steps take longer, later ones may be faster "
        "(`make gpu-check` measures it), and rounding differs",
        key=False,
    )
    context_length: int | None = option(
        None, "longest prompt plus completion in tokens; null reads it from the model", low=16
    )
    trust_remote_code: bool = option(False, "run code that the model's repository ships")
    decoder: str = option(
        "own",
        "what draws completions: this package's decoder, or vLLM (an extra), which needs room for the weights a second "
        "time",
        choices=("own", "vllm"),
        since=True,
    )
    decoder_memory: float = option(
        0.4, "with decoder=vllm: share of the GPU's memory that vLLM may take", low=0.01, high=1, key=False
    )
    shard: bool = option(
        False,
        "several processes each keep a share of the frozen weights, for a model that doesn't fit one GPU (with "
        "accelerate launch; training needs an adapter)",
        key=False,
    )
    # not in the key: what counts is what the adapter took, `lora.targets`
    lora_targets: list[str] | None = option(
        None,
        "modules of this architecture that `lora=paper` adapts, the projections of its attention; null takes PEFT's "
        "choice",
        key=False,
    )
    micro_batch_size: int | None = option(
        8,
        "rows per forward pass that suit this model's size; the methods take theirs from here, null too",
        low=1,
        key=False,
    )
    learning_rate: LearningRateConfig = field(default_factory=LearningRateConfig)
    epochs: EpochsConfig = field(default_factory=EpochsConfig)
    endpoint: ServerConfig = field(default_factory=ServerConfig)


@dataclass
class MethodConfig:
    """What every method has."""

    name: str = option(MISSING, "name of a method in nlu_ppo.methods")
    # every method takes it, so that it shortens any cell of a grid over methods
    max_steps: int | None = option(None, "no effect: this method takes no steps", low=1, key=False)


@dataclass
class ZeroShotConfig(MethodConfig):
    """The base model as it is."""


@dataclass
class FewShotConfig(MethodConfig):
    """Demonstrations before every query; no weight changes."""

    k: int = option(5, "number of demonstrations", low=1, high=64)
    choice: str = option(
        "first",
        "which training examples: the first k (paper A), k at random, or as many of each label as possible",
        choices=("first", "random", "balanced"),
    )


@dataclass
class TrainingConfig(MethodConfig):
    """What the methods that train have in common."""

    learning_rate: float = option(MISSING, "peak learning rate", low=0)
    schedule: str = option(
        "constant",
        "learning rate over the run; cosine ends at a tenth of the peak",
        choices=("constant", "linear", "cosine"),
    )
    warmup: float = option(0.0, "share of the optimizer steps spent warming up", low=0, high=1)
    optimizer: str = option("adamw", "optimizer", choices=("adamw", "adafactor"))
    weight_decay: float = option(0.0, "weight decay", low=0)
    epochs: float = option(1.0, "passes over the training examples", low=0)
    max_steps: int | None = option(None, "stop after this many steps, whatever `epochs` says", low=1)
    order: str = option(
        "shuffled",
        "training examples of an epoch at random; or the shortest, or the longest texts first; or those first on "
        "which the model that training starts from is surest of the right answer (each is scored once before "
        "training)",
        choices=("shuffled", "short_first", "long_first", "confidence"),
        since=True,
    )
    batch_size: int = option(16, "training examples per step", low=1)
    micro_batch_size: int | None = option(
        8,
        "rows per forward pass; changes memory, not the result; null takes as many as fit. What doesn't fit into "
        "memory is done again with half of them",
        low=1,
        key=False,
    )
    gradient_checkpointing: bool = option(
        False,
        "keep the layers' inputs only, and compute the rest again in the backward pass: less memory, more time, the "
        "same result",
        key=False,
    )
    max_grad_norm: float | None = option(None, "clip the gradient's norm", low=0)
    select_every: int = option(
        25, "score the selection slice every so many steps (0: only at the end)", low=0
    )
    keep: str = option(
        "best", "weights to evaluate: best on the selection slice, or last", choices=("best", "last")
    )
    checkpoint_every: int = option(
        50,
        "write a checkpoint every so many steps, and at the last one (0: only if a signal ends the run)",
        low=0,
        key=False,
    )


@dataclass
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning with TRL's SFTTrainer."""

    loss_on: str = option("completion", "tokens that the loss counts", choices=("completion", "all"))
    answer_words: dict[str, str] = option(
        {},
        "label -> word that training answers have in place of the task's own, which prompt and evaluation keep: "
        "for studies of wrong targets",
        since=True,
    )


@dataclass
class RewardedConfig(TrainingConfig):
    """What the methods that learn from a reward have in common."""

    rollouts: int = option(
        1, "completions drawn per training example: batch_size * rollouts rows a step", low=1
    )
    max_new_tokens: int | None = option(
        None,
        "longest completion; null fits the task's longest answer",
        low=1,
    )
    temperature: float = option(1.0, "sampling temperature of rollouts", low=1e-3)
    init: str = option(
        "none",
        "start from the base model, or from the SFT run of the same task, model, adapter and seed, which is "
        "trained first if it isn't there; the KL reference is what training starts from",
        choices=("none", "sft"),
        since=True,
    )
    start: SFTConfig | None = option(
        None,
        "with init=sft: that run's settings, `method.start.<key>`; `method@method.start=sft_code` takes another "
        "choice",
        resolved=True,
    )


@dataclass
class PPOConfig(RewardedConfig):
    """Proximal policy optimisation on the completion's tokens; defaults of paper A (its released code)."""

    minibatch_size: int = option(16, "rows per optimizer step", low=1)
    ppo_epochs: int = option(4, "passes over each batch of rollouts", low=1)
    target_kl: float | None = option(
        None,
        "leave the rest of a batch's passes once new and old policy differ by so much (nats per token)",
        low=0,
    )
    reward_scaling: str = option(
        "none",
        "rewards as they are, divided by the running deviation of all rewards so far, or (standardized) their "
        "running mean taken off first",
        choices=("none", "running", "standardized"),
    )
    reward_clip: float | None = option(
        None, "rewards, once scaled, are held between minus this and this", low=0
    )
    top_k: int | None = option(
        None, "draw rollouts from so many likeliest tokens only, and train that distribution", low=1
    )
    top_p: float | None = option(
        None,
        "draw rollouts from the fewest likeliest tokens that reach this probability, and train that distribution",
        low=1e-6,
        high=1,
    )
    clip_range: float = option(0.2, "clip of the probability ratio", low=0)
    value_clip_range: float = option(0.2, "clip of the value's change", low=0)
    value_coef: float = option(0.1, "weight of the value loss", low=0)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", low=0)
    gamma: float = option(1.0, "discount", low=0, high=1)
    lam: float = option(0.95, "lambda of generalised advantage estimation", low=0, high=1)
    whiten_advantages: bool = option(True, "advantages to mean 0 and deviation 1 over the batch's tokens")
    whiten_rewards: bool = option(False, "rewards to deviation 1 over the batch's tokens, mean kept")
    kl_coef: float = option(0.2, "weight of the per-token KL penalty (start value if adaptive)", low=0)
    kl_controller: str = option(
        "adaptive", "KL weight fixed, or steered towards kl_target", choices=("fixed", "adaptive")
    )
    kl_target: float = option(6.0, "KL per completion that the adaptive controller aims at, in nats", low=0)
    kl_horizon: int = option(10_000, "samples over which the adaptive controller acts", low=1)
    share_prefix: bool = option(
        True, "run what prompts have in common once per micro-batch, with gradient", key=False
    )
    micro_batch_tokens: int | None = option(
        None,
        "fill forward passes with rows up to so many tokens, shared ones counted once, in place of "
        "micro_batch_size; changes memory, not the result",
        low=1,
        key=False,
    )


@dataclass
class GRPOConfig(RewardedConfig):
    """Group-relative policy optimisation with TRL's GRPOTrainer, and its defaults (1.16)."""

    rollouts: int = option(8, "completions drawn per training example: the group", low=2)
    clip_range: float = option(0.2, "clip of the probability ratio (TRL's epsilon)", low=0)
    kl_coef: float = option(0.0, "weight of the KL term in the loss (TRL's beta)", low=0)
    loss_type: str = option(
        "dapo",
        "how the loss of tokens is averaged, as TRL names it",
        choices=("grpo", "bnpo", "dr_grpo", "dapo"),
    )
    scale_rewards: str = option(
        "group",
        "advantages are divided by the deviation of the rewards of the group or of the batch, or by nothing",
        choices=("group", "batch", "none"),
    )


@dataclass
class RLOOConfig(RewardedConfig):
    """REINFORCE with a leave-one-out baseline, with TRL's RLOOTrainer and its defaults (1.16)."""

    rollouts: int = option(2, "completions drawn per training example: each is the others' baseline", low=2)
    clip_range: float = option(0.2, "clip of the probability ratio (TRL's epsilon)", low=0)
    kl_coef: float = option(0.05, "weight of the KL penalty in the reward (TRL's beta)", low=0)
    normalize_advantages: bool = option(False, "advantages to mean 0 and deviation 1 over the batch")


@dataclass
class RewardModelConfig(TrainingConfig):
    """A reward model, trained with TRL's RewardTrainer on pairs of a better and a worse completion."""

    pairs: str = option(
        "labels",
        "`labels`: the right answer above each wrong one, of every training example; `rationales`: the right answer "
        "with the example's own analysis above the same with another example's; or a JSON file in paper B's format "
        "(its contents count)",
        key=False,
    )
    held_out_pairs: str | None = option(
        None,
        "file of pairs to measure the model by; null takes pairs of the evaluation split, or holds inputs of the file "
        "`pairs` out (its contents count)",
        key=False,
    )
    held_out: int = option(
        200, "inputs of the file `pairs` that are held out (at most a tenth), where no other file is", low=1
    )
    wrong_labels: str = option(
        "all", "with pairs=labels: a pair with every wrong label, or with one drawn", choices=("all", "one")
    )
    loss: str = option(
        "last_token",
        "pairwise loss at the last token (of an encoder, of the whole text), or (paper B) at every token from the "
        "first that differs",
        choices=("last_token", "divergence"),
    )
    temperature: float = option(1.0, "what the loss divides differences of scores by", low=1e-3)
    init: str = option(
        "none",
        "start from the base model, or (paper B) from the SFT run that method.init=sft starts from, whose adapter is "
        "merged",
        choices=("none", "sft"),
        since=True,
    )
    start: SFTConfig | None = option(
        None,
        "with init=sft: that run's settings; below reward, always those of `method.start`",
        resolved=True,
    )
    keep: str = option(
        "last",
        "held-out pairs are only reported, so that the last weights are kept",
        choices=("last",),
        key=False,
    )
    order: str = option("shuffled", "pairs come at random", choices=("shuffled",), key=False)


@dataclass
class RewardConfig:
    """What PPO, GRPO and RLOO reward. `name` is a registered reward, or `path/to/file.py:function`."""

    name: str = option(MISSING, "name of a reward in nlu_ppo.rewards, or file.py:function")
    correct: float = option(1.0, "reward of the gold answer")
    wrong: float = option(-1.0, "reward of another legal answer")
    unparsable: float = option(-3.0, "reward of an answer that is none of the legal ones")
    noise: float = option(
        0.0,
        "share of the training examples whose reward goes by a wrong label, drawn once per seed: for studies of "
        "rewards that err",
        low=0,
        high=1,
        since=True,
    )
    threshold: float | None = option(
        None, "name=mixed: the most that the label's model may add to the reward", since=True
    )
    parts: dict[str, float] = option(
        {},
        "name=composite: reward -> its weight in the sum, 0 leaves it out; `+reward.parts.graded=1` adds one",
        since=True,
    )
    label_model: RewardModelConfig | None = option(
        None,
        "settings of the reward model that judges labels, `reward.label_model.<key>`; it is trained first if no "
        "finished run has it",
        resolved=True,
    )
    rationale_model: RewardModelConfig | None = option(
        None,
        "the same of the one that judges analyses (all answers, where people have ranked them)",
        resolved=True,
    )
    model: ModelConfig | None = option(
        None,
        "base of the reward models, where it is another model than the policy: `+model@reward.model=bert_base`",
        resolved=True,
    )


@dataclass
class LoraConfig:
    """Low-rank adapters, or full fine-tuning."""

    name: str = option(MISSING, "short name, used in tables", key=False)
    enabled: bool = option(True, "false trains all weights")
    r: int = option(16, "rank", low=1)
    alpha: float = option(32.0, "scale numerator", low=0)
    rslora: bool = option(True, "scale by alpha/sqrt(r) in place of alpha/r")
    dropout: float = option(0.05, "dropout on the adapter's input; PPO switches it off", low=0, high=0.99)
    targets: list[str] | None = option(
        None, "module names that get an adapter; null takes PEFT's choice for the architecture"
    )


@dataclass
class EvalConfig:
    """How answers are produced and scored."""

    decoding: str = option(
        "greedy", "headline answers: greedy, or sampled from the policy", choices=("greedy", "sample")
    )
    temperature: float = option(1.0, "sampling temperature (with decoding=sample)", low=1e-3)
    max_new_tokens: int | None = option(
        None,
        "longest completion; null fits the task's longest answer",
        low=1,
    )
    scoring: str = option(
        "whole",
        "answers must be an answer word as a whole; or, as paper A's released scorer has it, hold one, and what "
        "holds none is guessed: for the study of what that does",
        choices=("whole", "as_published"),
        since=True,
    )
    likelihood: bool = option(True, "also score by the likelihood of the legal answers")
    submission: bool = option(
        False, "also answer the benchmark's test splits, and write the files that its server takes"
    )
    bootstrap_samples: int = option(1000, "resamples behind the confidence interval", low=10)
    batch_size: int | None = option(
        64, "prompts decoded at a time; null takes as many as fit, up to 512", low=1, key=False
    )
    also: list[str] = option(
        [],
        "further tasks to evaluate the model on, by name, or by the path of a task's YAML file",
        resolved=True,
    )
    source: str | None = option(
        None,
        "where these come from; null takes each task's own source",
        choices=("hub", "raw"),
        resolved=True,
    )
    data_dir: str | None = option(
        None,
        "folder of those read from raw files (its contents count); null takes each task's own",
        key=False,
    )
    limit: int | None = option(None, "use at most this many examples per split of each", low=1, resolved=True)
    # key=False: the text itself counts, and its window and stride where there is a text
    perplexity: str | None = option(
        None,
        "also measure the final weights' perplexity on a text: `wikitext` (WikiText-2's test split on the hub), "
        "a text file, or a folder with wikitext-2-raw-v1/test-*.parquet (its name and contents count)",
        key=False,
    )
    perplexity_window: int = option(1024, "tokens that a window reads; at most the model's context", low=1)
    perplexity_stride: int = option(
        512, "tokens from the beginning of one window to that of the next; at most a window", low=1
    )


@dataclass
class TrackingConfig:
    """The MLflow mirror of the run folder."""

    enabled: bool = option(True, "mirror runs into MLflow", key=False)
    uri: str | None = option(
        None, "tracking server, such as http://host:5000; null is SQLite under outputs/", key=False
    )
    experiment: str = option("nlu_ppo", "MLflow experiment", key=False)
    patience: float = option(
        60.0,
        "at the end of a run, give up on a server that has been silent for so many seconds (`make sync` brings "
        "the rest)",
        low=0,
        key=False,
    )


@dataclass
class Config:
    """A run: task, model, method, reward, lora and seed, and how it is evaluated and recorded."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = option(0, "seed of sampling, shuffling and new weights", low=0)
    study: str = option(
        "default", "name of the study that the run belongs to: its folder under outputs/", key=False
    )
    outputs: str = option("outputs", "where studies and the MLflow database live", key=False)
    device: str = option("auto", "auto takes CUDA where there is one", key=False)
    overwrite: bool = option(False, "start again in a run folder that already holds something", key=False)


METHOD_SCHEMAS: dict[str, type[MethodConfig]] = {
    "zero_shot": ZeroShotConfig,
    "few_shot": FewShotConfig,
    "sft": SFTConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
    "reward_model": RewardModelConfig,
}


# -- what can be said of every field --------------------------------------------------------------------------


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yields (dotted key, field, value) for every leaf of a config dataclass, in declaration order."""
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item, value


def check_ranges(node: Any, prefix: str = "") -> None:
    """Checks every value below `node` against the range and the choices of its field."""
    for key, item, value in walk(node, prefix):
        if value is None:
            continue
        low, high = item.metadata.get("low"), item.metadata.get("high")
        choices = item.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(f"{key}={value} is no choice: take one of {', '.join(choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value} is out of range: it must be a finite number")
        if low is not None and value < low:
            raise ConfigError(f"{key}={value} is out of range: it must be at least {low:g}")
        if high is not None and value > high:
            raise ConfigError(f"{key}={value} is out of range: it must be at most {high:g}")


def key_fields(node: Any) -> dict[str, Any]:
    """The values of `node` that can change a run's result, by dotted key."""
    return {
        key: value
        for key, item, value in walk(node)
        if item.metadata.get("key", True) and not (item.metadata.get("since") and value == default_of(item))
    }


def default_of(item: dataclasses.Field[Any]) -> Any:
    """What a setting is if nobody sets it."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
