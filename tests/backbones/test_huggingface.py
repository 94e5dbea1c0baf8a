"""Models of transformers: tiny ones, created here and saved with the library."""

import importlib
import json
import pickle
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scale_ray.backbones import backbone_facts, huggingface_files, load_backbone
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

with warnings.catch_warnings(action="ignore"):  # warnings of the library about its own code
    hf = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
VIDEO = {**SIZES, "intermediate_size": 64, "num_frames": 4}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TOWER = {**SIZES, "intermediate_size": 64}
TEXT = {**TOWER, "vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 9, "bos_token_id": 8}
VJEPA = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "crop_size": 32,
    "frames_per_clip": 8,
    "mlp_ratio": 2,
    "pred_hidden_size": 48,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
KINETICS = ((0.45,) * 3, (0.225,) * 3)


def mean_of_tokens(model, clips_BT3SS):
    return model(clips_BT3SS).last_hidden_state.mean(1)


def normed_mean_of_tokens(model, clips_BT3SS):
    return model.fc_norm(mean_of_tokens(model.videomae, clips_BT3SS))


def class_token(model, clips_BT3SS):
    return model(clips_BT3SS).last_hidden_state[:, 0]


def mean_of_encoder_tokens(model, clips_BT3SS):
    return model.get_vision_features(clips_BT3SS).mean(1)


def pooled_frames(model, clips_BT3SS):
    model = getattr(model, "vision_model", model)
    frames = [model(clips_BT3SS[:, frame]).pooler_output for frame in range(clips_BT3SS.shape[1])]
    return torch.stack(frames).mean(0)


# Class to save, its configuration, the submodule that computes the features, the expected features, mean and std.
MODELS = {
    "videomae pretrained": (
        "VideoMAEForPreTraining",
        lambda: hf.VideoMAEConfig(**VIDEO, **DECODER, use_mean_pooling=False),
        "videomae",
        mean_of_tokens,
        IMAGENET,
    ),
    "videomae fine-tuned": (
        "VideoMAEForVideoClassification",
        lambda: hf.VideoMAEConfig(**VIDEO, **DECODER, use_mean_pooling=True, num_labels=3),
        None,
        normed_mean_of_tokens,
        IMAGENET,
    ),
    "videomae fine-tuned without mean pooling": (
        "VideoMAEForVideoClassification",
        lambda: hf.VideoMAEConfig(**VIDEO, **DECODER, use_mean_pooling=False, num_labels=3),
        "videomae",
        mean_of_tokens,
        IMAGENET,
    ),
    "videomae encoder without a norm": (
        "VideoMAEModel",
        lambda: hf.VideoMAEConfig(**VIDEO, **DECODER, use_mean_pooling=True),
        None,
        mean_of_tokens,
        IMAGENET,
    ),
    "timesformer": (
        "TimesformerForVideoClassification",
        lambda: hf.TimesformerConfig(**VIDEO, num_labels=3),
        "timesformer",
        class_token,
        KINETICS,
    ),
    "vjepa2": ("VJEPA2Model", lambda: hf.VJEPA2Config(**VJEPA), None, mean_of_encoder_tokens, IMAGENET),
    "vjepa2 classifier": (
        "VJEPA2ForVideoClassification",
        lambda: hf.VJEPA2Config(**VJEPA, num_labels=3, num_pooler_layers=1),
        "vjepa2",
        mean_of_encoder_tokens,
        IMAGENET,
    ),
    "clip": (
        "CLIPModel",
        lambda: hf.CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=16),
        None,
        pooled_frames,
        CLIP,
    ),
    "clip classifier": (
        "CLIPForImageClassification",
        lambda: hf.CLIPConfig(vision_config=TOWER, text_config=TEXT, num_labels=3),
        None,
        pooled_frames,
        CLIP,
    ),
    "clip with projection": (
        "CLIPVisionModelWithProjection",
        lambda: hf.CLIPVisionConfig(**TOWER, projection_dim=16),
        None,
        pooled_frames,
        CLIP,
    ),
    "clip tower": ("CLIPVisionModel", lambda: hf.CLIPVisionConfig(**TOWER), None, pooled_frames, CLIP),
    "dinov2": (
        "Dinov2ForImageClassification",
        lambda: hf.Dinov2Config(**SIZES, num_labels=3),
        "dinov2",
        pooled_frames,
        IMAGENET,
    ),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: hf.Dinov2WithRegistersConfig(**SIZES, num_labels=3),
        "dinov2_with_registers",
        pooled_frames,
        IMAGENET,
    ),
    "dinov3": ("DINOv3ViTModel", lambda: hf.DINOv3ViTConfig(**TOWER), None, pooled_frames, IMAGENET),
}


# The tensors of each file that are not used, by the first part of their names.
UNUSED = {
    "videomae pretrained": ("decoder", "encoder_to_decoder", "mask_token"),
    "videomae fine-tuned": ("classifier",),
    "videomae fine-tuned without mean pooling": ("classifier",),
    "timesformer": ("classifier",),
    "vjepa2": ("predictor",),
    "vjepa2 classifier": ("classifier", "pooler", "predictor"),
    "clip": ("logit_scale", "text_model", "text_projection", "visual_projection"),
    "clip classifier": ("classifier",),
    "clip with projection": ("visual_projection",),
    "dinov2": ("classifier",),
    "dinov2 with registers": ("classifier",),
}


def unused_note(folder: Path, key: str) -> list[str]:
    """The note that names the unused tensors of a saved file, counted in the file."""
    base = MODELS[key][2] or ""
    names = [name.removeprefix(f"{base}.").partition(".")[0] for name in load_file(folder / "model.safetensors")]
    groups = [(part, names.count(part)) for part in UNUSED.get(key, ())]
    assert all(count for _, count in groups)
    text = ", ".join(f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in groups)
    return [f"hf:{folder}: weights not used: {text}"] if text else []


def saved(folder: Path, key: str):
    """Save a model with all weights perturbed; return the submodule that computes the features."""
    model, submodule = saved_whole(folder, key), MODELS[key][2]
    return getattr(model, submodule) if submodule else model


def saved_whole(folder: Path, key: str):
    class_name, config, *_ = MODELS[key]
    torch.manual_seed(0)
    model = getattr(hf, class_name)(config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with warnings.catch_warnings(action="ignore"):
        model.save_pretrained(folder)
    return model


def options(folder: Path, **others) -> BackboneOptions:
    return BackboneOptions(**{"backbone": f"hf:{folder}"} | others)


def clips(frames: int = 4, input_px: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, frames, input_px, input_px, 3), generator=generator, dtype=torch.uint8)


def normalised(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    return ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("key", MODELS)
def test_features_are_those_of_the_models_own_trunk(tmp_path, key, capsys):
    model = saved(tmp_path, key)
    _, _, _, expected_features, mean_std = MODELS[key]
    capsys.readouterr()
    backbone = load_backbone(options(tmp_path), 4)
    with torch.inference_mode():
        expected = expected_features(model, normalised(clips(), *mean_std))
    torch.testing.assert_close(backbone(clips()), expected, rtol=1e-4, atol=1e-4)
    assert backbone.identity()["weights"].startswith("sha256:")
    assert list(backbone.notes) == unused_note(tmp_path, key)
    again = pickle.loads(pickle.dumps(backbone))
    torch.testing.assert_close(again(clips()), backbone(clips()))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("key", ["videomae fine-tuned", "timesformer"])
def test_the_classifier_of_a_fine_tuned_model_gives_its_own_logits_from_the_features(tmp_path, key):
    model = saved_whole(tmp_path, key)
    features = load_backbone(options(tmp_path), 4)(clips())
    with torch.inference_mode():
        expected = model(normalised(clips(), *MODELS[key][-1])).logits
        torch.testing.assert_close(model.classifier(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", ["dinov2", "dinov2 with registers"])
def test_features_of_dinov2_are_the_half_of_its_classifiers_input_that_is_the_class_token(tmp_path, key):
    model = saved_whole(tmp_path, key)
    images = normalised(clips(1), *IMAGENET)[:, 0]
    features = load_backbone(options(tmp_path), 1)(clips(1))
    with torch.inference_mode():
        tokens = getattr(model, MODELS[key][2])(images).last_hidden_state
        patches = tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :].mean(1)
        logits = model.classifier(torch.cat([features, patches], 1))
        torch.testing.assert_close(logits, model(images).logits, rtol=1e-4, atol=1e-4)


def test_features_of_clip_are_what_its_own_projection_takes(tmp_path):
    model = saved_whole(tmp_path, "clip with projection")
    features = load_backbone(options(tmp_path), 1)(clips(1))
    with torch.inference_mode():
        expected = model(normalised(clips(1), *CLIP)[:, 0]).image_embeds
        torch.testing.assert_close(model.visual_projection(features), expected, rtol=1e-4, atol=1e-4)


def test_a_fine_tuned_videomae_without_its_norm_is_refused_and_random_ones_have_it(tmp_path):
    saved(tmp_path, "videomae fine-tuned")
    normed = load_backbone(options(tmp_path, weights="none"), 4)
    assert set(normed.trunk.norm.state_dict()) == {"weight", "bias"}
    state = load_file(tmp_path / "model.safetensors")
    del state["fc_norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"found 1 of \d+ tensors missing, such as 'fc_norm.weight'"):
        load_backbone(options(tmp_path), 4)


def test_the_published_file_of_a_fine_tuned_videomae_is_read_with_its_norm(tmp_path):
    """Names and shapes of videomae-base-finetuned-kinetics, whose attention has q_bias and v_bias."""
    width, sizes = 768, {"attention.output.dense": (1, 1), "intermediate.dense": (4, 1), "output.dense": (1, 4)}
    shapes = {"videomae.embeddings.patch_embeddings.projection.weight": (width, 3, 2, 16, 16)}
    shapes |= {"videomae.embeddings.patch_embeddings.projection.bias": (width,)}
    for layer in (f"videomae.encoder.layer.{index}" for index in range(12)):
        shapes |= {f"{layer}.attention.attention.{name}.weight": (width, width) for name in ("query", "key", "value")}
        shapes |= {f"{layer}.attention.attention.{name}_bias": (width,) for name in ("q", "v")}
        for name, (out, into) in sizes.items():
            shapes |= {f"{layer}.{name}.weight": (out * width, into * width), f"{layer}.{name}.bias": (out * width,)}
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{layer}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
    shapes |= {"classifier.weight": (400, width), "classifier.bias": (400,)}
    # Expanded numbers take no space in the file.
    state = {name: torch.tensor(0.25).expand(shape) for name, shape in shapes.items()}
    state["fc_norm.weight"] = torch.rand(width)
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"model_type": "videomae", "architectures": ["VideoMAEForVideoClassification"], "use_mean_pooling": True}
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {str(n): str(n) for n in range(400)}}))
    backbone = load_backbone(options(tmp_path), 16)
    assert (backbone.num_frames, backbone.input_px) == (16, 224)
    assert torch.equal(backbone.trunk.norm.weight, state["fc_norm.weight"])
    attention = backbone.trunk.model.encoder.layer[11].attention.attention
    assert (attention.query.bias.unique().tolist(), attention.value.bias.unique().tolist()) == ([0.25], [0.25])
    assert backbone.notes == (f"hf:{tmp_path}: weights not used: classifier (2 tensors)",)


def test_a_video_model_sees_evenly_spaced_frames_of_longer_clips(tmp_path):
    saved(tmp_path, "videomae pretrained")
    backbone = load_backbone(options(tmp_path), 7)
    torch.testing.assert_close(backbone(clips(7)), backbone(clips(7)[:, [0, 2, 4, 6]]))
    with pytest.raises(UserError, match="expected at least 4 frames per clip, found 3; give --frames 4"):
        load_backbone(options(tmp_path), 3)


def test_missing_weights_are_refused(tmp_path):
    saved(tmp_path, "timesformer")
    state = load_file(tmp_path / "model.safetensors")
    removed = state.pop("timesformer.encoder.layer.1.temporal_dense.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"found 1 of \d+ tensors missing, such as 'encoder.layer.1.temporal_dense"):
        load_backbone(options(tmp_path), 4)
    state["timesformer.encoder.layer.1.temporal_dense.weight"] = removed[:, :4].contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="expected weights of TimesformerModel"):
        load_backbone(options(tmp_path), 4)


def test_the_predictor_of_vjepa_is_left_out_and_may_be_missing(tmp_path):
    saved(tmp_path, "vjepa2")
    whole = load_backbone(options(tmp_path), 4)
    assert not [key for key in whole.state_dict() if "predictor" in key]
    state = load_file(tmp_path / "model.safetensors")
    encoder = {key: value for key, value in state.items() if not key.startswith("predictor.")}
    assert len(encoder) < len(state)
    save_file(encoder, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(options(tmp_path), 4).identity() == whole.identity()


def test_weights_may_come_from_a_file_or_be_random(tmp_path):
    saved(tmp_path, "videomae fine-tuned")
    own = load_backbone(options(tmp_path), 4)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "w.pth")
    (tmp_path / "model.safetensors").unlink()
    filed = load_backbone(options(tmp_path, weights=str(tmp_path / "w.pth")), 4)
    torch.testing.assert_close(filed(clips()), own(clips()))
    assert filed.weights_id == own.weights_id
    first, again, other = (
        load_backbone(options(tmp_path, weights="none", backbone_seed=seed), 4) for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first(clips()), again(clips()))
    assert first.identity() == again.identity() != other.identity()
    with pytest.raises(UserError, match="expected weights of VideoMAEModel"):
        load_backbone(options(tmp_path), 4)


def test_a_pickle_that_would_execute_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    saved(tmp_path, "dinov2")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"dinov2.layernorm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="expected weights of Dinov2Model"):
        load_backbone(options(tmp_path), 4)


def test_the_models_own_processing_decides_pixels_and_size(tmp_path):
    model = saved(tmp_path, "dinov2")
    written = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_center_crop": True}
    written |= {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    backbone = load_backbone(options(tmp_path), 4)
    assert backbone.identity()["pixel_mean"] == [0.5] * 3
    assert backbone.input_px == 48
    with torch.inference_mode():
        expected = pooled_frames(model, normalised(clips(input_px=48), (0.5,) * 3, (0.25,) * 3))
    torch.testing.assert_close(backbone(clips(input_px=48)), expected, rtol=1e-4, atol=1e-4)
    given = load_backbone(options(tmp_path, input_px=64, pixel_mean=(0.1,), pixel_std=(1.0,)), 4)
    assert (given.input_px, given.identity()["pixel_mean"]) == (64, [0.1] * 3)


def test_clips_position_embeddings_follow_the_input_and_others_are_refused(tmp_path):
    model = saved(tmp_path / "clip", "clip")
    backbone = load_backbone(options(tmp_path / "clip", input_px=48), 1)
    pixels = normalised(clips(1, 48), *CLIP)[:, 0]
    with torch.inference_mode():
        expected = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(backbone(clips(1, 48)), expected, rtol=1e-4, atol=1e-4)
    for key in ("videomae pretrained", "timesformer", "vjepa2"):
        saved(tmp_path / key, key)
        with pytest.raises(UserError, match=r"input_px: .* expected 32 px, found 48"):
            load_backbone(options(tmp_path / key, input_px=48), 4)


@pytest.mark.parametrize("key", ["videomae pretrained", "videomae fine-tuned", "vjepa2", "dinov3"])
def test_less_precision_computes_nearly_the_same(tmp_path, key):
    saved(tmp_path, key)
    whole, half = (load_backbone(options(tmp_path, precision=precision), 4) for precision in ("float32", "bfloat16"))
    features = half(clips())
    assert features.dtype == torch.float32
    assert not torch.equal(features, whole(clips()))
    assert (features - whole(clips())).abs().mean() < 0.05 * whole(clips()).abs().mean()
    assert half.weights_id == whole.weights_id


def test_another_family_and_another_folder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"one of videomae, timesformer, vjepa2, clip, .*, found 'bert'"):
        load_backbone(options(tmp_path), 4)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"expected a config\.json in the folder"):
        load_backbone(options(tmp_path), 4)
    for wrong in ("/nowhere/at/all", "not a name", "a/b/c"):
        with pytest.raises(UserError, match=f"expected a folder or a hub id .*, found '{wrong}'"):
            load_backbone(BackboneOptions(backbone=f"hf:{wrong}"), 4)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache; patched, since the library reads `HF_HUB_CACHE` only at its first import."""
    library = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_that_cannot_be_reached_is_told_at_once(cache, monkeypatch, capsys):
    library = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(library.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        library, "list_repo_files", lambda *_: pytest.fail("the hub's client would retry for half a minute")
    )
    started_s = time.perf_counter()
    with pytest.raises(
        UserError, match=r"download some/model, .*127.0.0.1:9 cannot be reached .*; give a local folder"
    ):
        load_backbone(BackboneOptions(backbone="hf:some/model"), 4)
    assert time.perf_counter() - started_s < 3
    assert capsys.readouterr() == ("", "")


def test_the_hubs_cache_is_asked_first(cache, monkeypatch):
    snapshot = cache / "models--some--model" / "snapshots" / ("0" * 40)
    saved(snapshot, "dinov2")
    (cache / "models--some--model" / "refs").mkdir()
    (cache / "models--some--model" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_files, "_unreachable_reason", lambda _: pytest.fail("contacted the hub"))
    named = load_backbone(BackboneOptions(backbone="hf:some/model"), 4)
    torch.testing.assert_close(named(clips()), load_backbone(options(snapshot), 4)(clips()))
    assert named.identity()["backbone"] == "hf:some/model"


def test_one_format_of_the_weights_is_downloaded(cache, tmp_path, monkeypatch):
    saved(tmp_path / "model", "dinov2")
    requested = {}

    def snapshot_download(source, *, allow_patterns, **_):
        requested[source] = allow_patterns
        return str(tmp_path / "model")

    library = importlib.import_module("huggingface_hub")
    files = [
        "config.json",
        "README.md",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "preprocessor_config.json",
    ]
    monkeypatch.setattr(huggingface_files, "_unreachable_reason", lambda _: None)
    monkeypatch.setattr(library, "list_repo_files", lambda _: files)
    monkeypatch.setattr(library, "snapshot_download", snapshot_download)
    load_backbone(BackboneOptions(backbone="hf:some/model"), 4)
    sharded = ["model.safetensors.index.json", "model-*.safetensors"]
    assert requested == {"some/model": ["config.json", "preprocessor_config.json", *sharded]}
    load_backbone(BackboneOptions(backbone="hf:some/model", weights="none"), 4)
    assert requested == {"some/model": ["config.json", "preprocessor_config.json"]}


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in (f"hf:{tmp_path}", "svt"):
        with pytest.raises(UserError, match=r"found none; pip install 'scale-ray\[hf\]'"):
            load_backbone(BackboneOptions(backbone=name, weights="none"), 8)


def test_a_folders_figures_are_listed(tmp_path):
    saved(tmp_path, "timesformer")
    facts = backbone_facts(options(tmp_path), measure=True)
    assert (facts.feature_width, facts.input_px, facts.frames, facts.sees_video) == (32, 32, 4, True)
    assert facts.seconds_per_clip is not None
    # 2 layers x 16 tokens x (two attentions, the temporal projection, an MLP), plus the patch embedding.
    assert facts.gflop_per_clip * 1e9 == pytest.approx(2 * 16 * (2 * 4 + 1 + 4) * 32**2 + 16 * 768 * 32, rel=0.15)
