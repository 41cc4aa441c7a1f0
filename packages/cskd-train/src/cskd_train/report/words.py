"""A run's recipe in sentences, as far as its config says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_KINDS = {"FasterRCNN": "Faster R-CNN", "CascadeRCNN": "Cascade R-CNN", "MaskRCNN": "Mask R-CNN"}


def detector(config: Mapping[str, Any]) -> str:
    """`RetinaNet with a ResNet-18 backbone and an FPN neck of 64 channels`; empty where the config names no model."""
    model = _map(config.get("model"))
    kind = model.get("type")
    if not isinstance(kind, str):
        return ""
    backbone, neck = _map(model.get("backbone")), model.get("neck")
    neck = _map(neck[0] if isinstance(neck, (list, tuple)) and neck else neck)
    parts = [f"{article(named)} {named} backbone"] if (named := _backbone(backbone)) else []
    if isinstance(neck.get("type"), str):
        channels = f" of {neck['out_channels']} channels" if isinstance(neck.get("out_channels"), int) else ""
        parts.append(f"{article(neck['type'])} {neck['type']} neck{channels}")
    return _KINDS.get(kind, kind) + (f" with {' and '.join(parts)}" if parts else "")


def short(config: Mapping[str, Any]) -> str:
    """`RetinaNet ResNet-18`; of a part that the config does not name nothing is said."""
    model = _map(config.get("model"))
    named = (_KINDS.get(str(model.get("type")), model.get("type")), _backbone(_map(model.get("backbone"))))
    return " ".join(one for one in named if isinstance(one, str) and one)


def _backbone(settings: Mapping[str, Any]) -> str:
    """`ResNet-18`, or the type alone of one that has no depth in its config."""
    kind, depth = settings.get("type"), settings.get("depth")
    return (f"{kind}-{depth}" if isinstance(depth, int) else kind) if isinstance(kind, str) else ""


def recipe(config: Mapping[str, Any]) -> list[str]:
    """Sentences: the detector, what it starts from, its images, its steps, its schedule, its teacher and terms."""
    named = detector(config)
    sentences = [f"The detector is {article(named)} {named}." if named else ""]
    sentences += [start(config), _images(config), _steps(config), _schedule(config), *_distillation(config)]
    return [one for one in sentences if one]


def start(config: Mapping[str, Any]) -> str:
    if loaded := config.get("load_from"):
        return f"Its weights start from {loaded}."
    pretrained = [str(one) for one in _checkpoints(config.get("model"))]
    if pretrained:
        return f"Pretrained weights come from {', '.join(pretrained)}; the rest starts at random."
    return "All weights start at random." if config.get("model") else ""


def _checkpoints(model: Any) -> Iterator[Any]:
    for part in ("backbone", "neck", "bbox_head", "rpn_head", "roi_head"):
        init = _map(_map(model).get(part)).get("init_cfg")
        for one in init if isinstance(init, (list, tuple)) else [init]:
            if _map(one).get("type") == "Pretrained":
                yield _map(one).get("checkpoint")


def _images(config: Mapping[str, Any]) -> str:
    pipeline = _leaf(_map(config.get("data")).get("train")).get("pipeline") or ()
    steps = {step["type"]: step for step in pipeline if isinstance(step, Mapping) and isinstance(step.get("type"), str)}
    sentences = []
    if "Resize" in steps:
        scale = steps["Resize"].get("img_scale")
        ratio = ", keeping their shape" if steps["Resize"].get("keep_ratio", True) else ""
        sentences.append(f"Images are scaled to {_scale(scale)}{ratio}")
    if "RandomFlip" in steps:
        chance = steps["RandomFlip"].get("flip_ratio", steps["RandomFlip"].get("prob"))
        sentences.append("mirrored at random" + (f" ({chance:g} of them)" if isinstance(chance, (int, float)) else ""))
    plain = ("LoadImageFromFile", "LoadAnnotations", "Resize", "RandomFlip", "Normalize", "Pad", "DefaultFormatBundle")
    if others := [name for name in steps if name not in (*plain, "Collect")]:
        sentences.append(f"changed by {', '.join(others)}")
    return f"{'; '.join(sentences)}." if sentences else ""


def _scale(scale: Any) -> str:
    if isinstance(scale, (list, tuple)) and scale and isinstance(scale[0], (list, tuple)):
        return " or ".join(_scale(one) for one in scale)
    return " x ".join(map(str, scale)) if isinstance(scale, (list, tuple)) else str(scale)


def _steps(config: Mapping[str, Any]) -> str:
    optimizer, data = _map(config.get("optimizer")), _map(config.get("data"))
    if not optimizer:
        return ""
    loader = _map(data.get("train_dataloader"))
    batch = loader.get("samples_per_gpu", data.get("samples_per_gpu", 2))
    accumulated = config.get("accumulate") or 1
    step = f"A step takes {batch} images a process" + (f", {accumulated} batches" if accumulated > 1 else "")
    settings = [f"{key} {value}" for key, value in optimizer.items() if key in ("momentum", "weight_decay")]
    extra = [f"in {config['amp']} where autocast allows" if config.get("amp") else ""]
    extra += ["an average of the weights is evaluated and saved (EMA)" if config.get("ema") else ""]
    clip = _map(_map(config.get("optimizer_config")).get("grad_clip")).get("max_norm")
    extra += [f"gradients are cut to a norm of {clip}" if clip else ""]
    learning = f"{optimizer.get('type')} with learning rate {optimizer.get('lr')}"
    return "; ".join(filter(None, [f"{step}: {', '.join([learning, *settings])}", *extra])) + "."


def _schedule(config: Mapping[str, Any]) -> str:
    epochs, lr = _map(config.get("runner")).get("max_epochs"), _map(config.get("lr_config"))
    parts = [f"It is trained for {epochs} epochs"] if epochs else []
    if lr.get("warmup"):
        parts.append(f"the learning rate rises over the first {lr.get('warmup_iters')} steps ({lr['warmup']})")
    if lr.get("policy") == "step":
        at = lr.get("step")
        at = at if isinstance(at, (list, tuple)) else [at]
        parts.append(f"and is multiplied by {lr.get('gamma', 0.1):g} after epoch {', '.join(map(str, at))}")
    elif lr.get("policy"):
        parts.append(f"and follows the policy {lr['policy']}")
    return f"{', '.join(parts)}." if parts else ""


def _distillation(config: Mapping[str, Any]) -> Iterator[str]:
    block = _map(config.get("distill"))
    if not block:
        return
    teacher = _map(block.get("teacher"))
    yield f"It learns under a frozen teacher, {teacher.get('checkpoint')}" + (
        f" ({teacher['config']})." if teacher.get("config") else "."
    )
    said = [f"{key}: {_said(value)}" for key, value in block.items() if key not in ("teacher",)]
    rest = "; what is not named has the published weights"
    yield (
        f"Terms of the distillation: {', '.join(said)}{rest}." if said else "All its terms have the published weights."
    )
    unlabelled = _map(_map(config.get("data")).get("unlabeled"))
    if unlabelled:
        yield f"It also learns from what the teacher finds in {unlabelled.get('images') or unlabelled.get('ann_file')}."


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_said(item)}" for key, item in value.items()) + ")"
    if isinstance(value, (list, tuple)):
        return "/".join(map(_said, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "left out"}[value]
    return str(value)


def _leaf(data: Any) -> Mapping[str, Any]:
    """The settings of the first dataset that is no wrapper."""
    while True:
        if isinstance(data, (list, tuple)):
            data = data[0] if data else None
        elif isinstance(data, Mapping) and (inner := data.get("dataset") or data.get("datasets")):
            data = inner
        else:
            return _map(data)


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def article(word: str) -> str:
    """`a` or `an`, also before names that are read letter by letter."""
    letters = word[:2].isupper() and word[:1] in "AEFHILMNORSX"
    return "an" if letters or word[:1] in "AEIO" else "a"
