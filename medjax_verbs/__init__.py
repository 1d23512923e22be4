"""Verbs and an evaluation that a single paper needs, beside the core: `medjax gates`, `medjax
combine`, `medjax add-modality`, and scores on the network's grid (`config.evaluate.resampled`).

medjax finds them by the entry points "medjax.verbs" and "medjax.evaluations" of pyproject.toml; any
other package can offer its own in the same way.
"""
