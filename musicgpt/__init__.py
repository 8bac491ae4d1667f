"""A language model of music: train a GPT-2 on a folder of MIDI files, continue a phrase with it.

>>> import musicgpt
>>> model = musicgpt.load("runs/mine")                          # doctest: +SKIP
>>> model.generate(prompt="phrase.mid").save("out.mid")         # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from musicgpt.errors import MusicGPTError

if TYPE_CHECKING:
    from musicgpt.compose import LanguageModel, Piece, load

__version__ = "0.1.0"
__all__ = ["LanguageModel", "MusicGPTError", "Piece", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in (
        "LanguageModel",
        "Piece",
        "load",
    ):  # they bring torch with them, which `musicgpt --help` need not wait for
        from musicgpt import compose

        return getattr(compose, name)
    raise AttributeError(f"module 'musicgpt' has no attribute {name!r}")
