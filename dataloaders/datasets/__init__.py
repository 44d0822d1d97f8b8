"""The datasets by their names, which are those that ``--datatype`` takes; the first of each is its default.

A new one is a module with a `DATASET` and a line here.
"""

from collections.abc import Mapping
from importlib import import_module

from dataloaders.datasets.recognition.splits import RecognitionDataset
from dataloaders.datasets.retrieval.lists import RetrievalDataset

RETRIEVAL_MODULES = {
    "msrvtt": "dataloaders.datasets.retrieval.msrvtt",
    "vatex": "dataloaders.datasets.retrieval.vatex",
    "activity": "dataloaders.datasets.retrieval.activity",
    "didemo": "dataloaders.datasets.retrieval.didemo",
    "msvd": "dataloaders.datasets.retrieval.msvd",
    "lsmdc": "dataloaders.datasets.retrieval.lsmdc",
}
RECOGNITION_MODULES = {
    "hmdb51": "dataloaders.datasets.recognition.hmdb51",
    "ucf101": "dataloaders.datasets.recognition.ucf101",
    "ssv2": "dataloaders.datasets.recognition.ssv2",
    "kinetics400": "dataloaders.datasets.recognition.kinetics400",
}

RETRIEVAL: Mapping[str, RetrievalDataset] = {
    name: import_module(module).DATASET for name, module in RETRIEVAL_MODULES.items()
}
RECOGNITION: Mapping[str, RecognitionDataset] = {
    name: import_module(module).DATASET for name, module in RECOGNITION_MODULES.items()
}
