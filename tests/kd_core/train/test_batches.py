import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.train.batches import BatchSettings, epoch_updates, updates


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.integers(0, 5), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=50)
def test_an_epoch_holds_every_row_once_within_the_caps(lengths: list[int], epoch: int, rows: int, micro: int) -> None:
    chosen = BatchSettings(micro_batch_rows=rows, micro_batch_tokens=40, micro_batches=micro)
    array = np.array(lengths)
    epoch_list = epoch_updates(array, chosen, 3, epoch)
    batches = [batch for update in epoch_list for batch in update]
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert all(len(b) <= rows and (len(b) == 1 or array[b.numpy()].sum() <= 40) for b in batches)
    assert all(len(update) == micro for update in epoch_list[:-1])


def test_order_depends_on_seed_and_epoch_only() -> None:
    lengths, chosen = np.arange(1, 101), BatchSettings(micro_batch_rows=4, micro_batches=1)

    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for update in epoch_updates(lengths, chosen, seed, epoch) for row in update[0]]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_starting_late_is_the_same_stream() -> None:
    lengths, chosen = np.arange(1, 12), BatchSettings(micro_batch_rows=2, micro_batches=2)
    stream = updates(lengths, chosen, 0)
    first = [next(stream) for _ in range(10)]
    late = updates(lengths, chosen, 0, start=7)
    for expected in first[7:]:
        assert [b.tolist() for b in next(late)] == [b.tolist() for b in expected]


def test_no_rows_and_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        next(updates(np.array([], dtype=np.int64), BatchSettings(), 0))
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        BatchSettings(micro_batches=0)
