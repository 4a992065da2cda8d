"""Words, tokens, windows and tags of entities, with tokenizers that are made here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from luthier_entity_recognition import tagging, words
from luthier_entity_recognition.examples import Entity, Example
from luthier_entity_recognition.tokens import Preprocessing, TextTokenizer, batch, by_word, frame, plain
from strange_texts import STRANGE

# Words.


@pytest.mark.parametrize(
    ("text", "joined", "expected"),
    [
        ("Al-Qaeda's U.S.-led x--y", True, ["Al-Qaeda's", "U.S", ".", "-", "led", "x", "--", "y"]),
        ("Al-Qaeda's", False, ["Al", "-", "Qaeda", "'", "s"]),
        ("AT&T a@b.org don\u2019t -a- @x", True, ["AT&T", "a@b.org", "don\u2019t", "-", "a", "-", "@x"]),
        ("(http://t.co/a?b=1&c), #Padres @ x", True, ["(", "http://t.co/a?b=1&c", ")", ",", "#Padres", "@", "x"]),
        ("https://東京 #é http://!!", True, ["https", ":", "//", "東", "京", "#é", "http", ":", "//", "!!"]),
        ("so... 👍👍🏽 ?! ##x", True, ["so", "...", "👍👍🏽", "?", "!", "##", "x"]),
        ("so...", False, ["so", ".", ".", "."]),
        ("#Padres http://t.co", False, ["#", "Padres", "http", ":", "/", "/", "t", ".", "co"]),
        ("e\u0301te\u0301 हिन्दी में", True, ["e\u0301te\u0301", "हिन्दी", "में"]),
        ("東京 タワーと서울에서", True, ["東", "京", "タ", "ワ", "ー", "と", "서울에서"]),
        ("ภาไทย", True, ["ภ", "า", "ไ", "ท", "ย"]),
        ("👨\u200d👧 👍🏽!", True, ["👨\u200d", "👧", "👍🏽", "!"]),
        ("𐍈𐍈\u00a0𠜎𠜱", True, ["𐍈𐍈", "𠜎", "𠜱"]),
        ("a\u200bb", True, ["a", "\u200b", "b"]),
        (" \n\u3000", True, []),
    ],
)
def test_words(text: str, joined: bool, expected: list[str]) -> None:
    starts, ends = words.split(text, joined=joined)
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == expected


def test_a_run_of_joiners_takes_no_more_than_linear_time() -> None:
    text = "a-" * 200_000 + "\u0301" * 200_000
    assert len(words.split(text, joined=True)[0]) == 2


def test_entities_within_words() -> None:
    text = "York-based Anna"
    spans = [(0, 4), (0, 10), (11, 15), (11, 14), (10, 15)]
    assert [words.num_cut([text], [[span]], joined=True) for span in spans] == [1, 0, 0, 1, 1]
    assert [words.num_cut([text], [[span]], joined=False) for span in spans] == [0, 0, 0, 1, 1]


# Tokens and windows.


def wordpiece() -> Tokenizer:
    """As of BERT: case and accents go, control characters too, and Chinese characters stand alone."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(STRANGE, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level() -> Tokenizer:
    """As of RoBERTa: bytes, of which a character may have several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(STRANGE, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    """As of XLM-R: spaces belong to the tokens behind them, and a token may hold several Chinese characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(STRANGE * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


TOKENIZERS = {make.__name__: make() for make in (wordpiece, byte_level, unigram)}


def text_tokenizer(name: str, max_length: int, joined: bool = True) -> TextTokenizer:
    tokenizer = plain(TOKENIZERS[name])
    prefix, suffix = frame(tokenizer)
    return TextTokenizer(
        tokenizer, Preprocessing(max_length=max_length, joined=joined, prefix=prefix, suffix=suffix, pad_id=0)
    )


def oracle(texts: TextTokenizer, examples: Sequence[Example]) -> list[list[Entity]]:
    """What comes out where the model knows the tags of all words, and is wrong about all other tokens."""
    labels = sorted({label for _, entities in examples for *_, label in entities})
    position = {label: i for i, label in enumerate(labels)}
    tokenised = texts([text for text, _ in examples])
    rows = [window for one in tokenised for window in one.windows]
    ids, mask = batch(rows, 0)
    assert ids.shape[1] <= texts.preprocessing.max_length
    assert mask.sum() == sum(map(len, rows))
    probabilities = np.zeros((*ids.shape, len(tagging.names(labels))), dtype=np.float32)
    probabilities[..., -1] = 0.5
    row = 0
    for one, (_, entities) in zip(tokenised, examples, strict=True):
        tags = tagging.encode(one.words, entities, position)
        probabilities[row + one.window, one.position, tags] = 1.0
        row += len(one.windows)
    found = [
        tagging.decode(one.words, of_words)
        for one, of_words in zip(tokenised, by_word(tokenised, probabilities), strict=True)
    ]
    return [[(start, end, labels[label]) for start, end, label, _ in one] for one in found]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("joined", [True, False])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_entities_of_whole_words_survive_any_unicode(name: str, joined: bool, data: st.DataObject) -> None:
    characters = st.characters(exclude_categories=["Cs"])
    text = "".join(data.draw(st.lists(st.one_of(characters, st.sampled_from([*STRANGE, " ", "\u0301"])), max_size=30)))
    texts = text_tokenizer(name, 16, joined)
    starts, ends = texts([text])[0].words
    assert (starts < ends).all()
    assert (ends[:-1] <= starts[1:]).all()
    assert not len(ends) or ends[-1] <= len(text)
    borders = sorted(data.draw(st.sets(st.integers(0, max(0, len(starts) - 1)), max_size=6)))
    entities = [
        (int(starts[first]), int(ends[behind - 1]), data.draw(st.sampled_from("AB")))
        for first, behind in itertools.pairwise(borders)
        if data.draw(st.booleans())
    ]
    assert oracle(texts, [(text, entities), ("", []), (text, [])]) == [entities, [], []]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_word_of_a_known_script_is_lost(name: str) -> None:
    for text in STRANGE[3:12]:
        starts, ends = text_tokenizer(name, 64)([text])[0].words
        missed = "".join(set(text) - set("".join(text[s:e] for s, e in zip(starts, ends, strict=True))))
        assert not missed.strip(), (text, missed)


def test_a_token_of_several_words_makes_them_one() -> None:
    tokenizer = plain(Tokenizer(models.WordLevel({"東京": 0, "に": 1, "?": 2}, unk_token="?")))
    texts = TextTokenizer(tokenizer, Preprocessing(max_length=8, joined=True, prefix=[], suffix=[], pad_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("に", "isolated")
    (tokenised,) = texts(["東京に京"])
    assert [span.tolist() for span in tokenised.words] == [[0, 2, 3], [2, 3, 4]]
    assert oracle(texts, [("東京に京", [(1, 2, "A")])]) == [[(0, 2, "A")]]


def test_what_the_tokenizer_drops_does_not_end_an_entity() -> None:
    text = "anna \u200d berg"
    assert oracle(text_tokenizer("wordpiece", 16), [(text, [(0, len(text), "A")])]) == [[(0, len(text), "A")]]


def test_special_tokens_in_a_text_are_text() -> None:
    (tokenised,) = text_tokenizer("wordpiece", 64)(["[SEP]"])
    assert tokenised.windows[0].tolist().count(3) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [1, 13, 14, 15, 16, 17, 25, 26, 200, 1001])
def test_windows_cover_a_long_text(name: str, length: int) -> None:
    draw = random.Random(length)
    names = ["Müller", "सिंह", "東京", "anna"]
    text, entities = "", []
    for i in range(length):
        if i % 3 == 1:
            name_ = draw.choice(names)
            entities.append((len(text), len(text) + len(name_), draw.choice("AB")))
            text += name_ + " "
        text += draw.choice(["in", "a", "الأزهر", "👍🏽"]) + " "
    assert oracle(text_tokenizer(name, 16), [(text, entities)]) == [entities]


def test_a_word_is_read_where_it_has_most_context() -> None:
    (tokenised,) = text_tokenizer("wordpiece", 18)(["a " * 100])
    starts = [0, 12, 24, 36, 48, 60, 72, 84]
    assert [len(window) for window in tokenised.windows] == [18] * len(starts)
    place = [
        starts[window] + position - 1 for window, position in zip(tokenised.window, tokenised.position, strict=True)
    ]
    assert place == list(range(100))
    inner = (tokenised.position > 2) & (tokenised.position < 15)
    assert (inner | (tokenised.window == 0) | (tokenised.window == len(starts) - 1)).all()


# Tags.


def test_adjacent_overlapping_and_unknown_entities() -> None:
    spans = words.split("one two three-four five", joined=True)
    entities = [(0, 3, "A"), (4, 7, "A"), (8, 13, "B"), (14, 23, "A"), (19, 23, "?")]
    assert tagging.encode(spans, entities, {"A": 0, "B": 1}).tolist() == [1, 1, 3, 1]


def test_decoding() -> None:
    spans = words.split("a b c d e f", joined=True)
    tags = [1, 2, 3, 3, 0, 1]  # B-A, I-A, B-B, B-B, O, B-A.
    probabilities = np.full((6, 5), 0.1, dtype=np.float32)
    probabilities[range(6), tags] = [0.5, 0.7, 0.6, 0.6, 0.6, 0.9]
    found = tagging.decode(spans, probabilities)
    assert [one[:3] for one in found] == [(0, 3, 0), (4, 5, 1), (6, 7, 1), (10, 11, 0)]
    assert [one[3] for one in found] == pytest.approx([0.6, 0.6, 0.6, 0.9])


@pytest.mark.parametrize("seed", range(20))
def test_the_path_is_the_best_that_is_allowed(seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet([0.3] * 5, size=5).astype(np.float32)

    def allowed(path: Sequence[int]) -> bool:
        return all(tag not in (2, 4) or before in (tag, tag - 1) for before, tag in itertools.pairwise([0, *path]))

    paths = [path for path in itertools.product(range(5), repeat=5) if allowed(path)]
    best = max(paths, key=lambda path: float(np.log(np.maximum(probabilities[range(5), path], 1e-30)).sum()))
    assert tuple(tagging.best_path(probabilities)) == best
