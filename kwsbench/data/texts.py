"""What the synthetic voices say: confusables of the default keyword, single words, and a small grammar.

All of it is this project's own text. `sentence(rng, keyword)` draws a sentence that never has the keyword.
"""

import numpy as np

KEYWORD = "computer"

# Parts of the keyword, words that share its stress and syllables, rhymes, and phrases that come close.
CONFUSABLES = (
    "compute", "computing", "computed", "commuter", "commuters", "commute", "commuting", "compete",
    "competing", "competitor", "complete", "completed", "composer", "compost", "compare", "component",
    "companion", "company", "complaint", "compass", "consumer", "conductor", "confuser", "contributor",
    "producer", "recruiter", "polluter", "pewter", "tutor", "scooter", "shooter", "router", "neutral",
    "suitor", "Jupiter", "disputed", "reputed", "deputy", "amputate", "future", "come to her",
    "come and put her", "come here", "come soon", "a pewter cup", "can you do it", "can pewter",
    "compute it", "compute this", "compute a sum", "computation", "comb the future", "the tutor",
    "a commuter train", "some pewter", "come future",
)  # fmt: skip

WORDS = (
    "water", "letter", "better", "summer", "winter", "paper", "dinner", "window", "garden", "table",
    "yellow", "music", "morning", "evening", "yesterday", "tomorrow", "remember", "together", "another",
    "September", "October", "banana", "potato", "tomato", "umbrella", "elephant", "hospital", "library",
    "telephone", "radio", "kitchen", "bedroom", "happy", "angry", "simple", "purple", "orange", "seven",
    "eleven", "twenty", "hundred", "yes", "no", "stop", "go", "left", "right", "up", "down", "on", "off",
    "hello", "goodbye", "please", "thanks", "alarm", "timer", "weather", "volume", "camera", "ceiling",
    "lamp", "door", "street", "mountain", "river", "island", "forest", "animal", "doctor", "teacher",
    "farmer", "sister", "brother", "mother", "father",
)  # fmt: skip

PEOPLE = (
    "the farmer", "my neighbour", "her brother", "our teacher", "the old man", "a young woman",
    "the children", "everyone in the village", "the doctor", "a tall stranger", "his aunt", "the baker",
    "two sailors", "the crowd", "my oldest friend", "the guests", "a tired nurse", "the gardener",
    "somebody", "the whole family", "Anna", "Peter", "the committee", "a few tourists", "the mayor",
    "those students", "the driver", "nobody",
)  # fmt: skip
PAST = (
    "walked", "waited", "sang", "argued", "laughed", "worked", "slept", "listened",
    "talked about the weather", "bought bread", "lost a glove", "found a silver coin", "painted a chair",
    "read a long letter", "cooked soup", "looked for the keys", "played the piano", "told a story",
    "repaired an engine", "watched the birds", "carried a heavy box", "asked a question", "kept quiet",
    "made tea", "opened every window", "sold apples", "wrote a song", "planted beans",
    "counted the boats", "forgot the time", "tried again", "shook hands",
)  # fmt: skip
PLACES = (
    "in the garden", "by the river", "behind the station", "at the market", "under the bridge",
    "near the harbour", "on the second floor", "in a small kitchen", "outside the theatre",
    "along the coast", "on the last bus", "in the snow", "at the edge of the forest",
    "in the middle of the square", "across the field", "at home",
)  # fmt: skip
TIMES = (
    "yesterday", "on Monday", "last summer", "before breakfast", "late at night", "for three hours",
    "in the rain", "all afternoon", "twice a week", "at half past nine", "when the lights went out",
    "after the concert", "until the music stopped", "as usual", "without a word", "for the first time",
    "in early October",
)  # fmt: skip
OPENINGS = (
    "I think", "they say", "perhaps", "it seems", "we heard that", "nobody knew that",
    "she told me that", "of course", "in the end", "to be honest", "as far as I know", "once again",
    "the paper wrote that",
)  # fmt: skip
REMARKS = (
    "what a strange idea", "that is enough for today", "please close the door",
    "it will be colder tomorrow", "the train leaves from platform four",
    "there were twenty one people in the room", "how much does it cost",
    "nothing could be heard but the wind", "the soup needs more salt",
    "do you remember that long winter", "we should leave before it gets dark",
    "the price of butter went up again", "turn left after the church", "he never answers the telephone",
    "could you help me with this table", "the river was high that spring",
)  # fmt: skip


def sentence(rng: np.random.Generator, keyword: str) -> str:
    """One sentence of three to twenty words that does not contain the keyword."""
    while True:
        text = _sentence(rng)
        if keyword.lower() not in text.lower():
            return text


def _sentence(rng: np.random.Generator) -> str:
    def pick(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    shape = rng.integers(6)
    if shape == 0:
        return f"{pick(REMARKS)}."
    clause = f"{pick(PEOPLE)} {pick(PAST)} {pick(PLACES)}"
    if shape == 1:
        return f"{pick(OPENINGS)} {clause}."
    if shape == 2:
        return f"{clause} {pick(TIMES)}."
    if shape == 3:
        return f"{clause}, and {pick(PEOPLE)} {pick(PAST)} {pick(TIMES)}."
    if shape == 4:
        return f"{pick(TIMES)}, {clause}, but {pick(PEOPLE)} {pick(PAST)}."
    return f"{pick(OPENINGS)} {pick(PEOPLE)} {pick(PAST)} {pick(TIMES)}, and the {pick(WORDS)} was gone."


DEVICES = ("lamp", "radio", "heating", "camera", "music", "fan")
ROOMS = ("kitchen", "garden", "hall", "bedroom")
NUMBERS = ("two", "three", "five", "seven", "ten", "twenty")
DAYS = ("today", "tomorrow", "tonight")
CHORES = ("call my mother", "close the window", "open the gate", "call the doctor", "buy bread", "lock the door")


def requests() -> tuple[str, ...]:
    """All sentences of a small grammar of requests to a house, sorted."""
    lines = {f"turn {way} the {device}" for way in ("on", "off") for device in DEVICES}
    lines |= {f"{line} in the {room}" for line in lines for room in ROOMS}
    lines |= {f"is the {device} on in the {room}" for device in DEVICES for room in ROOMS}
    lines |= {f"set {what} for {n} {unit}" for what in ("a timer", "an alarm") for n in NUMBERS
              for unit in ("minutes", "hours")}  # fmt: skip
    lines |= {f"remind me {day} to {chore}" for day in DAYS for chore in CHORES}
    lines |= {f"{chore} please" for chore in CHORES} | set(CHORES)
    lines |= {f"how {how} is it {where}" for how in ("cold", "warm") for where in (*DAYS, "in the garden")}
    lines |= {"stop the music", "what time is it", "louder please", "quieter please", "good night"}
    return tuple(sorted(lines))


REQUESTS = requests()
