"""The methods, chosen by ``--method``.

A method is a settings class, whose fields become flags, and a builder, in a module that has a ``METHOD = Method(…)``,
or another name behind a colon where it has several. To add one, write its file and name it here; docs/extending.md
says what else the tests and the documentation want of it.
"""

from importlib import import_module

from modules.methods.base import Method

MODULES = {
    "stop": "modules.methods.stop.stop",
    "zero_shot": "modules.methods.zero_shot",
    "clip4clip": "modules.methods.video.clip4clip",
    "vop": "modules.methods.prompts.vop",
    "bias": "modules.methods.adapters.bias",
    "adapter_attn": "modules.methods.adapters.parallel:ATTN",
    "adapter_ffn": "modules.methods.adapters.parallel:FFN",
    "lora": "modules.methods.adapters.lora",
    "visual_text_adapter": "modules.methods.adapters.between:VISUAL_TEXT",
    "video_text_adapter": "modules.methods.adapters.between:VIDEO_TEXT",
    "unipt": "modules.methods.adapters.unipt",
    "tempme": "modules.methods.video.tempme",
    "vpt": "modules.methods.prompts.vpt",
    "efficient_prompt": "modules.methods.prompts.efficient_prompt",
    "dgl_linear": "modules.methods.prompts.dgl:LINEAR",
    "dgl_transformer": "modules.methods.prompts.dgl:TRANSFORMER",
    "upt": "modules.methods.prompts.upt",
    "stpn": "modules.methods.prompts.stpn",
}


def _load(place: str) -> Method:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name or "METHOD")


METHODS: dict[str, Method] = {name: _load(place) for name, place in MODULES.items()}
DEFAULT_METHOD = "stop"
