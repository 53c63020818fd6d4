"""What a model is trained for: loss and prediction of each task."""
