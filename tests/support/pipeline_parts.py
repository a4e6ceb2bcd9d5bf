"""The components of tiny pipelines: the smallest configurations that each class runs with, random weights."""

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from torch import nn
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig

from support import tiny

HEIGHT, BREADTH = 32, 64  # pixels of every video's frames
WIDTH = 32  # of every text encoder


# ---- text


def clip(width: int = WIDTH, *, pooled: bool = False) -> tuple[Any, Any]:
    tokenizer = tiny.build_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return tokenizer, kind(config)


def t5(width: int = WIDTH) -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=width, d_kv=8, num_layers=1, num_heads=2
    )
    return {"tokenizer": tokenizer, "text_encoder": transformers.T5EncoderModel(config)}


def clip_vision(width: int, size: int = HEIGHT) -> Any:
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            intermediate_size=width,
            patch_size=size // 4,
        )
    )


def image_processor() -> Any:
    return transformers.CLIPImageProcessor(crop_size=HEIGHT, size=HEIGHT)


def siglip_processor() -> Any:
    return transformers.SiglipImageProcessor(size={"height": HEIGHT, "width": HEIGHT})


# ---- autoencoders


def image_vae() -> Any:
    """Compresses a frame by 8."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=HEIGHT,
    )


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def cogvideox_vae() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


# ---- pipelines


def animatediff(**changes: Any) -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    return {
        "vae": tiny.build_vae(),
        "text_encoder": tiny.build_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": tiny.build_unet(),
        "motion_adapter": None,
        "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        **changes,
    }


def animatediff_to_adapt() -> dict[str, Any]:
    """From an image UNet and a motion adapter, as the real one is put together."""
    channels = (8, 16)
    tokenizer, text_encoder = clip()
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=1,
        sample_size=HEIGHT // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    adapter = diffusers.MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    return animatediff(
        vae=image_vae(), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, motion_adapter=adapter
    )


def animatediff_sdxl() -> dict[str, Any]:
    channels = (8, 16)
    tokenizer, text_encoder = clip(16)
    tokenizer_2, text_encoder_2 = clip(16, pooled=True)
    return {
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=channels,
            layers_per_block=1,
            sample_size=HEIGHT // 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 8 + 16,
            cross_attention_dim=WIDTH,
            norm_num_groups=2,
        ),
        "motion_adapter": diffusers.MotionAdapter(
            block_out_channels=channels,
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
            use_motion_mid_block=False,
        ),
        "vae": image_vae(),
        **{"text_encoder": text_encoder, "tokenizer": tokenizer},
        **{"text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2},
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="linear", timestep_spacing="leading"),
    }


def cogvideox(scheduler: str = "CogVideoXDDIMScheduler", image: bool = False) -> dict[str, Any]:
    return {
        **t5(),
        "transformer": diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8 if image else 4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=WIDTH,
            num_layers=1,
            sample_width=BREADTH // 8,
            sample_height=HEIGHT // 8,
            sample_frames=9,
            max_text_seq_length=16,
            use_rotary_positional_embeddings=image,
            use_learned_positional_embeddings=image,
        ),
        "vae": cogvideox_vae(),
        "scheduler": getattr(diffusers, scheduler)(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
    }


def ltx() -> dict[str, Any]:
    return {
        **t5(),
        "transformer": diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=WIDTH,
        ),
        "vae": diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            patch_size=1,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
    }


def wan_transformer(kind: str = "WanTransformer3DModel", **changes: Any) -> Any:
    return getattr(diffusers, kind)(
        **{
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": WIDTH,
            "freq_dim": 64,
            "ffn_dim": 32,
            "num_layers": 1,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
            **changes,
        }
    )


def unipc_flow() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def wan(**changes: Any) -> dict[str, Any]:
    return {
        **t5(),
        "transformer": wan_transformer(),
        "vae": wan_vae(),
        "scheduler": unipc_flow(),
        **changes,
    }


def wan_image(kind: str = "WanTransformer3DModel") -> dict[str, Any]:
    return wan(
        transformer=wan_transformer(kind, in_channels=36, image_dim=4),
        image_encoder=clip_vision(4),
        image_processor=image_processor(),
    )


def hunyuan_text() -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    llama = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer_2, text_encoder_2 = clip(8)
    return {
        **{"tokenizer": tokenizer, "text_encoder": transformers.LlamaModel(llama)},
        **{"tokenizer_2": tokenizer_2, "text_encoder_2": text_encoder_2},
    }


def hunyuan_transformer(**changes: Any) -> Any:
    return diffusers.HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
            **changes,
        }
    )


def hunyuan() -> dict[str, Any]:
    return {
        **hunyuan_text(),
        "transformer": hunyuan_transformer(),
        "vae": hunyuan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def hunyuan_15() -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    qwen = transformers.Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
    )
    glyphs = transformers.ByT5Tokenizer()
    t5_config = transformers.T5Config(
        vocab_size=len(glyphs), d_model=WIDTH, d_ff=WIDTH, d_kv=8, num_layers=1, num_heads=2
    )
    return {
        "transformer": diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            text_embed_2_dim=WIDTH,
            image_embed_dim=12,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
            task_type="t2v",
        ),
        "vae": diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": transformers.Qwen2_5_VLTextModel(qwen),
        "tokenizer": tokenizer,
        "text_encoder_2": transformers.T5EncoderModel(t5_config),
        "tokenizer_2": glyphs,
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    }


def hunyuan_image(*, token_replace: bool) -> dict[str, Any]:
    """Of the two ways to give the image: in further channels, or as the first frame."""
    text = hunyuan_text()
    image_token = len(text["tokenizer"])
    llava = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=image_token + 1,
            hidden_size=16,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=3,
            pad_token_id=text["tokenizer"].pad_token_id,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            projection_dim=8,
            num_attention_heads=2,
            num_hidden_layers=2,
            image_size=HEIGHT,
            patch_size=HEIGHT // 2,
        ),
        image_token_index=image_token,
        image_seq_length=4,
        pad_token_id=text["tokenizer"].pad_token_id,
    )
    return {
        **text,
        "text_encoder": transformers.LlavaForConditionalGeneration(llava),
        "image_processor": image_processor(),
        "transformer": hunyuan_transformer(
            in_channels=4 if token_replace else 9,
            image_condition_type="token_replace" if token_replace else "latent_concat",
        ),
        "vae": hunyuan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def hunyuan_skyreels() -> dict[str, Any]:
    return {**hunyuan(), "transformer": hunyuan_transformer(in_channels=8)}


def hunyuan_15_image() -> dict[str, Any]:
    parts = hunyuan_15()
    config = {**parts["transformer"].config, "task_type": "i2v"}
    vision = transformers.SiglipVisionConfig(
        hidden_size=12,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=HEIGHT,
        patch_size=HEIGHT // 2,
    )
    return {
        **parts,
        "transformer": diffusers.HunyuanVideo15Transformer3DModel.from_config(config),
        "image_encoder": transformers.SiglipVisionModel(vision),
        "feature_extractor": siglip_processor(),
    }


def motif(*, image: bool = False) -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "dropout_rate": 0.0},
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
    }
    vision = {
        **{"hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": HEIGHT, "patch_size": HEIGHT // 2},
    }
    config = T5Gemma2EncoderConfig(text_config=text, vision_config=vision)
    return {
        "text_encoder": transformers.T5Gemma2Encoder(config),
        "tokenizer": tokenizer,
        "feature_extractor": siglip_processor(),
        "transformer": diffusers.MotifVideoTransformer3DModel(
            in_channels=33,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=16,
            image_embed_dim=12 if image else None,
            rope_axes_dim=(4, 4, 4),
        ),
        "vae": wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    }


def easyanimate() -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }} {% endfor %}"
    bert = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.BertModel(bert),
        "transformer": diffusers.EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=1,
            time_embed_dim=8,
            text_embed_dim=16,
        ),
        "vae": diffusers.AutoencoderKLMagvit(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def pia() -> dict[str, Any]:
    tokenizer, text_encoder = clip()
    unet = diffusers.UNetMotionModel(
        in_channels=9,  # the latent, a mask and the image
        out_channels=4,
        sample_size=HEIGHT // 8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        norm_num_groups=2,
    )
    return animatediff(vae=image_vae(), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet)


def kandinsky() -> dict[str, Any]:
    return {
        **hunyuan_text(),
        "transformer": diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=8,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(1, 1, 2),
        ),
        "vae": hunyuan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def mochi() -> dict[str, Any]:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    nn.init.zeros_(transformer.pos_frequencies)  # left unset by the class
    return {
        **t5(),
        "transformer": transformer,
        "vae": diffusers.AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }


def latte() -> dict[str, Any]:
    return {
        **t5(),
        "transformer": diffusers.LatteTransformer3DModel(
            sample_size=HEIGHT // 8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=WIDTH,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=3,
        ),
        "vae": image_vae(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }


def allegro() -> dict[str, Any]:
    return {
        **t5(24),
        "transformer": diffusers.AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            cross_attention_dim=24,
            sample_width=8,
            sample_height=8,
            sample_frames=8,
            caption_channels=24,
        ),
        "vae": diffusers.AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": diffusers.EulerAncestralDiscreteScheduler(),
    }


def stable_video_diffusion() -> dict[str, Any]:
    return {
        "unet": diffusers.UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=HEIGHT // 8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=96,
            addition_time_embed_dim=32,
        ),
        "vae": diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        "image_encoder": clip_vision(16, size=224),
        "feature_extractor": image_processor(),
    }


def sana_video() -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    gemma = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        attn_implementation="eager",
        pad_token_id=tokenizer.pad_token_id,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Gemma2Model(gemma),
        "transformer": diffusers.SanaVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=8,
            sample_size=8,
            patch_size=(1, 2, 2),
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        "vae": wan_vae(),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    }


def text_to_video_sd() -> dict[str, Any]:
    tokenizer, text_encoder = clip(4)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": diffusers.UNet3DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=HEIGHT // 8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=4,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        "vae": image_vae(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }


def ltx2() -> dict[str, Any]:
    tokenizer = tiny.build_tokenizer()
    gemma = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        attn_implementation="eager",
        pad_token_id=tokenizer.pad_token_id,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Gemma2Model(gemma),
        "transformer": diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=16,
            rope_type="split",
            rope_double_precision=False,
        ),
        "connectors": LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=32,
            rope_theta=10000.0,
            rope_double_precision=False,
            causal_temporal_positioning=False,
            rope_type="split",
        ),
        "vae": diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatiotemporal",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=4,
        ),
        "audio_vae": audio_vae,
        "vocoder": LTX2Vocoder(
            in_channels=2 * 8,
            hidden_channels=32,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        "processor": None,
        "prompt_enhancer": None,
        "duration_head": None,
    }
