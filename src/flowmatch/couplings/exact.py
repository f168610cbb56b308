r"""The exact optimal-transport coupling of two batches.

Between two batches of ``B`` points of weight :math:`1/B` each, the plans of least mean cost

.. math:: \min_{\pi} \sum_{ij} \pi_{ij} |x_0^{(i)} - x_1^{(j)}|^2, \qquad
    \pi_{ij} \ge 0, \quad \sum_j \pi_{ij} = \sum_i \pi_{ij} = 1/B

form a polytope whose corners are permutations (Birkhoff, von Neumann), so one of the plans joins every point to one
point. Straight paths between the pairs do not cross, which makes the field they train easier to integrate. Drawing
pairs from the plan, with replacement, would leave out more than a third of the batch; the permutation itself is used
here instead.

For batches of finite size the pairs are those of the batch, not of the two laws. The marginals stay right, whatever the
size; only the straightness gains from a larger batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.couplings.assignment import assign
from flowmatch.couplings.cost import check_clouds, squared_distances
from flowmatch.typing import Cond

__all__ = ["ExactOT"]


@dataclass(frozen=True)
class ExactOT:
    r"""Join two batches by the permutation of least total squared distance.

    .. math:: \sigma = \operatorname{argmin}_\sigma \sum_i |x_0^{(i)} - x_1^{(\sigma(i))}|^2

    Every point of both batches is used once. Nothing is random, and the condition plays no part. Distances are taken on
    the device of ``x1``; the matrix is solved on the CPU by :func:`~flowmatch.couplings.assignment.assign`, which needs
    ``pip install "flowmatch[ot]"`` and compiles itself for some seconds when it is first used.

    With labels or other conditions use :class:`~flowmatch.couplings.conditional.ConditionAware`: plain optimal
    transport joins each label to its own part of the source, and then a label asked for at sampling time starts from a
    source it was not trained on.

    Source:
        Tong et al., Improving and generalizing flow-based generative models with minibatch optimal transport, 2023,
        section 3.2; Pooladian et al., Multisample flow matching, 2023.

    Example:
        >>> ExactOT()(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.1], [0.1], [1.1]]))
        (tensor([0, 1, 2]), tensor([1, 2, 0]))
    """

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Index tensors ``(i, j)`` of shape ``(B,)``, ``i`` in order.

        Raises:
            TypeError: integer tensors or two different types.
            ValueError: batches of two sizes, shapes or devices, a NaN or an infinity.
            ImportError: numba is not installed.
        """
        check_clouds(x0, x1, same_size=True)
        columns = assign(squared_distances(x0, x1).cpu().numpy())[0]
        return torch.arange(x0.shape[0], device=x1.device), torch.from_numpy(columns).to(x1.device)
