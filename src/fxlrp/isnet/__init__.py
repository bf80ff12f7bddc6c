"""ISNet: train any classifier to ignore the background, by a loss on its own heatmaps.

Bassi, Decherchi, Cavalli, Faster ISNet for Background Bias Mitigation on Deep Neural Networks; equations are cited by
their numbers there.
"""

from .loss import ISNetLoss, ISNetLosses
from .module import ISNet, ISNetOutput
from .ranges import calibrate

__all__ = ["ISNet", "ISNetLoss", "ISNetLosses", "ISNetOutput", "calibrate"]
