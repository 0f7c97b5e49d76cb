"""From a modality's batch field to tokens: one adapter a modality, positions and selection shared by all."""
