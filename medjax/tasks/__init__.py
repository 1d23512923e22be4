"""Tasks: (model, losses) -> the loss of a batch. The loop only uses the task."""
