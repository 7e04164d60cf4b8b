"""How a model is learned: selection, phases, self-cleaning, its own error and uncertainty, reliability classifiers."""
