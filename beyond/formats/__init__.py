"""The model formats of other projects: writing TensorFlow's checkpoints (checkpoint), the Hugging Face hub (hub), and
folders of the transformers library, their sizes and weights (transformers_folder) and vocabulary (vocabulary)."""
