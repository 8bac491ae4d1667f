"""What can go wrong through no fault of the program, each with one line a user understands.

MusicGPTError            anything below; the command line prints it as one line and exits with 1
├── UsageError           a flag or argument has a value that cannot be, or two that do not go together
├── InputError           a file, folder or prompt that cannot be used
├── TokenizerError       a tokenizer that is unknown, refused or does not fit
├── ShardsError          prepared data that are missing, cut short or of another kind
└── CheckpointError      a directory that is no checkpoint, or one that does not fit

Every message says what was found, what was expected, and what to do. A fault of the program itself is
no MusicGPTError: it stays a traceback.
"""

LONGEST_LINE = 1000


class MusicGPTError(Exception):
    """The root: catch this to catch everything the package raises on purpose."""

    def __str__(self) -> str:
        """One line that a terminal can show, whatever it quotes of a stranger's file."""
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
        return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} … {line[-297:]}"


class UsageError(MusicGPTError):
    """A flag or argument has a value that cannot be, or two that do not go together."""


class InputError(MusicGPTError):
    """A file, folder or prompt that cannot be used."""


class TokenizerError(MusicGPTError):
    """A tokenizer that is unknown, refused or does not fit."""


class ShardsError(MusicGPTError):
    """Prepared data that are missing, cut short or of another kind."""


class CheckpointError(MusicGPTError):
    """A directory that is no checkpoint, or one that does not fit."""
