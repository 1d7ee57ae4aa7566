"""ROUGE equal to rouge-score's, pair by pair, and to values worked out by hand; error rates by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kd_core.metrics.bootstrap import Measure, Resamples
from kd_core.metrics.errors import phoneme_error_rate, word_error_rate
from kd_core.metrics.rouge import SENTENCE_END, rouge, rouge_tokens, sentence_tokens

TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
SCORER = RougeScorer(list(TYPES.values()), use_stemmer=True)
WORDS = ["the", "police", "killed", "killing", "gunmen", "gunman", "A", "is", "running", "runs", "3,000", "don't", "é"]
sentence = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
texts = st.lists(sentence, max_size=4).map(lambda parts: ". ".join(parts)) | st.text(
    alphabet="aB1 .!?,'\n-éß", max_size=30
)


def values(measures: list[Measure]) -> dict[str, float]:
    resamples = Resamples(num_outputs=len(measures[0].columns_NK), num_resamples=0)
    return {metric: float(value_S[0]) for metric, value_S in resamples.values(measures).items()}


def broken(text: str) -> str:
    """The text with its sentences on lines of their own, as rouge-score wants them."""
    return "\n".join(SENTENCE_END.split(text))


@given(texts, texts)
@settings(max_examples=400)
def test_a_pair_scores_what_rouge_score_says(prediction: str, reference: str) -> None:
    expected = SCORER.score(broken(reference), broken(prediction))
    for metric, value in values(rouge([prediction], [reference])).items():
        if not math.isnan(value):
            assert value == pytest.approx(100 * expected[TYPES[metric]].fmeasure, rel=1e-12), metric
        else:
            assert len(rouge_tokens(reference)) < 2
            assert expected[TYPES[metric]].fmeasure == 0


def test_a_corpus_scores_the_mean_of_its_pairs() -> None:
    predictions = ["Police killed the gunman. He was running.", "", "three cats"]
    references = ["The police kill gunmen!\nHe runs.", "nothing at all", "Three cats sat down."]
    found = values(rouge(predictions, references))
    pairs = [SCORER.score(broken(r), broken(p)) for p, r in zip(predictions, references, strict=True)]
    for metric, value in found.items():
        assert value == pytest.approx(100 * sum(pair[TYPES[metric]].fmeasure for pair in pairs) / 3, rel=1e-12)


def test_rouge_by_hand() -> None:
    # Lin (2004), section 3: reference "police killed the gunman"; "police kill the gunman" shares police, the, gunman
    # and, stemmed, kill: everything. "the gunman kill police": bigram "the gunman" alone, 1 of 3 and 3; LCS the gunman.
    found = values(rouge(["the gunman kill police"], ["police killed the gunman"]))
    assert found == pytest.approx({"rouge_1": 100, "rouge_2": 100 / 3, "rouge_l": 50, "rouge_lsum": 50})
    # Section 3.2: r = w1 w2 w3 w4 w5; candidates w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5. The union of the LCS is w1 w2 w3
    # w5: recall 4/5, precision 4/10, F1 = 2 * 4 / 15.
    lsum = values(rouge(["w1 w2 w6 w7 w8. w1 w3 w8 w9 w5."], ["w1 w2 w3 w4 w5"]))["rouge_lsum"]
    assert lsum == pytest.approx(100 * 8 / 15)


def test_an_empty_output_scores_nothing_and_a_metric_without_references_is_undefined() -> None:
    assert values(rouge(["", "a b"], ["a b", "a b"])) == dict.fromkeys(TYPES, 50.0)
    measures = {measure.metric: measure for measure in rouge(["a b c", "x"], ["one", "?!"])}
    found = values(list(measures.values()))
    assert found["rouge_1"] == 0
    assert math.isnan(found["rouge_2"])
    assert measures["rouge_2"].undefined == "no reference has 2 words"
    silent = rouge(["a", "b"], ["…", ""])
    assert all(math.isnan(value) for value in values(silent).values())
    assert silent[0].undefined == "no reference has a word"


def test_sentences_end_at_line_breaks_and_at_marks_before_white_space() -> None:
    assert sentence_tokens("One: 3.5 of it.\nTwo!  Three? ... four") == [
        ["one", "3", "5", "of", "it"],
        ["two"],
        ["three"],
        ["four"],
    ]
    assert sentence_tokens(" \n") == []


def test_error_rates_by_hand() -> None:
    # "K AE1 T": right but for spaces. "D AO1 G Z": one too many, of 3. "": three missing. "B ER0 D": one wrong, of 3.
    predictions = ["K AE1  T ", "D AO1 G Z", "", "B ER0 D"]
    references = ["K AE1 T", "D AO1 G", "F IH1 SH", "B ER1 D"]
    measures = [phoneme_error_rate(predictions, references), word_error_rate(predictions, references)]
    assert values(measures) == pytest.approx({"per": 100 * (0 + 1 + 3 + 1) / 12, "wer": 75})


def test_error_rates_without_references_and_beyond_100() -> None:
    measure = phoneme_error_rate(["a b c", ""], ["", ""])
    assert math.isnan(values([measure])["per"])
    assert measure.undefined == "every reference is empty"
    assert values([phoneme_error_rate(["a b c d", "e"], ["a", ""])])["per"] == 400
