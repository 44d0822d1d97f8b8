"""The methods, one file each, chosen by ``--method``.

A method is a settings class, whose fields become flags, and a builder. To add one, write its file and name it here;
nothing else changes.
"""

from modules.methods import stop, zero_shot
from modules.methods.base import Method

METHODS: dict[str, Method] = {
    "stop": stop.METHOD,
    "zero_shot": zero_shot.METHOD,
}
DEFAULT_METHOD = "stop"
