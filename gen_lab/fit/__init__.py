"""The one loop of gen_lab, and which settings of it contradict a model's."""

from gen_lab.fit.loop import fit as fit
from gen_lab.fit.loop import picture as picture
