"""Every program with the settings of its task, and every dataset, as the programs know them."""

import main_task_recognition
import main_task_retrieval

PROGRAMS = {
    "retrieval": (main_task_retrieval, main_task_retrieval.RetrievalSettings),
    "recognition": (main_task_recognition, main_task_recognition.RecognitionSettings),
}
DATASETS = [dataset for program, _ in PROGRAMS.values() for dataset in program.DATASETS.values()]
