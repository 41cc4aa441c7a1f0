"""What may be chosen of a build, and the profile that is chosen where nothing is."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cskd_deploy.backends.tensorrt.settings import (
    KEYS,
    BuildSettings,
    parse_build_settings,
    settings_from_dict,
    trtexec_line,
)
from cskd_deploy.backends.tensorrt.shapes import ProfileShapes, ShapeRange, input_ranges, profile_for, profiles_of
from cskd_deploy.detect.preprocess import exact_placement
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import GraphForm, Manifest

from .engines import MANIFEST

RULE = dataclasses.replace(MANIFEST.preprocessing, scale=(150, 90), pad_divisor=32)
DYNAMIC = dataclasses.replace(MANIFEST, preprocessing=RULE, graph=GraphForm(dynamic=True, batch=None))

# Settings


def test_settings_are_read_as_trtexec_writes_them():
    texts = (
        "memPoolSize=workspace:512",
        "timingCacheFile=timings=a.cache",
        "versionCompatible",
        "hardwareCompatibilityLevel=ampere+",
        "builderOptimizationLevel=4",
        "noTF32",
        "profilingVerbosity=detailed",
        "profile=0",
        "minShapes=image:1x3x320x416,image_shape:1x2",
        "optShapes=image:2x3x320x416",
        "maxShapes=image:4x3x416x416",
        "profile=1",
        "optShapes=image:8x3x416x416",
    )
    assert {text.partition("=")[0] for text in texts} == set(KEYS)
    settings = parse_build_settings(texts)
    assert settings == BuildSettings(
        workspace_mib=512,
        timing_cache=Path("timings=a.cache"),
        version_compatible=True,
        hardware_compatible="ampere+",
        optimization_level=4,
        tf32=False,
        profiling_verbosity="detailed",
        profiles=(
            ProfileShapes(
                min={"image": (1, 3, 320, 416), "image_shape": (1, 2)},
                opt={"image": (2, 3, 320, 416)},
                max={"image": (4, 3, 416, 416)},
            ),
            ProfileShapes(opt={"image": (8, 3, 416, 416)}),
        ),
    )
    assert settings_from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert parse_build_settings(()) == BuildSettings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memPoolSize=512", "memPoolSize=workspace:MIB"),
        ("memPoolSize=workspace:0", "memPoolSize=workspace:MIB"),
        ("memPoolSize", "memPoolSize=workspace:MIB"),
        ("timingCacheFile=", "timingCacheFile=FILE"),
        ("versionCompatible=yes", "versionCompatible"),
        ("hardwareCompatibilityLevel=turing+", r"hardwareCompatibilityLevel=none\|ampere\+\|sameComputeCapability"),
        ("builderOptimizationLevel=6", "builderOptimizationLevel=0..5"),
        ("builderOptimizationLevel=high", "builderOptimizationLevel=0..5"),
        ("noTF32=1", "noTF32"),
        ("profilingVerbosity=verbose", r"profilingVerbosity=layer_names_only\|detailed\|none"),
        ("profile=-1", "profile=N"),
        ("profile=first", "profile=N"),
        ("minShapes=1x3", "minShapes=NAME:SHAPE,..."),
        ("optShapes=image=1x3", "optShapes=NAME:SHAPE,..."),
        ("maxShapes=image:1x-3", "maxShapes=NAME:SHAPE,..."),
        ("maxShapes=image:1x3,", "maxShapes=NAME:SHAPE,..."),
        ("workspace=512", "there is no key 'workspace', expected one of memPoolSize=workspace:MIB, .*noTF32, .*"),
    ],
)
def test_an_unknown_key_or_value_is_refused_with_what_there_is(text, expected):
    with pytest.raises(DeployError, match=f"--trt {re.escape(text)}: (expected )?{expected}$"):
        parse_build_settings((text,))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("noTF32", "noTF32"), "--trt noTF32 is given twice$"),
        (("maxShapes=image:4x2", "maxShapes=image:8x2"), "--trt maxShapes is given twice$"),
        (
            ("profile=1", "maxShapes=image:4x2", "maxShapes=image:8x2"),
            "--trt maxShapes is given twice for profile 1$",
        ),
        (("profile=1", "profile=0", "profile=1"), "--trt profile=1 is given twice: put all shapes of profile 1 after"),
        (("profile=2",), "--trt profile=2: there is no profile 1, they are counted from 0 on"),
    ],
)
def test_a_setting_that_is_given_twice_and_a_profile_that_is_left_out_are_refused(texts, message):
    with pytest.raises(DeployError, match=message):
        parse_build_settings(texts)


def test_shapes_are_of_the_profile_named_before_them_and_of_the_first_where_none_is():
    settings = parse_build_settings(("maxShapes=image:1x2", "profile=1", "maxShapes=image:8x2", "noTF32"))
    assert settings.profiles == (ProfileShapes(max={"image": (1, 2)}), ProfileShapes(max={"image": (8, 2)}))
    assert parse_build_settings(("profile=1", "minShapes=image:8x2")).profiles[0] == ProfileShapes()


def test_the_line_of_trtexec_reads_back_as_the_same_build():
    texts = (
        "memPoolSize=workspace:512",
        "timingCacheFile=of the day.cache",
        "versionCompatible",
        "hardwareCompatibilityLevel=ampere+",
        "builderOptimizationLevel=4",
        "noTF32",
        "profilingVerbosity=detailed",
        "maxShapes=image:1x3x160x160",
        "profile=1",
        "minShapes=image:8x3x32x32",
        "optShapes=image:8x3x96x160",
        "maxShapes=image:8x3x160x160",
    )
    assert {text.partition("=")[0] for text in texts} == set(KEYS)
    settings = parse_build_settings(texts)
    inputs = {"image": (-1, 3, -1, -1), "image_shape": (-1, 2)}
    profiles = profiles_of(inputs, DYNAMIC, settings.profiles)
    line = trtexec_line(Path("a student.onnx"), Path("b.engine"), settings, profiles, list(inputs))
    program, onnx, engine, typed, skip, *options = shlex.split(line)
    assert (program, onnx, engine) == ("trtexec", "--onnx=a student.onnx", "--saveEngine=b.engine")
    assert (typed, skip) == ("--stronglyTyped", "--skipInference")
    assert all(option.startswith("--") for option in options)
    again = parse_build_settings([option.removeprefix("--") for option in options])
    assert dataclasses.replace(again, profiles=()) == dataclasses.replace(settings, profiles=())
    assert profiles_of(inputs, DYNAMIC, again.profiles) == profiles
    # All shapes are in the line, those that were chosen too.
    assert again.profiles[0].opt == {"image": (1, 3, 96, 160), "image_shape": (1, 2)}


def test_a_graph_of_fixed_shapes_has_none_in_the_line_of_trtexec():
    inputs = {"image": (1, 3, 96, 160)}
    profiles = profiles_of(inputs, DYNAMIC, BuildSettings().profiles)
    line = trtexec_line(Path("a.onnx"), Path("a.engine"), BuildSettings(), profiles, [])
    assert line == "trtexec --onnx=a.onnx --saveEngine=a.engine --stronglyTyped --skipInference"
    with pytest.raises(DeployError, match="profile 1 is profile 0 again, for the graph has no dynamic input: leave"):
        profiles_of(inputs, DYNAMIC, (ProfileShapes(), ProfileShapes()))


# Shapes


def of_scale(scale: tuple[int, int], **changes: Any) -> Manifest:
    return dataclasses.replace(DYNAMIC, preprocessing=dataclasses.replace(RULE, scale=scale, **changes))


@pytest.mark.parametrize(("scale", "opt"), [((150, 90), (96, 160)), ((90, 150), (160, 96))])
def test_dynamic_inputs_go_from_the_padding_to_a_square_of_the_longer_edge_fastest_at_the_test_scale(scale, opt):
    model = of_scale(scale)
    ranges = input_ranges({"image": (-1, 3, -1, -1), "image_shape": (-1, 2)}, model, ProfileShapes())
    assert ranges["image"] == ShapeRange((1, 3, 32, 32), (1, 3, *opt), (8, 3, 160, 160))
    assert ranges["image_shape"] == ShapeRange((1, 2), (1, 2), (8, 2))
    pixels = dataclasses.replace(model, graph=GraphForm(input="uint8", dynamic=True))
    ranges = input_ranges({"image": (1, -1, -1, 3)}, pixels, ProfileShapes())
    assert ranges["image"] == ShapeRange((1, 32, 32, 3), (1, *opt, 3), (1, 160, 160, 3))


@pytest.mark.parametrize("scale", [(1333, 800), (800, 1333)])
def test_the_default_profile_holds_every_image_of_coco(scale):
    model = of_scale(scale)
    image = input_ranges({"image": (1, 3, -1, -1)}, model, ProfileShapes())["image"]
    with Path(__file__).with_name("coco_sizes.csv").open() as table:
        sizes = [(int(row["height"]), int(row["width"])) for row in csv.DictReader(table)]
    canvases = {exact_placement(size, model.preprocessing).canvas for size in (*sizes, (12, 4000), (4000, 12))}
    assert len(canvases) > 20
    assert [canvas for canvas in canvases if not image.holds((1, 3, *canvas))] == []


def test_a_graph_of_two_canvases_has_a_profile_that_holds_both_and_no_more():
    model = of_scale((150, 90), canvases=((96, 160), (192, 64)))
    image = input_ranges({"image": (1, 3, -1, -1)}, model, ProfileShapes())["image"]
    assert image == ShapeRange((1, 3, 96, 64), (1, 3, 96, 160), (1, 3, 192, 160))


def test_a_batch_of_any_size_at_a_fixed_canvas_ends_at_eight():
    ranges = input_ranges({"image": (-1, 3, 96, 160), "image_shape": (-1, 2)}, DYNAMIC, ProfileShapes())
    assert ranges["image"] == ShapeRange((1, 3, 96, 160), (1, 3, 96, 160), (8, 3, 96, 160))
    assert ranges["image_shape"] == ShapeRange((1, 2), (1, 2), (8, 2))


def test_given_shapes_are_taken_and_other_inputs_follow_them():
    inputs = {"image": (-1, 3, -1, -1), "image_shape": (-1, 2)}
    ranges = input_ranges(
        inputs, DYNAMIC, ProfileShapes(opt={"image": (2, 3, 96, 160)}, max={"image": (16, 3, 160, 160)})
    )
    assert ranges["image"] == ShapeRange((1, 3, 32, 32), (2, 3, 96, 160), (16, 3, 160, 160))
    assert ranges["image_shape"] == ShapeRange((1, 2), (2, 2), (16, 2))
    assert ranges["image"].holds((3, 3, 128, 64))
    assert not ranges["image"].holds((17, 3, 128, 64))
    assert not ranges["image"].holds((3, 128, 64))


def test_shapes_that_do_not_fit_the_graph_are_refused():
    inputs = {"image": (-1, 3, -1, -1), "image_shape": (-1, 2)}
    with pytest.raises(DeployError, match=r"input image: .* is no range: expected min <= opt <= max .*maxShapes\)"):
        input_ranges(inputs, DYNAMIC, ProfileShapes(min={"image": (4, 3, 96, 160)}))
    with pytest.raises(DeployError, match="--trt maxShapes names 'picture'; the inputs are image, image_shape"):
        input_ranges(inputs, DYNAMIC, ProfileShapes(max={"picture": (1, 3, 96, 160)}))
    with pytest.raises(DeployError, match=r"gives image as 1x1x96x160, the graph has \?x3x\?x\?: only what is \?"):
        input_ranges(inputs, DYNAMIC, ProfileShapes(min={"image": (1, 1, 96, 160)}))
    with pytest.raises(DeployError, match="export it without --input-size, or with --batch any"):
        input_ranges({"image": (1, 3, 96, 160)}, DYNAMIC, ProfileShapes(min={"image": (2, 3, 96, 160)}))


# Several profiles


def test_the_smallest_profile_that_holds_the_shapes_is_chosen():
    def profile(low: int, opt: int, high: int) -> dict[str, ShapeRange]:
        return {
            "image": ShapeRange((low, 4, 4), (opt, 4, 4), (high, 8, 8)),
            "rows": ShapeRange((low,), (opt,), (high,)),
        }

    def chosen(batch: int, *profiles: dict[str, ShapeRange], rows: int | None = None) -> int | None:
        return profile_for(profiles, {"image": (batch, 6, 8), "rows": (batch if rows is None else rows,)})

    small, large = profile(1, 1, 2), profile(1, 8, 8)
    assert [chosen(batch, large, small) for batch in (1, 2, 3, 8, 9)] == [1, 1, 0, 0, None]
    assert chosen(2, large, small, rows=3) == 0  # all inputs must fit
    # Of one size the one that is fastest nearer by.
    assert [chosen(batch, profile(1, 1, 8), large) for batch in (1, 8)] == [0, 1]
    assert chosen(4, large, large) == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (((1, 8),), None),
        (((4, 4),), None),  # every batch has four
        (((2, 8),), "the least batch is 2: let one begin at 1"),
        (((4, 4), (8, 8)), "no profile takes a single image, .* the least batch is 4"),
        (((8, 8), (1, 1)), None),
    ],
)
def test_some_profile_takes_one_image_or_all_take_the_same_number(batches, message):
    given = [
        ProfileShapes(
            **{end: {"image": (size, 3, 96, 160)} for end, size in (("min", low), ("opt", low), ("max", high))}
        )
        for low, high in batches
    ]
    inputs = {"image": (-1, 3, -1, -1)}
    if message is None:
        assert len(profiles_of(inputs, DYNAMIC, given)) == len(batches)
    else:
        with pytest.raises(DeployError, match=message):
            profiles_of(inputs, DYNAMIC, given)


def test_a_profile_is_named_where_there_are_several():
    inputs = {"image": (-1, 3, -1, -1)}
    with pytest.raises(DeployError, match=r"^profile 1: --trt maxShapes names 'picture'"):
        profiles_of(inputs, DYNAMIC, (ProfileShapes(), ProfileShapes(max={"picture": (1,)})))
    with pytest.raises(DeployError, match=r"^profile 1 is profile 0 again: leave --trt profile=1 out"):
        profiles_of(inputs, DYNAMIC, (ProfileShapes(), ProfileShapes()))
