"""Laws of training loss. To add one, write a file with a Law and enter it here."""

from analysis.laws import creep, fsl, kappa_relax, momentum, mpl, power
from analysis.laws.law import Law

TRAJECTORY_LAWS: tuple[Law, ...] = (
    momentum.LAW,
    mpl.LAW,
    fsl.LAW,
    mpl.KAPPA_LAW,
    fsl.KAPPA_LAW,
    fsl.POWER_LAW,
    kappa_relax.LAW,
    kappa_relax.STRETCHED_LAW,
    creep.LAW,
)
FINAL_LAWS: tuple[Law, ...] = (power.POWER_LAW, power.LOG_LAW, power.SURFACE_LAW, power.SIZE_LAW)
