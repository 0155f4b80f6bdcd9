"""The `transformer` teacher: a causal Transformer over the history.

Pre-norm blocks, learned positions, item features in the inputs, softmax over the catalogue (SASRec,
Kang & McAuley 2018, with full cross-entropy), and a learned recency bias on attention, which raised
validation NDCG@10 on ML-100K from .124 to .138.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError
from distilrec.networks.batches import Batch
from distilrec.networks.context import context_inputs_of
from distilrec.networks.full_precision import in_float32
from distilrec.networks.on_cpu import Dropout, dropout
from distilrec.networks.sequence import SequenceModel
from distilrec.networks.time_attention import BUCKETS, pair_buckets, time_attention
from distilrec.networks.time_inputs import time_inputs_of
from distilrec.settings import Count, Settings, Share
from distilrec.zones import check_zone


class TransformerConfig(Settings, frozen=True, tag="transformer", tag_field="kind"):
    """A causal Transformer over the history."""

    dim: Count = 64
    """Channels of an item vector."""
    layers: Count = 2
    """Number of blocks."""
    heads: Count = 4
    """Attention heads; `dim` is a multiple of them."""
    feed_forward: Count = 256
    """Channels of the feed-forward layers."""
    gated: bool = True
    """Whether the feed-forward layers are SwiGLU; GELU otherwise."""
    dropout: Share = 0.3
    """Share of channels that are set to 0 at random in training."""
    max_history: Count = 100
    """Latest events of a user that the model looks at."""
    time_bias: bool = False
    """Whether attention knows how long ago each event was, where the log has usable times."""
    time: bool = False
    """Whether the inputs say how long after each event the next one was asked for, and the hour and
    the weekday of that question, where the log has usable times.
    """
    timezone: str = "UTC"
    """Zone of the hour and the weekday, such as Europe/Berlin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ConfigError(
                f"dim {self.dim} is not a multiple of heads {self.heads}",
                fix="change one",
                parameter="heads",
            )
        check_zone(self.timezone)


class SwiGlu(nn.Module):
    """silu(A x) * (B x) (Shazeer 2020, eq. 5)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(dim, 2 * hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        product: torch.Tensor = functional.silu(gate) * value
        return product


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig, *, timed: bool) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.slopes = nn.Parameter(torch.linspace(-5, -1, config.heads))
        self.attention_norm = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.attention_out = nn.Linear(config.dim, config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = nn.Sequential(
            SwiGlu(config.dim, config.feed_forward)
            if config.gated
            else nn.Sequential(nn.Linear(config.dim, config.feed_forward), nn.GELU()),
            Dropout(config.dropout),
            nn.Linear(config.feed_forward, config.dim),
        )
        self.gaps = nn.Parameter(torch.zeros(config.heads, BUCKETS)) if timed else None

    def forward(self, x: torch.Tensor, buckets: torch.Tensor | None = None) -> torch.Tensor:
        """buckets: of the gaps, (batch, length, length), where attention knows the time."""
        batch, length, dim = x.shape
        packed = self.query_key_value(self.attention_norm(x)).view(
            batch, length, 3, self.heads, dim // self.heads
        )
        # Each (batch, heads, length, dim / heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        if self.gaps is None:
            mixed = attention(query, key, value, self.slopes)
        else:
            assert buckets is not None
            mixed = time_attention(
                query, key, value, position_bias(self.slopes, length), self.gaps, buckets
            )
        attended = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, dim))
        x = x + dropout(attended, self.dropout, self.training)
        return x + dropout(
            self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training
        )


@in_float32
def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slopes: torch.Tensor
) -> torch.Tensor:
    """Causal attention with -softplus(slope) * age added to its logits, of the shape of `query`,
    (batch, heads, length, channels); slopes: (heads,).

    ALiBi (Press et al. 2022, sec. 3) with learned slopes, beside the learned positions. What is the
    same for all keys of a query does not change its softmax, so that a bias of the key's position
    alone does: it comes as a channel more, and needs no (length, length) matrix of biases. In
    float32, also within autocast: bf16 has too few digits for the biases of long histories.
    """
    channels, length = query.shape[-1], query.shape[-2]
    bias = position_bias(slopes, length).unsqueeze(-1)  # (heads, length, 1)
    bias = (channels**0.5 * bias).expand(*key.shape[:-1], 1)
    mixed = functional.scaled_dot_product_attention(
        torch.cat([query, torch.ones_like(bias)], dim=-1),
        torch.cat([key, bias], dim=-1),
        functional.pad(value, (0, 1)),
        is_causal=True,
        scale=channels**-0.5,
    )
    return mixed[..., :channels]


def position_bias(slopes: torch.Tensor, length: int) -> torch.Tensor:
    """Return softplus(slope) * position, with positions that end before 0, (heads, length)."""
    position = torch.arange(length, dtype=slopes.dtype, device=slopes.device) - length
    return functional.softplus(slopes).unsqueeze(1) * position


class Transformer(SequenceModel):
    """Right padding needs no mask: a causal position never looks at what stands to its right."""

    def __init__(self, dataset: Dataset, config: TransformerConfig) -> None:
        super().__init__()
        self._set_up(dataset, config)
        self.start = nn.Parameter(0.05 * torch.randn(config.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_history, config.dim))
        self.event_types = nn.Embedding(len(dataset.info.event_types), config.dim)
        nn.init.normal_(self.event_types.weight, std=0.02)
        self.timed = config.time_bias and not dataset.why_no_times
        self.blocks = nn.ModuleList(Block(config, timed=self.timed) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.dim)
        self.time = time_inputs_of(dataset, config)
        self.context = context_inputs_of(dataset, config.dim)

    def begin(self, dataset: Dataset) -> None:
        if self.time is not None:
            self.time.begin(dataset)

    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        is_start = (batch.items == self.items.catalogue_size).unsqueeze(-1)  # (batch, length, 1)
        looked_up = self.look_up(batch, vectors) + self.event_types(batch.events)
        x = torch.where(is_start, self.start, looked_up) * vectors.shape[1] ** 0.5
        x = x + self.positions[: x.shape[1]] + self.user_features(batch.users).unsqueeze(1)
        if self.time is not None:
            # The time of the next event: later positions have seen that event, too
            x = x + self.time(batch)
        x = dropout(x, self.dropout, self.training)
        buckets = pair_buckets(batch) if self.timed else None
        for block in self.blocks:
            x = block(x, buckets)
        if self.context is not None:
            x = x + self.context(batch)
        hidden: torch.Tensor = self.final_norm(x)
        return hidden  # (batch, length, dim)
