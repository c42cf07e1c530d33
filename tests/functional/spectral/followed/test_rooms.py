"""Matrices said to have stayed inside their room are there, against NumPy's norms."""

import math

import numpy as np
import pytest
import torch

from lightning_reg.functional.spectral.followed.rooms import Rooms

BOUND = 2.0


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norm(matrix):
    return np.linalg.norm(matrix.double().numpy(), 2)


def start(rooms, matrix):
    rooms.note("weight", matrix[None], torch.tensor([BOUND - norm(matrix)]))


@pytest.mark.parametrize("rank", [1, 30])
@pytest.mark.parametrize("seed", range(5))
def test_a_matrix_is_inside_while_it_moves_little_and_never_when_it_has_left(rank, seed):
    rooms, matrix = Rooms(), random(30, 50)
    matrix = matrix / norm(matrix)
    start(rooms, matrix)
    step = random(30, rank, seed=seed + 1) @ random(rank, 50, seed=seed + 10)
    step *= 0.01 / np.linalg.norm(step)
    inside = []
    for count in range(300):
        inside.append(rooms.is_inside("weight", (matrix + count * step)[None]))
        assert not inside[-1] or norm(matrix + count * step) <= BOUND

    assert inside[:5] == [True] * 5
    assert not inside[-1]


def test_nothing_is_known_of_other_names_of_matrices_that_are_not_finite_and_without_room():
    rooms, matrix = Rooms(), random(30, 50)
    assert not rooms.is_inside("weight", matrix[None])
    rooms.note("weight", matrix[None], torch.tensor([1.0]))
    assert rooms.is_inside("weight", matrix[None])
    assert not rooms.is_inside("other", matrix[None])
    assert not rooms.is_inside("weight", random(30, 40)[None])
    assert not rooms.is_inside("weight", torch.full((1, 30, 50), math.nan))
    rooms.note("without", matrix[None], torch.tensor([-math.inf]))
    assert not rooms.is_inside("without", matrix[None])


def test_each_of_several_matrices_must_be_inside():
    rooms, matrices = Rooms(), random(3, 30, 50)
    rooms.note("weight", matrices, torch.full((3,), 1.0))
    matrices[1, 2, 3] += 100

    assert not rooms.is_inside("weight", matrices)


def test_after_looks_in_vain_pauses_grow_and_a_room_of_many_steps_ends_them():
    rooms, matrix, looks = Rooms(), random(30, 50), []
    for step in range(60):
        far = matrix[None] + 100 * step
        looks.append(rooms.state().get("weight", {}).get("sketch", torch.empty(0)).numel() > 0)
        assert not rooms.is_inside("weight", far)
        rooms.note("weight", far, torch.tensor([1.0]))
    # There is a sketch to compare with after 0, 1, 2, 4, 8, 16 and 16 steps of pause.
    assert [step for step, has_one in enumerate(looks) if has_one] == [1, 3, 6, 11, 20, 37, 54]

    while not rooms.is_inside("weight", far):
        rooms.note("weight", far, torch.tensor([1.0]))
    assert all(rooms.is_inside("weight", far) for _ in range(4))
    far = far + 100
    assert not rooms.is_inside("weight", far)
    assert rooms.is_due("weight")
    rooms.note("weight", far, torch.tensor([1.0]))
    assert rooms.is_inside("weight", far)


@pytest.mark.parametrize("damage", [None, "nan", "shape", "missing", "kind"])
def test_a_saved_state_goes_on_and_a_damaged_one_is_no_room(damage):
    rooms, matrix = Rooms(), random(30, 50)
    rooms.note("weight", matrix[None], torch.tensor([1.0]))
    saved = rooms.state()["weight"]
    if damage == "nan":
        saved["sketch"][0, 0, 0] = math.nan
    elif damage == "shape":
        saved["sketch"] = saved["sketch"][:, :3]
    elif damage == "missing":
        del saved["waits"]
    elif damage == "kind":
        saved["room"] = "1"
    rooms = Rooms()
    rooms.load("weight", saved)

    assert rooms.is_inside("weight", matrix[None]) == (damage is None)
    rooms.note("weight", matrix[None], torch.tensor([1.0]))
