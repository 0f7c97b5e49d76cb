"""Weights out of exported ONNX graphs."""
