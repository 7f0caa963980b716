"""The tiny model: weights, tokenizer and report, and the two modules that make them anew."""

from pathlib import Path

PATH = Path(__file__).parent
