"""What outlives a moment: the history of actions, embeddings on disk, and the work that a crash must not take."""
