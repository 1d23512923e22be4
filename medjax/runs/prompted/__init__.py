"""Runs of networks that are asked by prompts: their predictors, and their vectors of texts."""
