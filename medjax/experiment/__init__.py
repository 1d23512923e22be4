"""An experiment: a config becomes data, a network, a run folder, masks and numbers. Config objects are read here and nowhere below."""
