"""Other libraries' weights as ours: `from_*.py` is a source's entry, the room beside it has its families."""
