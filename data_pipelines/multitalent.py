"""MultiTalent's pool: 13 public CT data sets, 1477 cases, 47 classes (paper table and released
label map; ids as in each source).

`CORPORA` maps a name to what a config declares, in the paper's order: the pool's global ids 1..47
follow from it, channel = global id - 1.
"""

from data_pipelines.pools import multitalent

CORPORA = multitalent.declared()
CANCER_CHANNELS = (1, 2, 4, 6, 8, 42)  # the six "cancer" classes: global ids 2, 3, 5, 7, 9, 43
# rows of the paper's tables beside the mean over all classes; "difficult" follows from a baseline's
# scores
GROUPS = {
    "cancer": (
        "003_Liver/liver tumour",
        "006_Lung/lung tumour",
        "007_Pancreas/pancreas tumour",
        "008_HepaticVessel/liver tumour",
        "010_Colon/colon cancer",
        "064_KiTS19/kidney tumour",
    ),
}
