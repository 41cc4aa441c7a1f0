"""COCO mAP of the file that ships, and where two models differ."""
