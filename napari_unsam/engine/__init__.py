"""The inference thread, the analysed planes in memory, and the embeddings on disk."""
