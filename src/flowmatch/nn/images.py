"""What image networks have in common: the shape, the time, and the condition as labels and further channels.

Whatever is known of the answer beside its class is joined to ``x`` as channels, in the order ``x``, image, mask, noise;
a noise strength is a channel of one value. So a network of any kind is image conditioned through its first layer alone.

A network with ``classes=K`` knows the labels ``0..K-1`` and one more, ``K``, the empty label: no class is told. Labels
replaced by it now and then in training give classifier-free guidance, with :attr:`ImageNetwork.null` as its ``null``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.tensors import can_look, check_event, check_time, expand_time
from flowmatch.typing import Cond

__all__ = ["ImageNetwork"]


class ImageNetwork(nn.Module):
    """A field on images ``(B, C, H, W)``: checks at the door, and the inner network in the subclass.

    The condition is an integer label ``(B,)`` of a network with ``classes``, or a dict as
    :class:`flowmatch.data.images.Downsampled` and :class:`flowmatch.data.images.Masked` make it, of one with ``image``.

    Args:
        shape: ``(C, H, W)`` of the images.
        classes: number ``K`` of classes, 0 for none; label ``K`` is the empty one.
        image: channels of ``cond["image"]``, 0 for none.
        mask: whether ``cond["mask"]`` ``(B, 1, H, W)`` tells where the image is known.
        noise: whether ``cond["noise"]`` ``(B,)`` tells how noisy the image is.

    Raises:
        ValueError: sizes that make no image, or a mask or noise without an image.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, image: int = 0, mask: bool = False, noise: bool = False
    ) -> None:
        super().__init__()
        if len(shape) != 3 or not all(isinstance(side, int) and side >= 1 for side in shape):
            raise ValueError(f"shape must be three whole numbers (channels, height, width), got {shape!r}")
        if not all(isinstance(count, int) and count >= 0 for count in (classes, image)):
            raise ValueError(f"need classes, image >= 0, got classes={classes}, image={image}")
        if (mask or noise) and not image:
            raise ValueError("mask and noise say more of an image: give image=, its number of channels, as well")
        self.shape = (shape[0], shape[1], shape[2])
        self.classes, self.image, self.mask, self.noise = classes, image, bool(mask), bool(noise)

    @property
    def channels_in(self) -> int:
        """Channels of ``x`` and of all that is joined to it."""
        return self.shape[0] + self.image + self.mask + self.noise

    @property
    def null(self) -> Any:
        """The empty condition, as :class:`flowmatch.Guided` takes it; ``None`` for a network without condition.

        Of a network conditioned on an image it is without image as well.
        """
        if not self.image:
            return self.classes or None
        known: dict[str, Any] = {"image": 0.0, "mask": False, "noise": 0.0, "label": self.classes}
        return {key: known[key] for key in self._keys()}

    @abstractmethod
    def _velocity(self, t: Tensor, x: Tensor, label: Tensor | None) -> Tensor:
        """Velocity ``(B, C, H, W)`` at times ``(B,)``, from ``x`` with what is joined to it and labels ``(B,)``."""

    def forward(self, t: Tensor | float, x: Tensor, cond: Cond = None) -> Tensor:
        """Velocity ``(B, C, H, W)`` at times ``()`` or ``(B,)`` and images ``(B, C, H, W)``, under the condition."""
        check_event(x)
        if tuple(x.shape[1:]) != self.shape:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"this network takes x of shape (B, {sides}), got {tuple(x.shape)}")
        time = check_time(t, x).expand(x.shape[:1])
        label, channels = self._read(cond, x)
        return self._velocity(time, torch.cat([x, *channels], dim=1) if channels else x, label)

    def extra_repr(self) -> str:
        """Shape and conditions, for the printed form."""
        told = {"classes": self.classes, "image": self.image, "mask": self.mask, "noise": self.noise}
        return ", ".join([f"shape={self.shape}", *(f"{name}={value}" for name, value in told.items() if value)])

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"{type(self).__name__}({self.extra_repr()}, parameters={count})"

    def _shared_config(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("classes", "image", "mask", "noise")}
        return {"shape": list(self.shape), **told}

    def _keys(self) -> list[str]:
        wanted = {"image": self.image, "mask": self.mask, "noise": self.noise, "label": self.classes}
        return [key for key, given in wanted.items() if given]

    def _read(self, cond: Cond, x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Labels, and what is to be joined to ``x``."""
        if not self.image:
            if self.classes:
                return self._label(cond, x), []
            if cond is not None:
                raise ValueError("this network has no condition, got one; build it with classes= or image=")
            return None, []
        keys = self._keys()
        if not isinstance(cond, Mapping) or set(cond) != set(keys):
            got = sorted(cond) if isinstance(cond, Mapping) else "none" if cond is None else type(cond).__name__
            raise ValueError(
                f"this network needs a condition, a dict with {', '.join(keys)}, got {got}; what it takes is set by "
                "image=, mask=, noise= and classes= when it is built"
            )
        _, height, width = self.shape
        size = x.shape[0]
        shapes = {"image": (size, self.image, height, width), "mask": (size, 1, height, width), "noise": (size,)}
        for key in shapes.keys() & set(keys):
            _check_shape(cond[key], shapes[key], f'cond["{key}"]')
        channels = [cond["image"].to(x.dtype)]
        if self.mask:
            if cond["mask"].dtype != torch.bool:
                raise TypeError(
                    f'cond["mask"] must be boolean, true where the image is known, got {cond["mask"].dtype}'
                )
            channels.append(cond["mask"].to(x.dtype))
        if self.noise:
            channels.append(expand_time(cond["noise"].to(x.dtype), x).expand(size, 1, height, width))
        return self._label(cond["label"], x) if self.classes else None, channels

    def _label(self, label: Any, x: Tensor) -> Tensor:
        meaning = f"0..{self.classes - 1}, or {self.classes} for no class"
        if label is None:
            raise ValueError(f"this network needs a condition, integer labels of shape ({x.shape[0]},) in {meaning}")
        _check_shape(label, (x.shape[0],), "the labels")
        assert isinstance(label, Tensor)
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise TypeError(f"class labels must be integers, got {label.dtype}")
        if can_look(label) and not (int(label.min()) >= 0 and int(label.max()) <= self.classes):
            raise ValueError(f"class labels must lie in {meaning}, got {int(label.min())} to {int(label.max())}")
        return label.long()


def _check_shape(value: Any, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"this network needs {name} of shape {shape}, got {got}")
