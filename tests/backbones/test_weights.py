"""Weight files of torchvision, SlowFast's model zoo and SVT; and files that are refused."""

import argparse
import pickle
import warnings

import numpy as np
import pytest
import torch
from support.weights import released_svt, sized
from torch.nn import functional as F
from torchvision import models

from scale_ray.backbones import load_backbone
from scale_ray.backbones.slow_r50 import SlowR50
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError


def tiny(**options) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "shufflenet_v2_x0_5", "weights": "none", "input_px": 32} | options)


def clips(count: int, frames: int = 3, input_px: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, input_px, input_px, 3), generator=generator, dtype=torch.uint8)


def test_weights_have_an_identity_of_their_content(tmp_path):
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pth")
        torch.save(models.shufflenet_v2_x0_5().state_dict(), paths[-1])
    ids = [load_backbone(tiny(weights=str(path)), 3).weights_id for path in (*paths, paths[0])]
    assert ids[0] == ids[2] != ids[1]


class _Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_file_that_would_execute_something_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(UserError, match="expected a file that contains only tensors"):
        load_backbone(tiny(weights=str(path)), 3)


def test_what_training_scripts_leave_beside_the_tensors_is_no_reason_to_refuse(tmp_path):
    state = models.shufflenet_v2_x0_5().state_dict()
    rates = {"lr": np.float64(0.1), "steps": np.int64(3), "small": np.float32(0.5)}
    others = {"args": argparse.Namespace(lr=0.1, data="videos"), "optimizer": {"param_groups": [rates]}, "epoch": 3}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, **others}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "plain.pth")
    wrapped, plain = (load_backbone(tiny(weights=str(tmp_path / name)), 3) for name in ("w.pth", "plain.pth"))
    assert wrapped.weights_id == plain.weights_id


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit shufflenet_v2_x0_5: expected .* missing"):
        load_backbone(tiny(weights=str(tmp_path / "w.pth")), 3)


@pytest.fixture(scope="module")
def slow() -> SlowR50:
    torch.manual_seed(0)
    model = SlowR50().eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def slow_file(path, state, prefix: str, **others) -> str:
    """Write a checkpoint in SlowFast's format."""
    named = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save(
        {
            "epoch": 199,
            "model_state": named | others,
            "optimizer_state": {"param_groups": [{"lr": 0.1}]},
            "cfg": "A: 1",
        },
        path,
    )
    return str(path)


def slow_options(weights: str) -> BackboneOptions:
    return BackboneOptions(backbone="slow_r50", weights=weights, input_px=32)


def contrastive_heads(copy: str) -> dict[str, torch.Tensor]:
    return {
        f"{copy}.head.projection.weight": sized(128, 2048),
        f"{copy}.ssl_128.projection.0.weight": sized(4096, 2048),
        f"{copy}.ssl_128.projection.0.bias": sized(4096),
        f"{copy}.ssl_256.projection.3.weight": sized(256, 4096),
        f"{copy}.ssl_256_predictors.0.0.weight": sized(4096, 256),
    }


MEMORIES = {
    "queue_x": sized(65536, 128),
    "ptr": torch.zeros(1),
    "iter": torch.zeros(1, dtype=torch.long),
    "knn_mem.memory": sized(240436, 1, 128),
}


def test_a_contrastive_file_of_slowfast_gives_its_momentum_copy_alone(tmp_path, slow):
    online = {f"backbone.{key}": sized(*value.shape) for key, value in slow.state_dict().items()}
    others = online | contrastive_heads("backbone") | contrastive_heads("backbone_hist") | MEMORIES
    path = slow_file(tmp_path / "byol.pyth", slow.state_dict(), "backbone_hist.", **others)
    backbone = load_backbone(slow_options(path), 8)
    assert backbone.identity()["weights_copy"] == "momentum"
    assert backbone.notes == (
        "slow_r50: weights of the momentum copy (backbone_hist.*)",
        f"slow_r50: weights not used: backbone ({len(online) + 5} tensors), backbone_hist (5 tensors), "
        "iter (1 tensor), knn_mem (1 tensor), ptr (1 tensor), queue_x (1 tensor)",
    )
    images = (clips(2, 8).float() / 255 - 0.45) / 0.225
    with torch.inference_mode():
        expected = slow(images.permute(0, 4, 1, 2, 3))
    assert expected.shape == (2, 2048)
    torch.testing.assert_close(backbone(clips(2, 8)), expected, rtol=1e-4, atol=1e-4)
    head = {"head.projection.weight": torch.ones(2, 2), "head.projection.bias": torch.ones(2)}
    supervised = slow_file(tmp_path / "supervised.pyth", slow.state_dict(), "", **head)
    alone = load_backbone(slow_options(supervised), 8)
    assert alone.weights_id == backbone.weights_id
    assert "weights_copy" not in alone.identity()
    assert alone.notes == ("slow_r50: weights not used: head (2 tensors)",)


def test_a_contrastive_file_without_a_momentum_copy_gives_its_only_copy(tmp_path, slow):
    path = slow_file(tmp_path / "simclr.pyth", slow.state_dict(), "backbone.", **contrastive_heads("backbone"))
    backbone = load_backbone(slow_options(path), 8)
    assert torch.equal(backbone.trunk.s1.pathway0_stem.conv.weight, slow.s1.pathway0_stem.conv.weight)
    assert "weights_copy" not in backbone.identity()
    assert backbone.notes == (
        "slow_r50: weights of the online copy (backbone.*)",
        "slow_r50: weights not used: backbone (5 tensors)",
    )


def test_a_file_of_slowfast_has_to_fit_strictly(tmp_path, slow):
    state = slow.state_dict()
    unknown = {"backbone.s3.pathway0_nonlocal1.conv_g.weight": torch.ones(2, 2)}
    with pytest.raises(UserError, match=r"0 missing, 1 unknown .* 's3.pathway0_nonlocal1.conv_g.weight'"):
        load_backbone(slow_options(slow_file(tmp_path / "a.pyth", state, "backbone.", **unknown)), 8)
    incomplete = {key: value for key, value in state.items() if key != "s4.pathway0_res5.branch2.b_bn.running_var"}
    with pytest.raises(UserError, match=r"1 missing, 0 unknown .* 's4.pathway0_res5.branch2.b_bn.running_var'"):
        load_backbone(slow_options(slow_file(tmp_path / "b.pyth", incomplete, "")), 8)
    with pytest.raises(UserError, match="slow_r50 expected --weights FILE"):
        load_backbone(slow_options("default"), 8)


def test_slow_r50_is_a_resnet_of_frames_that_looks_around_in_its_last_stages():
    """With all weights but the middle frames of its kernels zero, it equals torchvision's ResNet-50 per frame."""
    torch.manual_seed(0)
    flat = models.resnet50().eval()
    names = {"conv1": "a", "bn1": "a_bn", "conv2": "b", "bn2": "b_bn", "conv3": "c", "bn3": "c_bn"}
    slow, state = SlowR50().eval(), {}
    own = slow.state_dict()
    for key, value in flat.state_dict().items():
        if key.startswith("fc."):
            continue
        if not key.startswith("layer"):
            new = "s1.pathway0_stem." + key.replace("conv1", "conv").replace("bn1", "bn")
        else:
            stage, block, part, *rest = key.removeprefix("layer").split(".")
            if part == "downsample":
                part, rest = ("branch1", "branch1_bn")[int(rest[0])], rest[1:]
            else:
                part = "branch2." + names[part]
            new = ".".join([f"s{int(stage) + 1}.pathway0_res{block}", part, *rest])
        if value.ndim == 4:
            inflated = torch.zeros(own[new].shape)
            inflated[:, :, own[new].shape[2] // 2] = value
            value = inflated
        state[new] = value
    slow.load_state_dict(state)
    clip = torch.rand(1, 3, 3, 64, 64)
    flat.fc = torch.nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(
            slow(clip), flat(clip[0].transpose(0, 1)).mean(0, keepdim=True), rtol=1e-3, atol=1e-4
        )
        assert {name: own[f"{name}.pathway0_res1.branch2.a.weight"].shape[2] for name in ("s2", "s3", "s4", "s5")} == {
            "s2": 1,
            "s3": 1,
            "s4": 3,
            "s5": 3,
        }


WIDTH, DEPTH, FRAMES, INPUT_PX = 128, 2, 3, 32


def svt_teacher() -> dict[str, torch.Tensor]:
    """The tensors of an SVT teacher with two heads and two blocks, under the names of the authors' code."""
    torch.manual_seed(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 5, WIDTH),
        "time_embed": (1, FRAMES, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for block in range(DEPTH):
        for name in ("norm1", "norm2", "temporal_norm1"):
            shapes |= {f"blocks.{block}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
        linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "temporal_attn.qkv": (3, 1), "temporal_attn.proj": (1, 1)}
        linear |= {"temporal_fc": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (out, into) in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = (out * WIDTH, into * WIDTH)
            shapes[f"blocks.{block}.{name}.bias"] = (out * WIDTH,)
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def svt_features(w: dict[str, torch.Tensor], clips_B3TSS: torch.Tensor) -> torch.Tensor:
    """Reference for SVT's class token: attention over time, then over space with one class token per frame."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(x, name):
        q, k, v = linear(x, f"{name}.qkv").unflatten(-1, (3, WIDTH // 64, 64)).movedim(-3, 0).transpose(-2, -3)
        mixed = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        return linear(mixed.transpose(-2, -3).flatten(-2), f"{name}.proj")

    count, _, frames, _, _ = clips_B3TSS.shape
    patches = F.conv2d(
        clips_B3TSS.transpose(1, 2).flatten(0, 1), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 16
    )
    x = patches.flatten(2).transpose(1, 2).unflatten(0, (count, frames)) + w["pos_embed"][:, 1:]
    x = x + w["time_embed"].unsqueeze(2)  # clips, frames, patches, width
    token = (w["cls_token"] + w["pos_embed"][:, :1]).expand(count, 1, WIDTH)
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        over_time = attention(norm(x.transpose(1, 2), f"{block}.temporal_norm1"), f"{block}.temporal_attn")
        x = x + linear(over_time, f"{block}.temporal_fc").transpose(1, 2)
        with_token = torch.cat([token.unsqueeze(1).expand(-1, frames, -1, -1), x], 2)
        over_space = attention(norm(with_token, f"{block}.norm1"), f"{block}.attn")
        token, x = token + over_space[:, :, 0].mean(1, keepdim=True), x + over_space[:, :, 1:]
        token, x = (
            part + linear(F.gelu(linear(norm(part, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
            for part in (token, x)
        )
    return norm(token[:, 0], "norm")


def svt_file(path, teacher: dict[str, torch.Tensor]) -> str:
    """Write a checkpoint in SVT's format: student and teacher with heads, optimiser and arguments."""
    heads = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    torch.save(
        {
            "student": {f"module.backbone.{key}": value + 1 for key, value in teacher.items()},
            "teacher": {f"backbone.{key}": value for key, value in teacher.items()} | heads,
            "motion_student": 0,
            "motion_teacher": 0,
            "optimizer": {"param_groups": [{"lr": np.float64(5e-4)}]},
            "args": argparse.Namespace(arch="timesformer"),
            "dino_loss": {"center": torch.zeros(1, 2)},
        },
        path,
    )
    return str(path)


@pytest.fixture
def svt_library():
    with warnings.catch_warnings(action="ignore"):  # warnings of the library about its own code
        return pytest.importorskip("transformers")


def test_svt_is_the_teacher_of_its_file(tmp_path, svt_library):
    teacher = svt_teacher()
    backbone = load_backbone(BackboneOptions(backbone="svt", weights=svt_file(tmp_path / "svt.pth", teacher)), FRAMES)
    assert (backbone.num_frames, backbone.input_px) == (FRAMES, INPUT_PX)
    expected = svt_features(teacher, svt_images(clips(2, FRAMES)))
    torch.testing.assert_close(backbone(clips(2, FRAMES)), expected, rtol=1e-3, atol=1e-3)
    assert "time_embeddings" not in backbone.identity()
    assert backbone.notes == ("svt: weights not used: head (2 tensors)",)


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_svt_sees_all_frames_of_a_clip_with_interpolated_time_embeddings(tmp_path, svt_library, frames):
    teacher = svt_teacher()
    options = BackboneOptions(backbone="svt", weights=svt_file(tmp_path / "svt.pth", teacher))
    backbone = load_backbone(options, frames)
    time = F.interpolate(teacher["time_embed"].transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)
    expected = svt_features(teacher | {"time_embed": time}, svt_images(clips(2, frames)))
    torch.testing.assert_close(backbone(clips(2, frames)), expected, rtol=1e-3, atol=1e-3)
    assert backbone.num_frames == frames
    assert backbone.identity()["time_embeddings"] == f"{FRAMES}, interpolated to {frames}"
    assert backbone.weights_id != load_backbone(options, FRAMES).weights_id


def svt_images(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(0, 4, 1, 2, 3)


def test_the_released_file_of_svt_is_a_flat_dictionary_with_eight_time_embeddings(tmp_path, svt_library):
    file = released_svt()
    torch.save(file, tmp_path / "kinetics400_vitb_ssl.pth")
    options = BackboneOptions(backbone="svt", weights=str(tmp_path / "kinetics400_vitb_ssl.pth"))
    backbone = load_backbone(options, 16)
    assert (backbone.num_frames, backbone.input_px) == (16, 224)
    assert backbone.identity()["time_embeddings"] == "8, interpolated to 16"
    time = backbone.trunk.model.embeddings.time_embeddings
    assert torch.equal(time, file["backbone.time_embed"].repeat_interleave(2, 1))
    assert backbone.notes == ("svt: weights not used: head (3 tensors)",)


def test_a_file_of_svt_has_to_fit_strictly(tmp_path, svt_library):
    teacher = svt_teacher()
    path = svt_file(tmp_path / "svt.pth", teacher)
    for options, frames, message in [
        ({"input_px": 64}, 3, "input_px: svt expected 32 px, found 64"),
        ({"weights": "default"}, 3, "svt expected --weights FILE"),
    ]:
        with pytest.raises(UserError, match=message):
            load_backbone(BackboneOptions(**{"backbone": "svt", "weights": path} | options), frames)
    incomplete = {key: value for key, value in teacher.items() if key != "blocks.1.temporal_fc.bias"}
    for changed, message in [
        (incomplete, "1 missing, 0 unknown .* 'encoder.layer.1.temporal_dense.bias'"),
        (teacher | {"aux_cls_token": torch.ones(1, 1, WIDTH)}, "0 missing, 1 unknown .* 'aux_cls_token'"),
        ({"conv.weight": torch.ones(1)}, "expected the teacher of an SVT .* 'patch_embed.proj.weight'"),
    ]:
        path = svt_file(tmp_path / "changed.pth", changed)
        with pytest.raises(UserError, match=message):
            load_backbone(BackboneOptions(backbone="svt", weights=path), 3)
    torch.save({"state_dict": teacher}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"expected 'teacher' or backbone\.\* among the keys .*, found state_dict"):
        load_backbone(BackboneOptions(backbone="svt", weights=str(tmp_path / "other.pth")), 3)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mobilenet_v2", "mobilenet_v2-imagenet.pth"),
        ("squeezenet1_0", "squeezenet1_0-imagenet.pth"),
    ],
)
def test_real_weights_load_strictly(real_media, name, file):
    backbone = load_backbone(tiny(backbone=name, weights=str(real_media / "weights" / file), input_px=64), 3)
    assert backbone.weights_id.startswith("sha256:")
    assert torch.isfinite(backbone(clips(2, input_px=64))).all()
