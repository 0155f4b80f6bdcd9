"""What the CPU does by ways of its own gives what torch's operations give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distilrec.networks.on_cpu import Dropout, dropout, only_torch, scan
from distilrec.networks.transformer import attention


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 7, 2, 8), (5, 1, 2, 8), (1, 33, 4, 5), (0, 4, 1, 3)])
def test_the_recurrence_and_its_gradients(shape, threads):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator)
    decay = torch.rand(shape[2:], generator=generator) * 0.9 + 0.05
    weights = torch.randn(shape, generator=generator)
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for plain in (False, True):
            leaves = [inputs.clone().requires_grad_(), decay.clone().requires_grad_()]
            if plain:
                with only_torch():
                    state = scan(*leaves)
            else:
                state = scan(*leaves)
            gradients = torch.autograd.grad((state * weights).sum(), leaves, allow_unused=True)
            found.append([state.detach(), *gradients])
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(*found, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_keeps_the_mean_and_its_share_follows_from_the_seed():
    x = torch.ones(400, 300, requires_grad=True)
    torch.manual_seed(3)
    one = dropout(x, 0.25, True)
    torch.manual_seed(3)
    other = Dropout(0.25)(x)
    assert torch.equal(one, other)
    assert not torch.equal(one, dropout(x, 0.25, True))
    assert one.detach().unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert float((one == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    gradient = torch.autograd.grad(one.sum(), x)[0]
    assert torch.equal(gradient, one.detach())
    # Rows and columns are as independent as single values
    assert float((one == 0).float().mean(0).std()) == pytest.approx(
        (0.25 * 0.75 / 400) ** 0.5, rel=0.2
    )


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (0.5, False)])
def test_dropout_that_is_off(share, training):
    x = torch.randn(5, 3)
    assert torch.equal(dropout(x, share, training), x)
    assert dropout(torch.zeros(0, 3), 0.5, True).shape == (0, 3)


def test_attention_has_the_bias_of_age():
    """Against the matrix of biases that its docstring spares us, gradients as well."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4, generator=generator) for _ in range(3))
    slopes = torch.tensor([-3.0, 0.0, 1.0])
    age = torch.arange(9).unsqueeze(1) - torch.arange(9)

    def expected(query, key, value, slopes):
        bias = -functional.softplus(slopes).view(-1, 1, 1) * age
        logits = query @ key.transpose(-1, -2) / 4**0.5 + bias.masked_fill(age < 0, -torch.inf)
        return torch.softmax(logits, -1) @ value

    found = []
    for function in (attention, expected):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value, slopes)]
        mixed = function(*leaves)
        found.append([mixed.detach(), *torch.autograd.grad((mixed**2).sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
