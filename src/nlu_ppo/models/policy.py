"""The policy: a causal language model split into trunk and head, its adapter, its value head, its reference.

PPO, decoding and scoring all call `hidden`, `logits` and nothing else of the model, so that old, new and
reference log-probabilities come from one and the same forward path.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache

from nlu_ppo.errors import ModelError, NotFiniteError
from nlu_ppo.models.checkpointing import checkpoint_layers, checkpoints
from nlu_ppo.models.lean import make_lean
from nlu_ppo.models.memory import keep_freed_memory
from nlu_ppo.models.room import Room
from nlu_ppo.models.sharding import Shards
from nlu_ppo.models.token_logprobs import token_logprobs
from nlu_ppo.tasks.record import CLOSE


class ValueHead(nn.Module):
    """One linear layer on the trunk's last hidden state; starts at zero, so first values are zero."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (...), in float32."""
        return self.linear(hidden.float()).squeeze(-1)


class Policy:
    """A model ready to be decoded, scored and trained.

    Args:
        model: a transformers causal LM, or a PeftModel around one.
        context_length: longest sequence in tokens.
        pretrained: its adapter has been trained before, so that the policy without it isn't where training starts.
        shards: where the frozen weights of its layers are, if several processes share them.

    Raises:
        ModelError: trunk plus head does not give the model's own logits, or the model has layers that keep a
            running state in place of keys and values.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        context_length: int,
        pretrained: bool = False,
        shards: Shards | None = None,
    ) -> None:
        self.model = model
        self.shards = shards
        self.pretrained = pretrained
        self.tokenizer = tokenizer
        self.context_length = context_length
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.base: Any = base
        self.trunk: Any = getattr(self.base, str(base.base_model_prefix))
        self.head: Any = self.base.get_output_embeddings()
        self.device: torch.device = next(model.parameters()).device
        self.room = Room(cuts=shards is None)
        self.value_head: ValueHead | None = None
        self.closing = CLOSE  # decoding ends with it
        self.reads_trees: bool | None = None  # not known before inference.reading tries it
        self.reference_prefix: Any = None  # what ppo.rollout keeps of it as a reference
        self.decoder: Any = None  # inference.vllm_decoder, where completions are drawn by it
        self._frozen: Policy | None = None
        self._first: dict[str, Tensor] | None = None
        self._softcap = getattr(self.base.config, "final_logit_softcapping", None)
        layers = getattr(self.trunk, "layers", None) or getattr(self.trunk, "h", None)
        self._last_layer: Any = layers[-1] if layers else None
        self._short_mlp = False
        self._checkpoints = False
        self._check_layers()
        self._check_split()
        self._short_mlp = self._try_short_mlp()
        make_lean(model)
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def keeps_caches(self) -> bool:
        """Whether layers take a cache: not while they checkpoint, as ours do with gradients on, and transformers'
        own in training mode."""
        if self._checkpoints and torch.is_grad_enabled():
            return False
        if not self.model.training:
            return True
        return not any(getattr(module, "gradient_checkpointing", False) for module in self.trunk.modules())

    def checkpoint_layers(self) -> None:
        """From now on layers keep their input only for the backward pass, and are run again in it.

        The last layer is the first that the backward pass comes to, so that to run it again would save nothing; it is
        left alone where its MLP is run for the wanted tokens only.

        Raises:
            ModelError: the model's layers can't be told.
        """
        checkpoint_layers(self.trunk, but=self._last_layer if self._short_mlp else None)
        self._checkpoints = True

    @property
    def short_length(self) -> int | None:
        """Tokens up to which LongRoPE turns keys by its short factors, where the model has it (Phi-3): a prefix as
        short as that, run apart from rows that are longer, would get keys that those rows don't have."""
        rope = getattr(self.base.config, "rope_parameters", None) or {}
        kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
        found = [k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"]
        return min(found, default=None)

    def room_for_prompts(self, answer: int) -> int:
        """Tokens that the context leaves for a prompt beside an answer of `answer` tokens.

        Raises:
            ModelError: it leaves none.
        """
        room = self.context_length - answer
        if room < 1:
            raise ModelError(
                f"the model's context of {self.context_length} tokens has no room for answers of {answer} tokens"
            )
        return room

    # -- forward ------------------------------------------------------------------------------------------

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        wanted: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """Last hidden states of the trunk, (rows, tokens, hidden). With a `cache` the tokens follow it.

        Args:
            wanted: tokens whose states are asked for, counted over all rows; those of others are undefined. Behind
                the last layer's attention tokens don't meet any more, so that only these need its MLP.
            attention: goes to the model's attention function.
        """
        assert cache is None or self.keeps_caches, "checkpointed layers would silently ignore this cache"
        if self.shards is not None:
            self.shards.run_forward()
        with self._last_mlp_for(wanted):
            out = self.trunk(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                **attention,
            )
        return out.last_hidden_state

    @contextlib.contextmanager
    def _last_mlp_for(self, wanted: Tensor | None) -> Iterator[None]:
        # checkpointing runs the layer again in backward, when the hooks are gone
        if (
            wanted is None
            or not self._short_mlp
            or (checkpoints(self._last_layer) and torch.is_grad_enabled())
            or getattr(self._last_layer, "gradient_checkpointing", False)
        ):
            yield
            return
        shape = torch.Size()

        def choose(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            nonlocal shape
            (x,) = inputs
            shape = x.shape
            return x.flatten(0, 1).index_select(0, wanted).unsqueeze(0)

        def put_back(_: nn.Module, __: tuple[Tensor], x: Tensor) -> Tensor:
            rows = x.new_zeros(shape[0] * shape[1], x.shape[-1])
            return rows.index_copy(0, wanted, x.squeeze(0)).unflatten(0, shape[:2])

        mlp = self._last_layer.mlp
        hooks = [mlp.register_forward_pre_hook(choose), mlp.register_forward_hook(put_back)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _try_short_mlp(self) -> bool:
        """Whether the last layer has an MLP that can be run for the wanted tokens only, tried once."""
        if not isinstance(getattr(self._last_layer, "mlp", None), nn.Module):
            return False
        ids = torch.arange(1, 9, device=self.device).unsqueeze(0) % self.base.config.vocab_size
        wanted = torch.tensor([2, 7], device=self.device)
        with torch.inference_mode():
            whole = self.hidden(ids)[0, wanted]
            self._short_mlp = True
            try:
                found = self.hidden(ids, wanted=wanted)[0, wanted]
            except (TypeError, ValueError, RuntimeError):  # it takes or gives something else
                return False
        # rounding in bfloat16 makes about 1%
        return bool((found - whole).norm() <= 0.05 * whole.norm())

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss that one forward pass has led to."""
        if self.shards is not None:
            self.shards.backward(loss)
        else:
            loss.backward()

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32, (..., vocabulary), of the given hidden states."""
        logits = self.head(hidden).float()
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def token_logprobs(
        self,
        hidden: Tensor,
        states: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of targets under softmax(logits / temperature), and entropies in nats.

        Args:
            hidden: states that predict a token, (S, hidden).
            states: which of them predicts each target, any shape.
            targets: token ids, of the same shape.
            entropy_gradient: entropies pass a gradient on; otherwise they are for watching only.

        Returns:
            log-probabilities, of the targets' shape, and entropies of the states, (S,); float32 at least.
        """
        if self._plain_head:
            return token_logprobs(
                hidden, self.head.weight, self.head.bias, states, targets, temperature, entropy_gradient
            )
        log_p = (self.logits(hidden) / temperature).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return log_p[states, targets], entropy if entropy_gradient else entropy.detach()

    @property
    def _plain_head(self) -> bool:
        """Whether the head is a frozen linear layer and nothing else."""
        return type(self.head) is nn.Linear and not self.head.weight.requires_grad and not self._softcap

    def values(self, hidden: Tensor) -> Tensor:
        """The critic's estimate, (...), of the given hidden states."""
        assert self.value_head is not None, "this policy has no value head"
        return self.value_head(hidden)

    def _check_layers(self) -> None:
        """A state that runs on from token to token can't be cut back to a prefix, nor skip padding."""
        kinds = set(getattr(self.base.config, "layer_types", None) or [])
        running = {kind for kind in kinds if "attention" not in kind or "linear" in kind}
        if running or getattr(self.base, "_is_stateful", False):
            raise ModelError(
                f"{type(self.base).__name__} has layers that keep a running state in place of keys and values "
                f"({', '.join(sorted(running)) or 'recurrent'}), which rows can't share: take a model of another "
                f"architecture"
            )

    def _check_split(self) -> None:
        """Some architectures scale their logits between trunk and head; better to refuse than to be wrong."""
        ids = torch.arange(1, 9, device=self.device).unsqueeze(0) % self.base.config.vocab_size
        with torch.inference_mode():
            ours = self.logits(self.hidden(ids))
            if self.shards is not None:
                self.shards.run_forward()
            theirs = self.base(input_ids=ids, use_cache=False).logits.float()
        if theirs.isnan().any():
            raise NotFiniteError(
                f"the model gives NaN for a few plain tokens: its weights are damaged, or too large for "
                f"{self.base.dtype} (model.dtype)"
            )
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            gap = (ours - theirs).abs().max().item()
            raise ModelError(
                f"{type(self.base).__name__} does something between its trunk and its head that this package "
                f"doesn't know (logits differ by {gap:.3g}): take a model of another architecture"
            )

    # -- training -----------------------------------------------------------------------------------------

    def add_value_head(self) -> None:
        # float32 whatever the trunk's type: values are small numbers that small steps must still move
        self.value_head = ValueHead(self.head.weight.shape[-1]).to(self.device)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that training moves, value head included."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        if self.value_head is not None:
            named += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return named

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all trainable tensors, on the CPU."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self.trainable()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Sets all trainable tensors.

        Raises:
            ModelError: names or shapes are those of another adapter.
        """
        mine = dict(self.trainable())
        if {n: p.shape for n, p in mine.items()} != {n: t.shape for n, t in state.items()}:
            odd = sorted(set(mine) ^ set(state)) or [n for n in mine if mine[n].shape != state[n].shape]
            raise ModelError(f"the saved weights belong to another adapter or model: {odd[0]} does not fit")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])

    def freeze_reference(self) -> None:
        """Keeps what training starts from as reference; an untrained adapter need only be switched off."""
        if not self.has_adapter:
            frozen = copy.deepcopy(self.model).requires_grad_(False).eval()
            self._frozen = Policy(frozen, self.tokenizer, self.context_length)
        elif self.pretrained:
            self._first = {n: p.detach().clone() for n, p in self._adapter().items()}

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """The policy before training: the adapter switched off, as it was at first, or the frozen copy."""
        if not self.has_adapter:
            assert self._frozen is not None, "freeze_reference() was not called before training"
            yield self._frozen
        elif not self.pretrained:
            with self.model.disable_adapter():
                yield self
        else:
            assert self._first is not None, "freeze_reference() was not called before training"
            self._exchange_adapter()
            try:
                yield self
            finally:
                self._exchange_adapter()

    def _adapter(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def _exchange_adapter(self) -> None:
        """Puts the first weights into the adapter's place, and what stands there into theirs."""
        assert self._first is not None
        for name, parameter in self._adapter().items():
            parameter.data, self._first[name] = self._first[name], parameter.data
