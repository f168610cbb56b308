# mypy: disable-error-code="no-untyped-call, attr-defined"
"""Samples from a flow matching model. Needs torch and diffusers alone.

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipe(batch_size=16, num_inference_steps=50).images
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class FlowMatchPipeline(DiffusionPipeline):
    """Noise to images in equal steps: noise shares from 1 to 0, a network that answers noise less data.

    Args:
        scheduler: a ``FlowMatchEulerDiscreteScheduler``.
        unet: the network, if it is a U-Net.
        transformer: the network, if it is a transformer.
        classes: number of classes; this number itself is the label for no class.
        image: channels of the image that the network is told, 0 for none.
        mask: whether it is told where that image is known.
        noise: whether it is told how noisy that image is.
        guidance_scale: strength of classifier-free guidance by default; 1 is none.
        guidance_interval: times from 0 (noise) to 1 (data) in which guidance acts.
        noise_std: standard deviation of the noise that sampling starts from.
    """

    model_cpu_offload_seq = "unet->transformer"
    _optional_components = ["unet", "transformer"]

    def __init__(
        self,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        classes: int = 0,
        image: int = 0,
        mask: bool = False,
        noise: bool = False,
        guidance_scale: float = 1.0,
        guidance_interval: Any = (0.0, 1.0),
        noise_std: float = 1.0,
    ) -> None:
        super().__init__()
        if (unet is None) == (transformer is None):
            raise ValueError("give either a unet or a transformer")
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer)
        self.register_to_config(
            classes=classes,
            image=image,
            mask=mask,
            noise=noise,
            guidance_scale=guidance_scale,
            guidance_interval=tuple(guidance_interval),
            noise_std=noise_std,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Any = None,
        condition: dict[str, torch.Tensor] | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw images.

        Args:
            batch_size: how many, where neither labels nor a condition nor latents say it.
            class_labels: a class number or one for each image.
            condition: ``image`` ``(B, C, H, W)``, and ``mask`` ``(B, 1, H, W)`` and ``noise`` ``(B,)`` where used.
            guidance_scale: strength of classifier-free guidance.
            num_inference_steps: number of equal steps.
            sigmas: noise shares to stop at instead, falling, the last 0 left out.
            generator: source of the noise.
            latents: noise to start from, ``(B, C, H, W)``.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` in [0, 1], or ``"latent"`` for the numbers in [-1, 1] unclipped.
            return_dict: whether to return an object with ``images`` or a tuple.
        """
        net = self.transformer if self.unet is None else self.unet
        device = self._execution_device
        condition = condition or {}
        labels = None if class_labels is None else torch.as_tensor(class_labels, device=device)
        for given in (latents, *condition.values(), None if labels is None or not labels.ndim else labels):
            batch_size = batch_size if given is None else len(given)
        label, extra = self._told(labels, condition, batch_size, device, net.dtype)
        empty, nothing = torch.full_like(label, self.config.classes), torch.zeros_like(extra)
        # What a network without classes is called with: a U-Net has no table, a transformer one of a single row.
        named = label if self.config.classes or self.unet is None else None

        if latents is None:
            size = net.config.sample_size
            sides = (size, size) if isinstance(size, int) else tuple(size)
            shape = (batch_size, net.config.out_channels, *sides)
            latents = self.config.noise_std * randn_tensor(shape, generator=generator, device=device, dtype=net.dtype)
        x = latents.to(device)

        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if scale != 1 and not (self.config.classes or self.config.image):
            raise ValueError("guidance_scale needs a model with classes or an image as condition; leave it out")
        low, high = self.config.guidance_interval
        if sigmas is None:
            sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        for sigma, t in zip(self.scheduler.sigmas, self.progress_bar(self.scheduler.timesteps), strict=False):
            time, joined = t.expand(batch_size), torch.cat([x.to(net.dtype), extra], dim=1)
            answer = net(joined, timestep=time, class_labels=named, return_dict=False)[0]
            if scale != 1 and low - 1e-6 <= 1 - float(sigma) <= high + 1e-6:  # sigma is a float32
                joined = torch.cat([x.to(net.dtype), nothing], dim=1)
                plain = net(joined, timestep=time, class_labels=empty if self.config.classes else named)[0]
                answer = answer + (scale - 1) * (answer - plain)
            x = self.scheduler.step(answer, t, x, return_dict=False)[0]

        images: Any = x if output_type == "latent" else (x / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.cpu().float().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _told(
        self, labels: Any, condition: dict[str, Any], count: int, device: Any, dtype: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels ``(B,)``, zeros without classes, and what is joined to the noisy image as channels."""
        classes = self.config.classes
        if (labels is None) != (not classes):
            known = f"class_labels from 0 to {classes - 1}, {classes} for no class" if classes else "no class_labels"
            raise ValueError(f"this model takes {known}")
        label = torch.zeros(count, dtype=torch.long, device=device) if labels is None else labels.expand(count)
        if classes and not (int(label.min()) >= 0 and int(label.max()) <= classes):
            raise ValueError(f"class_labels must lie in 0..{classes}, got {label.tolist()}")
        names = [name for name in ("image", "mask", "noise") if self.config[name]]
        if sorted(condition) != sorted(names):
            raise ValueError(f"this model takes a condition of {names or 'nothing'}, got {sorted(condition)}")
        net = self.transformer if self.unet is None else self.unet
        size = net.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        parts = []
        for name in names:
            part = condition[name].to(device, dtype)
            parts.append(part.view(count, 1, 1, 1).expand(count, 1, height, width) if name == "noise" else part)
        return label, torch.cat(parts, dim=1) if parts else torch.zeros(count, 0, height, width, dtype=dtype).to(device)
