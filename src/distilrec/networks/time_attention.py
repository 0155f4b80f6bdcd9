"""Causal attention that knows how long ago each event was: a learned table a head over gaps.

The relative time bias of HSTU (Zhai et al. 2024, sec. 3.2), in a softmax: the gap is that between
the time at which a position is asked for the next event and the time of the input attended to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distilrec.engine.kernels import kernel
from distilrec.networks.batches import Batch, times_of
from distilrec.networks.full_precision import in_float32
from distilrec.networks.on_cpu import in_threads, takes_kernels

BUCKETS = 63  # the last one is of gaps from 2^31 seconds on, 68 years
_PER_OCTAVE = 2.0


def gap_buckets(gaps: torch.Tensor) -> torch.Tensor:
    """Return the bucket of each gap in seconds, of the same shape, uint8: about half an octave of
    1 + gap each; a negative gap counts as none.
    """
    octaves = torch.log2(1.0 + gaps.clamp(min=0).float())
    return (_PER_OCTAVE * octaves).clamp(max=BUCKETS - 1).to(torch.uint8)


def pair_buckets(batch: Batch) -> torch.Tensor:
    """Return the bucket of the gap from each input to each question, (batch, questions, inputs).

    Raises InvalidValueError for a batch that does not know when its events happened.
    """
    times, asked = times_of(batch)
    return gap_buckets(asked.unsqueeze(2) - times.unsqueeze(1))


@in_float32
def time_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ages: torch.Tensor,
    table: torch.Tensor,
    buckets: torch.Tensor,
) -> torch.Tensor:
    """Return causal attention with biases of position and time, of the shape of `query`, (batch,
    heads, length, channels).

    ages: (heads, length), the bias of each position of a key; table: (heads, BUCKETS), the bias of
    each gap; buckets: (batch, length, length), of `pair_buckets`. In float32, also within autocast.
    """
    buckets = buckets.to(torch.uint8)  # autocast makes floats of all tensors
    if not takes_kernels(query):
        return _by_torch(query, key, value, ages, table, buckets)
    mixed: torch.Tensor = _TimeAttention.apply(query, key, value, ages, table, buckets)  # type: ignore[no-untyped-call]
    return mixed


def _by_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ages: torch.Tensor,
    table: torch.Tensor,
    buckets: torch.Tensor,
) -> torch.Tensor:
    length = query.shape[-2]
    bias = functional.embedding(buckets.int(), table.t()).permute(0, 3, 1, 2)
    bias = bias + ages.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    return functional.scaled_dot_product_attention(
        query, key, value, bias.masked_fill(~causal, -torch.inf)
    )


class _TimeAttention(torch.autograd.Function):
    """The same on the CPU: the softmax and its gradient in one pass each over the logits."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> torch.Tensor:
        query, key, value, ages, table, buckets = (tensor.detach() for tensor in tensors)
        shares = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
        rows, places, biases = (tensor.contiguous().numpy() for tensor in (shares, buckets, ages))
        gaps = table.contiguous().numpy()
        in_threads(len(rows), lambda some: _softmax(rows[some], biases, gaps, places[some]))
        ctx.save_for_backward(query, key, value, shares, table, buckets)
        return torch.matmul(shares, value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, shares, table, buckets = ctx.saved_tensors
        of_out, scale = gradients[0], query.shape[-1] ** -0.5
        of_logits = torch.matmul(of_out, value.transpose(-1, -2))
        batch, heads, length, _ = of_logits.shape
        # One each for every history, so that threads do not add to the same numbers
        of_ages = np.zeros((batch, heads, length), np.float32)
        of_table = np.zeros((batch, *table.shape), np.float32)
        rows, weights, places = (
            tensor.contiguous().numpy() for tensor in (of_logits, shares, buckets)
        )
        in_threads(
            batch,
            lambda some: _softmax_backward(
                rows[some], weights[some], places[some], of_ages[some], of_table[some]
            ),
        )
        return (
            torch.matmul(of_logits, key) * scale,
            torch.matmul(of_logits.transpose(-1, -2), query) * scale,
            torch.matmul(shares.transpose(-1, -2), of_out),
            torch.from_numpy(of_ages.sum(0)),
            torch.from_numpy(of_table.sum(0)),
            None,
        )


@kernel
def _softmax(logits, ages, table, buckets):  # type: ignore[no-untyped-def]
    """Put the shares of attention in place of the logits, (batch, heads, length, length)."""
    for b in range(logits.shape[0]):
        for h in range(logits.shape[1]):
            for i in range(logits.shape[2]):
                row, gaps = logits[b, h, i], buckets[b, i]
                highest = np.float32(-np.inf)
                for j in range(i + 1):
                    row[j] += ages[h, j] + table[h, gaps[j]]
                    highest = max(highest, row[j])
                total = np.float32(0.0)
                for j in range(i + 1):
                    row[j] = np.exp(row[j] - highest)
                    total += row[j]
                total = np.float32(1.0) / total
                for j in range(i + 1):
                    row[j] *= total
                for j in range(i + 1, row.shape[0]):
                    row[j] = np.float32(0.0)


@kernel
def _softmax_backward(gradient, shares, buckets, of_ages, of_table):  # type: ignore[no-untyped-def]
    """Put the gradient of the logits in place of that of the shares, and add up the biases'."""
    for b in range(gradient.shape[0]):
        for h in range(gradient.shape[1]):
            ages, table = of_ages[b, h], of_table[b, h]
            for i in range(gradient.shape[2]):
                row, share, gaps = gradient[b, h, i], shares[b, h, i], buckets[b, i]
                mean = np.float32(0.0)
                for j in range(i + 1):
                    mean += row[j] * share[j]
                for j in range(i + 1):
                    row[j] = share[j] * (row[j] - mean)
                    ages[j] += row[j]
                    table[gaps[j]] += row[j]
                for j in range(i + 1, row.shape[0]):
                    row[j] = np.float32(0.0)
