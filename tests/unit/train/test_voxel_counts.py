import pytest
import torch

from spot_ray.schema.taxonomy import IGNORE
from spot_ray.train.voxel_counts import compared, voxel_counts


def logits_for(classes: list[int], num_outputs: int = 3) -> torch.Tensor:
    """Return (1, C, 1, 1, n) logits whose greatest is at the given classes."""
    return torch.nn.functional.one_hot(torch.tensor(classes), num_outputs).float().T.reshape(1, num_outputs, 1, 1, -1)


def test_counts_worked_by_hand() -> None:
    #                    hit  wrong class  missed  false alarm  empty  ignored
    truth = torch.tensor([1, 2, 2, 0, 0, 255], dtype=torch.uint8).reshape(1, 1, 1, 6)
    counts = voxel_counts(logits_for([1, 1, 0, 2, 0, 1]), truth)
    assert counts.tolist() == [
        [2, 3, 3],  # occupied: hit and wrong class overlap; three predicted, three true
        [1, 2, 1],
        [0, 1, 2],
    ]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_counts_are_those_of_the_definition(dtype: torch.dtype, channels_last: bool) -> None:
    # In bfloat16 many logits are equal: the first of the greatest counts.
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 16, 5, 6, 7, generator=rng).to(dtype).requires_grad_()
    labels = torch.randint(0, 16, (2, 5, 6, 7), generator=rng).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=rng) < 0.4] = IGNORE
    best, valid = logits.argmax(dim=1), labels != IGNORE
    expected = [
        [int((a & b & valid).sum()), int((a & valid).sum()), int((b & valid).sum())]
        for a, b in [(best > 0, labels > 0), *((best == k, labels == k) for k in range(1, 16))]
    ]
    if channels_last:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    counts = voxel_counts(logits, labels)
    assert counts.tolist() == expected
    assert not counts.requires_grad


def test_nothing_observed_counts_nothing() -> None:
    assert voxel_counts(torch.randn(1, 4, 2, 2, 2), torch.full((1, 2, 2, 2), IGNORE)).tolist() == [[0, 0, 0]] * 4


def test_comparisons_count_what_bincount_counts() -> None:
    # The way of a GPU.
    values = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    assert torch.equal(compared(values, 17), torch.bincount(values, minlength=17)[:17])
    assert compared(values, 17).dtype == torch.int64
