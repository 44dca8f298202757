"""The model, in the order in which data flows: encoders, projectors, language model, pixel decoder."""
