"""Makes up short letters to a travel desk, in which people, places, companies and days are marked.

A third of all names never occur in more than a few letters, and sentences put them anywhere: who learns names by heart
does not get far.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

LABELS = {"person": "PERSON", "place": "PLACE", "company": "COMPANY", "day": "DATE"}
_SLOT = re.compile(r"\{(\w+)\}")

_LETTERS = (
    "Dear {company}, please send {person} the ticket to {place} before {day}.",
    "{person} and {person} fly from {place} to {place} on {day}.",
    "We stay in {place} until {day}; after that {person} takes over.",
    "Could you ask {company} whether the room in {place} is free on {day}?",
    "I met {person} of {company} at the station in {place}.",
    "My name is {person}, and I lost my bag between {place} and {place}.",
    "{company} charged us twice for the night of {day}.",
    "Is there a train to {place} on {day}, or only the bus of {company}?",
    "Tell {person} that the boat leaves {place} at nine.",
    "On {day} nobody at {company} answered, and {person} was stuck in {place}.",
    "The offices of {company} in {place} are closed on {day}.",
    "{person} would like the window seat; {person} does not mind.",
    "From {place} it is an hour by car to the hotel that {company} runs.",
    "Thank you for the quick help, {person}!",
    "Please cancel everything that was booked for {day}.",
    "{place} was lovely, {place} less so, says {person}.",
    "I work for {company} and travel to {place} every week.",
    "Why does {company} want the passport of {person} again?",
    "The meeting with {company} moved to {day}, so we need one more night in {place}.",
    "No meals, no car, just the ferry.",
)
_FIRST = (
    *(
        "Anna",
        "Bruno",
        "Chiara",
        "Dmitri",
        "Elif",
        "Farid",
        "Greta",
        "Hiro",
        "Ingrid",
        "Jonas",
        "Kemal",
        "Lucía",
        "Mateo",
    ),
    *(
        "Nadia",
        "Oskar",
        "Priya",
        "Quentin",
        "Rosa",
        "Sven",
        "Tomás",
        "Ulla",
        "Viktor",
        "Wanda",
        "Ximena",
        "Yara",
        "Zeno",
    ),
    *(
        "Aoife",
        "Björn",
        "Carmen",
        "Dae",
        "Emeka",
        "Fleur",
        "Gustav",
        "Hana",
        "Iker",
        "Jelena",
        "Kofi",
        "Leila",
        "Marek",
    ),
)
_LAST = (
    *("Abbott", "Bianchi", "Castillo", "Dahl", "Eriksen", "Fontaine", "Grünwald", "Haddad", "Ivanov", "Jansen", "Kaya"),
    *("Lindqvist", "Moreau", "Nakamura", "Okafor", "Petrov", "Quispe", "Ricci", "Schuster", "Tanaka", "Ueda", "Vargas"),
    *(
        "Whitlock",
        "Yilmaz",
        "Zielinski",
        "Achterberg",
        "Brandt",
        "Corrigan",
        "Duarte",
        "Engström",
        "Ferro",
        "Gallagher",
    ),
)
_PLACES = (
    *("Aarhus", "Bergen", "Bologna", "Cork", "Dresden", "Évora", "Funchal", "Gdansk", "Haarlem", "Innsbruck", "Jena"),
    *(
        "Kyoto",
        "Lyon",
        "Malmö",
        "Nîmes",
        "Odense",
        "Porto",
        "Quito",
        "Ravenna",
        "Sarajevo",
        "Tartu",
        "Utrecht",
        "Varna",
    ),
    *(
        "Worcester",
        "Yerevan",
        "Zadar",
        "New Haven",
        "San Remo",
        "Bad Ischl",
        "Port Louis",
        "Le Havre",
        "St Ives",
        "Ulm",
    ),
)
_COMPANIES = (
    *("Halden Travel", "Brightwater", "Orsini & Sons", "Kestrel Air", "Norvik Lines", "Ferrand", "Bluebell Hotels"),
    *(
        "Tallis Group",
        "Pinewood Rail",
        "Corvane",
        "Meridian Coaches",
        "Van Aalst",
        "Sundial",
        "Ashgrove Inns",
        "Letta Air",
    ),
    *(
        "Polestar Ferries",
        "Quillon",
        "Redfern Holdings",
        "Osprey Cars",
        "Zephyr Tours",
        "Hotel Miramar",
        "Dunmore Buses",
    ),
)
_DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "next Friday", "Easter Sunday"),
    *(
        "3 May",
        "17 June",
        "the 21st of August",
        "October 4th",
        "12 March 2027",
        "New Year's Eve",
        "30 September",
        "8 July",
    ),
)


def write(path: Path, count: int = 600, seed: int = 4) -> Path:
    """Writes letters as JSONL: `text`, and `entities` with start, end (in code points) and label."""
    random = np.random.default_rng(seed)
    lines = {json.dumps(letter(random), ensure_ascii=False): None for _ in range(count)}
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def letter(random: np.random.Generator) -> dict[str, object]:
    """One or two sentences with their entities."""
    text, entities = "", []
    for _ in range(int(random.integers(1, 3))):
        rest = ("" if not text else " ") + _LETTERS[random.integers(len(_LETTERS))]
        while slot := _SLOT.search(rest):
            text += rest[: slot.start()]
            name = _name(slot[1], random)
            entities.append({"start": len(text), "end": len(text) + len(name), "label": LABELS[slot[1]]})
            text += name
            rest = rest[slot.end() :]
        text += rest
    return {"text": text, "entities": entities}


def _name(kind: str, random: np.random.Generator) -> str:
    if kind == "person":
        first, last = _pick(_FIRST, random), _pick(_LAST, random)
        return (f"{first} {last}", first, f"Ms {last}", f"Mr {last}")[random.integers(4)]
    return _pick({"place": _PLACES, "company": _COMPANIES, "day": _DAYS}[kind], random)


def _pick(names: tuple[str, ...], random: np.random.Generator) -> str:
    """The first names come often, the last ones seldom."""
    return names[int(len(names) * random.random() ** 1.7)]
