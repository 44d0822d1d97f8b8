"""The datasets by their names, which are those that ``--datatype`` takes; the first of each is its default.

A new one is a module with a `DATASET` and a line here.
"""

from collections.abc import Mapping
from importlib import import_module

from dataloaders.datasets.recognition.splits import RecognitionDataset
from dataloaders.datasets.retrieval.lists import RetrievalDataset

RETRIEVAL_MODULES = {
    "msrvtt": "dataloaders.datasets.retrieval.msrvtt",
}
RECOGNITION_MODULES = {
    "hmdb51": "dataloaders.datasets.recognition.hmdb51",
    "ucf101": "dataloaders.datasets.recognition.ucf101",
    "ssv2": "dataloaders.datasets.recognition.ssv2",
}

RETRIEVAL: Mapping[str, RetrievalDataset] = {
    name: import_module(module).DATASET for name, module in RETRIEVAL_MODULES.items()
}
RECOGNITION: Mapping[str, RecognitionDataset] = {
    name: import_module(module).DATASET for name, module in RECOGNITION_MODULES.items()
}
