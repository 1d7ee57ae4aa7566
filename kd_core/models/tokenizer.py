"""A tokenizer of our own, for teachers that are described and fitted here."""

import io
from collections.abc import Iterable, Iterator

from kd_core.models.loading import Tokenizer

LONGEST = 20_000  # characters of a text that is trained on whole


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A Unigram tokenizer in T5's own layout (pad 0, end 1, unknown 2), trained on `texts`.

    By SentencePiece, as T5's was: the same texts give the same tokenizer, whatever the machine. (The trainer in
    `tokenizers` breaks ties by chance: other ids in every run, and so other weights.) Long texts are trained on in
    `parts`.

    Raises ValueError if the texts hold too little to fill the vocabulary, or more characters than it has room for.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
    from transformers import T5Tokenizer

    trained = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(part for text in texts for part in parts(text)),
            model_writer=trained,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # fewer are judged below
            character_coverage=1.0,
            normalization_rule_name="identity",  # as the tokenizer made here reads: nothing but white space is changed
            split_by_unicode_script=False,  # "i'm" and "?!?!" may be pieces: words end at white space alone
            split_by_number=False,
            max_sentence_length=2**30,  # bytes; longer texts would be left out
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().rpartition("] ")[2] or "there is none to train on"  # after the place in its code
        raise ValueError(
            f"no tokenizer of {vocab_size} tokens can be trained on the corpus: {reason}\n"
            "raise teacher.vocab_size, or give more text"
        ) from None
    pieces = SentencePieceProcessor(model_proto=trained.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    if len(tokenizer) < vocab_size // 2:
        raise ValueError(
            f"the corpus gives only {len(tokenizer)} of {vocab_size} tokens\nlower teacher.vocab_size or give more text"
        )
    return tokenizer


def parts(text: str) -> Iterator[str]:
    """A text of at most LONGEST characters as it is; a longer one in parts of that, each up to a space if it has one.

    SentencePiece looks at everything that a text repeats: of a text that repeats itself that is the square of its
    length, hours for 6 MB; equal parts it counts as one. The likelihood of a single word of 1 MB underflows.
    """
    start = 0
    while len(text) - start > LONGEST:
        space = text.rfind(" ", start + 1, start + LONGEST + 1)
        end = space if space > 0 else start + LONGEST
        yield text[start:end]
        start = end
    yield text[start:]
