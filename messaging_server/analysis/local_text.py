"""Text as the `local` analyser reads it: cleaned, cut into sentences and words, its language known.

Knows nothing of priorities, tags or commands; those are in `local_rules`.
"""

import re
import unicodedata

from msgspec import Struct

MESSAGE_CHARACTERS = 2_000
LANGUAGE_WORDS = 400
SHORT_TEXT_WORDS = 6

_UNSEEN_CATEGORIES = frozenset({"Cf", "Cs", "Co", "Cn"})
_LINK = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_HANDLE = re.compile(r"(?<![\w.])@\w+")
_LEADING_HANDLES = re.compile(r"^(?:\W*@\w+[^\w@]*)+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=\S)|\s*\n\s*")
_CLAUSE_END = re.compile(r"[,;]\s+|\s+(?:because|but|since|porque|pero|ya que)\s+", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+|[,;:.!?()\[\]{}\"]")
_SPACE = re.compile(r"\s+")
_APOSTROPHES = dict.fromkeys(map(ord, "'\u2019\u2018`\u00b4\u02bc"))

# Frequent words that tell a language from its neighbours. Only the first two have rules;
# the others are here so that their speakers are not taken for English or Spanish.
_FUNCTION_WORDS = {
    "en": "the a an and are is was i you my it to of in for with that this have has not do does"
    " cant dont im how what why when on be but your can please help",
    "es": "el la los las un una y es son no de del en para con que por mi me se lo su como esta"
    " este tengo hola gracias pero mas muy ya puedo quiero favor ayuda cuando donde mis le al",
    "pt": "o os as um uma nao e de do da em para com que por meu minha eu voce esta muito mas"
    " obrigado ola quero meus dos das ao pelo",
    "fr": "le la les un une et est je vous mon ma mes ne pas de du des en pour avec que qui ce"
    " sur il elle nous bonjour merci mais dans votre",
    "de": "der die das ein eine und ist ich sie mein meine nicht zu von mit fur auf es wir bitte"
    " danke kann habe hallo den dem aber wie",
    "it": "il lo la gli un una e di del che non per con mio mia sono ho ciao grazie ma come"
    " questo nel della mi si",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}


class Words(Struct, frozen=True):
    """The folded words of a piece of text; `breaks[i]` says that punctuation precedes word i."""

    words: tuple[str, ...]
    breaks: tuple[bool, ...]


def clean(text: str, *, limit: int = MESSAGE_CHARACTERS) -> str:
    """`text` in NFKC without characters nobody sees, links and leading handles; lines stay.

    Of a text over `limit` (and MESSAGE_CHARACTERS at most) three quarters are kept from its
    start and the rest from its end.
    """
    limit = min(limit, MESSAGE_CHARACTERS)
    if len(text) > limit:
        head = limit * 3 // 4
        text = f"{text[:head]}\n{text[head - limit :]}"
    if not text.isascii():
        text = unicodedata.normalize("NFKC", "".join(filter(_is_seen, text)))
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return _LEADING_HANDLES.sub("", _LINK.sub(" ", text).strip())


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN_CATEGORIES


def fold(text: str) -> str:
    """Lower case, without accents and apostrophes: `Can't` is `cant`, `contraseña` `contrasena`."""
    text = text.casefold().translate(_APOSTROPHES)
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def split_sentences(text: str) -> list[str]:
    """The sentences of a cleaned text, white space made single, none empty."""
    pieces = (_SPACE.sub(" ", piece).strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if piece]


def split_clauses(sentence: str) -> list[str]:
    return [clause for clause in _CLAUSE_END.split(sentence) if clause]


def split_words(text: str) -> Words:
    """The folded words of `text`, without handles; hyphens separate, apostrophes do not.

    A word said more than twice in a row is heard twice.
    """
    words: list[str] = []
    breaks: list[bool] = []
    after_break = False
    for match in _WORD.findall(fold(_HANDLE.sub(" ", text))):
        if not match.isalnum():
            after_break = True
        elif words[-2:] != [match, match]:
            words.append(match)
            breaks.append(after_break)
            after_break = False
    return Words(words=tuple(words), breaks=tuple(breaks))


def guess_language(words: list[str]) -> str | None:
    """`en`, `es` or another code of two letters; None when too few frequent words tell."""
    sample = words[:LANGUAGE_WORDS]
    counts = {name: sum(w in known for w in sample) for name, known in _LANGUAGES.items()}
    best = max(counts, key=lambda name: counts[name])
    enough = 1 if len(sample) <= SHORT_TEXT_WORDS else 2
    return best if counts[best] >= enough else None
