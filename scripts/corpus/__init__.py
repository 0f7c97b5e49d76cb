"""The builder of the embedded default corpus: packages -> pictures, sounds, texts -> shards in splits."""
