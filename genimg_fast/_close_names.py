"""Names that somebody may have meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """Make ``"; did you mean dcgan?"`` for ``dcgn``; an empty text if nothing known is close."""
    names = {_key(str(name)): str(name) for name in known}
    word = _key(word)
    close = [word] if word in names else difflib.get_close_matches(word, names)
    return f"; did you mean {', '.join(names[key] for key in close)}?" if close else ""


def invalid_choice(word: object, known: Iterable[object], more: str = "") -> str:
    """Say that a word is none of those known: which are close, or all of them, and what else there is."""
    names = [str(name) for name in known]
    hint = did_you_mean(str(word), names) or f" (choose from {', '.join(names)}{more})"
    return f"invalid choice: {word!r}{hint}"


def _key(name: str) -> str:
    # The dashes before flags would make any two of them alike.
    return name.lstrip("-").replace("_", "-").lower()
