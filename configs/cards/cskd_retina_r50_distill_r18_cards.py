# RetinaNet R50 -> R18 on cards: the student of retinanet_r18_cards.py under the teacher of retinanet_r50_cards.py.
_base_ = ["retinanet_r18_cards.py"]
distill = dict(
    teacher=dict(checkpoint="work_dirs/retinanet_r50_cards/best.pth"),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
