"""Where and in what precision a run computes."""

from dataclasses import dataclass

from modules.runtime.precision import Precision
from modules.runtime.processes import Processes


@dataclass(frozen=True)
class Compute:
    """What goes from a program down to whatever computes.

    Attributes:
        processes: this one and its companions.
        precision: of the encoders.
    """

    processes: Processes
    precision: Precision
