"""Seeds of random draws that belong to a sample, an epoch or a step, not to the state of a process."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed that depends on every part and on nothing else.

    Args:
        parts: what the draw belongs to, for example ``(seed, "frames", epoch, sample)``.

    Returns:
        An integer in [0, 2⁶³), the same on every platform.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
