"""The language of what users wrote, by py3langid's model (Lui & Baldwin 2012, "langid.py: an off-the-shelf language
identification tool"), which ships in its package: 97 languages, no download, some 20,000 texts a second."""

from functools import lru_cache
from typing import Any

from tunegate.core.rows import Row
from tunegate.train.data.normalize import user_text

# Below this probability, and for fewer letters, no language is named: short texts, code and JSON.
SURE = 0.5
LETTERS = 8
CHARACTERS = 1000
UNSURE = "unsure"


def language(row: Row) -> str:
    """ISO 639 code of the language of a row's user turns (their first 1,000 characters), or `unsure`."""
    text = user_text(row)[:CHARACTERS]
    if sum(map(str.isalpha, text)) < LETTERS and text.isascii():
        return UNSURE
    code, probability = _identifier().classify(text)
    return str(code) if probability >= SURE else UNSURE


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
