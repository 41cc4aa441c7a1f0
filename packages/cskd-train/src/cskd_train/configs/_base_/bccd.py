# BCCD, photographs of blood cells, at 256 x 192 (two fifths of their size), for a processor. CSKD_BCCD names the folder
# that holds annotations/ and images/
import os

_base_ = ["dataset.py"]
data_root = os.environ.get("CSKD_BCCD", "data/bccd")
classes = ("RBC", "WBC", "Platelets")
image_scale = (256, 192)
data = dict(test=dict(ann_file="annotations/test.json"))
