"""The HTML report of several runs: one self-contained file, made by `eval/report.py`."""
