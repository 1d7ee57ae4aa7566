import torch

from kd_core.models.token_rows import TokenRows


def test_batches_are_right_padded_rows() -> None:
    rows = TokenRows.of([[5, 6, 1], [7, 1], [8, 9, 4, 1]])
    ids, mask = rows.batch(torch.tensor([1, 2]), pad_id=0)
    assert ids.tolist() == [[7, 1, 0, 0], [8, 9, 4, 1]]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    last, _ = rows.batch(torch.tensor([2, 1]), pad_id=0)  # the last row's padding must not read past the end
    assert last.tolist() == [[8, 9, 4, 1], [7, 1, 0, 0]]
