"""The error that a user can mend."""


class UserError(ValueError):
    """Something about the input: files, settings or weights.

    The message says what is wrong, where, and what to do; a program prints it without a traceback.
    """
