"""BLEU and distinct: equal to NLTK, to sacreBLEU, to values worked out by hand, to slow literal versions."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from hypothesis import assume, given
from hypothesis import strategies as st
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.bleu_score import corpus_bleu

from kd_core.metrics.bleu import paper_bleu, stock_bleu
from kd_core.metrics.bootstrap import Measure, Resamples
from kd_core.metrics.distinct import distinct, distinct_within
from kd_core.metrics.words import words

sentences = st.lists(st.sampled_from("abcd"), max_size=7)
corpora = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6)


def values(measures: list[Measure]) -> dict[str, float]:
    """Each measure's value over the outputs as they are."""
    resamples = Resamples(num_outputs=len(measures[0].columns_NK), num_resamples=0)
    return {metric: float(value_S[0]) for metric, value_S in resamples.values(measures).items()}


def num_matches(pairs: Sequence[tuple[list[str], list[str]]], order: int) -> int:
    def ngrams(tokens: list[str]) -> set[tuple[str, ...]]:
        return {tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)}

    return sum(len(ngrams(prediction) & ngrams(reference)) for prediction, reference in pairs)


@given(st.text(alphabet="aZ0_ \t.,'\"?!-éÉß’…中"))
def test_words_are_nltks_wordpunct_tokens_in_lower_case(text: str) -> None:
    assert words(text) == wordpunct_tokenize(text.lower())


@given(corpora)
def test_paper_bleu_is_nltks_corpus_bleu(pairs: list[tuple[list[str], list[str]]]) -> None:
    predicted, references = [list(side) for side in zip(*pairs, strict=True)]
    bleu = values(paper_bleu(predicted, references))
    for order in (2, 4):
        if num_matches(pairs, order):  # NLTK gives a warning and a tiny number where nothing matches
            uniform = (1 / order,) * order
            expected = 100 * corpus_bleu([[reference] for reference in references], predicted, uniform)
            assert bleu[f"bleu_{order}"] == pytest.approx(expected, rel=1e-12)


def test_paper_bleu_by_hand() -> None:
    # Outputs "a b c d" and "a a"; references "a b c e f" and "a b". Clipped matches: unigrams a b c, then one of the
    # two a's: 4 of 6. Bigrams ab bc, then none of aa: 2 of 4. 6 tokens against 7: brevity penalty exp(1 - 7/6).
    predicted, references = [list("abcd"), list("aa")], [list("abcef"), list("ab")]
    by_hand = 100 * math.exp(1 - 7 / 6) * math.sqrt(4 / 6 * 2 / 4)
    bleu = values(paper_bleu(predicted, references))
    assert bleu["bleu_2"] == pytest.approx(by_hand, rel=1e-12)
    assert bleu["bleu_4"] == 0  # one 4-gram, abcd, and it is in no reference: 0 is what it is
    # With a third pair, "a" and "a": 5 of 7 unigrams; the output has no bigram but counts as one, as in NLTK: 2 of 5.
    shorter = values(paper_bleu([*predicted, ["a"]], [*references, ["a"]]))
    assert shorter["bleu_2"] == pytest.approx(100 * math.exp(1 - 8 / 7) * math.sqrt(5 / 7 * 2 / 5), rel=1e-12)


@given(corpora)
def test_sacrebleu_differs_only_by_outputs_too_short_for_an_ngram(pairs: list[tuple[list[str], list[str]]]) -> None:
    long_enough = [pair for pair in pairs if len(pair[0]) >= 4]
    assume(long_enough and max(len(reference) for _, reference in long_enough) >= 4)
    predicted, references = [list(side) for side in zip(*long_enough, strict=True)]
    joined = [[" ".join(tokens) for tokens in side] for side in (predicted, references)]
    plain = sacrebleu.metrics.BLEU(tokenize="none", force=True, smooth_method="none")
    expected = plain.corpus_score(joined[0], [joined[1]]).score
    assert values(paper_bleu(predicted, references))["bleu_4"] == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(st.text(alphabet="aB1 .,'&-"), st.text(alphabet="aB1 .,'&-")), min_size=1, max_size=5))
def test_stock_bleu_is_sacrebleus_own(pairs: list[tuple[str, str]]) -> None:
    predictions, references = [list(side) for side in zip(*pairs, strict=True)]
    value = values(stock_bleu(predictions, references))["sacrebleu_4"]
    assert math.isnan(value) or value == pytest.approx(
        sacrebleu.corpus_bleu(predictions, [references], force=True).score, rel=1e-12
    )


def test_stock_bleu_on_real_text_with_its_signature() -> None:
    predictions = ["The cat's on the mat, isn't it?", "Hello there, my friend.", "Yes."]
    references = ["The cat is on the mat, isn't it?", "Hello there, my dear friend!", "yes."]
    measures = {measure.metric: measure for measure in stock_bleu(predictions, references)}
    metric = sacrebleu.metrics.BLEU()
    expected = metric.corpus_score(predictions, [references])
    assert values(list(measures.values()))["sacrebleu_4"] == pytest.approx(expected.score, rel=1e-12)
    assert measures["sacrebleu_4"].note == f"order 4, {metric.get_signature()}"
    shorter = sacrebleu.metrics.BLEU(max_ngram_order=2).corpus_score(predictions, [references])
    assert values(list(measures.values()))["sacrebleu_2"] == pytest.approx(shorter.score, rel=1e-12)


@pytest.mark.parametrize(
    ("predicted", "references", "reason"),
    [
        (["a b c", "a"], ["a b c d e", "a b c d"], "no output has 4 tokens"),
        (["a b c d", "a"], ["a b c", "a"], "no reference has 4 tokens"),
        (["", ""], ["a b c d", "a"], "no output has 4 tokens"),
    ],
)
def test_bleu_without_ngrams_is_undefined_with_the_reason(
    predicted: list[str], references: list[str], reason: str
) -> None:
    measures = paper_bleu([text.split() for text in predicted], [text.split() for text in references])
    bleu_4 = measures[1]
    assert math.isnan(values(measures)["bleu_4"])
    assert bleu_4.undefined == reason
    assert math.isnan(values(stock_bleu(predicted, references))["sacrebleu_4"])


def slow_ngrams(predicted: list[list[str]], *, across: bool) -> list[list[tuple[str, str]]]:
    """The bigrams of each output, written out; `across`: with the one to the first token of the next that has any."""
    result = []
    for i, tokens in enumerate(predicted):
        bigrams = [(tokens[t], tokens[t + 1]) for t in range(len(tokens) - 1)]
        if across and tokens:
            later = [other for other in predicted[i + 1 :] if other]
            if later:
                bigrams.append((tokens[-1], later[0][0]))
        result.append(bigrams)
    return result


@given(st.lists(sentences, min_size=1, max_size=8))
def test_distinct_is_what_concatenating_everything_gives(predicted: list[list[str]]) -> None:
    stream = [token for tokens in predicted for token in tokens]
    assume(stream)
    found = values(distinct(predicted)) | values(distinct_within(predicted))
    bigrams = [(stream[t], stream[t + 1]) for t in range(len(stream) - 1)]
    within = [bigram for each in slow_ngrams(predicted, across=False) for bigram in each]
    assert found["distinct_1"] == pytest.approx(100 * len(set(stream)) / len(stream))
    assert found["distinct_2"] == pytest.approx(100 * len(set(bigrams)) / len(stream))
    assert found["distinct_within_1"] == found["distinct_1"]
    if within:
        assert found["distinct_within_2"] == pytest.approx(100 * len(set(within)) / len(within))
    else:
        assert math.isnan(found["distinct_within_2"])


def test_distinct_by_hand() -> None:
    # a b | (nothing) | b a: words a b b a, 2 different of 4. Bigrams: ab bb ba across outputs, 3 per 4 words; ab ba
    # within them.
    found = values(distinct([["a", "b"], [], ["b", "a"]])) | values(distinct_within([["a", "b"], [], ["b", "a"]]))
    assert found == {"distinct_1": 50, "distinct_2": 75, "distinct_within_1": 50, "distinct_within_2": 100}


@given(st.lists(sentences, min_size=1, max_size=6), st.data())
def test_distinct_in_a_resample_is_the_first_order_formula(predicted: list[list[str]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(predicted), max_size=len(predicted)))
    cases = {
        "distinct_1": (predicted, [len(tokens) for tokens in predicted]),
        "distinct_2": (slow_ngrams(predicted, across=True), [len(tokens) for tokens in predicted]),
        "distinct_within_2": (slow_ngrams(predicted, across=False), [max(0, len(tokens) - 1) for tokens in predicted]),
    }
    for measure in [*distinct(predicted), *distinct_within(predicted)]:
        if measure.metric not in cases:
            continue
        ngrams, denominators = cases[measure.metric]

        def different(left_out: int | None = None, ngrams: Sequence[Sequence[object]] = ngrams) -> int:
            return len({ngram for i, each in enumerate(ngrams) if i != left_out for ngram in each})

        number = different() + sum((w - 1) * (different() - different(i)) for i, w in enumerate(weights))
        below = sum(w * length for w, length in zip(weights, denominators, strict=True))
        value = float(measure.score(np.array([weights]) @ measure.columns_NK)[0])
        if below:
            assert value == pytest.approx(100 * number / below)
        else:
            assert math.isnan(value)


def test_the_bootstrap_of_distinct_has_the_spread_of_fresh_samples() -> None:
    # 300 outputs of 8 words from a Zipf law: the standard deviation that the resamples give, averaged over 20 samples,
    # against that of 400 fresh samples (known to 3.5 %). Seeds are fixed; the plain bootstrap misses by 30 to 60 %.
    rng = np.random.default_rng(0)
    law = 1 / np.arange(1, 2001)

    def sample() -> list[list[str]]:
        drawn = rng.choice(len(law), size=(300, 8), p=law / law.sum())
        return [[str(word) for word in row] for row in drawn]

    fresh = [values(distinct(sample())) for _ in range(400)]
    resamples = Resamples(num_outputs=300, num_resamples=400)
    estimated = [resamples.values(distinct(sample())) for _ in range(20)]
    for metric in ("distinct_1", "distinct_2"):
        true = np.std([each[metric] for each in fresh])
        ratio = np.mean([each[metric][1:].std() for each in estimated]) / true
        assert 0.9 < ratio < 1.25, metric
