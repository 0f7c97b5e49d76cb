"""Bytes -> Sample -> Batch: shards, order, decoding, preprocessing, tokenizers, loaders, shard writer."""
