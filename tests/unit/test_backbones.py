"""Bases as PyTorch modules, and checkpoints of one's own that become bases."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_bert
from luthier.errors import InvalidArgument
from luthier.toolkit import architectures
from luthier.toolkit.backbones import Base, create_backbone, load_weights, read_base, read_state
from luthier.toolkit.imports import import_checkpoint

TINY = "test_efficientnet"
"""A model of timm's own tests, of a third of a million parameters."""


def randomised(module: nn.Module) -> nn.Module:
    """The module with norms that are far from the identity, as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            layer.weight.data.uniform_(0.8, 1.2, generator=generator)
            layer.bias.data.uniform_(-0.1, 0.1, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.05, 0.2, generator=generator)
    return module.eval()


def write_base(directory: Path, state: dict[str, torch.Tensor], **changes: object) -> Path:
    directory.mkdir(parents=True)
    save_file(state, directory / "model.safetensors")
    content = {"id": "tiny", "library": "timm", "architecture": TINY, "weights": "model.safetensors"}
    content |= {"input_size": [160, 160], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 1000}
    (directory / "base.json").write_text(json.dumps(content | changes))
    return directory


@pytest.fixture
def tiny() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return randomised(timm.create_model(TINY)).state_dict()


def test_a_base_is_read_from_its_folder(tiny, tmp_path):
    base = read_base(write_base(tmp_path / "base", tiny))
    assert (base.library, base.architecture, base.input_size, base.num_classes) == ("timm", TINY, (160, 160), 1000)
    with pytest.raises(InvalidArgument, match=r"it comes without base\.json") as caught:
        read_base(tmp_path)
    assert list(caught.value.violations) == ["base"]
    with pytest.raises(InvalidArgument, match="tiny is a model of timm; this takes one of torchvision"):
        read_base(tmp_path / "base", ("torchvision",))


def test_a_backbone_has_the_weights_of_its_base(tiny, tmp_path):
    directory = write_base(
        tmp_path / "base", {name: t.half() if t.is_floating_point() else t for name, t in tiny.items()}
    )
    base = read_base(directory)
    whole = create_backbone(base, directory).eval()
    assert all(torch.allclose(t, tiny[name], atol=2e-3) for name, t in whole.state_dict().items())
    assert {t.dtype for t in whole.parameters()} == {torch.float32}
    ours = create_backbone(base, directory, num_classes=7)
    assert torch.equal(ours.conv_stem.weight, whole.conv_stem.weight)
    assert ours.classifier.weight.shape[0] == 7
    levels = create_backbone(base, directory, features_only=True, out_indices=(1, 2, 3), output_stride=16).eval()
    assert torch.equal(levels.conv_stem.weight, whole.conv_stem.weight)
    assert [level.shape[-1] for level in levels(torch.zeros(1, 3, 128, 128))] == [32, 16, 8]
    none = create_backbone(base, directory, pretrained=False, num_classes=0)
    assert not torch.equal(none.conv_stem.weight, whole.conv_stem.weight)


def test_a_base_without_a_classifier_makes_every_backbone(tiny, tmp_path):
    body = {name: tensor for name, tensor in tiny.items() if not name.startswith("classifier.")}
    directory = write_base(tmp_path / "base", body, num_classes=0)
    for arguments in ({}, {"num_classes": 0}, {"num_classes": 1000}, {"features_only": True}):
        module = create_backbone(read_base(directory), directory, **arguments)
        assert torch.equal(module.conv_stem.weight, tiny["conv_stem.weight"])


@pytest.mark.parametrize("arguments", [{"num_classes": 5}, {"features_only": True}, {}])
def test_missing_weights_never_start_at_random(tiny, tmp_path, arguments):
    del tiny["conv_stem.weight"]
    directory = write_base(tmp_path / "base", tiny)
    with pytest.raises(InvalidArgument, match=r"lack 1 of the \d+ tensors of test_efficientnet.*: conv_stem\.weight"):
        create_backbone(read_base(directory), directory, **arguments)


def test_a_whole_model_or_an_unknown_one_is_no_backbone(tmp_path):
    whole = Base(id="d", library="torchvision", architecture="fcos_resnet50_fpn", weights="x")
    with pytest.raises(InvalidArgument, match="d is a whole model of torchvision"):
        create_backbone(whole, tmp_path)
    with pytest.raises(InvalidArgument, match="'hf-hub:acme/model' is no model of timm"):
        architectures.resolve("hf-hub:acme/model")


@pytest.mark.parametrize("key", ["state_dict", "model", ""])
def test_state_dicts_are_read_out_of_training_files(tmp_path, key):
    state = {"module.a.weight": torch.ones(2, dtype=torch.float16), "module.b": torch.ones((), dtype=torch.int64)}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "file")
    read = read_state(tmp_path / "file")
    assert {name: t.dtype for name, t in read.items()} == {"a.weight": torch.float32, "b": torch.int64}


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_is_run(tmp_path, zipped):
    canary, file = tmp_path / "canary", tmp_path / "model.pth"
    content = {"weight": torch.ones(1), "extra": Canary(canary)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(InvalidArgument, match=r"(would have to run code|neither a safetensors file)") as caught:
        import_checkpoint("x", TINY, file, {}, {}, tmp_path / "base")
    assert list(caught.value.violations) == ["weights"]
    assert not canary.exists()
    assert not (tmp_path / "base").exists()
    # The canary does sing where it is let.
    if zipped:
        torch.load(file, weights_only=False)
        assert canary.is_dir()


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "neither"), (b"not weights at all", "neither"), (b"\x20\0\0\0\0\0\0\0{broken", "damaged safetensors")],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content, why):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidArgument, match=why):
        import_checkpoint("x", TINY, tmp_path / "file", {}, {}, tmp_path / "base")


def test_tensors_alone_are_no_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "file")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "file")


def test_an_import_by_the_architectures_own_names(tiny, tmp_path):
    save_file(
        {f"backbone.{name}": t.half() if t.is_floating_point() else t for name, t in tiny.items()}, tmp_path / "f"
    )
    made = import_checkpoint("mine", TINY, tmp_path / "f", {}, {"input_size": (96, 96)}, tmp_path / "base")
    assert made.report.matched == len(tiny)
    assert (made.report.prefix, made.report.dtypes, made.report.twin) == ("backbone.", ["float16"], "")
    assert made.base.input_size == (96, 96)
    assert made.tasks == ("image-classification", "object-detection", "semantic-segmentation")
    assert made.num_parameters == sum(p.numel() for p in timm.create_model(TINY).parameters())
    assert 0 < made.gmacs < 1
    base = read_base(tmp_path / "base")
    assert base == made.base
    assert torch.equal(
        create_backbone(base, tmp_path / "base").conv_stem.weight, tiny["conv_stem.weight"].half().float()
    )


def test_a_head_of_other_classes_is_dropped_and_reported(tmp_path):
    ours = timm.create_model(TINY, num_classes=6).state_dict()
    ours["ema.decay"] = torch.ones(1)
    del ours["bn1.num_batches_tracked"]
    save_file(ours, tmp_path / "f")
    made = import_checkpoint("mine", TINY, tmp_path / "f", {}, {}, tmp_path / "base")
    assert made.report.dropped == ["classifier.bias", "classifier.weight"]
    assert made.report.missing == []
    assert made.report.unexpected == ["ema.decay"]
    assert made.base.num_classes == 0
    module = create_backbone(made.base, tmp_path / "base", num_classes=4)
    assert torch.equal(module.conv_stem.weight, ours["conv_stem.weight"])


def test_half_a_head_is_no_head(tiny, tmp_path):
    del tiny["classifier.bias"]
    save_file(tiny, tmp_path / "f")
    made = import_checkpoint("mine", TINY, tmp_path / "f", {}, {}, tmp_path / "base")
    assert (made.report.dropped, made.report.missing) == (["classifier.weight"], ["classifier.bias"])
    assert made.report.matched == len(tiny) - 1


def test_anything_missing_of_the_backbone_refuses_the_import(tiny, tmp_path):
    del tiny["bn1.bias"]
    tiny["conv_stem.weight"] = torch.ones(4, 3, 3, 3)
    save_file(tiny, tmp_path / "f")
    with pytest.raises(InvalidArgument) as caught:
        import_checkpoint("mine", TINY, tmp_path / "f", {}, {}, tmp_path / "base")
    message = caught.value.violations["weights"]
    assert message.startswith("2 of the ")
    assert "conv_stem.weight has the shape [4, 3, 3, 3], not [" in message
    assert "bn1.bias is missing" in message


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "efficientnet_v2_s", "no_such_model"])
def test_an_architecture_that_is_not_supported_is_said(tiny, tmp_path, architecture):
    save_file(tiny, tmp_path / "f")
    with pytest.raises(InvalidArgument) as caught:
        import_checkpoint("mine", architecture, tmp_path / "f", {}, {}, tmp_path / "base")
    assert list(caught.value.violations) == ["architecture"]


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether logits agree to 1e-4 of how far two random images are apart: a constant output proves nothing."""
    apart = (theirs[0] - theirs[1]).abs().max()
    return bool(apart > 0) and bool((ours - theirs).abs().max() <= 1e-4 * apart)


QUICK = ("efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
TWINS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in architectures.TWINS]


@pytest.mark.parametrize("twin", TWINS)
def test_each_twin_computes_what_torchvision_does(twin, tmp_path):
    torch.manual_seed(0)
    theirs = randomised(torchvision.models.get_model(twin, weights=None))
    ours = timm.create_model(architectures.TWINS[twin]).eval()
    ours.load_state_dict(architectures.translate(theirs.state_dict(), twin))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert same(ours(images), theirs(images))


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "mobilenetv3_small_100"])
def test_torchvisions_names_are_translated_under_either_name(tmp_path, architecture):
    torch.manual_seed(0)
    theirs = randomised(torchvision.models.mobilenet_v3_small())
    torch.save(theirs.state_dict(), tmp_path / "f")
    made = import_checkpoint("mine", architecture, tmp_path / "f", {}, {}, tmp_path / "base")
    assert (made.base.library, made.base.architecture) == ("timm", "mobilenetv3_small_100")
    assert made.report.twin == "mobilenet_v3_small"
    assert made.report.matched == 244
    assert made.base.mean == pytest.approx((0.485, 0.456, 0.406))
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert same(create_backbone(made.base, tmp_path / "base").eval()(images), theirs(images))


def test_a_whole_detector_keeps_torchvisions_names(tmp_path):
    ours = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    )
    torch.save({"model": ours.state_dict()}, tmp_path / "f")
    made = import_checkpoint("mine", "ssdlite320_mobilenet_v3_large", tmp_path / "f", {}, {}, tmp_path / "base")
    assert (made.base.library, made.tasks, made.base.input_size) == ("torchvision", ("object-detection",), (320, 320))
    assert made.base.mean == (0.5, 0.5, 0.5)
    assert made.base.num_classes == 0
    # Only the layers whose outputs count classes differ.
    assert len(made.report.dropped) == 12
    assert all("classification_head" in name for name in made.report.dropped)
    kept = load_weights(made.base, tmp_path / "base")
    assert len(kept) == made.report.matched == len(ours.state_dict()) - 12
    name = "backbone.features.0.0.0.weight"
    assert torch.equal(kept[name], ours.state_dict()[name])


def test_an_encoder_with_a_task_head_on_it(tmp_path):
    source = tiny_bert.write(tmp_path / "source", ["good", "bad"])
    state = {f"bert.{name}": tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    state["classifier.weight"] = torch.ones(2, 32)
    save_file(state, tmp_path / "f")
    files = {name: source / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    made = import_checkpoint("mine", "BertModel", tmp_path / "f", files, {}, tmp_path / "base")
    assert made.tasks == ("text-classification", "entity-recognition")
    assert (made.base.library, made.tokens) == ("transformers", 64)
    assert made.report.unexpected == ["classifier.weight"]
    assert made.report.dtypes == ["float16", "float32"]
    kept = load_file(tmp_path / "base/model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(kept[name], state[f"bert.{name}"].float())
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    from transformers import AutoModel

    _, loading = AutoModel.from_pretrained(tmp_path / "base", local_files_only=True, output_loading_info=True)
    assert not loading["missing_keys"]


def test_what_an_encoder_lacks_is_said(tmp_path):
    source = tiny_bert.write(tmp_path / "source", ["good", "bad"])
    files = {name: source / name for name in ("config.json", "tokenizer.json")}
    weights = source / "model.safetensors"
    with pytest.raises(InvalidArgument, match=r"needs its tokenizer\.json"):
        import_checkpoint("x", "BertModel", weights, {"config.json": files["config.json"]}, {}, tmp_path / "a")
    with pytest.raises(InvalidArgument, match="that of a BertModel, not RobertaModel"):
        import_checkpoint("x", "RobertaModel", weights, files, {}, tmp_path / "b")
    state = load_file(weights)
    del state["embeddings.word_embeddings.weight"]
    save_file(state, tmp_path / "f")
    with pytest.raises(InvalidArgument, match=r"1 of the \d+ .* are missing: embeddings\.word_embeddings\.weight"):
        import_checkpoint("x", "BertModel", tmp_path / "f", files, {}, tmp_path / "c")


@pytest.mark.parametrize("id", ["mobilenetv3-small-100", "resnet18", "vit-tiny-patch16-224", "ssdlite", "lraspp"])
def test_the_catalogue_says_what_the_libraries_say(id):
    from luthier.bases import Catalogue

    entry = Catalogue.load().get(id)
    architecture = architectures.resolve(entry.architecture)
    assert entry.num_parameters == architecture.num_parameters
    assert entry.tasks == architecture.tasks
    assert entry.preprocessing.input_size == architecture.input_size
    assert entry.preprocessing.mean == pytest.approx(architecture.mean)
    assert entry.preprocessing.std == pytest.approx(architecture.std)
    assert entry.preprocessing.num_classes == architecture.num_classes
    assert entry.gmacs == pytest.approx(
        architectures.gmacs(entry.library, entry.architecture, architecture.input_size), abs=5e-4
    )


@pytest.mark.realdata
def test_real_weights_give_torchvisions_logits(realdata, tmp_path):
    file = realdata / "weights/mobilenet_v2_in1k_fp16.safetensors"
    made = import_checkpoint("mobilenet-v2", "mobilenet_v2", file, {}, {}, tmp_path / "base")
    assert (made.report.matched, made.report.dropped, made.report.missing, made.report.unexpected) == (314, [], [], [])
    assert (made.report.twin, made.report.dtypes) == ("mobilenet_v2", ["float16"])
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()})
    ours = create_backbone(read_base(tmp_path / "base"), tmp_path / "base")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert same(ours.eval()(images), theirs.eval()(images))
    squeezenet = realdata / "weights/squeezenet1_1_in1k_fp16.safetensors"
    with pytest.raises(InvalidArgument, match="torchvision's squeezenet1_1 has no twin in timm"):
        import_checkpoint("x", "squeezenet1_1", squeezenet, {}, {}, tmp_path / "other")
