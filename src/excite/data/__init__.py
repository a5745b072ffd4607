"""Labelled pictures: named sets and folders, loaders whose order and draws are fixed by (seed, epoch, index)."""

from excite.data.augment import normalise, prepare
from excite.data.dataset import ArraySplit, DataSet, FileSplit, Split, array_data_set
from excite.data.loader import Batch, Loader, make_loader
from excite.data.order import global_batch_sizes
from excite.data.sources import DATA_SETS, list_data, load_data

__all__ = [
    "DATA_SETS",
    "ArraySplit",
    "Batch",
    "DataSet",
    "FileSplit",
    "Loader",
    "Split",
    "array_data_set",
    "global_batch_sizes",
    "list_data",
    "load_data",
    "make_loader",
    "normalise",
    "prepare",
]
