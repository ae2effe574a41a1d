"""Data sets: toy densities, digits, MNIST files, arrays, image folders; and which examples a step sees."""

from genjax.training.data.batches import batch_indices
from genjax.training.data.dataset import Dataset, Scaling, binarised
from genjax.training.data.names import NAMES, load

__all__ = ["NAMES", "Dataset", "Scaling", "batch_indices", "binarised", "load"]
