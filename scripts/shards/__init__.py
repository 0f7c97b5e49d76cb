"""Readers of other annotation formats for scripts/make_shards.py."""
