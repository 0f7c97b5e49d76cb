"""Embeddings -> a FAISS index that answers in your own keys, with cosine scores."""

from mmvit.search.index import SearchIndex

__all__ = ["SearchIndex"]
