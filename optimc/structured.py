"""The name by which 0.1 knew `optimc.muon`; its pickles use it."""

from optimc.muon import Muon

__all__ = ["Muon"]
