# Faster R-CNN R50 -> R18 on shapes: the student of faster_rcnn_r18_shapes.py under that of faster_rcnn_r50_shapes.py.
_base_ = ["faster_rcnn_r18_shapes.py"]
distill = dict(
    teacher=dict(checkpoint="work_dirs/faster_rcnn_r50_shapes/best.pth"),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(rpn=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
    roi=dict(features_student=(1, 0.5), features_teacher=(1, 0.5), fc=(1, 1), prediction=(1, 1)),
)
