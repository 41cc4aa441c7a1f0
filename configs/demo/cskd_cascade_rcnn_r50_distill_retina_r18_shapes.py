# Cascade R-CNN R50 -> RetinaNet R18 on shapes: the student of retinanet_r18_shapes.py under a teacher of another kind.
# Pyramids are compared where their strides meet: 8, 16, 32 and 64.
_base_ = ["retinanet_r18_shapes.py"]
distill = dict(
    teacher=dict(checkpoint="work_dirs/cascade_rcnn_r50_shapes/best.pth"),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
)
