"""The verbs of a run: set up, freeze, step, save, measure; they know tasks by protocol only."""
