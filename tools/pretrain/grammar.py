"""Makes up plain English sentences, which the text base is pretrained on. Every word was written for this purpose."""

from __future__ import annotations

import re

import numpy as np

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(random: np.random.Generator) -> str:
    """One sentence, or a question, an exclamation, a short message."""
    text = _expand("{sentence}", random)
    return text if random.random() < 0.25 else text[0].upper() + text[1:]


def _expand(text: str, random: np.random.Generator) -> str:
    while match := _SLOT.search(text):
        options = RULES[match[1]]
        text = text[: match.start()] + options[random.integers(len(options))] + text[match.end() :]
    return text


def _words(text: str) -> list[str]:
    """Alternatives, separated by commas."""
    return [" ".join(part.split()) for part in text.split(",")]


RULES: dict[str, list[str]] = {
    "sentence": [
        *("{review}", "{review} {review}", "{judgement}, {but} {judgement}.", "{story}", "{story}", "{story} {review}"),
        *("{question}", "{request}", "{news}", "{news}", "{fact}", "{fact}", "{message}", "{said}", "{plan}"),
    ],
    "review": [
        *("the {thing} is {very} {good}.", "the {thing} is {very} {bad}.", "the {thing} is {fair}."),
        *("{very} {good} {thing}.", "{very} {bad} {thing}.", "{fair}, nothing more.", "i {loved} this {thing}."),
        *("i {hated} this {thing}.", "we {loved} the {thing} and will {comeback}.", "we {hated} the {thing}."),
        *(
            "{good} {thing}, {good} {thing}, {bad} {thing}.",
            "the {thing} tastes {good}.",
            "the {thing} smells of {food}.",
        ),
        *("it {works} {well}.", "it {fails} {often}.", "{number} stars.", "worth every {coin}.", "a waste of {money}."),
        *("not {good}, not {bad}, just {fair}.", "{never} again.", "{always} a pleasure.", "it is not {good} at all."),
        *("the {person_kind} was {very} {good}.", "the {person_kind} was {bad} and {bad}.", "i expected more."),
    ],
    "judgement": ["it is {good}", "it is {bad}", "it is {fair}", "the {thing} is {good}", "the {thing} is {bad}"],
    "but": _words("but, and, yet, although, so, because, while, and yet"),
    "story": [
        *(
            "{name} {did} the {thing} {where}.",
            "{name} and {name} {went} to {place} {when}.",
            "the {animal} {did} a {thing}.",
        ),
        *("{when} {name} {did} {number} {plural}.", "the {person_kind} {did} the {adjective} {thing} with a {thing}."),
        *(
            "{name} {surname}, a {person_kind} from {place}, {did} the {thing}.",
            "they {went} {where} and {did} the {thing}.",
        ),
        *("a {adjective} {animal} {went} {where}.", "{name} {did} it {well}, {but} the {person_kind} {did} it {when}."),
        *(
            "nobody {did} the {thing} {when}.",
            "she {did} her {thing} and he {did} his.",
            "the {colour} {thing} is {where}.",
        ),
    ],
    "question": [
        *(
            "where is my {thing}?",
            "when will my {thing} {arrive}?",
            "how do i {do} my {account}?",
            "why was i charged {when}?",
        ),
        *("can i {do} the {account} {when}?", "what is the {account} for {place}?", "is the {thing} {where}?"),
        *(
            "how much is the {thing}?",
            "who {did} the {thing}?",
            "do you have {plural} in {colour}?",
            "what should i do {when}?",
        ),
        *("how long does the {account} take?", "which {thing} is {good}?", "is there a fee for the {account}?"),
    ],
    "request": [
        *("please {do} my {account}.", "i want to {do} my {account} {when}.", "i would like to {do} a {thing}."),
        *("my {account} {fails}, please help.", "i lost my {thing} {where}.", "someone {did} my {account}."),
        *(
            "the {account} {works} {well}, thank you.",
            "tell {name} to {do} the {thing}.",
            "i need {number} {plural} {when}.",
        ),
    ],
    "news": [
        *(
            "{company} {did_business} {company} for {number} million {currency}.",
            "{name} {surname} joins {company} as {role}.",
        ),
        *("{company} opens a {building} in {place} {when}.", "{place} {wins} {place} by {number} to {number}."),
        *("the {role} of {company}, {name} {surname}, {spoke} in {place}.", "rain is expected in {place} {when}."),
        *("{name} {surname} was born in {place} in {year}.", "{company} cuts {number} jobs in {place}."),
        *("the {building} in {place} closed in {year}.", "prices of {food} rose by {number} percent in {month}."),
    ],
    "fact": [
        *("patients with {illness} often have {symptom}.", "{illness} is a {adjective} disease of the {organ}."),
        *(
            "{symptom} may be a sign of {illness} or {illness}.",
            "the {animal} lives in {landscape}.",
            "{food} grows in {landscape}.",
        ),
        *("a mutation was found in {number} families with {illness}.", "the {organ} of the {animal} is {adjective}."),
        *("the {person_kind} treats {illness} with {medicine}.", "{medicine} helps against {symptom} and {symptom}."),
        *("{place} lies in the {landscape}, {number} miles from {place}.", "the {thing} is made of {material}."),
    ],
    "message": [
        *("hey {name}, {call} me {when}!", "ok, see you {where} {when}.", "sorry, i am late, the {thing} {fails}."),
        *("congratulations! you have won a {thing}, call {digits} now.", "free {plural}! reply yes to {digits}."),
        *("urgent: your {account} ends {when}, text stop to {digits}.", "are you {where}? i am {where}."),
        *(
            "happy birthday {name}!",
            "no problem :)",
            "lol, that {animal}!",
            "thanks, {name}. {review}",
            "win {number} {currency} {when}!",
        ),
    ],
    "said": [
        *('"{judgement}," said {name}.', '"{question}" asked the {person_kind}.', "{name} said that {judgement}."),
        *("{name} thinks the {thing} is {good}.", "the {person_kind} told {name}: {request}"),
    ],
    "plan": [
        *("{when} we {go} to {place}.", "let us {do} the {thing} {when}.", "i will {do} it {when}, {but} not {where}."),
        *(
            "if it rains, we {go} {where}.",
            "the {thing} starts at {number} {when}.",
            "book a {thing} for {number} in {place}.",
        ),
        *(
            "listen to {food} by {name}.",
            "play a {adjective} song.",
            "set an alarm for {number}.",
            "find a {good} {building} in {place}.",
        ),
    ],
    "very": _words("very, really, quite, so, too, rather, extremely, truly, a bit, pretty, not very, incredibly"),
    "good": _words(
        "good, great, lovely, excellent, wonderful, delicious, crisp, fresh, bright, balanced, friendly, fast, clean, "
        "warm, smooth, rich, perfect, fine, superb, pleasant, helpful, comfortable, cheap, tasty, charming, best, "
        "amazing, nice, clear"
    ),
    "bad": _words(
        "bad, terrible, awful, flat, sour, stale, watery, thin, bitter, rude, slow, dirty, cold, broken, dull, "
        "boring, poor, horrible, weak, expensive, burnt, loud, ugly, useless, disgusting, worst, disappointing, "
        "greasy, faulty, empty, unclear"
    ),
    "fair": _words(
        "fair, okay, average, decent, ordinary, fine, mixed, all right, acceptable, passable, so so, usual, plain, "
        "mediocre"
    ),
    "loved": _words("loved, liked, enjoyed, adored, recommend, admired, appreciated"),
    "hated": _words("hated, disliked, regret, returned, avoided, could not stand, threw away"),
    "comeback": _words("come back, return, order again, tell our friends, buy it again"),
    "works": _words("works, runs, fits, plays, starts, arrives, looks, helps"),
    "fails": _words("fails, breaks, stops, leaks, crashes, is late, does not work, is missing, was declined, got lost"),
    "well": _words("well, perfectly, as expected, quickly, without trouble, at once, nicely, for years"),
    "often": _words("often, every day, all the time, again and again, after a week, twice, at night"),
    "never": _words("never, not, never ever"),
    "always": _words("always, still, again, every time"),
    "coin": _words("penny, cent, euro, pound, dollar"),
    "money": _words("money, time, space, paper, a good evening"),
    "thing": _words(
        "beer, ale, lager, stout, wine, coffee, tea, meal, soup, room, bed, phone, card, book, film, song, car, "
        "train, ticket, table, chair, lamp, coat, shoe, bag, camera, screen, letter, parcel, garden, bridge, boat, "
        "knife, clock, game, hat, aroma, taste, finish, body, head, colour, bottle, glass, service, price, battery, "
        "cable, key, door, window, story"
    ),
    "plural": _words(
        "beers, books, cards, tickets, tables, chairs, letters, parcels, keys, bottles, glasses, shoes, songs, rooms, "
        "apples, stones, boxes, coins, cups, plates, pictures, birds, trees, questions, days, phones, bags"
    ),
    "food": _words(
        "bread, butter, cheese, apple, orange, banana, peach, lemon, grape, mango, honey, chocolate, caramel, "
        "vanilla, malt, hops, barley, rice, corn, potato, onion, garlic, pepper, salt, sugar, milk, fish, chicken, "
        "beef, pine, grass, smoke, nuts"
    ),
    "person_kind": _words(
        "waiter, barman, doctor, nurse, teacher, driver, farmer, singer, player, lawyer, engineer, painter, writer, "
        "student, neighbour, manager, guest, child, woman, man, friend, brother, sister, baker, clerk, pilot, judge, "
        "captain, host"
    ),
    "animal": _words(
        "dog, cat, horse, cow, bird, fish, fox, bear, wolf, mouse, rat, sheep, goat, owl, frog, snake, bee, whale"
    ),
    "name": _words(
        "anna, ben, carla, david, emma, frank, grace, henry, ines, john, kate, leo, maria, nina, oscar, paul, rosa, "
        "sam, tom, vera, walter, yusuf, zoe, ali, chen, priya, kofi, lena, mark, olga, peter, ruth, mary, james, "
        "linda, george, sarah"
    ),
    "surname": _words(
        "smith, jones, brown, garcia, miller, weber, rossi, novak, kim, singh, lopez, martin, clark, wright, walker, "
        "young, hill, wood, baker, cook, fisher, king, lee, moore, stone, west, berg, silva, costa, khan, wang, "
        "tanaka, dubois"
    ),
    "place": _words(
        "london, paris, berlin, madrid, rome, vienna, prague, lisbon, dublin, oslo, boston, chicago, denver, texas, "
        "florida, tokyo, delhi, cairo, lagos, lima, sydney, toronto, york, bath, kent, wales, france, spain, italy, "
        "japan, india, brazil, new york, san diego, the north, the old town, canada, china, mexico, kenya, egypt, "
        "chile, greece, norway"
    ),
    "company": _words(
        "acme, northwind, globex, initech, umbra, blue river, stark and sons, orion, vertex, delta air, first bank, "
        "red kite, harbour group, silver line, apex, nova labs, green field, union rail, summit, atlas"
    ),
    "role": _words("director, chairman, president, chief, minister, mayor, head, coach, editor, treasurer, founder"),
    "building": _words(
        "factory, school, hospital, library, museum, hotel, station, shop, restaurant, theatre, church, bank, bar"
    ),
    "did_business": _words("buys, sells, sues, joins, leaves, beats, bought, sold, sued, took over"),
    "wins": _words("beats, defeats, loses to, beat, draws with"),
    "spoke": _words("spoke, resigned, arrived, died, worked, sang, lost, won, stayed"),
    "year": [str(year) for year in range(1900, 2030, 7)],
    "month": _words("january, february, march, april, may, june, july, august, september, october, november, december"),
    "currency": _words("dollars, euros, pounds, yen, francs"),
    "account": _words(
        "account, card, payment, transfer, refund, top up, balance, pin, password, address, order, delivery, exchange "
        "rate, cash withdrawal, direct debit, statement, identity, transaction, limit, booking, ticket, subscription"
    ),
    "do": _words(
        "cancel, change, check, find, activate, block, verify, send, receive, pay, stop, open, close, order, return, "
        "update, track, unblock, get, make, use, see, buy, sell, clean, paint, read"
    ),
    "did": _words(
        "found, lost, bought, sold, made, broke, painted, carried, saw, took, gave, opened, closed, cleaned, wrote, "
        "read, kept, drew, moved, dropped, hid, burned, built, cut, washed, stole, changed, cancelled, paid, watched, "
        "ate, wanted"
    ),
    "went": _words("went, walked, drove, flew, ran, moved, travelled, came, sailed, rode"),
    "go": _words("go, walk, drive, fly, travel, move, ride, sail"),
    "arrive": _words("arrive, come, be delivered, be ready, work, be sent, be back"),
    "call": _words("call, text, ring, meet, help, write, ask"),
    "where": _words(
        "at home, in the house, in the garden, at school, at work, on the table, under the bridge, near the river, in "
        "the bag, on the train, at the station, in the street, behind the door, outside, upstairs, in town, on the "
        "road, by the sea"
    ),
    "when": _words(
        "today, tomorrow, yesterday, tonight, this morning, next week, last year, on monday, on friday, on sunday, at "
        "noon, in the evening, in spring, in winter, soon, later, last night, two days ago, in may, every day, now, "
        "twice, at once"
    ),
    "number": _words(
        "one, two, three, four, five, six, seven, eight, nine, ten, twelve, twenty, thirty, fifty, a hundred, 1, 2, "
        "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 24, 30, 42, 50, 60, 75, 90, 100, 250, 500, 1000"
    ),
    "digits": _words("80082, 87121, 07712345678, 08000839402, 150, 02085076972, 4403, 61610"),
    "adjective": _words(
        "old, new, big, small, long, short, young, heavy, light, dark, deep, rare, common, strange, quiet, open, "
        "round, soft, hard, wet, dry, sharp, wide, narrow, severe, mild, chronic, inherited, famous, local, simple"
    ),
    "colour": _words(
        "red, blue, green, yellow, black, white, brown, grey, orange, purple, pink, golden, dark, amber, pale"
    ),
    "illness": _words(
        "breast cancer, diabetes, asthma, anemia, colon cancer, heart failure, malaria, measles, arthritis, epilepsy, "
        "leukemia, muscular dystrophy, stroke, pneumonia, kidney disease, ovarian cancer, a skin tumour, cystic "
        "fibrosis, hepatitis, retinal dystrophy, lymphoma, a rare syndrome, high blood pressure, migraine, ataxia"
    ),
    "symptom": _words(
        "pain, fever, cough, headache, swelling, weakness, nausea, bleeding, rash, fatigue, loss of hearing"
    ),
    "organ": _words("heart, liver, kidney, lung, skin, brain, eye, blood, bone, stomach, muscle, nerve"),
    "medicine": _words("aspirin, insulin, penicillin, rest, surgery, a vaccine, iron, steroids, water, an antibiotic"),
    "landscape": _words(
        "mountains, desert, forest, sea, river, valley, hills, islands, plains, north, south, tropics, city"
    ),
    "material": _words(
        "wood, stone, glass, iron, steel, paper, wool, cotton, leather, clay, gold, silver, plastic, copper"
    ),
}
