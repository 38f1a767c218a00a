"""A stand-in for an array that has no memory yet, for choosing kernels and slots."""

import math

import numpy as np


class Unallocated:
    """The shape and type of an array in C order, by the names that arrays have for them."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.flags = np.empty(0).flags
