"""Open-vocabulary detection for people: pictures encoded once, queries kept, boxes in pixels of the original.

model.py: `Detector`; images.py: `EncodedImages`; bank.py: `QueryBank`, made by words.py and examples.py;
asked.py: what may be given as queries; select.py: candidates and queries -> `Detections`.
"""

from mmvit.detector.bank import QueryBank
from mmvit.detector.images import EncodedImages
from mmvit.detector.model import Detector

__all__ = ["Detector", "EncodedImages", "QueryBank"]
