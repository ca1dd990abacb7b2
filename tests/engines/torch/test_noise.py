"""Random numbers from a seed, a step and a position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfray.engines.torch.noise import gumbel_noise, noise_keys


def noise(seeds, steps, count):
    return gumbel_noise(torch.tensor(noise_keys(seeds, steps)), count)


def test_the_numbers_depend_on_seed_step_and_position_only():
    batch = noise([1, 2, 1], [0, 0, 5], 100)
    assert torch.equal(noise([2], [0], 40)[0], batch[1, :40])
    assert torch.equal(noise([1], [5], 100)[0], batch[2])
    assert len(batch.unique()) == 300


def test_the_numbers_stay_the_same_in_later_versions():
    """A stored seed gives the same texts."""
    assert noise_keys([7], [3]).tolist() == [[921272155, 3793440820]]
    assert noise([7], [3], 3)[0].tolist() == pytest.approx([2.1636522, -1.0713104, 0.3009846], rel=1e-6)


@pytest.mark.parametrize("along", ["positions", "steps", "seeds"])
def test_the_numbers_are_gumbel_distributed_and_independent(along):
    count = 20_000
    numbers = {
        "positions": lambda: noise([5], [0], count)[0],
        "steps": lambda: noise([5] * count, list(range(count)), 1)[:, 0],
        "seeds": lambda: noise(list(range(count)), [0] * count, 1)[:, 0],
    }[along]().double()
    uniform = torch.exp(-torch.exp(-numbers)).numpy()
    assert np.abs(np.sort(uniform) - (np.arange(count) + 0.5) / count).max() < 1.63 / np.sqrt(count)  # Kolmogorov, 1 %
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.03
    assert bool(torch.isfinite(numbers).all())


def test_any_seed_is_taken():
    assert torch.isfinite(noise([0, -1, (1 << 63) - 1, 1 << 64], [0, 1, 2, 1 << 40], 4)).all()
