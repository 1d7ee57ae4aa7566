"""Subtitles: the sentences and dialogues of OPUS documents, and the corpus through the whole cleaning."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.reading import subtitles
from data.reading.corpora import movie_files
from data.reading.specs import DatasetSettings
from data.reading.subtitles import clean_sentence, read_movie
from data.sources import Corpus, load


@pytest.mark.parametrize(
    ("sentence", "cleaned"),
    [
        ("- It 's me !", "it 's me !"),
        ("I don ' t know .", "i don't know ."),
        ("Don 't go , I ' m here .", "don't go , i 'm here ."),
        ("We 'il be talkin ' at five o ' clock", "we 'll be talking at five o'clock"),
        ("Yes , ma ' am , c ' mon , y ' all", "yes , ma'am , c'mon , y'all"),
        ("JOHN : Come in , Mr . Smith .", "come in , mr. smith ."),
        ("( sighs ) I see [ laughs ] you <i> now </i>", "i see you now"),
        ('He said " no " -- twice', "he said no twice"),
        ("Look \\'ere , mate", "look 'ere , mate"),
        ("No .", "no ."),
        ("No", None),  # one word
        ("... !", None),  # no letter or digit
        (" ".join(["word"] * 20), " ".join(["word"] * 20)),
        (" ".join(["word"] * 21), None),
        ("He said :", None),
        ('He said " no', None),  # the quotation goes on in another sentence
        ("Well ) then", None),
        ("# La la la #", None),  # a song
        ("", None),
    ],
)
def test_a_sentence_is_cleaned(sentence: str, cleaned: str | None) -> None:
    assert clean_sentence(sentence.split()) == cleaned


def sentence(number: int, text: str, begin: str, end: str, tokenised: bool = True) -> str:
    times = [f'<time id="T{number}{mark}" value="{at}" />' for mark, at in (("S", begin), ("E", end))]
    words = "".join(f'<w id="{number}.{i}">{word}</w>\n' for i, word in enumerate(text.split())) if tokenised else text
    return f'<s id="{number}">\n{times[0]}\n{words}\n{times[1]}\n</s>\n'


def document(*sentences: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<document id="1">\n{"".join(sentences)}</document>\n'


@pytest.mark.parametrize("tokenised", [True, False])
@pytest.mark.parametrize("suffix", [".xml", ".xml.gz"])
def test_a_pause_or_what_is_no_utterance_ends_a_dialogue(tmp_path: Path, suffix: str, tokenised: bool) -> None:
    spoken = [
        ("Who are you ?", "00:00:10,000", "00:00:12,500"),
        ("Your friend .", "00:00:14,900", "00:00:16,000"),  # 2 seconds later, fractions left out
        ("I see &amp; hear .", "00:00:19,000", "00:00:21,000"),  # 3 seconds later
        ("So do I .", "00:00:21,000", "00:00:22,000"),
        ("# La la #", "00:00:22,000", "00:00:23,000"),
        ("All alone now .", "00:00:23,000", "00:00:24,000"),
        ("Never", "00:00:24,000", "00:00:25,000"),
        ("Who are you ?", "01:00:00,000", "01:00:02,000"),
        ("Your friend .", "01:00:02,000", "01:00:04,000"),  # this dialogue has been
    ]
    text = document(*(sentence(i, *line, tokenised=tokenised) for i, line in enumerate(spoken, start=1)))
    path = tmp_path / f"1{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert read_movie(path) == [["who are you ?", "your friend ."], ["i see & hear .", "so do i ."]]


def test_a_sentence_over_several_captions_lasts_from_the_first_to_the_last(tmp_path: Path) -> None:
    long = (
        '<s id="1"><time id="T1S" value="00:00:01,000" /><w>one</w><w>two</w><time id="T1E" value="00:00:02,000" />'
        '<time id="T2S" value="00:00:05,000" /><w>three</w><time id="T2E" value="00:00:09,000" /></s>'
    )
    path = tmp_path / "1.xml"
    path.write_text(document(long, sentence(2, "four five", "00:00:10,000", "00:00:11,000")))
    assert read_movie(path) == [["one two three", "four five"]]


def test_a_text_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "1.txt"
    path.write_bytes("Hi .\r\n  Élan !\r\n\r\n \nalone\n\nHi .\nÉlan !\n\nA\nB\nC".encode())
    assert read_movie(path) == [["Hi .", "Élan !"], ["A", "B", "C"]]


BOMB = '<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><document><s><w>&b;</w></s></document>'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("1.xml", BOMB.encode(), "it declares a document type"),
        ("1.xml", b"<document><s></document>", "not well-formed XML: mismatched tag: line 1"),
        ("1.xml", b"", "not well-formed XML: no element found"),
        ("1.xml.gz", b"no gzip", "damaged gzip: Not a gzipped file"),
        ("1.xml.gz", gzip.compress(b"<document></document>", mtime=0)[:-9], "damaged gzip: "),
        ("1.xml.gz", gzip.compress(bytes(subtitles.MAX_BYTES + 1), mtime=0), "larger than 64 MiB when unpacked"),
        ("1.txt", b"caf\xe9", "not UTF-8: unexpected end of data at byte 3"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=why):
        read_movie(tmp_path / name)


def test_a_movie_is_a_folder_and_its_first_file(tmp_path: Path) -> None:
    for name in ("1999/20/b.xml.gz", "1999/20/c.xml", "1999/100/a.xml", "2001/3/z.xml.gz", "2001/3/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = movie_files(tmp_path, 10)
    assert [(movie, path.name) for movie, path in found.items()] == [
        ("1999/100", "a.xml"),
        ("1999/20", "b.xml.gz"),
        ("2001/3", "z.xml.gz"),
    ]
    assert list(movie_files(tmp_path, 2)) == sorted(random.Random(1).sample(list(found), 2))


WORDS = [f"w{i}" for i in range(400)]


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    """60 movies of 30 of their own words and 100 that all have; then two that are alike, and one like no other."""
    rng = random.Random(0)

    def write(name: str, words: list[str]) -> None:
        blocks = [
            "\n".join(" ".join(words[i : i + 10]) for i in range(at, at + 20, 10)) for at in range(0, len(words), 20)
        ]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(blocks))

    for number in range(60):
        own = [f"m{number}x{i}" for i in range(100)]
        shared = rng.sample(WORDS[:200], 100)
        write(f"movie{number:02}", [*own, *shared])
    write("twin1", [*(f"twin{i}" for i in range(100)), *WORDS[:100]])
    write("twin2", [*(f"twin{i}" for i in range(100)), *WORDS[1:101]])
    write("alone", [f"alone{i}" for i in range(200)])
    return tmp_path


def settings(path: Path, **fields: Any) -> DatasetSettings:
    sizes = {"heldout_items": 20, "train_items": 15, "heldout_dialogues": 30}
    return DatasetSettings(source="opensubtitles", path=str(path), **(sizes | fields))


def findings(corpus: Corpus) -> dict[str, dict[str, Any]]:
    return {row["item"]: row for row in corpus.overlaps.to_pylist()}


def test_the_corpus_through_the_whole_procedure(movies: Path) -> None:
    calls: list[tuple[int, int]] = []
    (movies / "damaged.txt").write_bytes(b"\xff\xfe")
    corpus = load(settings(movies), progress=lambda done, total: calls.append((done, total)))
    found = findings(corpus)
    assert calls[-1] == (64, 64)
    assert (found["twin1"]["decision"], found["twin1"]["partner"]) == ("dropped", "twin2")
    assert found["twin1"]["score"] == 2 * 199 / 400
    assert (found["twin2"]["decision"], found["twin2"]["reason"]) == ("kept", "its partner is dropped")
    assert (found["alone"]["decision"], found["alone"]["score"], found["alone"]["partner"]) == ("dropped", 0.0, None)
    assert found["alone"]["reason"] == "overlaps with nothing by 0.2"
    assert found["damaged"]["reason"] == "unreadable: not UTF-8: invalid start byte at byte 0"
    assert Counter(row["decision"] for row in found.values()) == {"kept": 61, "dropped": 3}

    # the split and the sample of dialogues, drawn by one generator as the authors' script does
    kept = [name for name, row in found.items() if row["decision"] == "kept"]
    random.seed(0)
    random.shuffle(kept)
    expected = {"test": kept[:20], "validation": kept[20:40], "train": kept[40:55]}
    for split, names in expected.items():
        assert sorted(name for name, row in found.items() if row["split"] == split) == sorted(names)
    for split in ("test", "validation"):
        drawn = random.sample([f"{name}:{number}" for name in expected[split] for number in range(1, 11)], 30)
        assert getattr(corpus, split)["dialogue"].to_pylist() == drawn  # each has two turns, so one pair
    assert corpus.train["dialogue"].to_pylist() == [f"{name}:{i}" for name in expected["train"] for i in range(1, 11)]


def test_a_vocabulary_decides_what_overlaps(movies: Path) -> None:
    """The 200 words that movies share are the most frequent: over them alone, twins are not the only ones alike."""
    scores = [row["score"] for row in findings(load(settings(movies, vocabulary=200, max_overlap=0.99))).values()]
    narrow = [row["score"] for row in findings(load(settings(movies, max_overlap=0.999))).values()]
    assert sorted(scores)[10] > 0.5 > sorted(narrow)[-10]


def test_nothing_to_read_says_what_to_do(tmp_path: Path) -> None:
    def failure(kind: type[Exception]) -> list[str]:
        with pytest.raises(kind) as caught:
            load(settings(tmp_path / "films"))
        return str(caught.value).split("\n")

    assert failure(FileNotFoundError)[0] == f"no such directory: {tmp_path / 'films'}"
    (tmp_path / "films").mkdir()
    first, second = failure(FileNotFoundError)
    assert first == f"no subtitle files in {tmp_path / 'films'}"
    assert second.startswith("dataset.path is the folder OpenSubtitles/xml/en of OPUS's en.zip")
    (tmp_path / "films" / "1.txt").write_bytes(b"\xff")
    first, second = failure(ValueError)
    assert first.startswith(f"none of 1 movies can be read; {tmp_path / 'films' / '1.txt'}: not UTF-8")
    assert second == "give others in dataset.path"
    (tmp_path / "films" / "1.txt").write_text("a b\nc d\n")
    assert failure(ValueError)[1] == "give more data, or set heldout_items"
