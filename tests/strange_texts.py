"""Texts that a tokenizer or a picture may stumble over."""

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
