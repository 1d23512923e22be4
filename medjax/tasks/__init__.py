"""Tasks: (model, losses) -> the loss of a batch. The loop knows nothing else."""
