"""Convolutions and pooling that are written out, against torch's own and dense Hessians."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian, vmap
from torch.nn import functional

from sk_unlearn.curvature import unfolded
from sk_unlearn.curvature.products import EagerProduct, SplitProduct
from sk_unlearn.modules import AllCNN, ResNet18

N_CLASSES = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


@st.composite
def geometries(draw):
    """Draw sizes, kernel, steps and padding for which there is at least one window."""
    kernel, steps = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    sizes = [
        max(1, k - 2 * p) + draw(st.integers(0, 5)) for k, p in zip(kernel, padding, strict=True)
    ]
    return (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *sizes), kernel, steps, padding


def last(images):
    return images.permute(0, 2, 3, 1)


@given(geometries(), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_torch_and_folding_is_the_adjoint(geometry, seed):
    size, kernel, steps, padding = geometry
    torch.manual_seed(seed)
    x = torch.randn(size, dtype=torch.float64)
    lists = list(kernel), list(steps), list(padding)
    windows = unfolded.unfold(last(x), *lists)
    theirs = functional.unfold(x, kernel, stride=steps, padding=padding)
    theirs = theirs.unflatten(1, (size[1], -1)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(windows.flatten(1, 2), theirs)
    cotangent = torch.randn_like(windows)
    folded = unfolded.fold(cotangent, list(size[2:]), *lists)
    flat = cotangent.flatten(1, 2).unflatten(2, (-1, size[1])).permute(0, 3, 2, 1).flatten(1, 2)
    theirs = functional.fold(flat, size[2:], kernel, stride=steps, padding=padding)
    torch.testing.assert_close(folded, last(theirs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((windows * cotangent).sum(), (last(x) * folded).sum())
    torch.library.opcheck(unfolded.unfold, (last(x), *lists), test_utils="test_schema")


def test_both_have_rules_for_vmap_and_for_two_derivatives():
    geometry = [3, 2], [2, 1], [1, 0]
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    each = torch.stack([unfolded.unfold(part, *geometry) for part in x])
    assert torch.equal(vmap(lambda t: unfolded.unfold(t, *geometry))(x), each)
    swapped = vmap(lambda t: unfolded.unfold(t, *geometry), in_dims=1, out_dims=1)(x)
    assert torch.equal(swapped.transpose(0, 1)[0], unfolded.unfold(x[:, 0], *geometry))
    back = torch.stack([unfolded.fold(part, [5, 4], *geometry) for part in each])
    assert torch.equal(vmap(lambda t: unfolded.fold(t, [5, 4], *geometry))(each), back)

    def squares(t):
        windows = unfolded._Unfold.apply(t, *geometry)
        return unfolded._Fold.apply(windows**2, [5, 4], *geometry)

    assert torch.autograd.gradcheck(squares, x[0])
    assert torch.autograd.gradgradcheck(squares, x[0])


def net(*layers):
    """Return a net whose head fits what the layers put out for images of 2 x 7 x 6."""
    body = nn.Sequential(*layers, nn.Tanh())
    with torch.no_grad():
        width = body(torch.zeros(1, 2, 7, 6)).numel()
    return nn.Sequential(body, nn.Flatten(), nn.Linear(width, N_CLASSES)).double()


def strip():
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 2, 5, stride=3), nn.Unflatten(2, (13, 1)))


LAYERS = {  # name: layers, whether a convolution is written out
    "plain": (lambda: [nn.Conv2d(2, 2, 3)], True),
    "two": (lambda: [nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 3, 2)], True),
    "stride": (lambda: [nn.Conv2d(2, 3, 3, stride=2, padding=1)], True),
    "oblong": (lambda: [nn.Conv2d(2, 2, (3, 2), stride=(2, 3), padding=(1, 0))], True),
    "steps beyond the kernel": (lambda: [nn.Conv2d(2, 2, 2, stride=3)], True),
    "one by one": (lambda: [nn.Conv2d(2, 3, 1)], True),
    "no bias": (lambda: [nn.Conv2d(2, 2, 3, bias=False)], True),
    "reflected": (lambda: [nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")], True),
    "dilation": (lambda: [nn.Conv2d(2, 2, 2, dilation=2)], False),
    "groups": (lambda: [nn.Conv2d(2, 4, 3, groups=2)], False),
    "same": (lambda: [nn.Conv2d(2, 2, 3, padding="same")], False),
    "one dimension": (lambda: [strip()], False),
    "transposed": (lambda: [nn.ConvTranspose2d(2, 2, 2, stride=2)], False),
    "pool": (lambda: [nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2)], True),
    "pool that overlaps": (
        lambda: [nn.Conv2d(2, 2, 3), nn.ReLU(), nn.MaxPool2d((3, 2), (2, 1), (1, 0))],
        True,
    ),
    "pool of holes": (lambda: [nn.MaxPool2d(2, 1, dilation=2), nn.Conv2d(2, 2, 2)], True),
    "pool upwards": (lambda: [nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 2, 2)], True),
    "pool twice": (
        lambda: [nn.MaxPool2d(3, 1), nn.Conv2d(2, 2, 2), nn.MaxPool2d(2), nn.MaxPool2d((2, 1))],
        True,
    ),
    "groups of channels": (lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4, eps=0.1)], True),
    "groups as they are": (
        lambda: [nn.GroupNorm(2, 2, affine=False), nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4)],
        True,
    ),
    "average": (lambda: [nn.Conv2d(2, 2, 3), nn.AvgPool2d(2)], True),
}


def dense_by_torch(module, X, y):
    named = dict(module.named_parameters())

    def risk(w):
        parts = w.split([p.numel() for p in named.values()])
        moved = {n: part.view_as(p) for (n, p), part in zip(named.items(), parts, strict=True)}
        return functional.cross_entropy(functional_call(module, moved, (X,)), y)

    return hessian(risk)(torch.cat([p.detach().flatten() for p in named.values()]))


def rule(module, X, y, n_batches=None):
    names = list(module.state_dict())

    def loss(parameters, X, y):
        moved = dict(zip(names, parameters, strict=True))
        return functional.cross_entropy(functional_call(module, moved, (X,)), y)

    parameters = [p.detach() for p in module.parameters()]
    return SplitProduct(loss, parameters, X, y, n_batches), EagerProduct(loss), parameters


def flat(parts, start=1):
    return torch.cat([t.flatten(start) for t in parts], start)


def written_out(split):
    return "sk_unlearn.unfold" in str(split._first.graph)


@pytest.mark.parametrize("small_bytes", [unfolded._SMALL_BYTES, 0], ids=["small", "large"])
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_the_dense_hessian(name, small_bytes, monkeypatch):
    monkeypatch.setattr(unfolded, "_SMALL_BYTES", small_bytes)
    make, unfolds = LAYERS[name]
    torch.manual_seed(0)
    module = net(*make())
    X, y = torch.randn(2, 3, 2, 7, 6, dtype=torch.float64), torch.randint(N_CLASSES, (2, 3))
    one, _, parameters = rule(module, X[0], y[0])
    assert not small_bytes or written_out(one) == unfolds
    expected = [dense_by_torch(module, *pair) for pair in zip(X, y, strict=True)]
    p = len(expected[0])
    columns = torch.eye(p, dtype=X.dtype).split([t.numel() for t in parameters], 1)
    units = [t.view(p, *like.shape) for like, t in zip(parameters, columns, strict=True)]
    state = one.at(parameters, X[0], y[0])
    kept = [t.clone() for t in state]
    torch.testing.assert_close(flat(one.products(state, units)), expected[0], **CLOSE)
    v = [torch.randn(2, *like.shape, dtype=torch.float64) for like in parameters]
    for _ in range(2):
        product = flat(one.product(state, [part[0] for part in v]), 0)
        torch.testing.assert_close(product, expected[0] @ flat(v)[0], **CLOSE)
    for before, after in zip(kept, state, strict=True):
        assert torch.equal(before, after)
    two, _, _ = rule(module, X, y, n_batches=2)
    products = flat(two.product(two.at(parameters, X, y), v))
    for i in range(2):
        torch.testing.assert_close(products[i], expected[i] @ flat(v)[i], **CLOSE)


@pytest.mark.parametrize("make", [AllCNN, pytest.param(ResNet18, marks=pytest.mark.slow)])
def test_reference_networks_against_autograd(make):
    torch.manual_seed(0)
    module = make((3, 16, 16), N_CLASSES, width=8).double()
    X, y = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.randint(N_CLASSES, (3,))
    split, eager, parameters = rule(module, X, y)
    v = [torch.randn_like(p) for p in parameters]
    theirs = flat(eager.product(eager.at(parameters, X, y), v), 0)
    ours = flat(split.product(split.at(parameters, X, y), v), 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9 * float(theirs.abs().max()))


def test_large_windows_that_overlap_are_left_to_torch():
    layer = nn.Conv2d(16, 4, 3)
    few, many = torch.rand(2, 16, 8, 8), torch.rand(20, 16, 28, 28)
    assert unfolded.seen_in(lambda: layer(few)).left == 0
    assert unfolded.seen_in(lambda: layer(many)).left == 1
    layer.stride = (2, 2)
    assert unfolded.seen_in(lambda: layer(many)).left == 0
    assert unfolded.seen_in(lambda: nn.Conv1d(2, 2, 3)(torch.rand(1, 2, 9))).left == 1
    assert unfolded.seen_in(lambda: nn.GroupNorm(1, 2)(torch.rand(1, 2, 9))).normalised
