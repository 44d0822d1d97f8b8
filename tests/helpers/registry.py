"""Every program with the settings of its task, and every dataset, as the programs know them."""

import main_task_recognition
import main_task_retrieval
from dataloaders.datasets import RECOGNITION, RETRIEVAL

PROGRAMS = {
    "retrieval": (main_task_retrieval, main_task_retrieval.RetrievalSettings),
    "recognition": (main_task_recognition, main_task_recognition.RecognitionSettings),
}
DATASETS = [*RETRIEVAL.values(), *RECOGNITION.values()]
