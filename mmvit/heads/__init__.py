"""From encoded tokens to embeddings, logits, boxes or pixels."""
