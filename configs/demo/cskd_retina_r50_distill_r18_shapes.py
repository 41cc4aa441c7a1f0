# RetinaNet R50 -> R18 on shapes: the student of retinanet_r18_shapes.py under the teacher of retinanet_r50_shapes.py.
_base_ = ["retinanet_r18_shapes.py"]
distill = dict(
    teacher=dict(checkpoint="work_dirs/retinanet_r50_shapes/best.pth"),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
