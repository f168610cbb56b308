r"""Runge-Kutta pairs: two methods on the same stages, whose difference estimates the error of a step.

.. math:: x_{new} = x + h \sum_i b_i k_i, \qquad e = h \sum_i (b_i - \hat b_i) k_i

The step is taken with the better method and controlled by the difference. In the pairs of order 3 and 5 the last stage
sits at the new state, so it is the first stage of the next step and costs nothing; they also have dense output.

Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, sections II.4 to II.6; Shampine, Some
practical Runge-Kutta formulas, 1986, for the dense output of Dormand and Prince.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch.solvers.base import ODE
from flowmatch.solvers.runge_kutta import RungeKutta, advance
from flowmatch.solvers.tableau import Tableau
from flowmatch.tensors import expand_time, mean_event

__all__ = ["BS32", "DOP853", "Dopri5", "Tsit5"]


@dataclass(frozen=True)
class BS32(RungeKutta):
    """Bogacki-Shampine 3(2): order 3 with an error estimate of order 2; three calls a step. For loose tolerances.

    Source:
        Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, 1989.
    """

    tableau = Tableau(
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0.0),
        order=3,
        b_low=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
        order_low=2,
        dense=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    )


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """Dormand-Prince 5(4): order 5 with an error estimate of order 4; six calls a step.

    Under ``rtol`` and ``atol`` every sample takes its own steps; under ``steps`` or ``grid`` the steps are fixed.

    Source:
        Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980, Table 2.

    Example:
        >>> from flowmatch.solvers import ODE, solve
        >>> solution = solve(ODE(lambda t, x: x), torch.ones(1, 1), solver=Dopri5(), rtol=1e-6, atol=1e-6)
        >>> bool((solution.x - torch.e).abs() < 1e-5)
        True
    """

    tableau = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        order=5,
        b_low=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
        order_low=4,
        dense=(
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    )


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """Tsitouras 5(4): order 5 with an error estimate of order 4; six calls a step, with smaller errors than Dopri5.

    Source:
        Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, 2011,
        Table 1.

    Example:
        >>> from flowmatch.solvers import ODE, solve
        >>> solution = solve(ODE(lambda t, x: x), torch.ones(1, 1), solver=Tsit5(), rtol=1e-6, atol=1e-6)
        >>> bool((solution.x - torch.e).abs() < 1e-5)
        True
    """

    tableau = Tableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ),
        order=5,
        b_low=(
            0.09646076681806523 - 0.00178001105222577714,
            0.01 - 0.0008164344596567469,
            0.4798896504144996 + 0.007880878010261995,
            1.379008574103742 - 0.1447110071732629,
            -3.290069515436081 + 0.5823571654525552,
            2.324710524099774 - 0.45808210592918697,
            1 / 66,
        ),
        order_low=4,
        dense=(
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.1317, -0.2234, 0.1017),
            (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
    )


@dataclass(frozen=True)
class DOP853(RungeKutta):
    r"""Dormand-Prince 8(5,3): order 8 with two error estimates; twelve calls a step. For tight tolerances.

    The estimates of order 5 and 3 are joined into one that falls with order 7,

    .. math:: e = e_5 \frac{\|e_5\|}{\sqrt{\|e_5\|^2 + 0.01 \|e_3\|^2}} .

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, section II.10, and the authors' code
        DOP853.

    Example:
        >>> from flowmatch.solvers import ODE, solve
        >>> start = torch.ones(1, 1, dtype=torch.float64)
        >>> solution = solve(ODE(lambda t, x: x), start, solver=DOP853(), rtol=1e-10, atol=1e-10)
        >>> bool((solution.x - torch.e).abs() < 1e-9)
        True
    """

    tableau = Tableau(
        a=(
            (),
            (0.05260015195876773,),
            (0.0197250569845379, 0.0591751709536137),
            (0.02958758547680685, 0.0, 0.08876275643042054),
            (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
            (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
            (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
            (
                0.03709200011850479,
                0.0,
                0.0,
                0.17038392571223998,
                0.10726203044637328,
                -0.015319437748624402,
                0.008273789163814023,
            ),
            (
                0.6241109587160757,
                0.0,
                0.0,
                -3.3608926294469414,
                -0.868219346841726,
                27.59209969944671,
                20.154067550477894,
                -43.48988418106996,
            ),
            (
                0.47766253643826434,
                0.0,
                0.0,
                -2.4881146199716677,
                -0.590290826836843,
                21.230051448181193,
                15.279233632882423,
                -33.28821096898486,
                -0.020331201708508627,
            ),
            (
                -0.9371424300859873,
                0.0,
                0.0,
                5.186372428844064,
                1.0914373489967295,
                -8.149787010746927,
                -18.52006565999696,
                22.739487099350505,
                2.4936055526796523,
                -3.0467644718982196,
            ),
            (
                2.273310147516538,
                0.0,
                0.0,
                -10.53449546673725,
                -2.0008720582248625,
                -17.9589318631188,
                27.94888452941996,
                -2.8589982771350235,
                -8.87285693353063,
                12.360567175794303,
                0.6433927460157636,
            ),
        ),
        b=(
            0.054293734116568765,
            0.0,
            0.0,
            0.0,
            0.0,
            4.450312892752409,
            1.8915178993145003,
            -5.801203960010585,
            0.3111643669578199,
            -0.1521609496625161,
            0.20136540080403034,
            0.04471061572777259,
        ),
        order=8,
        b_low=(
            0.04117368912237389,
            0.0,
            0.0,
            0.0,
            0.0,
            5.675469339128614,
            2.3872768489717506,
            -7.465581142465571,
            0.6614932157077935,
            -0.48634006837553356,
            0.11944219431891463,
            0.06706592359165889,
        ),
        order_low=5,
    )
    _coarse = Tableau(
        a=tableau.a,
        b=(0.2440944881889764, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7338466882816118, 0.0, 0.0, 0.022058823529411766),
        order=3,
    )

    def _error(self, equation: ODE, h: Tensor | float, x: Tensor, stages: list[Tensor]) -> Tensor:
        fine = super()._error(equation, h, x, stages)
        gap = [high - low for high, low in zip(self.tableau.b, self._coarse.b, strict=True)]
        coarse = advance(torch.zeros_like(x), h, gap, stages)
        norm = equation.norm or (lambda e: mean_event(e * e).sqrt())
        small, large = norm(fine), norm(coarse)
        whole = (small**2 + 0.01 * large**2).sqrt()
        # Without any error there is nothing to damp: 0 and not 0/0.
        share = torch.where(whole > 0, small / whole, torch.ones_like(whole))
        return fine * expand_time(share, fine).to(fine.dtype)
