"""Public corpora and the pools the papers train on: names, labels, what is annotated. Nothing is downloaded."""
