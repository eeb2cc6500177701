"""Single digits as words: prompts such as 'press 5' are read in only one way; longer numbers are not."""

_WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "es": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    "fr": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    "it": ("zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"),
    "nl": ("nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen"),
    "ru": ("ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять"),
}


def spell_digits(text: str, language: str) -> str | None:
    """The normalised text with single digits as words; None if digits are left, since then it is no transcript."""
    words = _WORDS.get(language)
    spelled = [words[int(w)] if words and len(w) == 1 and w in "0123456789" else w for w in text.split()]
    return None if any(c.isnumeric() for w in spelled for c in w) else " ".join(spelled)
