"""Workers compute: samples, models, training and serving. State lives in `ps`."""
