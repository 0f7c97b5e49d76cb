"""What the tensors of official PyTorch checkpoints are called."""
