# Photographs of playing cards, 85 % of them upright (384 x 512 pixels), at 320 x 240, for a processor. CSKD_CARDS names
# the folder that holds annotations/ and images/
import os

_base_ = ["dataset.py"]
data_root = os.environ.get("CSKD_CARDS", "data/cards")
classes = ("nine", "ten", "jack", "queen", "king", "ace")
image_scale = (320, 240)
