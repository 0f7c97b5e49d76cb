"""Embeddings in, numbers out: zero-shot classification and retrieval, for any modality."""
