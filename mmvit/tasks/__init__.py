"""Model + loss as one module: task(batch) -> {"loss", metrics…}; a task knows its method, not the loop."""
