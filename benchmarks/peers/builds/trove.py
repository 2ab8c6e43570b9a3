"""datatrove's DocumentTokenizer, a file to a task."""

import importlib.metadata
import os
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger

NAME = f"datatrove {importlib.metadata.version('datatrove')} DocumentTokenizer"


def build(files, folder, tokenizer_file, eos_token):
    logger.remove()
    steps = [
        JsonlReader(str(Path(files[0]).parent)),
        DocumentTokenizer(
            str(folder / "tokens"),
            tokenizer_file,
            eos_token=eos_token,
            save_final_metadata=False,
            shuffle_documents=False,
        ),
    ]
    cores = len(os.sched_getaffinity(0))
    LocalPipelineExecutor(steps, tasks=len(files), workers=cores, logging_dir=str(folder / "logs")).run()


def tokens(folder):
    return np.concatenate([np.fromfile(file, np.uint16) for file in sorted((folder / "tokens").glob("*.ds"))])
