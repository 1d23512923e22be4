"""tensorflow-datasets: any corpus of this package as ArrayRecord volumes, without TensorFlow.

    medjax ingest tfds --corpus AMOS22_CT --raw /downloads/amos22 --out /data/tfds
    medjax prepare tfds:/data/tfds/corpora/AMOS22_CT/1.0.0 -o /data/store

`config.data.folders` takes the same address.

Nothing here is imported by the rest; `builder` needs tensorflow-datasets, which is imported with
it.
"""
