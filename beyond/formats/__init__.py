"""The formats in which models are stored elsewhere: TensorFlow's checkpoint written (checkpoint), the Hugging Face hub
(hub), and the folders of the transformers library: sizes and weights (transformers_folder), vocabulary (vocabulary)."""
