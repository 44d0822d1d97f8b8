"""Videos of another number of frames than a method was built for."""

from common.errors import UserError


def check_length(method: str, expected: int, found: int) -> None:
    """Refuse videos of another length than there are values for.

    Args:
        method: its name, for the message.
        expected: T, the frames that the model was built for.
        found: the frames of a batch, padding included.

    Raises:
        UserError: saying both.
    """
    if found != expected:
        raise UserError(
            f"{method} has values for each frame and works at the number of frames that it was built for: expected "
            f"{expected}, found {found}; give --max_frames {expected}, or train with the other"
        )
