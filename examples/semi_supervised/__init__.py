"""Semi-supervised segmentation in small, readable pieces. `trainer.py` adds the density loss."""
