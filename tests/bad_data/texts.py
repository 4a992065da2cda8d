"""Labelled texts."""

from bad_data.case import Bad

TASK = "text-classification"
GOOD = "text,label\n" + "".join(f"I want my money {i},refund\nWhere is parcel {i},delivery\n" for i in range(10))
JSON_LINES = '{"text": "Where is it?", "label": "delivery"}\n'

SEVERAL = {"labels": "several"}

CASES = (
    Bad("texts-empty-file", TASK, {"a.csv": ""}, {"a.csv": "the file is empty"}),
    Bad("texts-header-alone", TASK, {"a.csv": "text,label\n"}, {"a.csv": "the file has no rows"}),
    Bad(
        "texts-no-label-column",
        TASK,
        {"a.csv": GOOD.replace("label", "queue")},
        {"a.csv:label": "there is no column `label`"},
    ),
    Bad(
        "texts-other-columns",
        TASK,
        {"a.csv": "id;body;queue\n1;Hello;x\n"},
        {"a.csv:text": "there is no column `text`", "a.csv:label": "there is no column `label`"},
    ),
    Bad(
        "texts-a-column-twice",
        TASK,
        {"a.csv": "text,label,text\na,b,c\n"},
        {"a.csv": "there are several columns `text`"},
    ),
    Bad(
        "texts-mapped-column-missing",
        TASK,
        {"a.csv": GOOD},
        {"a.csv:label": "there is no column `queue`"},
        columns={"label": "queue"},
    ),
    Bad(
        "texts-one-class",
        TASK,
        {"a.csv": GOOD.replace("delivery", "refund")},
        {"label": "train has 1 class (`refund`)"},
    ),
    Bad(
        "texts-empty-cells",
        TASK,
        {"a.csv": GOOD + ",refund\nNo label,\n,\n"},
        {
            "a.csv:row 21:text": "there is no value",
            "a.csv:row 22:label": "there is no value",
            "a.csv:row 23:text": "there is no value",
            "a.csv:row 23:label": "there is no value",
        },
    ),
    Bad(
        "texts-white-space",
        TASK,
        {"a.csv": GOOD + '"  ",refund\n'},
        {"text": "1 of the 17 examples of train have an empty text"},
    ),
    Bad(
        "texts-latin-1",
        TASK,
        {"a.csv": GOOD.encode() + "Où est-il ?,delivery\n".encode("latin-1")},
        {"a.csv:row 21:text": "the value is not UTF-8 text"},
    ),
    Bad("texts-utf-16", TASK, {"a.csv": GOOD.encode("utf-16")}, {"a.csv": "the header is not UTF-8 text"}),
    Bad(
        "texts-too-many-cells",
        TASK,
        {"a.csv": GOOD + "Where, oh where,delivery\n"},
        {"a.csv:row 21": "the row has 3 columns where 2 are expected"},
    ),
    Bad(
        "texts-open-quote", TASK, {"a.csv": GOOD + '"Where is it,delivery\n'}, {"a.csv:row 21": "the row is malformed"}
    ),
    Bad(
        "texts-not-json",
        TASK,
        {"a.jsonl": JSON_LINES + "Where?\n" + JSON_LINES},
        {"a.jsonl:row 2": "the line is not JSON"},
    ),
    Bad(
        "texts-json-of-other-kinds",
        TASK,
        {"a.jsonl": '{"text": ["a"], "label": "x"}\n[1]\n{"label": {"a": 1}}\n'},
        {
            "a.jsonl:text": "the column holds list<item: string> where single values are wanted",
            "a.jsonl:row 2": "the line is not a JSON object",
            "a.jsonl:row 3:label": "the value is an object; there is no value",
        },
    ),
    Bad("texts-no-parquet", TASK, {"a.parquet": GOOD}, {"a.parquet": "the file is not Parquet"}),
    Bad("texts-unknown-format", TASK, {"a.xlsx": GOOD}, {"files[0]": "xlsx"}),
    Bad(
        "texts-classes-of-test-alone",
        TASK,
        {"train.csv": GOOD, "test.csv": "text,label\nHello,greeting\n"},
        {"label": "test has classes that train lacks: `greeting`"},
        roles={"train": "train.csv", "test": "test.csv"},
    ),
    Bad(
        "texts-both-files-bad",
        TASK,
        {"train.csv": GOOD + "No label,\n", "test.csv": "text,label\n,refund\n"},
        {"train.csv:row 21:label": "there is no value", "test.csv:row 1:text": "there is no value"},
        roles={"train": "train.csv", "test": "test.csv"},
    ),
    Bad(
        "texts-no-label-column-of-several",
        TASK,
        {"a.csv": "text,late,rude\nWhere is it?,1,0\n"},
        {"a.csv:label": "there is no column `lost`"},
        columns={"label": "late,lost,rude"},
        options=SEVERAL,
    ),
    Bad(
        "texts-a-label-that-is-no-flag",
        TASK,
        {"a.csv": "text,late,rude\nWhere is it?,yes,0\nHey!,0,-1\n"},
        {"a.csv:row 1:label": "`yes` is not true", "a.csv:row 2:label": "`-1` is not true"},
        columns={"label": "late,rude"},
        options=SEVERAL,
    ),
    Bad(
        "texts-without-any-label",
        TASK,
        {"a.csv": "text,label\n" + "".join(f"Where is parcel {i}?,\n" for i in range(20))},
        {"label": "train has 0 classes"},
        options=SEVERAL,
    ),
    Bad(
        "texts-of-one-label-with-a-list",
        TASK,
        {"a.jsonl": '{"text": "Where is it?", "label": ["late", "rude"]}\n'},
        {"a.jsonl:label": "the column holds list"},
    ),
)
