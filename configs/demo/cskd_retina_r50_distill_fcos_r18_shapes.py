# RetinaNet R50 -> FCOS R18 on shapes: the student of fcos_r18_shapes.py under a teacher of another kind.
_base_ = ["fcos_r18_shapes.py"]
distill = dict(
    teacher=dict(checkpoint="work_dirs/retinanet_r50_shapes/best.pth"),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
)
