"""Semi-supervised segmentation in small, readable pieces; `trainer.py` is where the density loss joins."""
