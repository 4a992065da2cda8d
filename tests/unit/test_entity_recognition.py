"""The plugin for entity recognition, with tokenizers and a tiny BERT that are made here: no test needs a network."""

from __future__ import annotations

import itertools
import json
import math
import random
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tiny_bert
from luthier import datasets, fields
from luthier.errors import InvalidArgument, InvalidData
from luthier.inference.predictor import Predictor
from luthier.task import DataFile, Run, Split
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier_entity_recognition import EntityRecognition, metrics, schemes, tagging, training, words
from luthier_entity_recognition.examples import SCHEMA, Entity, Example, entities_of, table_of
from luthier_entity_recognition.tokens import Preprocessing, TextTokenizer, batch, by_word, frame, plain

TASK = EntityRecognition()
STRANGE = [
    "",
    " \n\t",
    "\x00\x01\u200d\ufeff",
    "Zoe\u0308 Müller-Lüdenscheidt\u2019s E\u0301cole",
    "İstanbul ﬁne ß ŉ ǆ \u1e9b\u0323",
    "हिन्दी में दिल्ली",
    "苦いビールは東京タワーで",
    "في مقهى الأزهر",
    "ภาษาไทย",
    "서울에서 만난 김철수",
    "👨\u200d👩\u200d👧 in 🏴\U000e0067\U000e0062\U000e007f 👍🏽",
    "𐍈𐍈 in 𠜎𠜱 \U0001d518\U0001d52b",
    "a\u00adb c\u200bd e\u2060f",
    "[CLS] anna [SEP] [PAD]",
]


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
    probabilities = np.zeros((*ids.shape, tagging.num_tags(labels)), dtype=np.float32)
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


# CoNLL columns.


def file(tmp_path: Path, content: str | bytes, name: str = "x.conll", **given: Any) -> DataFile:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataFile(path=path, name=name, format=name.rpartition(".")[2], **given)


def found_in(table: pa.Table) -> list[list[tuple[str, str]]]:
    """Texts and labels of the entities of each row."""
    assert table.schema == SCHEMA
    rows = zip(table["text"].to_pylist(), entities_of(table), strict=True)
    return [[(text[start:end], label) for start, end, label in entities] for text, entities in rows]


def conll(*sentences: str) -> str:
    """Lines of tokens and tags that are written `token/tag`."""
    lines = ["".join(f"{pair.replace('/', chr(9))}\n" for pair in sentence.split()) for sentence in sentences]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "sentence",
    [
        "In/O New/B-LOC York/I-LOC Anna/B-PER Berg/I-PER Bo/B-PER met/O Lund/B-LOC",  # IOB2
        "In/O New/I-LOC York/I-LOC Anna/I-PER Berg/I-PER Bo/B-PER met/O Lund/I-LOC",  # IOB1
        "In/O New/B-LOC York/E-LOC Anna/B-PER Berg/E-PER Bo/S-PER met/O Lund/S-LOC",  # IOBES
        "In/O New/B-LOC York/L-LOC Anna/B-PER Berg/L-PER Bo/U-PER met/O Lund/U-LOC",  # BILOU
    ],
)
def test_schemes_say_the_same(tmp_path: Path, sentence: str) -> None:
    given = file(tmp_path, conll(sentence, "nothing/O", sentence))
    table = TASK.read(given)
    assert isinstance(table, pa.Table)
    expected = [("New York", "LOC"), ("Anna Berg", "PER"), ("Bo", "PER"), ("Lund", "LOC")]
    assert found_in(table) == [expected, [], expected]
    assert table["text"].to_pylist()[0] == "In New York Anna Berg Bo met Lund"
    assert not given.warnings


@pytest.mark.parametrize(
    ("content", "text", "entities"),
    [
        ("-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nin IN I-PP O\n", "U.N. in", [("U.N.", "ORG")]),
        ("# id 7 domain=en\nanna _ _ B-PER\nberg _ _ I-PER\n", "anna berg", [("anna berg", "PER")]),
        ("#\thttp://x\n1\tLund\tB-LOC\tO\n2\tist\tO\tO\n", "Lund ist", []),
        ("# text = Lund\n1-2\tLund.\t_\t-\tme\n1\tLund\tB-LOC\t-\tme\n2\t.\tO\t-\tme\n", "Lund .", [("Lund", "LOC")]),
        ("#\tO\nanna\tB-PER\n", "# anna", [("anna", "PER")]),
        ("see\tO\n# \tO\n#anna\tB-PER\n", "see # #anna", [("#anna", "PER")]),
        ("\ufeffNew York\tB-LOC\r\n\u2028\tO\r\n\u00a0\tO\r\n", "New York \u2028 \u00a0", [("New York", "LOC")]),
        ("anna \t B-creative-work\n", "anna", [("anna", "creative-work")]),
    ],
)
def test_kinds_of_columns(tmp_path: Path, content: str, text: str, entities: list[tuple[str, str]]) -> None:
    table = TASK.read(file(tmp_path, content))
    assert isinstance(table, pa.Table)
    assert table["text"].to_pylist() == [text]
    assert found_in(table) == [entities]


def test_columns_may_be_named_by_number(tmp_path: Path) -> None:
    content = "7\tLund\tB-LOC\tO\n9\tist\tO\tO\n"
    table = TASK.read(file(tmp_path, content, columns={"text": "1", "entities": "2"}))
    assert isinstance(table, pa.Table)
    assert found_in(table) == [[("Lund", "LOC")]]
    with pytest.raises(InvalidData) as wrong:
        TASK.read(file(tmp_path, content, columns={"text": "word", "entities": "4"}))
    assert list(wrong.value.violations) == ["x.conll:text", "x.conll:entities"]


def problems_of(given: DataFile) -> dict[str, str]:
    with pytest.raises(InvalidData) as wrong:
        TASK.read(given)
    return wrong.value.violations


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "-DOCSTART- O\n\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    assert problems_of(file(tmp_path, content)) == {"x.conll": "the file is empty"}


def test_all_problems_of_columns_are_named_by_line(tmp_path: Path) -> None:
    content = b"anna\tB-PER\nmet\tO\n\nbo\tX-PER\n\tO\nin\tb-LOC\nlund\tB-\n"
    found = problems_of(file(tmp_path, content))
    assert list(found) == [
        f"x.conll:row {row}:{field}" for row, field in [(4, "entities"), (5, "text"), (6, "entities"), (7, "entities")]
    ]
    assert found["x.conll:row 4:entities"] == (
        "`X-PER` is no tag: write O, or a type after one of B-, I-, M-, E-, L-, S-, U-"
    )
    content = b"anna\tB-PER\nmet\nbo\tO\tB-PER\nat\tO\nM\xfcnchen\tB-LOC\n"
    assert problems_of(file(tmp_path, content)) == {
        "x.conll:row 2": "the line has 1 column where most have 2",
        "x.conll:row 3": "the line has 3 columns where most have 2",
        "x.conll:row 5": "the line is not UTF-8 text; save the file as UTF-8",
    }
    assert "1 column" in problems_of(file(tmp_path, "anna\nberg\n"))["x.conll"]


def test_slips_are_refused(tmp_path: Path) -> None:
    found = problems_of(file(tmp_path, conll("in/O lund/B-LOC anna/I-PER met/O berg/I-PER")))
    assert found == {
        "x.conll:row 3:entities": "I-PER has no PER before it to go on from; begin the entity with B-PER",
        "x.conll:row 5:entities": "I-PER has no PER before it to go on from; begin the entity with B-PER",
    }
    found = problems_of(file(tmp_path, conll("lund/S-LOC anna/B-PER berg/I-PER", "bo/E-PER dora/B-PER emil/S-PER")))
    assert list(found) == [f"x.conll:row {row}:entities" for row in (3, 5, 6)]


def test_a_few_slips_are_warnings(tmp_path: Path) -> None:
    given = file(tmp_path, conll("in/O lund/I-LOC", *["in/O new/B-LOC york/I-LOC"] * 99))
    table = TASK.read(given)
    assert isinstance(table, pa.Table)
    assert found_in(table)[:2] == [[("lund", "LOC")], [("new york", "LOC")]]
    assert [(warning.row, warning.field) for warning in given.warnings] == [(2, "entities")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    spelling = schemes.spell([schemes.parse(tag) or ("", "") for tag in tags])
    assert spelling.entities == [(first, last + 1, label) for label, first, last in get_entities(tags)]


# JSONL and Parquet.


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


SPANS = [{"start": 3, "end": 7, "label": "PER"}, {"start": 11, "end": 15, "label": "LOC"}]


def test_spans_are_read_in_any_writing(tmp_path: Path) -> None:
    text = "by Anna in Lund"
    expected = [[("Anna", "PER"), ("Lund", "LOC")], []]
    lists = [[11, 15, "LOC"], [3, 7, "PER"]]
    simple = file(tmp_path, jsonl({"text": text, "entities": SPANS}, {"text": text}), "a.jsonl")
    doccano = jsonl({"data": text, "labels": lists}, {"data": text, "labels": None})
    mapped = file(tmp_path, doccano, "b.jsonl", columns={"text": "data", "entities": "labels"})
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": [text, text], "entities": [SPANS, []], "id": [1, 2]}), path)
    parquet = DataFile(path=path, name="c.parquet", format="parquet")
    for one in (simple, mapped, parquet):
        table = TASK.read(one)
        assert isinstance(table, pa.Table)
        assert found_in(table) == expected


def test_offsets_are_code_points(tmp_path: Path) -> None:
    table = TASK.read(file(tmp_path, jsonl({"text": "🍺🍺 é Lund", "entities": [[5, 9, "LOC"]]}), "x.jsonl"))
    assert isinstance(table, pa.Table)
    assert found_in(table) == [[("Lund", "LOC")]]


def test_all_problems_of_spans_are_named_by_row(tmp_path: Path) -> None:
    records = [
        {"text": "Anna", "entities": [[0, 5, "PER"]]},
        {"text": "Anna", "entities": [[2, 2, "PER"], [-1, 2, "PER"]]},
        {"text": "Anna", "entities": [[0, 3, "PER"], [2, 4, "LOC"]]},
        {"text": "Anna", "entities": [[0, 4, " "], ["0", 4, "PER"], [0, 4, 7], [0, 4], {"start": 0}, 5]},
        {"text": 3, "entities": [[0, 4, "PER"]]},
        {"entities": "PER"},
        {"text": "\ud83d", "entities": []},
        [],
    ]
    content = jsonl(*records).encode() + b"{\n" + b'{"text": "M\xfcnchen"}\n'
    found = problems_of(file(tmp_path, content, "x.jsonl"))
    assert list(found) == [
        *(f"x.jsonl:row {row}:entities" for row in (1, 2, 3, 4)),
        "x.jsonl:row 5:text",
        "x.jsonl:row 6:text",
        "x.jsonl:row 6:entities",
        "x.jsonl:row 7:text",
        *(f"x.jsonl:row {row}" for row in (8, 9, 10)),
    ]
    assert found["x.jsonl:row 1:entities"] == (
        "[0, 5) ends behind the text, which has 4 characters (code points, not bytes)"
    )
    assert found["x.jsonl:row 3:entities"] == "[0, 3) `PER` and [2, 4) `LOC` overlap; keep one of them"
    assert found["x.jsonl:row 2:entities"].count("[") == 2
    assert found["x.jsonl:row 4:entities"].count(";") == 5


def test_a_missing_column_is_said_once(tmp_path: Path) -> None:
    found = problems_of(file(tmp_path, jsonl(*[{"text": "Anna", "spans": []}] * 3), "x.jsonl"))
    assert found == {
        "x.jsonl:entities": (
            "there is no column `entities`; the file has `text`, `spans`; say which one it is, for instance "
            "--column entities=spans"
        )
    }
    assert problems_of(file(tmp_path, "\n", "x.jsonl")) == {"x.jsonl": "the file is empty"}
    assert "not Parquet" in problems_of(file(tmp_path, "PAR1", "x.parquet"))["x.parquet"]


# The data set as a whole.


def part(*rows: Example) -> pa.Table:
    return table_of(rows)


GOOD = [("Anna in Lund", [(0, 4, "PER"), (8, 12, "LOC")]), ("Bo in York", [(0, 2, "PER"), (6, 10, "LOC")])]


@pytest.mark.parametrize(
    ("train", "test", "fatal", "said"),
    [
        ([*GOOD, (" ", [])], [], True, "1 of the 3 examples of train have an empty text"),
        ([("Anna", [])], [], True, "no example of train has an entity"),
        ([], [], True, "no example of train has an entity"),
        (
            GOOD,
            [("beer", [(0, 4, "DRINK")])],
            False,
            "test has labels that train lacks, which will never be found: `DRINK`",
        ),
        ([*GOOD, ("beer", [(0, 4, "DRINK")])], [], False, "1 labels have one entity in train: `DRINK`"),
        ([*GOOD, ("Annas", [(0, 4, "PER")])], [], False, "1 entities of train begin or end within a word"),
        ([*GOOD, ("anna  in lund", [])], [], False, "1 texts occur with different entities: `anna in lund`"),
        (GOOD, [("ANNA in Lund", [])], False, "1 texts of test are also in train: `anna in lund`"),
    ],
)
def test_problems_in_the_data(train: list[Example], test: list[Example], fatal: bool, said: str) -> None:
    found = list(TASK.validate({"train": part(*train), "validation": part(), "test": part(*test)}))
    assert any(is_fatal == fatal and said in problem.message for is_fatal, problem in found), found


def test_good_data_has_no_problems() -> None:
    assert list(TASK.validate({"train": part(*GOOD), "validation": part(), "test": part()})) == []


def test_statistics() -> None:
    described = TASK.describe({"train": part(*GOOD), "validation": part(), "test": part(("Lund!", [(0, 4, "LOC")]))})
    assert described == {
        "labels": [
            {"label": "LOC", "train": 2, "validation": 0, "test": 1},
            {"label": "PER", "train": 2, "validation": 0, "test": 0},
        ],
        "texts_without_entities": {"train": 0, "validation": 0, "test": 0},
        "text_characters": {"min": 5, "p50": 10, "p90": 12, "p99": 12, "max": 12},
    }


def test_files_become_a_data_set(tmp_path: Path) -> None:
    sentences = [f"in/O {name}/B-LOC number/O {i}/O" for i, name in enumerate(["lund", "york"] * 60)]
    built = datasets.build(TASK, [file(tmp_path, conll(*sentences), "x.iob")], Split(), tmp_path / "built")
    assert sum(built.num_examples.values()) == 120
    parts = datasets.load(tmp_path / "built")
    assert {table.schema.field("text").type for table in parts.values()} == {pa.string()}
    assert all(len(row) == 1 for table in parts.values() for row in entities_of(table))
    assert min(built.num_examples.values()) > 0


# Scores.


def random_tags(draw: random.Random, length: int) -> list[str]:
    """Valid IOB2."""
    tags: list[str] = []
    for _ in range(length):
        choices = ["O", "O", "B-A", "B-B", "B-C"]
        if tags and tags[-1] != "O":
            choices += [f"I-{tags[-1][2:]}"] * 3
        tags.append(draw.choice(choices))
    return tags


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_seqeval(seed: int) -> None:
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    draw = random.Random(seed)
    truth = [random_tags(draw, draw.randint(0, 12)) for _ in range(60)]
    guess = [[*random_tags(draw, len(tags))] if draw.random() < 0.6 else tags for tags in truth]

    def spans(sentences: list[list[str]]) -> list[list[Entity]]:
        parsed = [schemes.spell([schemes.parse(tag) or ("", "") for tag in tags]).entities for tags in sentences]
        return [[(3 * first, 3 * behind - 1, label) for first, behind, label in one] for one in parsed]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report: Any = classification_report(truth, guess, mode="strict", scheme=IOB2, output_dict=True)
    ours = metrics.score(spans(truth), spans(guess))
    assert {name: ours.metrics[name] for name in ("precision", "recall", "f1")} == pytest.approx(
        {name: report["micro avg"][theirs] for name, theirs in NAMES_OF_SEQEVAL.items()}
    )
    assert ours.metrics["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    assert [one.label for one in ours.per_class] == ["A", "B", "C"]
    for one in ours.per_class:
        assert one.support == report[one.label]["support"]
        assert dict(one.metrics) == pytest.approx(
            {name: report[one.label][theirs] for name, theirs in NAMES_OF_SEQEVAL.items()}
        )


NAMES_OF_SEQEVAL = {"precision": "precision", "recall": "recall", "f1": "f1-score"}


def test_scores_of_spans() -> None:
    truth = part(("Anna in Lund at six", [(0, 4, "PER"), (8, 12, "LOC")]), ("Bo", [(0, 2, "PER")]), ("", []))
    found = [[("PER", 0, 4, 0.9), ("PER", 8, 12, 0.6), ("LOC", 16, 19, 0.5)], [], []]
    predictions = [
        pb.Prediction(entities=[pb.Entity(label=label, start=s, end=e, score=score) for label, s, e, score in one])
        for one in found
    ]
    evaluation = TASK.score(truth, predictions)
    assert evaluation.num_examples == 3
    assert dict(evaluation.metrics) == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "f1_macro": (0 + 0.5) / 2}
    )
    assert [(one.label, one.support) for one in evaluation.per_class] == [("LOC", 1), ("PER", 2)]
    assert list(evaluation.confusion_matrix.labels) == ["LOC", "PER", "(none)"]
    assert list(evaluation.confusion_matrix.counts) == [0, 1, 0, 0, 1, 1, 1, 0, 0]
    assert TASK.grades(truth, predictions) == pytest.approx([0.4, 0.0, 1.0])
    assert evaluation.curves[0].label == "all entities · AP 0.333"
    assert list(evaluation.curves[0].x) == pytest.approx([1 / 3])
    nothing = TASK.score(part(("a", [])), [pb.Prediction()])
    assert dict(nothing.metrics) == {"precision": 0, "recall": 0, "f1": 0, "f1_macro": 0}


# Pictures.


def draw(text: str, *entities: tuple[str, int, int]) -> ElementTree.Element:
    found = [pb.Entity(label=label, start=start, end=end, text=text[start:end]) for label, start, end in entities]
    picture = TASK.render(pb.Instance(text=text), pb.Prediction(entities=found))
    assert picture.media_type == "image/svg+xml"
    return ElementTree.fromstring(picture.content.decode())


def written(svg: ElementTree.Element) -> list[str]:
    return ["".join(one.itertext()) for one in svg.iterfind("{*}text")]


def grounds(svg: ElementTree.Element) -> list[dict[str, str]]:
    """The rectangles of entities."""
    return [one.attrib for one in svg.iterfind("{*}rect")][1:]


def test_a_picture_shows_text_and_labels() -> None:
    svg = draw("by <Anna & Bo> in Lund", ("PER", 3, 14), ("LOC", 18, 22))
    assert written(svg) == ["by", "<Anna", "&", "Bo>", "PER", "in", "Lund", "LOC"]
    assert len({ground["fill"] for ground in grounds(svg)}) == 2
    assert sum(float(ground["width"]) for ground in grounds(svg)) == (11 + 1 + 3 + 4 + 1 + 3) * 9
    other = draw("Lund", ("LOC", 0, 4))
    assert grounds(other)[0]["fill"] == grounds(svg)[-1]["fill"]


def test_a_picture_wraps_and_stays_within_its_borders() -> None:
    svg = draw("a\n" + "x" * 300 + " " + "word " * 100, ("LONG", 2, 302))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for ground in grounds(svg):
        assert float(ground["x"]) + float(ground["width"]) <= width
    lines = {float(one.attrib["y"]) for one in svg.iterfind("{*}text")}
    assert len(lines) > 8
    assert max(lines) < height


def test_a_picture_of_anything_is_xml() -> None:
    for text in STRANGE:
        draw(text, *([("<&\x00>", 0, len(text))] if text else []))
    assert written(draw("\x0b\ufffe")) == ["\ufffd\ufffd"]


def test_a_text_that_runs_to_the_left_begins_at_the_right() -> None:
    svg = draw("مقهى الأزهر", ("ORG", 0, 4))
    first, caption, second = (float(one.attrib["x"]) for one in svg.iterfind("{*}text"))
    assert first > caption > second


def test_many_labels_have_colours() -> None:
    svg = draw("a " * 20, *((f"L{i}", 2 * i, 2 * i + 1) for i in range(20)))
    assert len({ground["fill"] for ground in grounds(svg)}) == 12


# Training and serving.

NAMED = ["anna", "bruno", "clara", "dora"]
VOCABULARY = ["a", "beer", "from", "based", "-", *NAMED]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write(tmp_path_factory.mktemp("base"), VOCABULARY, seed=5)


def sentences(pattern: str) -> pa.Table:
    """The pattern with each name."""
    at = pattern.index("{")
    return table_of((pattern.format(name), [(at, at + len(name), "PER")]) for name in NAMED)


JOINED, CUT = sentences("a beer from {} a beer"), sentences("a beer from {}-based beer")
LONG = pa.concat_tables(
    [sentences(f"{'a beer ' * n}from {{}}-based beer{' a beer' * (22 - n)}") for n in range(0, 23, 2)]
)
"""48 texts of 49 tokens, each in 5 windows of 14 and the two around them."""


@pytest.fixture
def tune(base: Path, tmp_path: Path) -> Callable[..., Run]:
    def made(train: pa.Table, validation: pa.Table, **given: Any) -> Run:
        config = pb.Config(**({"max_length": 16} | given))
        fields.resolve(config)
        run = Run(
            parts={"train": train, "validation": validation}, config=config, base=base, seed=0, directory=tmp_path
        )
        run.model = training.fine_tune(run)  # type: ignore[attr-defined]
        return run

    return made


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Model:
    config = pb.Config(epochs=6, max_length=16, learning_rate=0.003, head_learning_rate=0.02, batch_size=8)
    fields.resolve(config)
    parts = {"train": pa.concat_tables([CUT, LONG]), "validation": CUT.slice(0, 0)}
    run = Run(parts=parts, config=config, base=base, seed=0, directory=tmp_path_factory.mktemp("run"))
    tuned = training.fine_tune(run)
    assert run.figures["steps"] == 6 * math.ceil((4 + 48 * 5) / 8)
    return tuned


@pytest.fixture(scope="module")
def predictor(model: training.Model, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    directory = tmp_path_factory.mktemp("bundle")
    training.export(model, directory)
    return Predictor(TASK, directory)


def test_words_are_cut_as_the_entities_want(
    predictor: Predictor, model: training.Model, tune: Callable[..., Any]
) -> None:
    assert not model.texts.preprocessing.joined
    (found,) = predictor.predict([pb.Instance(text="a beer from dora-based")])
    assert [(one.text, one.label, one.start, one.end) for one in found.entities] == [("dora", "PER", 12, 16)]
    assert tune(JOINED, JOINED, epochs=1).model.texts.preprocessing.joined


def test_a_long_text_is_read_to_its_end(
    predictor: Predictor, model: training.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{'a beer ' * 200}from {name}-based beer " for name in NAMED)
    (found,) = predictor.predict([pb.Instance(text=text)])
    assert [one.text for one in found.entities] == NAMED
    assert [text[one.start : one.end] for one in found.entities] == NAMED
    (source,) = training.predict(model, [pb.Instance(text=text)])
    assert [(one.start, one.end) for one in source.entities] == [(one.start, one.end) for one in found.entities]
    monkeypatch.setattr("luthier_entity_recognition.codec.EntityRecognitionCodec.max_rows", 7)
    (in_turn,) = predictor.predict([pb.Instance(text=text)])
    assert [(one.start, one.end) for one in in_turn.entities] == [(one.start, one.end) for one in found.entities]
    assert [one.score for one in in_turn.entities] == pytest.approx([one.score for one in found.entities], abs=1e-5)


def test_min_score_leaves_out_and_is_checked(predictor: Predictor) -> None:
    one, none = predictor.predict(
        [pb.Instance(text="a beer from anna-based beer", min_score=score) for score in (0.0, 1.0)]
    )
    assert [found.text for found in one.entities] == ["anna"]
    assert 0.5 < one.entities[0].score < 1
    assert not none.entities
    with pytest.raises(InvalidArgument) as wrong:
        predictor.predict([pb.Instance(min_score=2), pb.Instance(), pb.Instance(min_score=-1)])
    assert list(wrong.value.violations) == ["instances[0].min_score", "instances[2].min_score"]


def test_strange_texts_are_read_alike(predictor: Predictor, model: training.Model) -> None:
    instances = [pb.Instance(text=text) for strange in STRANGE for text in (strange, f"{strange} from anna-based")]
    for source, served in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        assert [(one.label, one.start, one.end) for one in source.entities] == [
            (one.label, one.start, one.end) for one in served.entities
        ]


def test_validation_without_entities_is_none(tune: Callable[..., Any]) -> None:
    run = tune(JOINED, table_of([("a beer", [])]), epochs=3, patience=1)
    assert run.figures["epochs_run"] == run.figures["best_epoch"] == 3


def test_few_examples_get_many_epochs(tune: Callable[..., Any]) -> None:
    assert [training.enough_epochs(count, 16) for count in (1, 800, 3394, 5432, 10**6)] == [20, 20, 5, 3, 3]
    assert tune(JOINED, JOINED.slice(0, 0)).figures["epochs_run"] == 20


def test_a_random_start_is_another_start(tune: Callable[..., Any]) -> None:
    runs = [tune(JOINED, JOINED, epochs=1, learning_rate=0.0, from_scratch=scratch) for scratch in (False, True)]
    assert not torch.equal(*(run.model.tagger.encoder.embeddings.word_embeddings.weight for run in runs))


# Real data.


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "rows", "entities"),
    [
        ("ner-ncbi-disease/train.tsv", 5432, 5145),
        ("ner-ncbi-disease/test.tsv", 940, 960),
        ("ner-wnut17/wnut17train.conll", 3394, 1975),
        ("ner-wnut17/emerging.test.annotated", 1287, 1079),
    ],
)
def test_real_files(realdata: Path, name: str, rows: int, entities: int) -> None:
    path = realdata / "data" / name
    table = TASK.read(DataFile(path=path, name=path.name, format=path.suffix[1:]))
    assert isinstance(table, pa.Table)
    assert table.num_rows == rows
    assert sum(map(len, entities_of(table))) == entities
