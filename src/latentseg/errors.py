"""The errors that latentseg raises: each says what is wrong, what was expected, what to do."""


class LatentsegError(Exception):
    """Base of every error that a user can cause and mend."""


class InputError(LatentsegError):
    """An argument, a folder or a file is not what the operation needs."""


class CorruptFileError(LatentsegError):
    """A file is damaged, incomplete, or differs from its recorded sha256."""


class UnsafeFileError(LatentsegError):
    """A file could only be opened by running code from it, which latentseg never does."""


class NotFinishedError(LatentsegError):
    """A folder holds work that was interrupted; the message names the command that continues it."""


class DivergedError(LatentsegError):
    """A number became NaN or infinite; the message names the place and the last good checkpoint."""
