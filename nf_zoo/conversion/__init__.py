"""Trained networks with batch normalization as networks without it, with their weights."""

from .network import Conversion, convert

__all__ = ['Conversion', 'convert']
