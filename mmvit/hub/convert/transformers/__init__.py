"""How transformers' model families are read: configs, tables of names."""
