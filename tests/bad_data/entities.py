"""Texts with entities."""

from bad_data.case import Bad

TASK = "entity-recognition"
GOOD = "".join(f"Ann{i} B-PER\nflew O\nto O\nOslo B-LOC\n\n" for i in range(20))
SPANS = '{"text": "Ann flew to Oslo", "entities": [{"start": 0, "end": 3, "label": "PER"}]}\n'

CASES = (
    Bad("entities-empty-file", TASK, {"a.conll": ""}, {"a.conll": "the file is empty"}),
    Bad("entities-blank-lines-alone", TASK, {"a.conll": "\n\n\n"}, {"a.conll": "the file is empty"}),
    Bad("entities-one-column", TASK, {"a.conll": "Ann\nflew\n"}, {"a.conll": "its lines have 1 column"}),
    Bad(
        "entities-a-column-missing",
        TASK,
        {"a.conll": GOOD + "Bob\nsleeps O\n"},
        {"a.conll:row 101": "the line has 1 column where most have 2"},
    ),
    Bad(
        "entities-no-tags",
        TASK,
        {"a.conll": "Ann NNP PER\nflew VBD X\n\nBob NNP PER\n"},
        {
            "a.conll:row 1:entities": "`PER` is no tag: write O, or a type after one of B-, I-, M-, E-, L-, S-, U-",
            "a.conll:row 2:entities": "`X` is no tag: write O, or a type after one of B-, I-, M-, E-, L-, S-, U-",
            "a.conll:row 4:entities": "`PER` is no tag: write O, or a type after one of B-, I-, M-, E-, L-, S-, U-",
        },
    ),
    Bad(
        "entities-none-at-all",
        TASK,
        {"a.conll": "Ann O\nflew O\n\n" * 20},
        {"entities": "no example of train has an entity"},
    ),
    Bad(
        "entities-latin-1",
        TASK,
        {"a.conll": GOOD.encode() + "Bodø B-LOC\n".encode("latin-1")},
        {"a.conll:row 101": "the line is not UTF-8 text"},
    ),
    Bad(
        "entities-slips",
        TASK,
        {"a.conll": "Ann S-PER\nflew O\nto O\nOslo I-LOC\n\nBob E-PER\n"},
        {
            "a.conll:row 4:entities": "I-LOC has no LOC before it to go on from; the entity is not closed",
            "a.conll:row 6:entities": "E-PER has no PER before it to go on from",
        },
    ),
    Bad(
        "entities-unknown-column",
        TASK,
        {"a.conll": GOOD},
        {"a.conll:entities": "`7` is no column of the file"},
        columns={"entities": "7"},
    ),
    Bad(
        "entities-spans-outside",
        TASK,
        {"a.jsonl": SPANS * 9 + SPANS.replace('"end": 3', '"end": 99')},
        {"a.jsonl:row 10:entities": "[0, 99) ends behind the text, which has 16 characters (code points, not bytes)"},
    ),
    Bad(
        "entities-spans-backwards",
        TASK,
        {"a.jsonl": SPANS * 9 + SPANS.replace('"end": 3', '"end": 0')},
        {"a.jsonl:row 10:entities": "[0, 0) is empty: end is the first character behind the entity"},
    ),
    Bad(
        "entities-spans-overlap",
        TASK,
        {"a.jsonl": SPANS * 9 + SPANS.replace("]", ', {"start": 2, "end": 8, "label": "X"}]')},
        {"a.jsonl:row 10:entities": "[0, 3) `PER` and [2, 8) `X` overlap"},
    ),
    Bad(
        "entities-spans-without-label",
        TASK,
        {"a.jsonl": SPANS * 9 + SPANS.replace(', "label": "PER"', "")},
        {"a.jsonl:row 10:entities": '`{"start": 0, "end": 3}` is no entity: write an object with start, end'},
    ),
    Bad("entities-not-json", TASK, {"a.jsonl": SPANS * 9 + "Ann flew\n"}, {"a.jsonl:row 10": "the line is not JSON"}),
    Bad(
        "entities-no-text",
        TASK,
        {"a.jsonl": SPANS * 9 + '{"entities": []}\n'},
        {"a.jsonl:row 10:text": "there is no value"},
    ),
    Bad(
        "entities-start-is-a-word",
        TASK,
        {"a.jsonl": SPANS * 9 + SPANS.replace('"start": 0', '"start": "x"')},
        {"a.jsonl:row 10:entities": '`{"start": "x", "end": 3, "label": "PER"}`: start and end are not whole numbers'},
    ),
)
