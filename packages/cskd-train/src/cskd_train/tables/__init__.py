"""What `cskd-train table` shows: published figures, and measurements found on this machine.

Nothing here imports torch, mmdet or mmcv. All mAP is COCO box mAP in points, 0 to 100.
"""
