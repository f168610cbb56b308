r"""Times: at which ``t`` training looks.

The loss is :math:`E_t E |v(t, x_t) - u_t|^2` with ``t`` uniform. Its minimiser is the same for any
positive density of ``t``; what changes is where the error goes and how noisy the gradient is. Every law says its
density :math:`p(t)`, so that a loss weighted by :math:`1/p(t)` stays the uniform one on average.

**Stratified** times cut the interval into ``n`` cells of equal probability and draw one time in each. Every single time
still follows the law, so the loss stays unbiased; the part of the variance that comes from the spread of
``t`` over the batch nearly vanishes.

The interval belongs to the sampler of times, so that no formula carries an epsilon. A path says on
which interval it is regular; :class:`~flowmatch.FlowMatching` uses it by default.

``t = 0`` is the source and ``t = 1`` the data. Papers on diffusion count the other way: their ``t`` is our ``1 - t``.
"""

from flowmatch.times.beta import Beta
from flowmatch.times.laws import LogitNormal, Mode, Power
from flowmatch.times.mixed import Mixed
from flowmatch.times.shifted import Shifted
from flowmatch.times.uniform import Stratified, Uniform

__all__ = ["Beta", "LogitNormal", "Mixed", "Mode", "Power", "Shifted", "Stratified", "Uniform"]
