"""Texts in other scripts than English's: what a tokenizer cannot read is said, and one that reads it can be had."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.metrics.bleu import SacreBleuSettings, stock_bleu
from kd_core.metrics.bootstrap import MetricValue
from kd_core.metrics.outputs import Outputs, References, evaluate_outputs
from kd_core.metrics.rouge import RougeSettings, rouge, rouge_tokens, sentence_tokens, unicode_tokens
from kd_core.metrics.scripts import unicode_words, unread_by_ascii, unspaced_remark

UNICODE = RougeSettings(tokenizer="unicode")
TEXTS = {
    "Nepali": ["जापान स्तब्ध छ ।", "म घर जान्छु ।", "धन्यवाद ।", "भोलि भेटौंला ।", "यो राम्रो छ ।"],
    "Chinese": ["今天天气很好。", "我们去公园吧", "他有3本书", "明天见", "谢谢你"],
    "Japanese": ["今日は良い天気です。", "コーヒーを3杯", "また明日", "ありがとう", "行きましょう"],
    "Thai": ["สวัสดีครับ", "ฉันมีแมว 2 ตัว", "ขอบคุณ", "พบกันใหม่", "อากาศดี"],
    "Russian": ["мы идём домой", "это хорошо", "у меня 2 кота", "привет всем", "до встречи"],
    "Korean": ["오늘 날씨가 좋다", "고양이 2 마리", "안녕 친구", "내일 봐요", "고마워 친구"],
}


def by_metric(texts: list[str], *metrics: str) -> dict[str, MetricValue]:
    outputs = Outputs(predictions=texts, num_tokens=[1] * len(texts), truncated=[False] * len(texts))
    found = evaluate_outputs(outputs, References(texts, resamples=20), metrics)  # type: ignore[arg-type]
    return {each.metric: each for each in found.metrics}


@pytest.mark.parametrize("script", TEXTS)
def test_identical_outputs_score_100_in_every_script(script: str) -> None:
    for measure in rouge(TEXTS[script], TEXTS[script], UNICODE):
        long_enough = 1 if measure.metric != "rouge_2" else sum(len(unicode_words(t)) > 1 for t in TEXTS[script]) / 5
        assert float(measure.score(measure.columns_NK.sum(0, keepdims=True))[0]) == pytest.approx(100 * long_enough)
        assert "tokenizer unicode" in measure.note
        assert "see rouge.tokenizer" not in measure.note


def test_the_ascii_tokenizer_says_what_it_does_not_read() -> None:
    # Russian: 12 words, one of them the digit 2. Of five perfect outputs only that one scores.
    found = by_metric(TEXTS["Russian"], "rouge")
    assert found["rouge_1"].value == 20
    lost = "92 % of the references' words hold characters other than a to z and 0 to 9"
    for metric in ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum"):
        assert f"; {lost}, the only ones that are read here: see rouge.tokenizer" in found[metric].note
    undefined = by_metric(TEXTS["Nepali"], "rouge")["rouge_l"]
    assert undefined.value is None
    assert undefined.note.startswith("no reference has a word; 100 % of the references' words hold characters other")


def test_a_few_accents_are_no_matter_and_many_are() -> None:
    assert "see rouge.tokenizer" not in by_metric(["a word and another one"] * 9 + ["a café"], "rouge")["rouge_1"].note
    assert (
        "; 8 % of the references' words"  # 2 of 24
        in by_metric(["le café est là"] + ["le chat dort ici"] * 5, "rouge")["rouge_1"].note
    )
    assert unread_by_ascii(["le café est là", "le chat dort"]) == pytest.approx(100 * 2 / 7)
    assert unread_by_ascii(["plain", ""]) == unread_by_ascii(["—"]) == 0


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
@settings(max_examples=300)
def test_on_ascii_both_tokenizers_agree(text: str) -> None:
    assert unicode_tokens(text) == rouge_tokens(text)
    assert sentence_tokens(text, "unicode") == sentence_tokens(text)


def test_words_of_every_script_by_hand() -> None:
    assert unicode_words("У меня 2 кота, ёлка!") == ["у", "меня", "2", "кота", "ёлка"]
    assert unicode_words("जापान स्तब्ध छ ।") == ["जापान", "स्तब्ध", "छ"]  # vowel signs are part of the word
    assert unicode_words("他有iPhone15很好") == ["他", "有", "iphone15", "很", "好"]
    assert unicode_words("コーヒー") == ["コ", "ー", "ヒ", "ー"]
    assert unicode_words("ดีครับ") == ["ดี", "ค", "รั", "บ"]  # a character keeps its marks
    assert unicode_words("오늘 날씨가") == ["오늘", "날씨가"]
    assert unicode_words("cafe\u0301 x_y") == unicode_words("café x y") == ["café", "x", "y"]
    assert unicode_words("می\u200cخواهم") == ["میخواهم"]
    assert unicode_tokens("Coffees, cafés") == ["coffe", "cafés"]  # Porter's stemmer is for English


def test_sentences_of_other_scripts_end() -> None:
    assert sentence_tokens("天气好。我走！OK. Fine", "unicode") == [["天", "气", "好"], ["我", "走"], ["ok"], ["fine"]]
    assert sentence_tokens("छ । म", "unicode") == [["छ"], ["म"]]


def test_words_by_spaces_are_noted_where_there_are_none() -> None:
    run = "are of scripts without spaces, of which a whole run is one word here"
    found = by_metric(TEXTS["Chinese"], "bleu", "sacrebleu", "distinct", "distinct_within")
    for metric, each in found.items():
        assert run in each.note or each.value is None, metric
    assert found["distinct_1"].note == f"different words / words; 100 % of the references' letters {run}"
    assert "see sacrebleu.tokenizer" in stock_bleu(TEXTS["Chinese"], TEXTS["Chinese"])[0].note
    cut = by_metric(TEXTS["Nepali"], "bleu", "distinct")
    assert "% of the references' letters are marks, at which words are cut here" in cut["bleu_2"].note
    assert unspaced_remark(TEXTS["Russian"] + TEXTS["Korean"], marks_are_words=True) == ""
    assert unspaced_remark(["plain words"], marks_are_words=True) == unspaced_remark(["—", "«»"]) == ""


def test_sacrebleu_s_own_tokenizers_are_passed_through() -> None:
    prediction, reference = ["今天天气好"], ["今天天气很好"]
    stock = {
        tokenizer: stock_bleu(prediction, reference, SacreBleuSettings(tokenizer=tokenizer))
        for tokenizer in ("13a", "zh", "char")
    }
    scores = {name: float(each[0].score(each[0].columns_NK)[0]) for name, each in stock.items()}
    # as words of one character: 5 of 5 unigrams, 3 of 4 bigrams, brevity exp(1 - 6/5)
    by_character = 100 * math.exp(1 - 6 / 5) * math.sqrt(5 / 5 * 3 / 4)
    assert scores["zh"] == scores["char"] == pytest.approx(by_character)
    assert math.isnan(scores["13a"]), "one word has no bigram"
    for name, each in stock.items():
        assert f"tok:{name}" in each[0].note
        assert ("see sacrebleu.tokenizer" in each[0].note) == (name == "13a")


def test_tokenizers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer must be ascii or unicode, got 'utf8'"):
        RougeSettings(tokenizer="utf8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokenizer must be one of none, zh, 13a, .*, got 'ja'"):
        SacreBleuSettings(tokenizer="ja")
