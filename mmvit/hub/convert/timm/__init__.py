"""How timm's model families are read: each file has `read(model)`."""
