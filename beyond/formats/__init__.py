"""A model in the formats of others: TensorFlow's checkpoint (checkpoint), which is also PicoGPT's own, and the Hugging
Face hub (hub) with the weights (transformers_folder) and tokenizers (vocabulary) of the transformers library."""
