"""Public corpora, one file each, and the pools the papers train on. Nothing is ever downloaded.

    # find, check, fingerprint, prepare:
    python -m data_pipelines.amos22 --raw /downloads/amos22 --out /data/store
    # the catalogue; docs/corpora.md is generated from it:
    medjax info --corpora

A file states what a corpus is: licence, where to get it, its published file names, label values and
classes, known defects, twins in other corpora (`declare.PublicCorpus`). `ingest` does the work for
all of them, `pools` lists what each paper trains on.
"""
