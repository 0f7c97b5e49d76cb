"""Models on their way out: to transformers' folders and to ONNX graphs."""
