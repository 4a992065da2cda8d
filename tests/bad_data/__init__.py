"""Files that cannot become a data set, by task, and what has to be said of each.

Kept as code, for the places of what is wrong are easier to read beside it than in a folder of broken files.
"""

from bad_data import detection, entities, interactions, photographs, segmentation, texts
from bad_data.case import Bad

CORPUS: tuple[Bad, ...] = (
    *texts.CASES,
    *entities.CASES,
    *interactions.CASES,
    *photographs.CASES,
    *detection.CASES,
    *segmentation.CASES,
)
