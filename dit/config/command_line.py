"""From a configuration back to the words that were typed for it."""

import dataclasses
from typing import Any

from dit.config.flag_names import flag_name, is_positional


def flag_words(config: Any) -> list[str]:
    """Return the words of a command line that gives this configuration, without defaults."""
    fields = dataclasses.fields(config)
    words = [str(getattr(config, field.name)) for field in fields if is_positional(field)]
    # what is required first, as the run
    for field in sorted(fields, key=lambda one: one.default is not dataclasses.MISSING):
        value = getattr(config, field.name)
        if not is_positional(field) and value != field.default:
            words += _typed(flag_name(field.name), value)
    return words


def _typed(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, tuple) else (value,)
    words: list[str] = []
    for one in values:
        word = _word(one)
        # a value that looks like a flag is joined to its own, which is typed again
        is_joined = word.startswith("-") and (isinstance(one, str) or not words)
        words += [f"{flag}={word}"] if is_joined else [word]
    return words if words and words[0].startswith(f"{flag}=") else [flag, *words]


def _word(value: Any) -> str:
    """Return a value as text from which it is read back exactly."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
