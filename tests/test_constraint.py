"""The projection is the nearest point of a ball that nothing leaves, and it follows optimizers."""

from __future__ import annotations

import copy
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from sk_unlearn.constraint import Ball, project

coordinates = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-100)
radii = st.floats(-3, 4).map(lambda x: 10.0**x)


def vectors(size):
    return arrays(np.float64, size, elements=coordinates)


def norm(vector):
    """Euclidean norm of floats, to 50 digits."""
    with mpmath.workdps(50):
        return mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(x)) ** 2 for x in vector))


def exact_distance(one, other):
    return norm_of_difference(one.tolist(), other.tolist())


def norm_of_difference(one, other):
    with mpmath.workdps(50):
        return mpmath.sqrt(
            mpmath.fsum(
                (mpmath.mpf(x) - mpmath.mpf(y)) ** 2 for x, y in zip(one, other, strict=True)
            )
        )


# ------------------------------------------------------------------ project (float64)


@given(st.integers(1, 8).flatmap(lambda p: st.tuples(vectors(p), vectors(p))), radii)
def test_never_outside_to_fifty_digits(pair, radius):
    vector, reference = pair
    reference = reference * 1e-3  # see the test on an anchor that is far away
    assert exact_distance(project(vector, reference, radius), reference) <= radius


@given(st.integers(1, 8).flatmap(lambda p: st.tuples(*[vectors(p)] * 3)), radii)
def test_nonexpansive(triple, radius):
    one, other, reference = triple
    before = exact_distance(one, other)
    after = exact_distance(project(one, reference, radius), project(other, reference, radius))
    scale = max(np.abs(np.concatenate(triple)).max(), radius)
    assert after <= before + 1e-14 * scale


@given(st.integers(1, 8).flatmap(vectors), radii)
def test_no_jump_at_the_sphere(direction, radius):
    """Points a hair apart on the two sides of the sphere stay a hair apart."""
    length = np.linalg.norm(direction)
    if length == 0:
        return
    unit, origin = direction / length, np.zeros_like(direction)
    for around in (1.0, 1.0 - 1e-9, 1.0 - 1e-12):
        inner, outer = unit * radius * (around - 2e-15), unit * radius * (around + 2e-15)
        moved = exact_distance(project(inner, origin, radius), project(outer, origin, radius))
        assert moved <= 6e-15 * radius


@given(st.integers(1, 8).flatmap(lambda p: st.tuples(vectors(p), vectors(p))), radii)
def test_idempotent(pair, radius):
    vector, reference = pair
    once = project(vector, reference, radius)
    scale = max(np.abs(once).max(), np.abs(reference).max(), radius)
    np.testing.assert_allclose(project(once, reference, radius), once, rtol=0, atol=1e-14 * scale)


@given(st.integers(1, 8).flatmap(lambda p: st.tuples(vectors(p), vectors(p))), radii)
def test_it_is_the_nearest_point(pair, radius):
    vector, reference = pair
    found = project(vector, reference, radius)
    distance = float(exact_distance(vector, reference))
    scale = max(np.abs(vector).max(), np.abs(reference).max(), radius)
    nearest = max(distance - radius, 0.0)
    assert float(exact_distance(found, vector)) <= nearest + 2e-9 * radius + 1e-14 * scale


@given(st.integers(1, 8).flatmap(lambda p: st.tuples(vectors(p), vectors(p))), radii)
def test_inside_nothing_changes_to_the_last_bit(pair, radius):
    vector, reference = pair
    if np.linalg.norm(vector - reference) < 0.999 * radius:
        assert np.array_equal(project(vector, reference, radius), vector)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_what_is_not_finite_goes_to_the_centre(bad, where):
    reference, vector = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    vector[where] = bad
    found = project(vector, reference, 5.0)
    assert np.array_equal(found, reference)
    found[0] = 99.0
    assert reference[0] == 1.0


def test_the_centre_projects_to_itself():
    reference = np.array([1.0, -2.0])
    assert np.array_equal(project(reference, reference, 1e-300), reference)


def test_nothing_is_modified_and_nothing_is_shared():
    reference = np.zeros(3)
    for vector in (np.full(3, 0.1), np.full(3, 9.0)):
        before = vector.copy()
        found = project(vector, reference, 1.0)
        assert np.array_equal(vector, before) and not np.shares_memory(found, vector)
        assert not reference.any()


@pytest.mark.parametrize("size", [10, 1_000, 100_000])
def test_many_weights_stay_inside(size):
    vector = np.random.default_rng(0).standard_normal(size) * 100
    assert norm(project(vector, np.zeros(size), 20.0)) <= 20.0


# ------------------------------------------------------------------ Ball (the module's own dtype)

SHAPES = ((3, 4), (4,), (2, 1, 2))


def tensors(seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype) * scale for s in SHAPES]


def flat(items):
    return np.concatenate([t.detach().double().numpy().ravel() for t in items])


def true_distance(ball):
    values = flat(ball.parameters)
    centre = np.zeros_like(values) if ball.reference is None else flat(ball.reference)
    return exact_distance(values, centre)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("anchored", [False, True])
@given(seed=st.integers(0, 10**6), power=st.floats(-3, 8), radius=radii)
def test_the_ball_holds_all_tensors_together(dtype, anchored, seed, power, radius):
    parameters = tensors(seed, 10.0**power, dtype)
    reference = tensors(seed + 1, radius, dtype) if anchored else None
    ball = Ball(parameters, reference, radius)
    ball.project_()
    assert true_distance(ball) <= radius


@given(seed=st.integers(0, 10**6), ratio=st.floats(1.0, 1e4), power=st.floats(-2, 6))
def test_an_anchor_that_is_large_beside_the_radius(seed, ratio, power):
    """float32 resolves 6e-8 of the anchor, which may be more than a millionth of the radius."""
    radius = 0.5
    ball = Ball(tensors(seed, 10.0**power), tensors(seed + 1, ratio * radius), radius)
    ball.project_()
    assert true_distance(ball) <= radius


@given(seed=st.integers(0, 10**6), radius=radii, anchored=st.booleans())
def test_the_ball_projects_onto_the_nearest_point(seed, radius, anchored):
    parameters = tensors(seed, 3.0)
    reference = tensors(seed + 1, 1.0) if anchored else None
    values = flat(parameters)
    centre = flat(reference) if anchored else np.zeros_like(values)
    ball = Ball(parameters, reference, radius)
    ball.project_()
    np.testing.assert_allclose(
        flat(parameters),
        project(values, centre, radius),
        rtol=0,
        atol=3e-5 * radius + 1e-6 * np.abs(values).max(),
    )


@given(seed=st.integers(0, 10**6), anchored=st.booleans())
def test_inside_the_ball_no_bit_changes(seed, anchored):
    parameters = tensors(seed)
    reference = tensors(seed + 1) if anchored else None
    before = flat(parameters)
    Ball(parameters, reference, 1e3).project_()
    assert np.array_equal(flat(parameters), before)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_ball_measures_the_distance(anchored):
    ball = Ball(tensors(0), tensors(1) if anchored else None, 1.0)
    assert ball.distance() == pytest.approx(float(true_distance(ball)), rel=1e-6)
    assert isinstance(ball.distance(), float)


@pytest.mark.parametrize("anchored", [False, True])
def test_at_the_centre_nothing_is_divided_by_zero(anchored):
    reference = tensors(1) if anchored else None
    parameters = [r.clone() for r in reference] if anchored else [torch.zeros(s) for s in SHAPES]
    before = flat(parameters)
    ball = Ball(parameters, reference, 1.0)
    ball.project_()
    assert np.array_equal(flat(parameters), before) and ball.distance() == 0.0


@pytest.mark.parametrize("sizes", [(3_000_000,), (4096, 4097, 0, 1), (100_001, 7, 65_536)])
@pytest.mark.parametrize("value", ["random", "equal"])
def test_large_networks_stay_inside(sizes, value):
    """torch's own float32 norm of a million equal numbers is off by 4e-4."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(n, generator=generator) for n in sizes]
    if value == "equal":
        parameters = [torch.full_like(p, 0.1) for p in parameters]
    ball = Ball(parameters, None, 1.0)
    ball.project_()
    assert 1 - 5e-5 <= np.linalg.norm(flat(parameters)) <= 1.0
    assert ball.distance() == pytest.approx(np.linalg.norm(flat(parameters)), rel=1e-5)


@pytest.mark.parametrize("value", [1.5989975, 1.8220551, 1.2556391])
def test_rounding_that_all_goes_one_way_stays_inside(value):
    """float32 norms of 4096 such numbers are too small by 3.6e-6."""
    ball = Ball([torch.full((4096,), value)], None, 1.0)
    ball.project_()
    assert true_distance(ball) <= 1.0


def test_tensors_of_any_layout_and_precision():
    image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for parameters in ([image, torch.randn(5, 9).T], [torch.randn(50, dtype=torch.bfloat16)]):
        ball = Ball(parameters, None, 0.5)
        ball.project_()
        assert 0.45 <= float(true_distance(ball)) <= 0.5


def test_a_ball_that_float32_cannot_resolve_is_its_centre():
    for scale in (0.0, 1.0):
        reference = tensors(1, 1e6)
        parameters = [r + scale for r in reference]
        Ball(parameters, reference, 1e-3).project_()
        assert np.array_equal(flat(parameters), flat(reference))


def test_finite_weights_that_overflow_float32_norms_end_inside():
    ball = Ball([torch.full((3,), 1e30)], [torch.full((3,), 0.5)], 2.0)
    ball.project_()
    assert true_distance(ball) <= 2.0


def test_the_ball_never_moves_its_centre():
    reference = tensors(1)
    before = flat(reference)
    Ball(tensors(0, 100.0), reference, 1.0).project_()
    assert np.array_equal(flat(reference), before)


# ------------------------------------------------------------------ following an optimizer


def train(make_optimizer, anchored, radius=0.3, steps=20, closure=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    X, y = torch.randn(16, 3), 10 * torch.randn(16, 1)
    parameters = list(net.parameters())
    reference = [p.detach().clone() for p in parameters] if anchored else None
    ball = Ball(parameters, reference, radius)
    optimizer = make_optimizer(parameters)
    ball.follow(optimizer)
    seen = []

    def loss():
        optimizer.zero_grad()
        value = nn.functional.mse_loss(net(X), y)
        value.backward()
        return value

    for _ in range(steps):
        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()
        seen.append(true_distance(ball))
    return seen, ball, optimizer


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.5), False),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True), False),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.1), False),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), False),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), False),
    "sgd with closure": (lambda p: torch.optim.SGD(p, lr=0.5), True),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=5), True),
}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(("make", "closure"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_step_ends_inside(make, closure, anchored):
    seen, _, _ = train(make, anchored, closure=closure)
    assert max(seen) <= 0.3
    assert max(seen) >= 0.2999, "the ball was never active: the test shows nothing"


@pytest.mark.parametrize(("make", "closure"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_without_the_ball_the_same_steps_leave_it(make, closure):
    seen, _, _ = train(make, True, radius=1e9, closure=closure)
    assert max(seen) > 0.3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimizer_is_followed_only_when_it_is_told_so(copied):
    """Pickling drops the hook; whoever loads must attach the ball again."""
    _, _, optimizer = train(OPTIMIZERS["sgd"][0], False)
    twin = copied(optimizer)
    parameters = twin.param_groups[0]["params"]
    ball = Ball(parameters, None, 0.3)

    def step():
        for p in parameters:
            p.grad = torch.full_like(p, -10.0)
        twin.step()

    step()
    assert true_distance(ball) > 0.3
    ball.follow(twin)
    step()
    assert true_distance(ball) <= 0.3
