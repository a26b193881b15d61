"""Inference: evaluate a trained network on labelled images, classify images, freeze it for speed.

`evaluate` and `predict` take what a user has: a network, a run, a checkpoint, a .safetensors file, the name
of pretrained weights. Images get the preprocessing that is stored with the weights, and that a network keeps
from `resode.train` and `resode.load` as its attribute `preprocessing`. A network that has none gets 8-bit
pixels divided by 255, and floats as they are.
"""

from resode.inference.evaluation import Evaluation, evaluate
from resode.inference.frozen import Frozen
from resode.inference.prediction import Prediction, Predictions, predict
from resode.inference.trained import state_notes

__all__ = ["Evaluation", "Frozen", "Prediction", "Predictions", "evaluate", "predict", "state_notes"]
