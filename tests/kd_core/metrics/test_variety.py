"""Equal outputs and repeated n-grams, counted by hand."""

from kd_core.metrics.variety import equal_to_another, repeated_ngrams


def test_equal_outputs_are_found_wherever_they_stand() -> None:
    assert equal_to_another(["ab", "c", "ab", "abc", "ab"]) == [True, False, True, False, True]


def test_tokens_and_lists_of_them_compare_by_content() -> None:
    assert equal_to_another([[1, 2], (1, 2), [2, 1], []]) == [True, True, False, False]


def test_what_comes_again_is_counted_each_time_it_does() -> None:
    assert repeated_ngrams("abababab", 4) == (3, 5)  # abab, baba, and then these again
    assert repeated_ngrams([1, 2, 3, 4, 5], 4) == (0, 2)
    assert repeated_ngrams([7, 7, 7], 4) == (0, 0)
    assert repeated_ngrams([7, 7, 7], 1) == (2, 3)
