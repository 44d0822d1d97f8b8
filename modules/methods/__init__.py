"""The methods, one file each, chosen by ``--method``.

A method is a settings class, whose fields become flags, and a builder. To add one, write its file and name it here;
nothing else changes.
"""

from modules.methods import zero_shot
from modules.methods.base import Method
from modules.methods.stop.stop import METHOD as STOP

METHODS: dict[str, Method] = {
    "stop": STOP,
    "zero_shot": zero_shot.METHOD,
}
DEFAULT_METHOD = "stop"
