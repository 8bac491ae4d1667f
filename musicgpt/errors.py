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


class MusicGPTError(Exception):
    """The root: catch this to catch everything the package raises on purpose."""


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
