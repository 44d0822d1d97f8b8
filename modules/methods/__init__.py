"""The methods, chosen by ``--method``.

A method is a settings class, whose fields become flags, and a builder, in a module that has a ``METHOD = Method(…)``.
To add one, write its file and name it here; nothing else changes.
"""

from importlib import import_module

from modules.methods.base import Method

MODULES = {
    "stop": "modules.methods.stop.stop",
    "zero_shot": "modules.methods.zero_shot",
    "clip4clip": "modules.methods.video.clip4clip",
    "vop": "modules.methods.prompts.vop",
}
METHODS: dict[str, Method] = {name: import_module(path).METHOD for name, path in MODULES.items()}
DEFAULT_METHOD = "stop"
