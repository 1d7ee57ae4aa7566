import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_core.rollout.responses import is_end, mask_through_eos, truncated_rows

EOS, PAD = 1, 0


def test_mask_ends_with_the_first_end_of_sequence_inclusive() -> None:
    tokens = torch.tensor([[5, 1, 0, 0], [1, 0, 0, 0], [5, 6, 7, 8], [5, 1, 7, 1]])
    expected = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert mask_through_eos(tokens, EOS).int().tolist() == expected


def test_a_pad_token_inside_an_output_is_a_real_token() -> None:
    # T5's pad is its decoder start: a mask from `!= pad` would lose it
    assert mask_through_eos(torch.tensor([[5, PAD, 6, EOS]]), EOS).all()


@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4))
def test_mask_against_a_loop(rows: list[list[int]]) -> None:
    tokens = torch.tensor(rows)
    for row, mask in zip(rows, mask_through_eos(tokens, EOS).tolist(), strict=True):
        end = row.index(EOS) if EOS in row else len(row)
        assert mask == [t <= end for t in range(len(row))]
    truncated = truncated_rows(tokens, mask_through_eos(tokens, EOS), EOS)
    assert truncated.tolist() == [EOS not in row for row in rows]


def test_a_text_ends_at_the_first_of_any_of_several_ends() -> None:
    tokens, ends = torch.tensor([[5, 3, 1, 0], [5, 2, 0, 0], [1, 0, 0, 0], [5, 6, 7, 8]]), [1, 2, 3]
    assert is_end(tokens, ends).int().tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    mask = mask_through_eos(tokens, ends)
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert truncated_rows(tokens, mask, ends).tolist() == [False, False, False, True]
