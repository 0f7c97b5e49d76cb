"""How torchvision's models are read."""
