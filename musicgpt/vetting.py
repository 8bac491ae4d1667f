"""A stranger's tokenizer.json -> what tokenizers and miditok can be given; or a refusal that names what is wrong.

Both libraries do what such a file says: a configuration of miditok can ask for a vocabulary of any size, and a
pipeline of tokenizers 0.23.3 can grow a text a million times, search a pattern without end, or panic. So what is
passed on is what GPT-2 and miditok write, of a size that they have a use for. The rest is named and refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from musicgpt.errors import TokenizerError

EVERY_CHARACTER = {"Regex": r"[\s\S]"}
"""The one pattern that is ours: an id for each character."""

PARTS: dict[str, tuple[str, ...]] = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("ByteLevel", "Metaspace"),
    "decoder": ("ByteLevel", "Metaspace", "Fuse"),
}
"""What may stand around the merges, or nothing: no part that the file itself programs."""

WITHOUT_USE = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
"""What would change ids behind the merges. Whoever builds a sequence adds its special ids."""

LONGEST = 2**12
"""Characters of a token (base tokens, of music). The longest of GPT-2 has 128."""


def vetted_merges(values: Any, name: str) -> Tokenizer:
    """The JSON of a tokenizer of byte-pair merges, its ids from 0 without gaps -> that tokenizer.

    Raises:
        TokenizerError: another model, a part that is not known here, or no vocabulary.
    """
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict):
        raise TokenizerError(f"the vocabulary in {name} cannot be read: expected a model of byte-pair merges")
    kind = model.get("type") or ("BPE" if "merges" in model else None)  # the first files of GPT-2 do not say it
    if kind != "BPE":
        raise TokenizerError(f"{name} holds a vocabulary of the kind {kind}; expected BPE")
    parts = {section: values.get(section) for section in PARTS}
    for section, part in parts.items():
        kind, pattern = (part.get("type"), part.get("pattern")) if isinstance(part, dict) else (part, None)
        is_ours = (section, kind, pattern) == ("pre_tokenizer", "Split", EVERY_CHARACTER)
        # what has no type is guessed at by its other fields
        if part is not None and kind not in PARTS[section] and not is_ours:
            known = ", ".join(PARTS[section])
            raise TokenizerError(f"{name} has the {section} {kind}, which is refused; expected {known} or none")
    if any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise TokenizerError(f"{name} marks parts of words, or drops merges at random; expected merges as GPT-2's")
    added = values.get("added_tokens") or []
    try:
        if model.get("unk_token") not in (None, *model["vocab"]):
            raise TokenizerError(f"{name} has no id for its unknown token")
        ids = {*model["vocab"].values(), *(token["id"] for token in added)}
        longest = max(map(len, [*model["vocab"], *(token["content"] for token in added)]))
        if ids != set(range(len(ids))) or longest > LONGEST:
            raise TokenizerError(
                f"{name} has {len(ids):,} ids, the longest of {longest:,} characters; "
                f"expected ids from 0 without gaps, of at most {LONGEST:,}"
            )
        text = json.dumps({**WITHOUT_USE, **parts, "added_tokens": added, "model": {**model, "type": "BPE"}})
        made = Tokenizer.from_str(text)
        if set(made.get_vocab().values()) != set(range(made.get_vocab_size())):
            raise TokenizerError(f"{name} gives two tokens the same id, or leaves ids out")
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises no narrower one; and a vocabulary may be anything
        raise TokenizerError(f"the vocabulary in {name} cannot be read: {error}") from error
    return made


MOST, LARGEST = 2**10, 2**14
"""Entries of a list, and numbers: pitch bends go to 8,192."""

GRID_STEPS = 2**12
"""Durations in a vocabulary; ours has 253."""

VERSIONS = {"miditok_version", "symusic_version", "hf_tokenizers_version"}

ADDITIONAL = {"max_bar_embedding": 0, "use_bar_end_tokens": False, "add_trailing_bars": False}
"""What REMI reads besides the fields of every scheme, with a value of its type."""


def vetted_config(config: dict[str, Any], defaults: dict[str, Any], name: str) -> dict[str, Any]:
    """The `config` of a tokenizer.json of miditok, and miditok's own in that form -> what it can be built from.

    Raises:
        TokenizerError: a field that is unknown, of another type, or of a size that no vocabulary has a use for.
    """
    unknown = sorted(config.keys() - defaults.keys() - VERSIONS)
    if unknown:
        raise TokenizerError(f"{name} has the field {unknown[0]} in its config, which is not known here")
    examples = defaults | {"chord_unknown": [3, 6], "additional_params": ADDITIONAL}
    kept = {key: value for key, value in config.items() if key in examples}
    additional = kept.get("additional_params")
    kept["additional_params"] = additional = additional if isinstance(additional, dict) else {}
    for key in additional.keys() - ADDITIONAL.keys():
        del additional[key]  # what other schemes keep there
    for key, value in kept.items():
        if not _like(value, examples[key]) or not _is_buildable(key, value):
            raise TokenizerError(f"{name} has {key} {value!r} in its config, which makes no vocabulary")
    return kept


def _like(value: Any, example: Any) -> bool:
    """Whether it is nothing, or of the example's type and no larger than makes sense."""
    if isinstance(value, list):
        return isinstance(example, list | tuple) and len(value) <= MOST and all(_like(v, example[0]) for v in value)
    if isinstance(value, dict):
        if not isinstance(example, dict) or len(value) > MOST:
            return False
        usual = next(iter(example.values()))
        return all(_like(key, "") and _like(item, example.get(key, usual)) for key, item in value.items())
    if isinstance(value, str):
        return isinstance(example, str) and len(value) <= 100 and value.isprintable()
    if isinstance(value, bool) or value is None:
        return value is None or isinstance(example, bool)
    return abs(value) <= LARGEST and (type(example) is float or type(example) is type(value) is int)


def _is_buildable(key: str, value: Any) -> bool:
    """Whether a field of the right type, if it is one that others are multiplied with, stays small."""
    if key in ("beat_res", "beat_res_rest"):
        spans = [(re.fullmatch(r"(\d{1,4})_(\d{1,4})", span, re.ASCII), steps) for span, steps in value.items()]
        if not all(span and 1 <= steps <= 256 for span, steps in spans):
            return False
        return bool(sum((int(span[2]) - int(span[1])) * steps for span, steps in spans if span) <= GRID_STEPS)
    if key == "time_signature_range":
        units = {"1", "2", "4", "8", "16", "32", "64"}
        return units.issuperset(value) and all(1 <= beats <= 128 for each in value.values() for beats in each)
    if key == "tempo_range":
        return all(tempo >= 1 for tempo in value)
    if key in ("programs", "use_note_duration_programs"):
        return all(-1 <= program <= 127 for program in value)
    return True
